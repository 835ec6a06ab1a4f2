"""Time of compiled programs on chips that are not there, as ranges.

From a program's traffic and cycles, and from figures of chips (hardware.py).
Times in seconds; ranges are (least, most).
"""

from collections.abc import Iterable

from atm.plan import collectives, hardware, hlo, kernels, program_costs

# Keys of `estimate`, all None where there is no program; those from
# `host_copies` on are None, too, for devices of this machine.
ESTIMATES = (
  'collectives', 'cycles', 'largest_arrays', 'unknown_loops', 'host_copies',
  'time_split_s', 'time_range_s',
)  # fmt: skip
# What products may take of the compiler's cycles: for bfloat16 8192 x 8192 by
# 8192 x 8192 v5e took 6.047 ms, calls included, by JAX's guide to Pallas (XLA's
# own in docs/pallas/tpu/matmul.ipynb of jax-ml/jax), and the compiler's cycles
# are 6.372 ms. No such figure was found for other chips: the same is assumed.
PRODUCTS = 0.949


def estimate(
  program: hlo.Program,
  target: hardware.Target,
  kernel_flops: float,
  product_flops: float = 0.0,
) -> dict:
  """Estimates traffic, cycles, large arrays, time of a program: ESTIMATES."""
  # `kernel_flops` are those of all devices in attention kernels, for where the
  # cycles of those are not known; `product_flops` those of other products; 0:
  # not known.
  result = {**dict.fromkeys(ESTIMATES), **tabulate(program, target)}
  if target.pod is None:
    return result
  scheduled = {}
  # Partial compilations stop before there are cycles, and need no schedules.
  if len(result['cycles']) > 1:
    scheduled = kernels.kernel_cycles(program, target.pod)
    result['cycles'] = program_costs.sum_cycles(program, scheduled)
  copies = summarize_host_copies(program, scheduled, target.pod.chip)
  rows, cycles = result['collectives'], result['cycles']
  split = split_time(rows, cycles, kernel_flops, target, copies, product_flops)
  times = dict(time_split_s=split, time_range_s=step_time(split))
  return result | dict(host_copies=copies, **times)


def tabulate(program: hlo.Program, target: hardware.Target) -> dict:
  """Returns the tables of a program: those of ESTIMATES that need no chip."""
  return {
    'collectives': collectives.list_collectives(program, target.mesh.shape),
    'cycles': program_costs.sum_cycles(program),
    'largest_arrays': program_costs.list_largest_arrays(program),
    'unknown_loops': program.unknown_loops,
  }


def split_time(
  rows: list[dict],
  cycles: dict,
  kernel_flops: float,
  target: hardware.Target,
  host: dict | None = None,
  product_flops: float = 0.0,
) -> dict:
  """Returns seconds (least, most) of a program's parts on a pod, each alone."""
  # `rows`, `cycles` are of `tabulate`, `host` of `summarize_host_copies`.
  chip = target.pod.chip
  in_kernels = kernel_flops / target.mesh.size / chip.peak / chip.kernels
  if are_kernels_known(cycles, kernel_flops / target.mesh.size, chip):
    in_kernels = cycles.get('kernels', 0) / chip.clock
  split = {
    'compute': compute_time(cycles, product_flops / target.mesh.size, chip),
    'kernels': (in_kernels, in_kernels * kernels.WAIT),
    'synchronous collectives': (0.0, 0.0),
    'asynchronous collectives': (0.0, 0.0),
  }
  for row in rows:
    when = 'asynchronous' if row['asynchronous'] else 'synchronous'
    part = f'{when} collectives'
    slow, fast = wire_speeds(row['axes'], target)
    sent, (least, most) = row['wire_bytes'], split[part]
    split[part] = least + sent / fast, most + sent / slow
  if host:
    both = host['to_host_bytes'] + host['from_host_bytes']
    split['host copies'] = host['waits_s'], both / chip.pcie
  return split


def are_kernels_known(
  cycles: dict, kernel_flops: float, chip: hardware.Chip
) -> bool:
  """Tells whether cycles are enough for the FLOPs of a device in kernels."""
  # Too few are those of other calls, beside kernels that were not scheduled, or
  # of schedules with loops, which count one turn. A causal mask leaves half of
  # the FLOPs.
  least = kernel_flops / chip.peak / 2
  return cycles.get('kernels', 0) / chip.clock >= least


def compute_time(
  cycles: dict, product_flops: float, chip: hardware.Chip
) -> tuple[float, float]:
  """Returns seconds (least, most) of all but kernels; FLOPs of one device."""
  counted = program_costs.counted_cycles(cycles) - cycles.get('kernels', 0)
  products = cycles.get('matrix products', 0) / chip.clock
  spared = 0.0
  if product_flops:
    at_peak = product_flops / chip.peak
    spared = min((1 - PRODUCTS) * products, max(0.0, products - at_peak))
  return counted / chip.clock - spared, counted / chip.clock


def summarize_host_copies(
  program: hlo.Program, scheduled: dict, chip: hardware.Chip
) -> dict | None:
  """Returns what a program copies between chip and host; None: nothing."""
  sent, by_turn = [0.0, 0.0], {}
  copies = program_costs.list_host_copies(program)
  for computation, times, to_host, size in copies:
    sent[not to_host] += times * size
    by_turn.setdefault(computation, [0.0, 0.0])[not to_host] += size
  if not any(sent):
    return None
  # By which the copies of one turn of a loop, both ways at once, outlast what
  # the turn computes, of all turns: 0 where no cycles are known.
  waits = 0.0
  for loop in program.loops():
    body = dict(loop.called)['body']
    cycles = program_costs.sum_cycles(program.one_iteration(loop), scheduled)
    computed = program_costs.counted_cycles(cycles)
    if body in by_turn and computed:
      longer = max(by_turn[body]) / chip.pcie - computed / chip.clock
      waits += program.run_counts[body] * max(0.0, longer)
  keys = 'to_host_bytes', 'from_host_bytes', 'waits_s'
  return dict(zip(keys, (*sent, waits)))


def wire_speeds(
  axes: tuple[str, ...], target: hardware.Target
) -> tuple[float, float]:
  """Returns bytes a second (least, most) of a collective along mesh axes."""
  if 'slice' in axes:
    return target.pod.chip.dcn, target.pod.chip.dcn
  return target.pod.link_speeds(target.coordinates(axes))


def step_time(split: dict) -> tuple[float, float]:
  """Returns (least, most): asynchronous collectives hidden whole, or not."""
  hidden = 'asynchronous collectives'
  return overlap(split, [name for name in split if name != hidden], [hidden])


def overlap(split: dict, *tracks: Iterable[str]) -> tuple[float, float]:
  """Returns (least, most) of parts: tracks beside one another, or in turn."""
  # What is on no track comes on top.
  total = lambda names, end: sum(split[name][end] for name in names)
  rest = [name for name in split if not any(name in t for t in tracks)]
  return (
    max(total(track, 0) for track in tracks) + total(rest, 0),
    sum(total(track, 1) for track in tracks) + total(rest, 1),
  )


def project_run(
  result: dict, target: hardware.Target, tokens: int, train_steps: int
) -> dict:
  """Returns rates and totals of a run; None: a step's time is not known."""
  # `tokens` are those of a step, encoder and decoder together.
  model, size = result['model_flops'], target.mesh.size
  run = {
    'tokens_per_step': tokens,
    'train_steps': train_steps,
    'mfu_range': None,
    'tokens_per_second_range': None,
    'days_range': None,
    'chip_hours_range': None,
    'mfu_ceiling': target.pod and model / result['hardware_flops'],
  }
  if result['step_time_range_s'] is None:
    return run
  ideal = model / (size * target.pod.chip.peak)
  least, most = result['step_time_range_s']
  whole = [s * train_steps for s in (least, most)]
  return run | {
    'mfu_range': (ideal / most, ideal / least),
    'tokens_per_second_range': (tokens / most, tokens / least),
    'days_range': tuple(s / 86400 for s in whole),
    'chip_hours_range': tuple(
      s / 3600 * size / target.pod.chip.devices for s in whole
    ),
  }
