"""Parses the text of compiled HLO: computations, loops, source lines.

Text in, tables out; nothing here knows JAX, a mesh or a model. `parse` takes
what `jax.stages.Compiled.as_text` gives for CPUs and for TPUs (jaxlib 0.10.2,
libtpu 0.0.42). All is of one device: the compiled program is what each runs.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re

# By XLA's name of a type; what is not here (token) takes no memory.
_ITEM_BYTES = {
  'pred': 1, 's8': 1, 'u8': 1, 's16': 2, 'u16': 2, 's32': 4, 'u32': 4,
  's64': 8, 'u64': 8, 'f16': 2, 'bf16': 2, 'f32': 4, 'f64': 8, 'c64': 8,
  'c128': 16, 's4': 0.5, 'u4': 0.5, 'f8e4m3fn': 1, 'f8e5m2': 1,
}  # fmt: skip

_UNKNOWN_CYCLES = 2**63 - 1  # XLA's mark of an operation without an estimate
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
_OTHER_BRANCHES = re.compile(
  r'\btrue_computation=%?[\w.\-]+|(branch_computations=\{[^,}]*)[^}]*'
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_FRAME = re.compile(r'stack_frame_id=(\d+)')
_SOURCE = re.compile(r'source_file="([^"]+)"(?: source_line=(\d+))?')
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
    """(role, computation) of each it calls: ('body', 'region_0'), ..."""
    return [
      (role, name)
      for role, names in _CALLED.findall(self.rest)
      for name in re.findall(r'[\w.\-]+', names)
    ]

  @property
  def op_name(self) -> str:
    """JAX's name of it: 'jit(train_step)/.../dot_general'; '' if unknown."""
    match = _OP_NAME.search(self.rest)
    return match[1] if match else ''

  @property
  def cycles(self) -> int | None:
    """The compiler's estimate; None where it has none."""
    match = _CYCLES.search(self.rest)
    cycles = int(match[1]) if match else _UNKNOWN_CYCLES
    return None if cycles >= _UNKNOWN_CYCLES else cycles


def array_bytes(shape: str) -> list[float]:
  """Returns bytes of each array of a shape, a tuple's one by one, unpadded."""
  return [
    _ITEM_BYTES[dtype] * math.prod(int(n) for n in sides.split(',') if n)
    for dtype, sides in ARRAY.findall(shape)
    if dtype in _ITEM_BYTES
  ]


@dataclasses.dataclass(frozen=True)
class Program:
  """A compiled module, or a part of one."""

  computations: dict[str, list[Instruction]]
  entry: str  # the computation that runs
  sources: dict[int, str]  # by stack frame number: 'atm/model/layers.py:88'
  # Turns of loops by name, in place of what the text says.
  trip_counts: dict[str, int] = dataclasses.field(default_factory=dict)

  @functools.cached_property
  def run_counts(self) -> dict[str, int]:
    """How often each computation runs; those that never do are left out."""
    # Bodies of loops run as often as the loops turn, both branches of a
    # conditional once. What reduces numbers two by two (`to_apply` of a
    # reduction) is not counted.
    counts = dict.fromkeys(self.computations, 0)
    counts[self.entry] = 1
    for name in self.callers_first():
      for line in self.computations[name]:
        turns = 1
        if line.opcode == 'while':
          trips = self._trip_count(line)
          turns = 1 if trips is None else trips
        for role, callee in line.called:
          if _runs(line, role) and callee in counts:
            counts[callee] += counts[name] * turns
    return {name: n for name, n in counts.items() if n}

  def executed(self):
    """Yields (instruction, its computation, how often) of all that runs."""
    for name, times in self.run_counts.items():
      for line in self.computations[name]:
        yield line, name, times

  def loops(self) -> list[Instruction]:
    """Returns the loops that run, those inside of others as well."""
    return [line for line, _, _ in self.executed() if line.opcode == 'while']

  @property
  def unknown_loops(self) -> list[str]:
    """Names of loops whose trip count the text does not say."""
    return [x.name for x in self.loops() if self._trip_count(x) is None]

  def one_iteration(self, loop: Instruction) -> Program:
    """Returns what one turn of a loop runs, its condition included."""
    calls = [
      Instruction(role, '', 'call', f', to_apply=%{callee}')
      for role, callee in loop.called
    ]
    entry = 'turn of ' + loop.name
    computations = {**self.computations, entry: calls}
    return dataclasses.replace(self, computations=computations, entry=entry)

  def without_loop(self, loop: Instruction) -> Program:
    """Returns everything but what a loop runs."""
    return dataclasses.replace(
      self, trip_counts={**self.trip_counts, loop.name: 0}
    )

  def with_first_branches(self) -> Program:
    """Returns a program whose conditionals take the branch of false or 0."""
    take = lambda line: dataclasses.replace(
      line, rest=_OTHER_BRANCHES.sub(r'\1', line.rest)
    )
    computations = {
      name: [take(x) if x.opcode == 'conditional' else x for x in lines]
      for name, lines in self.computations.items()
    }
    return dataclasses.replace(self, computations=computations)

  def callers_first(self) -> list[str]:
    """Returns the computations that the entry reaches, callers first."""
    order, seen = [], set()

    def visit(name):
      if name in seen or name not in self.computations:
        return
      seen.add(name)
      for line in self.computations[name]:
        for role, callee in line.called:
          if _runs(line, role):
            visit(callee)
      order.append(name)

    visit(self.entry)
    return order[::-1]

  def _trip_count(self, line: Instruction) -> int | None:
    """Returns turns of a `while`: as XLA wrote, or its condition's constant."""
    if line.name in self.trip_counts:
      return self.trip_counts[line.name]
    if match := _TRIPS.search(line.rest):
      return int(match[1])
    condition = self.computations.get(dict(line.called).get('condition'), ())
    bounds = {
      int(match[1])
      for inner in condition
      if inner.opcode == 'constant'
      and re.match(r'[su]\d+\[\]', inner.shape)  # not where a sum begins
      and (match := re.match(r'(\d+)\)', inner.rest))
    }
    # A condition that asks whether all rows are done compares no count: a
    # constant in it is no bound.
    compares = any(x.opcode in ('compare', 'fusion', 'call') for x in condition)
    return bounds.pop() if compares and len(bounds) == 1 else None

  def source(self, line: Instruction, computation: str = '') -> str:
    """Returns 'atm/model/layers.py:88', an instruction's; '' if not known."""
    # Where the line does not say, the source of what calls its computation.
    caller = self._callers.get(computation)
    return self._source(line) or (self._source(caller) if caller else '')

  @functools.cached_property
  def _callers(self) -> dict[str, Instruction]:
    """Computation -> what calls it, or one of those."""
    return {
      callee: line
      for line, _, _ in self.executed()
      for _, callee in line.called
    }

  def _source(self, line: Instruction) -> str:
    if match := _FRAME.search(line.rest):
      return self.sources.get(int(match[1]), '')
    if match := _SOURCE.search(line.rest):
      return f'{_shorten(match[1])}:{match[2] or "?"}'
    return ''

  def opcodes(self, line: Instruction) -> set[str]:
    """Returns opcodes of an instruction and of what it calls, no parameters."""
    opcodes = {line.opcode} - {'fusion', 'async-start', 'parameter'}
    for role, callee in line.called:
      if role == 'calls':
        for inner in self.computations.get(callee, ()):
          opcodes |= self.opcodes(inner)
    return opcodes

  @functools.cached_property
  def fused(self) -> set[str]:
    """Computations of which only the result is an array in memory."""
    return {
      callee
      for line, _, _ in self.executed()
      if line.opcode in ('fusion', 'async-start')
      for _, callee in line.called
    }


def _runs(line: Instruction, role: str) -> bool:
  # TPU7x starts what its SparseCores do by call-start.
  return role != 'to_apply' or line.opcode in ('call', 'call-start')


def parse(text: str) -> Program:
  """Parses the text of a compiled module."""
  computations, entry = {}, ''
  lines: list[list[str]] | None = None  # of the computation that is open
  for line in text.splitlines():
    if lines is None:
      if header := _COMPUTATION.match(line):
        lines = []
    elif _END.match(line):
      computations[header[2]] = [Instruction(*parts) for parts in lines]
      entry = header[2] if header[1] else entry
      lines = None
    elif match := _INSTRUCTION.match(line):
      lines.append(list(match.groups()))
    elif lines:  # Pallas kernels have attributes of several lines
      lines[-1][3] += line
  return Program(computations, entry, _parse_sources(text))


def _shorten(path: str) -> str:
  """Returns a path from its folder `atm` on, or its last folder and file."""
  inside = path.rpartition('/atm/')[2]
  return f'atm/{inside}' if inside != path else '/'.join(path.split('/')[-2:])


def _parse_sources(text: str) -> dict[int, str]:
  """Returns stack frame number -> 'folder/file.py:line', the innermost."""
  # From the tables at the head of the text: atm's innermost line, or the
  # innermost of any where no frame is atm's.
  head = text[: text.find('\nENTRY')]

  def table(title, pattern):
    rows = re.search(rf'^{title}\n((?:\d+ .*\n)+)', head, re.M)
    rows = re.findall(rf'^(\d+) {pattern}', rows[1] if rows else '', re.M)
    return {int(number): values for number, *values in rows}

  files = table('FileNames', r'"(.*)"')
  lines = table('FileLocations', r'\{file_name_id=(\d+) .*?\bline=(\d+)')
  frames = table(
    'StackFrames', r'\{file_location_id=(\d+)(?: parent_frame_id=(\d+))?'
  )

  def chain(frame):
    while frame in frames:
      file, line = lines[int(frames[frame][0])]
      yield f'{_shorten(files[int(file)][0])}:{line}'
      # XLA writes a parent's number one higher than the table has it.
      parent = int(frames[frame][1] or 1) - 1
      frame = parent if parent < frame else None

  innermost = lambda places: next(
    (place for place in places if place.startswith('atm/')), places[0]
  )
  return {frame: innermost(list(chain(frame))) for frame in frames}
