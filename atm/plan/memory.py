"""Memory of a device while a compiled program runs.

Bytes of shards follow from shapes and shardings, those of temporaries from the
compiler; where a program does not fit, from its message.
"""

import glob
import os
import re

import jax

from atm.model import flops

UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}
REPORT = '*.after_optimizations-memory-usage-report.txt'  # of xla_dump_to
_TOTAL = re.compile(r'Memory Space: default .*\nTotal bytes: (\d+)')
_SIZE = r'([\d.]+)([KMGT]?)B?'
_USED = (
  re.compile(rf'Used {_SIZE} of {_SIZE} hbm'),
  re.compile(rf'HLO temporaries \({_SIZE}\) exceeds available HBM \({_SIZE}\)'),
)
_LARGEST = re.compile(
  rf'^ *\d+\. Size: {_SIZE}\n(.*?)(?=^ *=====|^ *\d+\. Size|\Z)', re.M | re.S
)


def total_bytes(tree) -> int:
  """Returns bytes of whole arrays, each once: what a checkpoint takes."""
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def account(
  arguments: dict[str, int], compiled, overflow: dict | None, pod,
  beside: int = 0,
) -> dict:  # fmt: skip
  """Returns what a device holds, and whether it fits; None: not known."""
  # Of `arguments` a device's bytes by name; where nothing was compiled,
  # `overflow` (`parse_overflow`) says why. A pod of None has no known limit.
  # `beside` are those of `arguments` that the program does not take.
  analysis = compiled and compiled.memory_analysis()
  peak = analysis.peak_memory_in_bytes if analysis else overflow['used']
  peak += beside
  usable = overflow['usable'] if overflow else pod and pod.chip.usable
  return {
    'memory': {
      **arguments,
      # At the peak, padding of the arguments included.
      'temporaries': max(0, peak - sum(arguments.values())),
      # All temporaries side by side, as the compiler counts them.
      'heap': analysis and analysis.temp_size_in_bytes,
      'peak': peak,
      # What waits in the host's memory.
      'host': analysis and analysis.host_temp_size_in_bytes,
    },
    'peak_hbm_gib': peak / 2**30,
    'usable_hbm_gib': usable / 2**30 if usable else None,
    'fits': (peak <= usable and not overflow) if usable else None,
    'largest_buffers': overflow['largest'] if overflow else None,
  }


def read_dumped_peak(folder: str) -> int:
  """Reads a device's bytes from the report that the compiler dumped."""
  # All arrays where they lie, gaps between them included: what the compiler
  # compares with the chip's memory. More by a hundredth than
  # `peak_memory_in_bytes`, and known where a program does not fit or keeps
  # arrays in the host's memory, which `peak_memory_in_bytes` includes.
  (path,) = glob.glob(os.path.join(folder, REPORT))
  with open(path) as f:
    return int(_TOTAL.search(f.read())[1])


def offloads(jaxpr) -> bool:
  """Tells whether a traced program's loops keep arrays in the host's memory."""
  return any(
    getattr(result.aval, 'memory_space', None) == jax.memory.Space.Host
    for eqn in _scans(jaxpr)
    for result in eqn.outvars
  )


def parse_overflow(message: str) -> dict | None:
  """Parses a compiler's message of too little memory; None: it is another."""
  # What the message calls HLO temporaries includes the arguments: it is the
  # total of the compiler's own report of its memory.
  for pattern in _USED:
    if match := pattern.search(message):
      return {  # sizes in bytes
        'used': _parse_bytes(*match.groups()[:2]),
        'usable': _parse_bytes(*match.groups()[2:]),
        'largest': [_parse_buffer(*b) for b in _LARGEST.findall(message)],
      }
  return None


def _parse_bytes(number: str, unit: str) -> float:
  return float(number) * UNITS[unit]


def _parse_buffer(number: str, unit: str, text: str) -> dict:
  find = lambda pattern: next(iter(re.findall(pattern, text)), '')
  file = find(r'source_file="([^"]*)"')
  line = find(r'source_file="[^"]*" source_line=(\d+)')
  return {
    'bytes': _parse_bytes(number, unit),
    'shape': find(r'Shape: (\w+\[[\d,]*\])'),
    'source': '/'.join(file.split('/')[-2:]) + f':{line}' if file else '',
    'op_name': find(r'op_name="([^"]*)"'),
  }


def loop_residuals(
  jaxpr, batch_size: int, shards: int, host: bool = False
) -> list[dict]:
  """Lists what loops over layers keep of every batch row, the largest first."""
  # Rows as those of `parse_overflow`, bytes a device, nothing being fused or
  # padded yet. `shards` are the parts that rows are split into; `host` lists
  # what is kept in the host's memory instead of the device's.
  rows: dict[tuple, dict] = {}
  for eqn in _scans(jaxpr):
    for result in eqn.outvars[eqn.params['num_carry'] :]:
      x = result.aval
      there = (x.memory_space == jax.memory.Space.Host) == host
      # An array [layers, rows, ...] is kept by a loop over layers.
      if not there or x.shape[1:2] != (batch_size,):
        continue
      sides = x.shape[0], batch_size // shards, *x.shape[2:]
      shape = f'{x.dtype}[{",".join(map(str, sides))}]'
      source = _source(eqn)
      row = rows.setdefault((shape, source), dict(
        bytes=0, shape=shape, source=source, op_name='', count=0
      ))  # fmt: skip
      row['bytes'] += x.size * x.dtype.itemsize // shards
      row['count'] += 1
      row['op_name'] = f'{row["count"]} together'
  return sorted(rows.values(), key=lambda row: -row['bytes'])


def _scans(jaxpr):
  """Yields the scans of a jaxpr, those inside of other equations as well."""
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == 'scan':
      yield eqn
    for inner in flops.inner_jaxprs(eqn.params):
      yield from _scans(inner)


def _source(eqn) -> str:
  """Returns 'atm/model/loss.py:159', the innermost atm line of an equation."""
  traceback = eqn.source_info.traceback
  for frame in traceback.frames if traceback else ():
    _, folder, name = frame.file_name.rpartition(f'{os.sep}atm{os.sep}')
    if folder:
      return f'atm/{name}:{frame.line_num}'
  return ''
