"""A plan of decoding or encoding as text; see plan_text.py."""

from __future__ import annotations

from atm.plan import train_report
from atm.plan.decode_step import HBM_SHARE, HOP
from atm.plan.kernels import WAIT
from atm.plan.train_report import listed, size, span, table


def page(made: dict, pod) -> str:
  """The whole of it.

  Args:
    made: what `decode_plan.plan_rows` returns.
    pod: the chips.Pod planned for, or None.
  """
  token = made['token'] or {}
  once = made['prefill'] or {}
  main, what = (token, 'a token') if token else (once, 'a batch')
  parts = [
    verdict(made),
    batches(made),
    memory(made),
    table(
      f'largest arrays that {what} makes, not all at one time',
      train_report.arrays({'largest_buffers': None, **main}) if main else [],
    ),
    table(
      f'collectives, a chip and {what[2:]}',
      train_report.collectives({'collectives': main.get('collectives')}),
    ),
    train_report.cycles({'cycles': main.get('cycles')}),
    speed(made),
    *listed('warnings', made['warnings'] or ['none']),
    *listed('assumptions', assumptions(made, pod)),
  ]
  return '\n\n'.join(part for part in parts if part)


def verdict(made: dict) -> str:
  B, said = made['batch_size'], train_report.verdict({**made, 'changes': []})
  if made['searched'] and made['fits']:
    return f'largest batch that fits: {B}\n{said}'
  if not made['fits'] and made['changes']:
    said += ''.join(
      f'\n  - {c["change"]}: about {size(c["saves"])} less; {c["costs"]}'
      for c in made['changes']
    )
  return f'a batch of {B}: {said}'


def batches(made: dict) -> str:
  rows = [('batch', 'GiB a chip', 'of it cache', '', '', 'tokens/s')]
  for row in made['batches']:
    rows.append((
      f'{row["batch_size"]:,}',
      f'{row["peak_hbm_gib"]:.2f}',
      f'{row["cache_gib"]:.2f}',
      {True: 'fits', False: 'does not fit', None: ''}[row['fits']],
      'compiled' if row['whole'] else 'placed',
      span(row['tokens_per_second_range'], ',.0f'),
    ))  # fmt: skip
  return table('batches tried', rows)


def memory(made: dict) -> str:
  m = made['memory']
  rows = [('memory', 'a chip')]
  names = ('parameters', 'batch', 'cache', 'temporaries', 'peak')
  rows += [(name, size(m[name])) for name in names]
  text = table(f'{made["params"]:,} parameters, {made["weights"]}', rows)
  if made['cache_row_bytes']:
    text += (
      f'\n  the cache of an input: {size(made["cache_row_bytes"])}, of it '
      f'{size(made["cache_row_bytes_a_chip"])} on each chip that has it'
    )
  return text + '\n  temporaries: all else at the peak'


def speed(made: dict) -> str:
  if made['tokens_per_second_range'] is None:
    return 'time: ' + train_report.NOT_KNOWN
  milli = lambda pair: span([1000 * s for s in pair], ',.4g')
  token, once = made['token'], made['prefill']
  part = token or once
  rows = [('a token of every row' if token else 'a batch', 'ms')]
  rows += [(name, milli(s)) for name, s in part['time_split_s'].items()]
  rows.append(('together', milli(part['time_range_s'])))
  rate = span(made['tokens_per_second_range'], ',.0f')
  if not token:
    mfu = span(made['mfu_range'], '.1%')
    return table('time', rows) + f'\n  tokens/s read {rate}; MFU {mfu}'
  read = token['read_bytes']
  lines = [
    f'tokens/s {rate}, of {made["batch_size"]} inputs together',
    f'read for a token: weights {size(read["weights"])}, cache '
    f'{size(read["cache"])}, copies of it (and written) '
    f'{size(read["copies"])} a chip',
    f'before the first token: {span(once["time_range_s"])} s; a batch to its '
    f'last: {span(made["batch_time_range_s"], ".3g")} s, '
    f'{span(made["whole_batch_tokens_per_second_range"], ",.0f")} tokens/s',
  ]
  return table('time', rows) + ''.join(f'\n  {line}' for line in lines)


def assumptions(made: dict, pod) -> list[str]:
  v, sizes = made['versions'], made['lengths']
  built = f'jax {v["jax"]}, libtpu {v["libtpu"] or "none"}'
  lines = [
    f'compiled in {made["compile_seconds"]:.0f} s by {built}, without options, '
    'as `atm infer` does',
    f'inputs of {sizes["inputs"]:,} tokens, all of them real',
  ]
  if made['token']:
    lines.append(
      f'{made["tokens_written"]:,} tokens written: the loop ends when all rows '
      'are done, and is taken to turn until the last'
    )
  if pod is None:
    return [*lines, "this machine's devices: no memory limit, no time"]
  chip, (low, high) = pod.chip, HBM_SHARE
  lines += [
    'nothing here was measured on a chip; sources: atm/plan/hardware.py',
    f'peak {chip.peak / 1e12:.0f} TFLOP/s bfloat16, {chip.clock / 1e9:.2f} GHz',
    f'links {chip.link / 1e9:.0f} GB/s one way',
  ]
  if made['token']:
    lines += [
      f'HBM {chip.hbm / 1e9:,.0f} GB/s, of which reading has {low:.0%} to '
      f'{high:.0%}; all positions of the cache are read for each token',
      f'{1e6 * HOP:.0f} us from chip to chip: straight to the farthest, to '
      'twice around a ring of the group',
      "least: reading or the compiler's cycles, whichever is longer, and "
      'collectives; most: one after the other',
    ]
  return [
    *lines,
    'the encoder: compiler cycles, kernels by their schedules to '
    f'{WAIT:.1f} times that, collectives along all sides to along one',
    'not counted: hosts, tokenising, batches that are not full',
  ]
