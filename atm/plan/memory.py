"""What a chip holds while a step runs, and what to change where it is too much.

Bytes of shards follow from shapes and shardings, those of temporaries from the
compiler; where a program does not fit, from its message.
"""

from __future__ import annotations

import glob
import math
import os
import re

import jax

from atm.model import flops
from atm.train import optimizer

UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}
REPORT = '*.after_optimizations-memory-usage-report.txt'  # of xla_dump_to
_TOTAL = re.compile(r'Memory Space: default .*\nTotal bytes: (\d+)')
_SIZE = r'([\d.]+)([KMGT]?)B?'
_USED = (
  re.compile(rf'Used {_SIZE} of {_SIZE} hbm'),
  re.compile(rf'HLO temporaries \({_SIZE}\) exceeds available HBM \({_SIZE}\)'),
)
_LISTED = re.compile(
  rf'^ *\d+\. Size: {_SIZE}\n(.*?)(?=^ *=====|^ *\d+\. Size|\Z)', re.M | re.S
)


def held(tree) -> int:
  """Bytes of the shards that one device has of arrays or abstract arrays."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for x in jax.tree.leaves(tree)
  )


def whole(tree) -> int:
  """Bytes of all of it, once: what a checkpoint of it takes."""
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def account(state, batch, compiled, overflow: dict | None, pod) -> dict:
  """What a device holds, and whether it fits.

  Args:
    state, batch: abstract, with shardings.
    compiled: the step; None: `overflow` says why not.
    overflow: see `overflow`.
    pod: a chips.Pod, or None: what a device may use is not known.

  Returns:
    `memory` in bytes: parameters, optimizer, batch; temporaries at the peak,
    padding of the others included; `heap`, all temporaries side by side, as the
    compiler's own count has it; peak; `host`, what waits in the host's memory
    (None: not known). `peak_hbm_gib`, `usable_hbm_gib`, `fits`
    and `largest_buffers`, of a program that does not fit.
  """
  parts = {
    'parameters': held(state.params),
    'optimizer': held((state.step, state.opt_state)),
    'batch': held(batch),
  }
  given = sum(parts.values())
  if compiled is not None:
    said = compiled.memory_analysis()
    heap, peak = said.temp_size_in_bytes, said.peak_memory_in_bytes
    host = said.host_temp_size_in_bytes
  else:
    heap, peak, host = None, overflow['used'], None
  usable = pod.chip.usable if pod else None
  if overflow:
    usable = overflow['usable']
  return {
    'memory': {
      **parts,
      'temporaries': max(0, peak - given),
      'heap': heap,
      'peak': peak,
      'host': host,
    },
    'peak_hbm_gib': peak / 2**30,
    'usable_hbm_gib': usable / 2**30 if usable else None,
    'fits': (peak <= usable and not overflow) if usable else None,
    'largest_buffers': overflow['largest'] if overflow else None,
  }


def reported(folder: str) -> int:
  """Bytes of a device by the compiler's report, which it dumped to a folder.

  All arrays where they lie, gaps between them included: what the compiler
  compares with the chip's memory. It is more by a hundredth than
  `peak_memory_in_bytes`, and known where a program does not fit or keeps arrays
  in the host's memory, which that counts in.
  """
  (path,) = glob.glob(os.path.join(folder, REPORT))
  with open(path) as f:
    return int(_TOTAL.search(f.read())[1])


def offloads(jaxpr) -> bool:
  """Whether a traced program's loops keep arrays in the host's memory."""
  return any(
    getattr(made.aval, 'memory_space', None) == jax.memory.Space.Host
    for eqn in _equations(jaxpr)
    if eqn.primitive.name == 'scan'
    for made in eqn.outvars
  )


def overflow(said: str) -> dict | None:
  """What a compiler's message of too little memory says; None if it is not one.

  Returns:
    `used` and `usable` bytes; `largest`, rows of `bytes`, `shape`, `source` and
    `op_name`. What the message calls HLO temporaries has the arguments in it:
    it is the total of the compiler's own report of its memory.
  """
  for pattern in _USED:
    if found := pattern.search(said):
      used, usable = (
        bytes_of(*found.groups()[:2]),
        bytes_of(*found.groups()[2:]),
      )
      largest = [_buffer(*row) for row in _LISTED.findall(said)]
      return {
        'used': used,
        'usable': usable,
        'largest': largest,
      }
  return None


def bytes_of(number: str, unit: str) -> float:
  return float(number) * UNITS[unit]


def _buffer(number: str, unit: str, text: str) -> dict:
  find = lambda pattern: next(iter(re.findall(pattern, text)), '')
  file, line = next(
    iter(re.findall(r'source_file="([^"]*)"(?: source_line=(\d+))?', text)),
    ('', ''),
  )
  place = '/'.join(file.split('/')[-2:])
  return {
    'bytes': bytes_of(number, unit),
    'shape': find(r'Shape: (\w+\[[\d,]*\])'),
    'source': f'{place}:{line}' if file else '',
    'op_name': find(r'op_name="([^"]*)"'),
  }


def kept_by_loops(
  jaxpr, batch_size: int, shards: int, host: bool = False
) -> list[dict]:
  """What loops over layers keep of every row, the largest first.

  For where the compiler names no buffers: of the traced program, so before
  anything is fused or padded.

  Args:
    jaxpr: of the whole step.
    batch_size: rows; an array [layers, rows, ...] is a loop's.
    shards: parts that rows are split into.
    host: what they keep in the host's memory, not what they keep in devices'.

  Returns:
    Rows as `overflow`'s, bytes a device.
  """
  rows: dict[tuple, dict] = {}
  for eqn in _equations(jaxpr):
    if eqn.primitive.name != 'scan':
      continue
    for made in eqn.outvars[eqn.params['num_carry'] :]:
      x = made.aval
      there = (x.memory_space == jax.memory.Space.Host) == host
      if not there or x.shape[1:2] != (batch_size,):
        continue
      sides = ','.join(
        map(str, (x.shape[0], batch_size // shards, *x.shape[2:]))
      )
      key = f'{x.dtype}[{sides}]', _place(eqn)
      size = x.size * x.dtype.itemsize // shards
      empty = dict(bytes=0, shape=key[0], source=key[1], op_name='', count=0)
      row = rows.setdefault(key, empty)
      row['bytes'] += size
      row['count'] += 1
  for row in rows.values():
    row['op_name'] = f'{row["count"]} together'
  return sorted(rows.values(), key=lambda row: -row['bytes'])


def _equations(jaxpr):
  for eqn in jaxpr.eqns:
    yield eqn
    for inner in flops.inner_jaxprs(eqn.params):
      yield from _equations(inner)


def _place(eqn) -> str:
  """Returns 'atm/model/loss.py:159', the innermost atm line of an equation."""
  traceback = eqn.source_info.traceback
  for frame in traceback.frames if traceback else ():
    if f'{os.sep}atm{os.sep}' in frame.file_name:
      name = frame.file_name.rpartition(f'{os.sep}atm{os.sep}')[2]
      return f'atm/{name}:{frame.line_num}'
  return ''


# --- What would help


def changes(made: dict, config, optimizer_config, mesh, rows: int, micro: int):
  """The three cheapest changes of a run that would make it smaller.

  In the order of what they cost in speed; what each saves is estimated from
  the split of memory, so only planning again tells.

  Args:
    made: a plan with `memory`.
    config: a model.Config.
    optimizer_config: an optimizer.Config.
    mesh: the run's.
    rows: of a batch, that a data shard has.
    micro: MICRO_BATCHES.

  Returns:
    Rows of `change`, `costs` and `saves`, bytes.
  """
  memory = made['memory']
  state = memory['parameters'] + memory['optimizer']
  found = []
  add = lambda *row: found.append(dict(zip(('change', 'costs', 'saves'), row)))
  kind = optimizer.kind(optimizer_config)
  if kind.get('name') == 'adamw' and kind.get('moments_dtype') != 'bfloat16':
    halved = "MOMENTS_DTYPE = 'bfloat16'"
    add(halved, 'moments are rounded', memory['optimizer'] // 2)
  if mesh.shape['data'] > 1:
    less, more = mesh.shape['data'] // 2, mesh.shape['fsdp'] * 2
    wider = f'mesh.data = {less}, mesh.fsdp = {more}'
    add(wider, 'longer gathers of parameters', state // 2)
  if config.remat != 'full':
    layers = config.encoder_layers + config.decoder_layers
    kept = memory['temporaries'] * (1 - 1 / max(2, layers / 4))
    add("Config.remat = 'full'", 'up to a third more computation', int(kept))
  smaller = [n for n in range(micro + 1, rows + 1) if rows % n == 0]
  if smaller:
    n = smaller[0]
    saved = int(memory['temporaries'] * (1 - micro / n)) - memory['parameters']
    add(f'MICRO_BATCHES = {n}', f'parameters gathered {n} times', max(0, saved))
  if mesh.shape['tensor'] == 1:
    add('mesh.tensor = 2', 'activations cross the links', memory['peak'] // 3)
  over = memory['peak'] - made['usable_hbm_gib'] * 2**30
  enough = [row for row in found if row['saves'] >= over]
  rest = sorted(
    (row for row in found if row not in enough), key=lambda r: -r['saves']
  )
  return (enough + rest)[:3]
