"""A plan as text: what `atm plan` prints."""

from __future__ import annotations

from atm.plan.kernels import WAIT
from atm.plan.memory import UNITS

NOT_KNOWN = 'not known'


def page(made: dict, pod) -> str:
  """The whole of it.

  Args:
    made: what `train_plan.plan` returns.
    pod: the chips.Pod planned for, or None.
  """
  parts = [
    verdict(made),
    memory(made),
    table(
      'largest arrays that loops over layers keep'
      if made['largest_buffers']
      else 'largest arrays that the step makes, not all at one time',
      arrays(made),
    ),
    flops(made),
    table('collectives, a chip and step', collectives(made)),
    cycles(made),
    speed(made),
    *listed('warnings', made['warnings'] or ['none']),
    *listed('assumptions', assumptions(made, pod)),
  ]
  return '\n\n'.join(part for part in parts if part)


def listed(title: str, lines) -> list[str]:
  return [f'{title}\n' + '\n'.join(f'  - {line}' for line in lines)]


def table(title: str, rows: list[tuple[str, ...]]) -> str:
  """Rows of cells in columns, the first row above them; '' without rows."""
  if len(rows) < 2:
    return ''
  widths = [max(map(len, column)) for column in zip(*rows)]
  lines = (
    '  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
    for row in rows
  )
  return f'{title}\n' + '\n'.join(f'  {line}' for line in lines)


def span(pair, form: str = '.2f') -> str:
  return f'{pair[0]:{form}} to {pair[1]:{form}}' if pair else NOT_KNOWN


def size(n: float) -> str:
  """3.51 GiB; smaller ones in MiB or KiB."""
  unit = next((u for u in 'GM' if n >= UNITS[u] / 10), 'K')
  return f'{n / UNITS[unit]:.2f} {unit}iB'


# --- Its parts


def verdict(made: dict) -> str:
  fits, peak = made['fits'], made['peak_hbm_gib']
  if fits is None:
    shown = size(peak * 2**30)
    return f'needs {shown} a device; what it may use is not known'
  usable = made['usable_hbm_gib']
  share = f'{peak:.2f} of {usable:.2f} GiB a chip'
  if fits:
    return f'fits: {share} at the peak, {1 - peak / usable:.0%} left'
  lines = [f'does not fit: needs {share}']
  if made['changes']:
    estimated = 'saves' in made['changes'][0]
    lines.append(
      'changes that would help, cheapest first (estimated savings):'
      if estimated
      else 'changes that fit, each tried, cheapest first:'
    )
    lines += [f'  - {change(c)}' for c in made['changes']]
  return '\n'.join(lines)


def change(row: dict) -> str:
  """One of what fits by a quick plan, or of `memory.changes`."""
  if 'saves' in row:
    result = f'about {size(row["saves"])} less'
  else:
    peak, usable = row['peak_hbm_gib'], row['usable_hbm_gib']
    result = f'{peak:.2f} of {usable:.2f} GiB'
  return f'{row["change"]}: {result}; {row["costs"]}'


def memory(made: dict) -> str:
  m = made['memory']
  rows = [('memory', 'a chip')]
  rows += [
    (name, size(m[name]))
    for name in ('parameters', 'optimizer', 'batch', 'temporaries', 'peak')
  ]
  if m['host']:
    rows.append(("in its host's memory", size(m['host'])))
  saved = size(made['checkpoint_bytes'])
  return (
    table(f'{made["params"]:,} parameters; a checkpoint has {saved}', rows)
    + '\n  temporaries: activations, gradients, and copies at the peak'
  )


def arrays(made: dict) -> list[tuple[str, ...]]:
  """Of a program that does not fit, the compiler's; else those it makes."""
  found = made['largest_buffers'] or made['largest_arrays'] or []
  rows = [('size', 'shape', 'where', 'of')]
  return rows + [
    (size(r['bytes']), r['shape'], r['source'] or '-', short(r['op_name']))
    for r in found[:8]
  ]


def short(op_name: str) -> str:
  """The end of JAX's name of an operation."""
  return '/'.join(op_name.split('/')[-3:])[-48:] or '-'


def flops(made: dict) -> str:
  model, counted = made['model_flops'], made['flops_counted']
  rows = [
    ('of', 'FLOPs', ''),
    ('model, by formula', f'{model:.4g}', 'metrics.train_flops'),
    ('model, counted', f'{counted:.4g}', f'{counted / model - 1:+.2%}'),
    (
      'hardware',
      f'{made["hardware_flops"]:.4g}',
      f'{made["hardware_flops"] / model - 1:+.1%}: computed again, and '
      'masked or padded attention',
    ),
  ]
  return table('a step', rows)


def collectives(made: dict) -> list[tuple[str, ...]]:
  rows = [('kind', 'mesh axes', 'of', 'count', 'sent', '', 'most at')]
  for r in made['collectives'] or ():
    rows.append((
      r['kind'], ' x '.join(r['axes']) or '-', str(r['group']),
      f'{r["count"]:,}', size(r['wire_bytes']),
      'asynchronous' if r['asynchronous'] else 'synchronous',
      r['source'] or '-',
    ))  # fmt: skip
  return rows


def cycles(made: dict) -> str:
  found = dict(made['cycles'] or {})
  unknown = found.pop('unknown', 0)
  total = sum(found.values())
  if not total:
    return ''
  rows = [('operations', 'cycles', 'share')]
  for name, n in sorted(found.items(), key=lambda item: -item[1]):
    rows.append((name, f'{n:.3g}', f'{n / total:.0%}'))
  note = f'\n  {unknown} operations without an estimate' if unknown else ''
  return table("the compiler's estimated cycles", rows) + note


def speed(made: dict) -> str:
  if made['step_time_range_s'] is None:
    return 'step time: ' + NOT_KNOWN
  rows = [('a step', 'seconds')]
  rows += [(name, span(s)) for name, s in made['time_split_s'].items()]
  rows.append(('together', span(made['step_time_range_s'])))
  tokens, steps = made['tokens_per_step'], made['train_steps']
  lines = [
    f'MFU {span(made["mfu_range"], ".1%")}; '
    f'at most {made["mfu_ceiling"]:.1%} for what is computed again',
    f'tokens/s {span(made["tokens_per_second_range"], ",.0f")}; '
    f'{tokens:,} a step, of encoder and decoder together',
    f'{steps:,} steps: {span(made["days_range"], ".1f")} days, '
    f'{span(made["chip_hours_range"], ",.0f")} chip-hours',
  ]
  return table('time', rows) + ''.join(f'\n  {line}' for line in lines)


def of_kernels(made: dict, chip) -> str:
  if made['kernel_flops'] and 'kernels' not in (made['cycles'] or ()):
    return f'at {chip.kernels:.0%} of peak (their schedules are not known)'
  return 'by the schedules compiled for them'


def assumptions(made: dict, pod) -> list[str]:
  v = made['versions']
  built = f'jax {v["jax"]}, libtpu {v["libtpu"] or "none"}'
  rows = 'several documents' if made['packed'] else 'one document'
  lines = [
    f'compiled in {made["compile_seconds"]:.0f} s by {built}',
    f'rows of {rows} each, all positions taken for real ones',
  ]
  if pod is None:
    return [*lines, "this machine's devices: no memory limit, no step time"]
  chip = pod.chip
  wraps = ', '.join(
    f'{n} {"wraps" if w else "is a line"}' for n, w in zip(pod.shape, pod.wraps)
  )
  return [
    *lines,
    'nothing here was measured on a chip; sources: atm/plan/hardware.py',
    f'peak {chip.peak / 1e12:.0f} TFLOP/s bfloat16, {chip.clock / 1e9:.2f} GHz',
    f'links {chip.link / 1e9:.0f} GB/s one way; sides: {wraps}',
    f'time: compiler cycles, plus kernels {of_kernels(made, chip)} to '
    f'{WAIT:.1f} times that, plus collectives along all sides that they span '
    'to along a single one; asynchronous ones hidden whole, to not at all',
    'not counted: waiting for data, hosts, checkpoints, evaluations, restarts',
    *(
      [
        f'host: {chip.pcie / 1e9:.0f} GB/s one way; copies waited for where '
        "those of a loop's turn, both ways at once, outlast what it computes, "
        'to one after another with nothing beside'
      ]
      if made['host_copies']
      else []
    ),
    *(
      ['whether 8 of 8x16 wraps is not known; taken as a line']
      if pod.shape == (8, 16)
      else []
    ),
  ]
