"""Plans as text, as `atm plan` prints them, and as files."""

import os

from atm import fileio, storage
from atm.parallel.device_memory import format_bytes
from atm.plan.decode_step_time import HBM_SHARE, HOP
from atm.plan.kernels import WAIT
from atm.plan.step_time import PRODUCTS, are_kernels_known

PLAN_FILE = 'plan.json'
NOT_KNOWN = 'not known'
ENCODER_TIME = (
  'the encoder: compiler cycles, kernels by their schedules to '
  f'{WAIT:.1f} times that, collectives along all sides to along one'
)
LARGEST = 'largest arrays that {} makes, not all at one time'


def write(plan: dict, model_dir: str | None, name: str = PLAN_FILE) -> None:
  """Writes a plan, whole or not at all, to model_dir/`name`; None: nowhere."""
  if model_dir is not None:
    storage.make_folder(model_dir)
    fileio.write_json(os.path.join(model_dir, name), plan)


def format_table(title: str, rows: list[tuple[str, ...]], notes=()) -> str:
  """Formats rows of cells in columns, the first above them; '' without rows."""
  if len(rows) < 2:
    return ''
  widths = [max(map(len, column)) for column in zip(*rows)]
  lines = [
    '  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
    for row in rows
  ]
  return title + ''.join(f'\n  {line}' for line in (*lines, *notes))


def format_list(title: str, lines) -> str:
  """Formats lines as items."""
  return title + ''.join(f'\n  - {line}' for line in lines)


def format_range(pair, form: str = '.2f') -> str:
  """Formats (least, most); None is not known."""
  return f'{pair[0]:{form}} to {pair[1]:{form}}' if pair else NOT_KNOWN


# --- Training


def train_page(plan: dict, pod) -> str:
  """Formats what `train_plan.plan` returns, for a hardware.Pod or None."""
  residuals = plan['largest_buffers']
  return join_parts(
    format_verdict(plan, 'changes that fit, each tried, cheapest first:'),
    format_memory(
      f'{plan["params"]:,} parameters; a checkpoint has '
      f'{format_bytes(plan["checkpoint_bytes"])}',
      plan['memory'],
      [],
    ),
    format_arrays('largest arrays that loops over layers keep', residuals)
    or format_arrays(LARGEST.format('the step'), plan['largest_arrays']),
    _train_flops(plan),
    format_collectives('a chip and step', plan),
    format_cycles(plan),
    _train_speed(plan),
    format_list('warnings', plan['warnings'] or ['none']),
    format_list('assumptions', _train_assumptions(plan, pod)),
  )


def join_parts(*parts: str) -> str:
  """Joins the parts of a page that are not empty."""
  return '\n\n'.join(part for part in parts if part)


def format_verdict(plan: dict, title: str) -> str:
  """Tells whether a program fits, and how much it needs; else what may help."""
  fits, peak = plan['fits'], plan['peak_hbm_gib']
  if fits is None:
    shown = format_bytes(peak * 2**30)
    return f'needs {shown} a device; what it may use is not known'
  usable = plan['usable_hbm_gib']
  share = f'{peak:.2f} of {usable:.2f} GiB a chip'
  if fits:
    return f'fits: {share} at the peak, {1 - peak / usable:.0%} left'
  text = f'does not fit: needs {share}'
  if not plan['changes']:
    return text
  if 'saves' in plan['changes'][0]:
    title = 'changes that would help, cheapest first (estimated savings):'
  return f'{text}\n{format_list(title, map(_change, plan["changes"]))}'


def _change(row: dict) -> str:
  if 'saves' in row:
    result = f'about {format_bytes(row["saves"])} less'
  else:
    peak, usable = row['peak_hbm_gib'], row['usable_hbm_gib']
    result = f'{peak:.2f} of {usable:.2f} GiB'
  return f'{row["change"]}: {result}; {row["costs"]}'


def format_memory(title: str, memory: dict, notes: list[str]) -> str:
  """Formats bytes by what has them, with notes."""
  rows = [
    (name, format_bytes(n))
    for name, n in memory.items()
    if name not in ('heap', 'host')
  ]
  if memory.get('host'):
    rows.append(("in its host's memory", format_bytes(memory['host'])))
  notes = [*notes, 'temporaries: all else at the peak']
  return format_table(title, [('memory', 'a chip'), *rows], notes)


def format_arrays(title: str, arrays: list[dict] | None) -> str:
  """Formats the largest of some arrays, with their lines."""
  rows = [('size', 'shape', 'where', 'of')]
  for r in (arrays or [])[:8]:
    size, source = format_bytes(r['bytes']), r['source'] or '-'
    op_name = '/'.join(r['op_name'].split('/')[-3:])[-48:] or '-'
    rows.append((size, r['shape'], source, op_name))
  return format_table(title, rows)


def _train_flops(plan: dict) -> str:
  model, counted = plan['model_flops'], plan['flops_counted']
  hardware = plan['hardware_flops']
  rows = [
    ('of', 'FLOPs', ''),
    ('model, by formula', f'{model:.4g}', 'flops.train_flops'),
    ('model, counted', f'{counted:.4g}', f'{counted / model - 1:+.2%}'),
    ('hardware', f'{hardware:.4g}', f'{hardware / model - 1:+.1%}: computed '
     'again, and masked or padded attention'),
  ]  # fmt: skip
  return format_table('a step', rows)


def format_collectives(each: str, plan: dict) -> str:
  """Formats the collectives of a plan."""
  rows = [('kind', 'mesh axes', 'of', 'count', 'sent', '', 'most at')]
  for r in plan.get('collectives') or ():
    rows.append((
      r['kind'], ' x '.join(r['axes']) or '-', str(r['group']),
      f'{r["count"]:,}', format_bytes(r['wire_bytes']),
      'asynchronous' if r['asynchronous'] else 'synchronous',
      r['source'] or '-',
    ))  # fmt: skip
  return format_table(f'collectives, {each}', rows)


def format_cycles(plan: dict) -> str:
  """Formats the compiler's cycles by kind of operation."""
  groups = dict(plan.get('cycles') or {})
  unknown = groups.pop('unknown', 0)
  total = sum(groups.values())
  if not total:
    return ''
  rows = [('operations', 'cycles', 'share')]
  for name, n in sorted(groups.items(), key=lambda item: -item[1]):
    rows.append((name, f'{n:.3g}', f'{n / total:.0%}'))
  notes = [f'{unknown} operations without an estimate'] if unknown else []
  return format_table("the compiler's estimated cycles", rows, notes)


def list_times(
  head: tuple, split: dict, total, form: str, scale=1
) -> list[tuple]:
  """Returns rows of a program's parts, and of all of them together."""
  shown = lambda pair: format_range([scale * s for s in pair], form)
  parts = {**split, 'together': total}
  return [head, *((name, shown(pair)) for name, pair in parts.items())]


def _train_speed(plan: dict) -> str:
  if plan['step_time_range_s'] is None:
    return 'step time: ' + NOT_KNOWN
  split, total = plan['time_split_s'], plan['step_time_range_s']
  rows = list_times(('a step', 'seconds'), split, total, '.2f')
  return format_table('time', rows, [
    f'MFU {format_range(plan["mfu_range"], ".1%")}; '
    f'at most {plan["mfu_ceiling"]:.1%} for what is computed again',
    f'tokens/s {format_range(plan["tokens_per_second_range"], ",.0f")}; '
    f'{plan["tokens_per_step"]:,} a step, of encoder and decoder together',
    f'{plan["train_steps"]:,} steps: '
    f'{format_range(plan["days_range"], ".1f")} days, '
    f'{format_range(plan["chip_hours_range"], ",.0f")} chip-hours',
  ])  # fmt: skip


def describe_compilation(plan: dict) -> str:
  """Tells how long compilations took, and by what."""
  versions = plan['versions']
  return (
    f'compiled in {plan["compile_seconds"]:.0f} s by jax {versions["jax"]}, '
    f'libtpu {versions["libtpu"] or "none"}'
  )


def list_chip_assumptions(chip) -> list[str]:
  """Lists a chip's figures that plans are made of."""
  each = f'; "a chip" is a device here, {chip.devices} to a chip'
  return [
    'nothing here was measured on a chip; sources: atm/plan/hardware.py'
    + (each if chip.devices > 1 else ''),
    f'peak {chip.peak / 1e12:.0f} TFLOP/s bfloat16, {chip.clock / 1e9:.2f} GHz',
    f'links {chip.link / 1e9:.0f} GB/s one way',
  ]


def _train_assumptions(plan: dict, pod) -> list[str]:
  rows = 'several documents' if plan['packed'] else 'one document'
  lines = [
    describe_compilation(plan),
    f'rows of {rows} each, all positions taken for real ones',
  ]
  if pod is None:
    return [*lines, "this machine's devices: no memory limit, no step time"]
  chip = pod.chip
  wraps = ', '.join(
    f'{n} {"wraps" if w else "is a line"}' for n, w in zip(pod.shape, pod.wraps)
  )
  lines += list_chip_assumptions(chip)
  lines[-1] += f'; sides: {wraps}'
  kernels = 'by the schedules compiled for them'
  flops = plan['kernel_flops'] / plan['devices']
  if not are_kernels_known(plan['cycles'] or {}, flops, chip):
    kernels = f'at {chip.kernels:.0%} of peak (their schedules are not known)'
  lines += [
    f'time: compiler cycles, of products {PRODUCTS:.0%} to all, plus kernels '
    f'{kernels} to {WAIT:.1f} times that, '
    'plus collectives along all sides that they span to along a single one; '
    'asynchronous ones hidden whole, to not at all',
    'not counted: waiting for data, hosts, checkpoints, evaluations, restarts',
  ]
  if plan['host_copies']:
    lines.append(
      f'host: {chip.pcie / 1e9:.0f} GB/s one way; copies waited for where '
      "those of a loop's turn, both ways at once, outlast what it computes, "
      'to one after another with nothing beside'
    )
  if pod.shape == (8, 16):
    lines.append('whether 8 of 8x16 wraps is not known; taken as a line')
  return lines


# --- Decoding and encoding


def decode_page(plan: dict, pod) -> str:
  """Formats what `decode_plan.plan_rows` returns, for a Pod or None."""
  each = 'token' if plan['token'] else 'batch'
  main = plan['token'] or plan['prefill'] or {}
  return join_parts(
    _decode_verdict(plan),
    _batches(plan),
    _decode_memory(plan),
    format_arrays(LARGEST.format(f'a {each}'), main.get('largest_arrays')),
    format_collectives(f'a chip and {each}', main),
    format_cycles(main),
    _decode_speed(plan),
    format_list('warnings', plan['warnings'] or ['none']),
    format_list('assumptions', _decode_assumptions(plan, pod)),
  )


def _decode_verdict(plan: dict) -> str:
  B, verdict = plan['batch_size'], format_verdict(plan, '')
  if plan['searched'] and plan['fits']:
    return f'largest batch that fits: {B}\n{verdict}'
  return f'a batch of {B}: {verdict}'


def _batches(plan: dict) -> str:
  rows = [('batch', 'GiB a chip', 'of it cache', '', '', 'tokens/s')]
  for row in plan['batches']:
    rows.append((
      f'{row["batch_size"]:,}',
      f'{row["peak_hbm_gib"]:.2f}',
      f'{row["cache_gib"]:.2f}',
      {True: 'fits', False: 'does not fit', None: ''}[row['fits']],
      'compiled' if row['whole'] else 'placed',
      format_range(row['tokens_per_second_range'], ',.0f'),
    ))  # fmt: skip
  return format_table('batches tried', rows)


def _decode_memory(plan: dict) -> str:
  row, a_chip = plan['cache_row_bytes'], plan['cache_row_bytes_a_chip']
  notes = [
    f'the cache of an input: {format_bytes(row)}, of it '
    f'{format_bytes(a_chip)} on each chip that has it'
  ]
  title = f'{plan["params"]:,} parameters, {plan["weights"]}'
  return format_memory(title, plan['memory'], notes if row else [])


def _decode_speed(plan: dict) -> str:
  if plan['tokens_per_second_range'] is None:
    return 'time: ' + NOT_KNOWN
  token, once = plan['token'], plan['prefill']
  each = token or once
  head = 'a token of every row' if token else 'a batch', 'ms'
  split, total = each['time_split_s'], each['time_range_s']
  rows = list_times(head, split, total, ',.4g', scale=1000)
  rate = format_range(plan['tokens_per_second_range'], ',.0f')
  if not token:
    mfu = format_range(plan['mfu_range'], '.1%')
    return format_table('time', rows, [f'tokens/s read {rate}; MFU {mfu}'])
  read = {k: format_bytes(n) for k, n in token['read_bytes'].items()}
  whole = plan['whole_batch_tokens_per_second_range']
  return format_table('time', rows, [
    f'tokens/s {rate}, of {plan["batch_size"]} inputs together',
    f'read for a token: weights {read["weights"]}, cache {read["cache"]}, '
    f'copies of it (and written) {read["copies"]} a chip',
    f'before the first token: {format_range(once["time_range_s"])} s; a batch '
    f'to its last: {format_range(plan["batch_time_range_s"], ".3g")} s, '
    f'{format_range(whole, ",.0f")} tokens/s',
  ])  # fmt: skip


def list_token_assumptions(chip) -> list[str]:
  """Lists what the time of a token was taken from, on chips of a kind."""
  low, high = HBM_SHARE
  return [
    f'HBM {chip.hbm / 1e9:,.0f} GB/s, of which reading has {low:.0%} to '
    f'{high:.0%}; all positions of the cache are read for each token',
    f'{1e6 * HOP:.0f} us from chip to chip: straight to the farthest, to '
    'twice around a ring of the group',
    "least: reading or the compiler's cycles, whichever is longer, and "
    'collectives; most: one after the other',
  ]


def _decode_assumptions(plan: dict, pod) -> list[str]:
  lines = [
    describe_compilation(plan) + ', without options, as `atm infer` does',
    f'inputs of {plan["lengths"]["inputs"]:,} tokens, all of them real',
  ]
  if plan['token']:
    lines.append(
      f'{plan["tokens_written"]:,} tokens written: the loop ends when all rows '
      'are done, and is taken to turn until the last'
    )
  if pod is None:
    return [*lines, "this machine's devices: no memory limit, no time"]
  lines += list_chip_assumptions(pod.chip)
  if plan['token']:
    lines += list_token_assumptions(pod.chip)
  return [
    *lines,
    ENCODER_TIME,
    'not counted: hosts, tokenising, batches that are not full',
  ]
