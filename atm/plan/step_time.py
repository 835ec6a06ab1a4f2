"""How long a step takes on chips that are not there: ranges, and what follows.

From a compiled program's traffic and cycles, and from what chips.py says of the
chips. Times in seconds; ranges are (least, most).
"""

from __future__ import annotations

from atm.plan import hardware
from atm.plan.kernels import WAIT


def time_split(
  rows,
  cycles: dict,
  kernel_flops: float,
  target: hardware.Target,
  host: dict | None = None,
) -> dict:
  """Seconds (least, most) of a step's parts, each as if alone.

  Kernels, where their cycles are not known, by what such kernels reach. `host`
  is what `host_copies` found.
  """
  chip = target.pod.chip
  counted = sum(
    n for name, n in cycles.items() if name not in ('unknown', 'kernels')
  )
  alone = kernel_flops / target.mesh.size / chip.peak / chip.kernels
  if 'kernels' in cycles:
    alone = cycles['kernels'] / chip.clock
  split = {
    'compute': (counted / chip.clock,) * 2,
    'kernels': (alone, alone * WAIT),
  }
  for when in ('synchronous', 'asynchronous'):
    slow = fast = 0.0
    for row in rows:
      if row['asynchronous'] == (when == 'asynchronous'):
        least, most = speeds(row['axes'], target)
        slow += row['wire_bytes'] / least
        fast += row['wire_bytes'] / most
    split[f'{when} collectives'] = fast, slow
  if host:
    each = host['to_host_bytes'], host['from_host_bytes']
    split['host copies'] = host['waits_s'], sum(each) / chip.pcie
  return split


def host_copies(program, kernels: dict, chip: hardware.Chip) -> dict | None:
  """What a step copies between a chip and its host; None if nothing.

  Args:
    program: an hlo.Program.
    kernels: cycles by instruction, see `hlo.Program.cycles`.
    chip: whose.

  Returns:
    `to_host_bytes`, `from_host_bytes`; `waits_s`, by which the copies of one
    turn of a loop, both ways at once, outlast what the turn computes, of all
    turns: 0 where no cycles are known.
  """
  sent, turns = [0.0, 0.0], {}
  for computation, times, to_host, size in program.host_copies():
    sent[not to_host] += times * size
    ways = turns.setdefault(computation, [0.0, 0.0])
    ways[not to_host] += size
  if not any(sent):
    return None
  waits = 0.0
  for loop in program.loops():
    body = dict(loop.called)['body']
    cycles = program.one_turn(loop).cycles(kernels)
    computed = sum(n for name, n in cycles.items() if name != 'unknown')
    if body in turns and computed:
      longer = max(turns[body]) / chip.pcie - computed / chip.clock
      waits += program.times[body] * max(0.0, longer)
  return dict(zip(
    ('to_host_bytes', 'from_host_bytes', 'waits_s'), (*sent, waits)
  ))  # fmt: skip


def speeds(
  axes: tuple[str, ...], target: hardware.Target
) -> tuple[float, float]:
  """Bytes a second (least, most) of a collective along mesh axes."""
  if 'slice' in axes:
    return target.pod.chip.dcn, target.pod.chip.dcn
  return target.pod.speeds(target.places(axes))


def step_time(split: dict) -> tuple[float, float]:
  """(least, most): what may run beside the rest is hidden whole, or not."""
  least, most = (
    sum(split[name][end] for name in split if name[:5] != 'async')
    for end in (0, 1)
  )
  beside = split['asynchronous collectives']
  return max(least, beside[0]), most + beside[1]


def totals(
  made: dict, target: hardware.Target, tokens: int, train_steps: int
) -> dict:
  """What follows from a step's time; None where that is not known."""
  names = (
    'mfu_range', 'mfu_ceiling', 'tokens_per_second_range', 'days_range',
    'chip_hours_range',
  )  # fmt: skip
  out = {'tokens_per_step': tokens, 'train_steps': train_steps}
  if target.pod is None:
    return out | dict.fromkeys(names)
  size = target.mesh.size
  ideal = made['model_flops'] / (size * target.pod.chip.peak)
  out['mfu_ceiling'] = made['model_flops'] / made['hardware_flops']
  if made['step_time_range_s'] is None:
    return dict.fromkeys(names) | out
  least, most = made['step_time_range_s']
  whole = [s * train_steps for s in (least, most)]
  return out | {
    'mfu_range': (ideal / most, ideal / least),
    'tokens_per_second_range': (tokens / most, tokens / least),
    'days_range': tuple(s / 86400 for s in whole),
    'chip_hours_range': tuple(s / 3600 * size for s in whole),
  }
