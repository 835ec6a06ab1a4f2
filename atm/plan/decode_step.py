"""One token of a compiled program that decodes: copies of its cache, its time.

A decoder's loop ends when all rows are done, so the text does not say how often
it turns; all here is of one turn, and of one device.
"""

from __future__ import annotations

import math
import re

import jax

from atm.plan import collectives, hlo, memory
from atm.plan import step_time as step_time_lib

# Seconds from a chip to its neighbour, however little is sent: "How to Scale
# Your Model", part 3 (jax-ml.github.io/scaling-book).
HOP = 1e-6
# Share of HBM's bytes a second that reading reaches: assumed.
HBM_SHARE = 0.7, 1.0
# What moves an array to the chip's vector memory ahead of time, or renames it.
PREFETCH = ('copy-start', 'copy-done', 'slice-start', 'slice-done')
_SHAPE = re.compile(r'\b([a-z]\w*)\[([\d,]*)\]')
_ALIASED = re.compile(r'"aliasing_operands":\{"lists":\[\{')


def loop_of(program: hlo.Program) -> hlo.Instruction:
  """The loop over tokens: of those of unknown length, the one holding most."""
  loops = [x for x in program.loops() if x.name in program.unknown_loops]
  return max(loops, key=lambda x: sum(hlo.arrays(x.shape)))


# --- Copies


def cache_copies(program: hlo.Program, caches, once: bool = False) -> list:
  """Arrays as large as one of the cache that are made, not written in place.

  Reading into the chip's vector memory is no copy, nor is a scatter or update
  into the array that it is given. Of a copy in pieces only what is like a whole
  array is found.

  Args:
    program: one turn of its loop; or all but the loop.
    caches: abstract arrays with shardings.
    once: look only at what the program does itself, not in its other loops,
      and only for what moves an array of the cache's sides: there each has to
      be made, and others are as large.

  Returns:
    Rows of `shape`, `opcode`, `source`, `count`, `bytes` of all.
  """
  fused, rows = program.fused(), {}
  like = (lambda sides: tuple(sorted(sides))) if once else math.prod
  parts = {
    like(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(caches)
  }
  for line, computation, times in program.running():
    skip = computation in fused or line.opcode in (*hlo.FREE, *PREFETCH)
    if once:
      skip |= computation != program.entry
      skip |= not program.only_moves(line)
    if skip or in_place(program, line) or 'ConcatBitcast' in line.rest:
      continue
    for dtype, text in _SHAPE.findall(line.shape):
      if like([int(n) for n in text.split(',') if n]) not in parts:
        continue
      key = f'{dtype}[{text}]', line.opcode, program.source(line, computation)
      empty = dict(zip(('shape', 'opcode', 'source'), key), count=0, bytes=0)
      row = rows.setdefault(key, empty)
      row['count'] += times
      row['bytes'] += int(times * sum(hlo.arrays(key[0])))
  return sorted(rows.values(), key=lambda row: -row['bytes'])


def in_place(program: hlo.Program, line: hlo.Instruction) -> bool:
  """Whether the result lies where an operand was.

  TPUs say so. Elsewhere an update or scatter does, whose operand XLA would
  have copied before if it were needed once more.
  """
  if _ALIASED.search(line.rest):
    return True
  return program.updates(line)


# --- Bytes


def read_bytes(params, caches, config) -> dict[str, int]:
  """Bytes that a device reads for one token: weights, caches whole.

  The decoder's layers and the LM head; of embeddings a row, which is nothing.
  The cache is read to its end, masked where nothing has been written.

  Args:
    params: abstract, with shardings.
    caches: a list of abstract `layers.KVCache`s.
    config: the model.Config.
  """
  head = {
    'decoder_head': 'decoder_embedding',
    'encoder_head': 'encoder_embedding',
    'all': 'encoder_embedding',
  }.get(config.ties, 'lm_head')
  decoder = params['decoder']
  layers = decoder['layers']
  if '0' in layers:  # apart; the stack is not read
    layers = {k: v for k, v in layers.items() if k.isdigit()}
  used = [layers, decoder['norm'], params[head]]
  return {'weights': memory.held(used), 'cache': memory.held(caches)}


# --- Time


def hops(target, axes: tuple[str, ...]) -> tuple[int, int]:
  """Steps from chip to chip of one collective: (least, most).

  Least: straight to the farthest of a group. Most: around a ring, twice.
  """
  places = target.places(axes)
  far = 0
  for n, wraps, side in zip(
    target.pod.shape, target.pod.wraps, zip(*places, strict=False)
  ):
    length = max(side) - min(side)
    far += min(length, n - length) if wraps else length
  return max(1, far), 2 * (len(places) - 1)


def time_split(rows, cycles: dict, read: dict, target) -> dict:
  """Seconds (least, most) of one token's parts, each as if alone.

  Args:
    rows: of `collectives.collectives`, of one turn.
    cycles: of `hlo.Program.cycles`, of one turn.
    read: of `read_bytes`.
    target: a chips.Target of a pod.
  """
  chip = target.pod.chip
  counted = sum(n for name, n in cycles.items() if name != 'unknown')
  alone = sum(read.values()) / chip.hbm
  low, high = HBM_SHARE
  split = {
    'reading HBM': (alone / high, alone / low),
    'compute': (counted / chip.clock,) * 2,
    'latency of collectives': (0.0, 0.0),
    'bytes of collectives': (0.0, 0.0),
  }
  for row in rows:
    near, around = hops(target, row['axes'])
    least, most = step_time_lib.speeds(row['axes'], target)
    for name, fast, slow in (
      ('latency', *(row['count'] * n * HOP for n in (near, around))),
      ('bytes', row['wire_bytes'] / most, row['wire_bytes'] / least),
    ):
      key = f'{name} of collectives'
      split[key] = split[key][0] + fast, split[key][1] + slow
  return split


def step_time(split: dict) -> tuple[float, float]:
  """(least, most): reading hidden behind computing or the reverse; or not.

  Collectives wait for what they sum, so they come on top.
  """
  beside = 'reading HBM', 'compute'
  on_top = [
    sum(split[name][end] for name in split if name not in beside)
    for end in (0, 1)
  ]
  return (
    max(split[name][0] for name in beside) + on_top[0],
    sum(split[name][1] for name in beside) + on_top[1],
  )


def figures(program: hlo.Program, params, caches, config, target) -> dict:
  """What one turn of the loop does; see the functions above for each."""
  loop = loop_of(program)
  turn = program.one_turn(loop)
  rows, cycles = (
    collectives.collectives(turn, dict(target.mesh.shape)),
    turn.cycles(),
  )
  copies = cache_copies(turn, caches)
  moved = 2 * sum(row['bytes'] for row in copies)  # read, and written
  read = {**read_bytes(params, caches, config), 'copies': moved}
  made = {
    'read_bytes': read,
    'collectives': rows,
    'cycles': cycles,
    'largest_arrays': turn.largest(),
    'cache_copies': copies,
    'copies_once': cache_copies(program.without(loop), caches, once=True),
    'unknown_loops': turn.unknown_loops,
    'time_split_s': None,
    'time_range_s': None,
  }
  if target.pod is not None:
    made['time_split_s'] = time_split(rows, cycles, read, target)
    made['time_range_s'] = step_time(made['time_split_s'])
  return made
