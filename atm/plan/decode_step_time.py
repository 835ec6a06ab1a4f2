"""One token of a compiled program that decodes: copies of its cache, its time.

A decoder's loop ends when all rows are done, so the text does not say how often
it turns; all here is of one turn, and of one device.
"""

import math
import re

import jax

from atm.model.embeddings import name_head
from atm.parallel.device_memory import device_bytes
from atm.plan import hardware, hlo, program_costs, step_time

# Seconds from a chip to its neighbour, however little is sent: "How to Scale
# Your Model", part 3 (jax-ml.github.io/scaling-book).
HOP = 1e-6
# Share of HBM's bytes a second that reading reaches: assumed.
HBM_SHARE = 0.7, 1.0
# Operations that move an array to the chip's vector memory ahead of time.
_PREFETCH = {'copy-start', 'copy-done', 'slice-start', 'slice-done'}
_MOVES = {'copy', 'transpose', 'bitcast', 'reshape'}
_ALIASED = re.compile(r'"aliasing_operands":\{"lists":\[\{')


def token_loop(program: hlo.Program) -> hlo.Instruction:
  """Returns the loop over tokens: of those of unknown length, the largest."""
  loops = [x for x in program.loops() if x.name in program.unknown_loops]
  return max(loops, key=lambda x: sum(hlo.array_bytes(x.shape)))


def estimate_token(
  program: hlo.Program, params, caches: list, config, target: hardware.Target
) -> dict:
  """Estimates what a turn of the loop over tokens does, and its time."""
  loop = token_loop(program)
  turn = program.one_iteration(loop)
  copies = list_cache_copies(turn, caches)
  moved = 2 * sum(row['bytes'] for row in copies)  # read, and written
  result = {
    **step_time.tabulate(turn, target),
    'read_bytes': {**count_bytes_read(params, caches, config), 'copies': moved},
    # In the loop, and around it.
    'cache_copies': copies,
    'copies_once': list_cache_copies(program.without_loop(loop), caches, True),
  }
  rows, cycles, read = map(result.get, ('collectives', 'cycles', 'read_bytes'))
  # Both None for devices of this machine.
  split = target.pod and split_token_time(rows, cycles, read, target)
  times = {'time_split_s': split, 'time_range_s': split and token_time(split)}
  return result | times


# --- Copies


def list_cache_copies(
  program: hlo.Program, caches: list, once: bool = False
) -> list[dict]:
  """Lists arrays as large as one of the cache that are not written in place."""
  # The program is one turn of the loop over tokens; or, `once`, all but that
  # loop: then what the program does itself counts, not in its other loops, and
  # only what moves an array of the cache's sides. Of a copy in pieces only what
  # is like a whole array is found.
  #
  # Outside the loop each array has to be made, and others are as large.
  like = (lambda sides: tuple(sorted(sides))) if once else math.prod
  shards = {
    like(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(caches)
  }
  # Reading into the chip's vector memory is no copy.
  free = program_costs.NO_ALLOCATION | _PREFETCH
  rows = {}
  for line, computation, times in program.executed():
    if computation in program.fused or line.opcode in free:
      continue
    itself, opcodes = computation == program.entry, program.opcodes(line)
    if once and not (itself and opcodes <= _MOVES):
      continue
    # What lies where an operand was is no copy. TPUs say so. Elsewhere an
    # update or scatter does: XLA would have copied its operand before if that
    # were needed once more.
    updates = opcodes & {'dynamic-update-slice', 'scatter'}
    if updates or _ALIASED.search(line.rest) or 'ConcatBitcast' in line.rest:
      continue
    for dtype, sides in hlo.ARRAY.findall(line.shape):
      if like([int(n) for n in sides.split(',') if n]) not in shards:
        continue
      shape = f'{dtype}[{sides}]'
      source = program.source(line, computation)
      row = rows.setdefault((shape, line.opcode, source), dict(
        shape=shape, opcode=line.opcode, source=source, count=0, bytes=0
      ))  # fmt: skip
      row['count'] += times
      row['bytes'] += int(times * sum(hlo.array_bytes(shape)))
  return sorted(rows.values(), key=lambda row: -row['bytes'])


# --- Bytes and time


def count_bytes_read(params, caches: list, config) -> dict[str, int]:
  """Returns bytes that a device reads for one token: weights, caches whole."""
  # The decoder's layers and the LM head; of embeddings a row, which is nothing.
  # The cache is read to its end, masked where nothing has been written.
  decoder, layers = params['decoder'], params['decoder']['layers']
  if '0' in layers:  # taken apart: the stack beside them is not read
    layers = {k: v for k, v in layers.items() if k.isdigit()}
  weights = [layers, decoder['norm'], params[name_head(config)]]
  return {
    'weights': device_bytes(weights),
    'cache': device_bytes(caches),
  }


def count_hops(
  target: hardware.Target, axes: tuple[str, ...]
) -> tuple[int, int]:
  """Returns steps from chip to chip of one collective: (least, most)."""
  # Least: straight to the farthest of a group. Most: around a ring, twice.
  coordinates = target.coordinates(axes)
  far = 0
  for n, wraps, along in zip(
    target.pod.shape, target.pod.wraps, zip(*coordinates, strict=False)
  ):
    length = max(along) - min(along)
    far += min(length, n - length) if wraps else length
  return max(1, far), 2 * (len(coordinates) - 1)


def split_token_time(
  rows: list[dict], cycles: dict, read: dict, target: hardware.Target
) -> dict:
  """Returns seconds (least, most) of one token's parts, each as if alone."""
  # `rows` and `cycles` are those of one turn, by `step_time.tabulate`.
  chip = target.pod.chip
  counted = program_costs.counted_cycles(cycles)
  reading = sum(read.values()) / chip.hbm
  low, high = HBM_SHARE
  latency, sending = [0.0, 0.0], [0.0, 0.0]
  for row in rows:
    hops = count_hops(target, row['axes'])
    speeds = step_time.wire_speeds(row['axes'], target)
    for end in (0, 1):
      latency[end] += row['count'] * hops[end] * HOP
      sending[end] += row['wire_bytes'] / speeds[1 - end]
  return {
    'reading HBM': (reading / high, reading / low),
    'compute': (counted / chip.clock,) * 2,
    'latency of collectives': tuple(latency),
    'bytes of collectives': tuple(sending),
  }


def token_time(split: dict) -> tuple[float, float]:
  """Returns (least, most): reading and computing beside one another, or not."""
  # Collectives wait for what they sum, so they come on top.
  return step_time.overlap(split, ['reading HBM'], ['compute'])
