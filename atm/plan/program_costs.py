"""Reads costs off a compiled program: cycles, large arrays, host copies."""

from atm.plan.hlo import ARRAY, Program, array_bytes

COLLECTIVES = (
  'all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all',
  'collective-permute', 'ragged-all-to-all', 'collective-broadcast',
)  # fmt: skip
# Operations that make no array of their own.
NO_ALLOCATION = {
  'parameter', 'get-tuple-element', 'tuple', 'bitcast', 'while', 'constant',
  'conditional', 'call', 'optimization-barrier',
}  # fmt: skip
_COPIES = {'copy', 'copy-start', 'copy-done', 'transpose', 'bitcast'}
_HOST = 'S(5)'  # in the layout of an array that lies in the host's memory


def sum_cycles(
  program: Program, kernels: dict[str, float] | None = None
) -> dict[str, float]:
  """Sums the compiler's estimated cycles by group of operations."""
  # `kernels` has cycles by instruction's name, of those without an estimate.
  # The group 'unknown' counts operations that have none, not cycles.
  total: dict[str, float] = {'unknown': 0}
  for line, _, times in program.executed():
    if line.name in (kernels or ()):
      group, cycles = 'kernels', kernels[line.name]
    elif line.cycles is not None:
      group, cycles = _group(program.opcodes(line)), line.cycles
    elif '"estimated_cycles"' in line.rest:
      group, cycles = 'unknown', 1
    else:
      continue
    total[group] = total.get(group, 0) + times * cycles
  return total


def counted_cycles(cycles: dict[str, float]) -> float:
  """Returns the cycles of all groups of `sum_cycles`."""
  return sum(n for group, n in cycles.items() if group != 'unknown')


def _group(opcodes: set[str]) -> str:
  """Returns the group of operations that a row of the cycles' table names."""
  if 'custom-call' in opcodes:
    return 'kernels'
  if opcodes & {'convolution', 'dot'}:
    return 'matrix products'
  if any(o.removesuffix('-start') in COLLECTIVES for o in opcodes):
    return 'collectives'
  return 'copies' if opcodes <= _COPIES else 'elementwise'


def list_host_copies(program: Program) -> list[tuple[str, int, bool, float]]:
  """Lists copies between a device's memory and its host's."""
  # As (computation, how often it runs, whether to the host, bytes).
  copies = []
  for line, computation, times in program.executed():
    if _HOST not in line.shape:
      continue
    kind, sizes = line.opcode, array_bytes(line.shape)
    if kind == 'async-start':
      # Before the compiler ends it calls all of them so; the name says which.
      kind = line.name.partition('.')[0]
    if kind == 'dynamic-update-slice-start':  # ((whole, part, ...
      copies.append((computation, times, True, sizes[1]))
    elif kind == 'dynamic-slice-start':  # (..., part, context)
      copies.append((computation, times, False, sizes[-2]))
    elif kind == 'copy-start':  # (copy, original, context)
      to_host = _HOST in line.shape[: line.shape.index('}')]
      copies.append((computation, times, to_host, sizes[0]))
  return copies


def list_largest_arrays(program: Program, number: int = 10) -> list[dict]:
  """Lists the largest arrays that a program makes, by shape and source line."""
  # Bytes are unpadded, `count` is of instructions. Not all live at one time.
  rows: dict[tuple, dict] = {}
  for line, computation, _ in program.executed():
    if line.opcode in NO_ALLOCATION or computation in program.fused:
      continue
    for dtype, sides in dict.fromkeys(ARRAY.findall(line.shape)):
      shape, source = f'{dtype}[{sides}]', program.source(line)
      row = rows.setdefault((shape, source), dict(
        bytes=sum(array_bytes(shape)), shape=shape, source=source,
        op_name=line.op_name, count=0,
      ))  # fmt: skip
      row['count'] += 1
  return sorted(rows.values(), key=lambda row: -row['bytes'])[:number]
