"""Reads the text of compiled HLO: loops, cycles, large arrays.

Text in, tables out; nothing here knows JAX, a mesh or a model. `Program` parses
what `jax.stages.Compiled.as_text` gives for CPUs and for TPUs (jaxlib 0.10.2,
libtpu 0.0.42). All is of one device: the compiled program is what each runs.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re

# Bytes of a number by XLA's name of its type; names not here (token) have none.
BYTES = {
  'pred': 1, 's8': 1, 'u8': 1, 's16': 2, 'u16': 2, 's32': 4, 'u32': 4,
  's64': 8, 'u64': 8, 'f16': 2, 'bf16': 2, 'f32': 4, 'f64': 8, 'c64': 8,
  'c128': 16, 's4': 0.5, 'u4': 0.5, 'f8e4m3fn': 1, 'f8e5m2': 1,
}  # fmt: skip
COLLECTIVES = (
  'all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all',
  'collective-permute', 'ragged-all-to-all', 'collective-broadcast',
)  # fmt: skip
HOST = 'S(5)'  # in the layout of an array that lies in the host's memory
UNKNOWN_CYCLES = 2**63 - 1  # XLA's mark of an operation it has no estimate for
# Operations that make no array of their own.
FREE = {
  'parameter', 'get-tuple-element', 'tuple', 'bitcast', 'while', 'constant',
  'conditional', 'call', 'optimization-barrier',
}  # fmt: skip

_COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{\s*$')
_END = re.compile(r'^\}(, execution_thread=.*)?\s*$')
_INSTRUCTION = re.compile(
  r'^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$'
)
ARRAY = re.compile(r'\b([a-z]\w*)\[([\d,]*)\]')
_CALLED = re.compile(
  r'\b(calls|body|condition|to_apply|true_computation|false_computation|'
  r'branch_computations|called_computations)=(\{[^}]*\}|%?[\w.\-]+)'
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_FRAME = re.compile(r'stack_frame_id=(\d+)')
_OLD_SOURCE = re.compile(r'source_file="([^"]+)"(?: source_line=(\d+))?')
_OP_NAME = re.compile(r'op_name="([^"]*)"')


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line: `name = shape opcode(rest`."""

  name: str
  shape: str
  opcode: str
  rest: str

  @functools.cached_property
  def called(self) -> list[tuple[str, str]]:
    """(how, computation) of what it calls: ('body', 'region_0'), ..."""
    return [
      (how, name)
      for how, names in _CALLED.findall(self.rest)
      for name in re.findall(r'[\w.\-]+', names)
    ]

  @property
  def op_name(self) -> str:
    """JAX's name of it: 'jit(train_step)/.../dot_general'; '' if unknown."""
    found = _OP_NAME.search(self.rest)
    return found[1] if found else ''

  @property
  def cycles(self) -> int | None:
    """The compiler's estimate; None where it has none."""
    found = _CYCLES.search(self.rest)
    cycles = int(found[1]) if found else UNKNOWN_CYCLES
    return None if cycles >= UNKNOWN_CYCLES else cycles


def arrays(shape: str) -> list[float]:
  """Bytes of each array of a shape, without padding: of a tuple's, several."""
  sizes = []
  for dtype, sides in ARRAY.findall(shape):
    if dtype in BYTES:
      sides = [int(n) for n in sides.split(',') if n]
      sizes.append(BYTES[dtype] * math.prod(sides))
  return sizes


class Program:
  """A compiled module.

  Attributes:
    computations: name -> its instructions.
    entry: the name of the one that runs.
    unknown_loops: names of loops whose trip count the text does not say, once
      `times` has looked.
    turns: loop's name -> how often it turns, whatever the text says.
  """

  def __init__(self, text: str):
    self.computations: dict[str, list[Instruction]] = {}
    self.entry = ''
    self.unknown_loops: list[str] = []
    self.turns: dict[str, int] = {}
    self._places = _places(text)
    inside: list[list[str]] | None = None
    for line in text.splitlines():
      if inside is None:
        if header := _COMPUTATION.match(line):
          inside = []
      elif _END.match(line):
        lines = [Instruction(*parts) for parts in inside]
        self.computations[header[2]] = lines
        self.entry = header[2] if header[1] else self.entry
        inside = None
      elif found := _INSTRUCTION.match(line):
        inside.append(list(found.groups()))
      elif inside:  # an attribute of several lines, as Pallas kernels have
        inside[-1][3] += line

  @functools.cached_property
  def times(self) -> dict[str, int]:
    """How often each computation runs; those that do not are left out.

    The bodies of loops as often as the loops turn, both branches of a
    conditional once. What is done to each number (`to_apply` of a reduction)
    is not counted.
    """
    times = dict.fromkeys(self.computations, 0)
    times[self.entry] = 1
    for name in self._callers_first():
      for line in self.computations[name]:
        turns = self._trips(line) if line.opcode == 'while' else 1
        for how, callee in line.called:
          if self._runs(line, how) and callee in times:
            times[callee] += times[name] * turns
    return {name: n for name, n in times.items() if n}

  def loops(self) -> list[Instruction]:
    """The loops that run, those inside of others as well."""
    return [line for line, _, _ in self.running() if line.opcode == 'while']

  def one_turn(self, loop: Instruction) -> Program:
    """What one turn of a loop does, its condition included."""
    calls = [
      Instruction(how, '', 'call', f', to_apply=%{callee}')
      for how, callee in loop.called
    ]
    return self._also('turn of ' + loop.name, calls, self.turns)

  def without(self, loop: Instruction) -> Program:
    """All but what a loop does."""
    return self._also(
      self.entry, self.computations[self.entry], {**self.turns, loop.name: 0}
    )

  def _also(self, entry: str, lines: list, turns: dict[str, int]) -> Program:
    """The same text, begun at `entry`."""
    made = object.__new__(Program)
    made.computations = {**self.computations, entry: lines}
    made.entry, made.turns, made.unknown_loops = entry, turns, []
    made._places = self._places
    return made

  def _callers_first(self) -> list[str]:
    order, seen = [], set()

    def visit(name):
      if name in seen or name not in self.computations:
        return
      seen.add(name)
      for line in self.computations[name]:
        for how, callee in line.called:
          if self._runs(line, how):
            visit(callee)
      order.append(name)

    visit(self.entry)
    return order[::-1]

  def _runs(self, line: Instruction, how: str) -> bool:
    return how != 'to_apply' or line.opcode == 'call'

  def _trips(self, line: Instruction) -> int:
    """Turns of a `while`: as XLA wrote, or its condition's one constant.

    The condition compares a count with it; one that asks whether all rows are
    done compares nothing.
    """
    if line.name in self.turns:
      return self.turns[line.name]
    if found := _TRIPS.search(line.rest):
      return int(found[1])
    condition = self.computations.get(dict(line.called).get('condition'), ())
    bounds = {
      int(found[1])
      for inner in condition
      if inner.opcode == 'constant'
      and (found := re.match(r'(\d+)\)', inner.rest))
    }
    compares = any(x.opcode in ('compare', 'fusion', 'call') for x in condition)
    if compares and len(bounds) == 1:
      return bounds.pop()
    self.unknown_loops.append(line.name)
    return 1

  def running(self):
    """(instruction, its computation, how often) of all that runs."""
    for name, times in self.times.items():
      for line in self.computations[name]:
        yield line, name, times

  def source(self, line: Instruction, computation: str = '') -> str:
    """'atm/model/layers.py:88', the innermost known line of a project's file.

    Where the line does not say, that of what calls its computation.
    """
    caller = self._callers.get(computation)
    return self._source(line) or (self._source(caller) if caller else '')

  @functools.cached_property
  def _callers(self) -> dict[str, Instruction]:
    """Computation -> what calls it, or one of those."""
    return {
      callee: line for line, _, _ in self.running() for _, callee in line.called
    }

  def _source(self, line: Instruction) -> str:
    if found := _FRAME.search(line.rest):
      return self._places.get(int(found[1]), '')
    if found := _OLD_SOURCE.search(line.rest):
      return f'{_short(found[1])}:{found[2] or "?"}'
    return ''

  # --- What is asked of it

  def host_copies(self) -> list[tuple[str, int, bool, float]]:
    """Copies between a device's memory and its host's.

    Before the compiler ends it calls all of them async-start; their names say
    which.

    Returns:
      (computation, how often it runs, whether to the host, bytes) of each.
    """
    found = []
    for line, computation, times in self.running():
      if HOST not in line.shape:
        continue
      kind, sizes = line.opcode, arrays(line.shape)
      if kind == 'async-start':
        kind = line.name.partition('.')[0]
      if kind == 'dynamic-update-slice-start':  # ((whole, part, ...
        found.append((computation, times, True, sizes[1]))
      elif kind == 'dynamic-slice-start':  # (..., part, context)
        found.append((computation, times, False, sizes[-2]))
      elif kind == 'copy-start':  # (copy, original, context)
        to_host = HOST in line.shape[: line.shape.index('}')]
        found.append((computation, times, to_host, sizes[0]))
    return found

  @functools.cached_property
  def asynchronous(self) -> set[str]:
    """Computations whose collectives run beside others, and what they call.

    Called by async-start; on TPUs by a fusion that starts a collective.
    """
    starts = lambda line: (
      line.opcode == 'async-start'
      or line.name.startswith('async-collective-start')
    )
    return self._called_by(starts)

  @functools.cached_property
  def continued(self) -> set[str]:
    """Computations that go on with, or end, a collective started elsewhere.

    TPUs write such a collective out again: in every fusion that multiplies
    meanwhile, and in the one that ends it.
    """
    goes_on = lambda line: (
      line.name.startswith('async-collective-done')
      or any(
        callee.startswith('async_collective_fusion')
        for _, callee in line.called
      )
    )
    return self._called_by(goes_on)

  def _called_by(self, which) -> set[str]:
    """Computations called by lines of some sort, and what they call."""
    found = set()
    for name in self._callers_first():
      for line in self.computations[name]:
        if name in found or which(line):
          found |= {callee for _, callee in line.called}
    return found

  def writes_a_part(self, line: Instruction) -> bool:
    """Whether it makes an array by writing a part of another."""
    parts = {'dynamic-update-slice', 'pad'}
    return bool(self._opcodes(line) & parts)

  def updates(self, line: Instruction) -> bool:
    """Whether it writes a part of what it is given."""
    return bool(self._opcodes(line) & {'dynamic-update-slice', 'scatter'})

  def only_moves(self, line: Instruction) -> bool:
    """Whether it computes nothing."""
    moves = {'copy', 'transpose', 'bitcast', 'reshape'}
    return self._opcodes(line) <= moves

  def cycles(self, kernels: dict[str, float] | None = None) -> dict:
    """The compiler's estimated cycles by group of operations, loops included.

    'unknown' counts the operations without an estimate, in place of cycles.

    Args:
      kernels: cycles by instruction's name of those that have no estimate.
    """
    total: dict[str, float] = {'unknown': 0}
    for line, _, times in self.running():
      if line.name in (kernels or ()):
        found = total.get('kernels', 0)
        total['kernels'] = found + times * kernels[line.name]
      elif line.cycles is not None:
        group = self._group(line)
        total[group] = total.get(group, 0) + times * line.cycles
      elif '"estimated_cycles"' in line.rest:
        total['unknown'] += times
    return total

  def _group(self, line: Instruction) -> str:
    opcodes = self._opcodes(line)
    if 'custom-call' in opcodes:
      return 'kernels'
    if opcodes & {'convolution', 'dot'}:
      return 'matrix products'
    if any(o.removesuffix('-start') in COLLECTIVES for o in opcodes):
      return 'collectives'
    if opcodes <= {'copy', 'copy-start', 'copy-done', 'transpose', 'bitcast'}:
      return 'copies'
    return 'elementwise'

  def _opcodes(self, line: Instruction) -> set[str]:
    """Of an instruction and all it calls, parameters left out."""
    found = {line.opcode} - {'fusion', 'async-start', 'parameter'}
    for how, callee in line.called:
      if how == 'calls':
        for inner in self.computations.get(callee, ()):
          found |= self._opcodes(inner)
    return found

  def fused(self) -> set[str]:
    """Computations of which only the result is an array in memory."""
    return {
      callee
      for line, _, _ in self.running()
      if line.opcode in ('fusion', 'async-start')
      for _, callee in line.called
    }

  def largest(self, number: int = 10) -> list[dict]:
    """The largest arrays that the program makes, by shape and source line.

    Of what fusions make inside, and what only renames, nothing. Unpadded, and
    not all live at one time.

    Returns:
      Rows of `bytes`, `shape`, `source`, `op_name`, `count` of instructions.
    """
    rows: dict[tuple, dict] = {}
    fused = self.fused()
    for line, computation, _ in self.running():
      if line.opcode in FREE or computation in fused:
        continue
      for dtype, sides in set(ARRAY.findall(line.shape)):
        shape = f'{dtype}[{sides}]'
        key = shape, self.source(line)
        empty = dict(
          bytes=sum(arrays(shape)), shape=shape, source=key[1],
          op_name=line.op_name, count=0,
        )  # fmt: skip
        rows.setdefault(key, empty)['count'] += 1
    return sorted(rows.values(), key=lambda row: -row['bytes'])[:number]


# --- Source lines


def _short(path: str) -> str:
  """Returns a path from its folder `atm` on, or its last folder and file."""
  inside = path.rpartition('/atm/')[2]
  return f'atm/{inside}' if inside != path else '/'.join(path.split('/')[-2:])


def _places(text: str) -> dict[int, str]:
  """Stack frame number -> 'folder/file.py:line' of its innermost atm line.

  From the tables at the head of the text; where no frame is atm's, the
  innermost of any.
  """
  head = text[: text.find('\nENTRY')]

  def table(title, pattern):
    found = re.search(rf'^{title}\n((?:\d+ .*\n)+)', head, re.M)
    rows = re.findall(rf'^(\d+) {pattern}', found[1] if found else '', re.M)
    return {int(number): values for number, *values in rows}

  files = table('FileNames', r'"(.*)"')
  lines = table('FileLocations', r'\{file_name_id=(\d+) .*?\bline=(\d+)')
  frames = table(
    'StackFrames', r'\{file_location_id=(\d+)(?: parent_frame_id=(\d+))?'
  )

  def chain(frame):  # a parent's number is one more than it is called
    while frame in frames:
      file, line = lines[int(frames[frame][0])]
      yield f'{_short(files[int(file)][0])}:{line}'
      parent = int(frames[frame][1] or 1) - 1
      frame = parent if parent < frame else None

  of = lambda places: next(
    (place for place in places if place.startswith('atm/')), places[0]
  )
  return {frame: of(list(chain(frame))) for frame in frames}
