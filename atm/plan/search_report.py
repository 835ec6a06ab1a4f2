"""A search as text and as a picture."""

from __future__ import annotations

from atm.messages import clock_text
from atm.plan.train_report import span, table

PICTURE = 'search.png'
MARKS = {1: 'o', 2: 's', 4: '^', 8: 'D'}  # of micro-batches


def outcome(row: dict) -> str:
  """'22.3 of 95.7 GiB' and the like: what a quick plan says."""
  if row.get('error'):
    return f'failed: {row["error"]}'
  verdict = 'fits' if row['fits'] else 'does not fit'
  if row.get('peak_hbm_gib') is None:
    return verdict
  return f'{row["peak_hbm_gib"]:.1f} GiB, {verdict}'


def whole(made: dict) -> str:
  """What a whole plan says."""
  if made.get('error'):
    return f'failed: {made["error"]}'
  seconds = span(made['step_time_range_s'])
  return f'{made["peak_hbm_gib"]:.1f} GiB, {seconds} s a step'


def text(found: dict) -> str:
  """The whole of it: table, what was left out, what to paste."""
  lines = [table(_title(found), _rows(found)), *_notes(found)]
  if found['best']:
    lines.append('the fastest that was planned whole:\n')
    lines[-1] += '\n'.join(f'  {line}' for line in found['best'])
  else:
    lines.append(_nothing(found))
  return '\n\n'.join(lines)


def _title(found: dict) -> str:
  stopped = '' if found['finished'] else ', stopped before its end'
  return (
    f'{found["topology"]}, {found["usable_hbm_gib"]:.2f} GiB a chip: '
    f'{len(found["rows"])} candidates tried in {found["minutes"]:.1f} min'
    f'{stopped}; * is the run as it is bound'
  )


def _rows(found: dict) -> list[tuple[str, ...]]:
  rows = [(
    '', 'data', 'fsdp', 'tensor', 'remat', 'micro', 'fits', 'GiB', 'left',
    'sent GB', 'estimated s', 'planned s', 'MFU',
  )]  # fmt: skip
  for r in found['rows']:
    planned = r['plan'] or {}
    failed = r['error'] or planned.get('error')
    known = r['peak_hbm_gib'] is not None
    rows.append((
      '*' * r['own'], *(str(r[axis]) for axis in ('data', 'fsdp', 'tensor')),
      r['remat'], str(r['micro_batches']),
      {True: 'yes', False: 'no', None: '-'}[r['fits']],
      f'{r["peak_hbm_gib"]:.1f}' if known else '-',
      f'{r["headroom"]:.0%}' if r['fits'] else '-',
      f'{r["wire_bytes"] / 1e9:.0f}' if known else '-',
      span(r['estimate_s']),
      failed or span(planned.get('step_time_range_s')).replace('not known', ''),
      span(planned['mfu_range'], '.0%') if planned.get('mfu_range') else '',
    ))  # fmt: skip
  return rows


def _notes(found: dict) -> list[str]:
  shares = ', '.join(
    f'{s:.0%} ({k})' for k, s in found['shares_of_peak'].items()
  )
  lines = [
    'estimated: compiled as far as memory and collectives; computation at the '
    f'share of peak that cycles of whole plans have by remat: {shares}',
    'planned: compiled whole, from cycles, as `atm plan` has it',
    f'at least {found["headroom_wanted"]:.0%} of memory left where any '
    'candidate leaves it',
  ]
  for why, number in found['left_out'].items():
    lines.append(f'{number} candidates {why}')
  return ['notes\n' + '\n'.join(f'  - {line}' for line in lines)]


def _nothing(found: dict) -> str:
  """That none fits, and what comes nearest."""
  sizes = [r['peak_hbm_gib'] for r in found['rows'] if r['peak_hbm_gib']]
  if any(r['fits'] for r in found['rows']):
    return 'none was planned whole'
  if not sizes:
    return 'none fits'
  return (
    f'none fits: the smallest needs {min(sizes):.1f} of '
    f'{found["usable_hbm_gib"]:.2f} GiB. A larger pod, or a smaller batch?'
  )


def pods(found: dict) -> str:
  """The table of pods."""
  rows = [(
    'pod', 'chips', 'batch', 'fits', 'GiB', 'usable', 'left',
    'planned s' if found['searched'] else 'estimated s', 'days',
  )]  # fmt: skip
  for r in found['rows']:
    known = r.get('peak_hbm_gib') is not None
    days = [s * r['train_steps'] / 86400 for s in r.get('step_s') or ()]
    rows.append((
      r['pod'], str(r['chips']), f'{r["batch_size"]:,}',
      {True: 'yes', False: 'no'}.get(r.get('fits'), r.get('error') or '-'),
      f'{r["peak_hbm_gib"]:.1f}' if known else '-',
      f'{r["usable_hbm_gib"]:.2f}' if r.get('usable_hbm_gib') else '-',
      f'{r["headroom"]:.0%}' if r.get('fits') else '-',
      span(r['step_s']) if r.get('step_s') else '-',
      span(days, '.0f') if days and r['fits'] else '-',
    ))  # fmt: skip
  note = (
    'each as `atm plan --gin.SEARCH=True` has its best'
    if found['searched']
    else 'compiled as far as memory and collectives; estimated: computation '
    'taken for the share of peak that 20b reaches on such chips'
  )
  stopped = '' if found['finished'] else ', stopped before its end'
  return f'{table("pods" + stopped, rows)}\n  {note}'


def clock(seconds: float) -> str:
  return clock_text(seconds)


# --- The picture


def picture(found: dict, path: str) -> None:
  """Memory of a chip against a step's estimated time, as PNG.

  What lies far beyond stands hollow at the edge.
  """
  import matplotlib  # heavy

  matplotlib.use('agg')
  import matplotlib.pyplot as plt

  usable, kept = found['usable_hbm_gib'], 1 - found['headroom_wanted']
  rows = [r for r in found['rows'] if r['peak_hbm_gib']]
  at = {id(r): (r['peak_hbm_gib'], sum(r['estimate_s']) / 2) for r in rows}
  quickest = min(y for _, y in at.values())
  ends = (
    usable * 1.35,
    1.03 * min(1.6 * quickest, max(y for _, y in at.values())),
  )
  figure, axes = plt.subplots(figsize=(10, 6), layout='constrained')
  axes.axvspan(usable, ends[0], color='tab:red', alpha=0.12, lw=0)
  axes.axvline(usable * kept, color='tab:red', ls='--', lw=1)
  for r in rows:
    _point(axes, r, at[id(r)], ends, _colors(rows)[r['remat']])
  _numbers(axes, found, {id(r): at[id(r)] for r in rows})
  words = dict(va='top', color='tab:red', size=9)
  top = ends[1] * 0.995
  axes.text(usable, top, f' out of memory\n ({usable:.2f} GiB)', **words)
  left = f'{found["headroom_wanted"]:.0%} left '
  axes.text(usable * kept, top, left, ha='right', **words)
  axes.set(
    xlim=(0, ends[0]),
    ylim=(0.95 * quickest, ends[1]),
    xlabel='memory of a chip at the peak, GiB',
    ylabel='a step, estimated seconds (middle of the range)',
    title=f'{found["topology"]}: {len(rows)} candidates',
  )
  axes.grid(alpha=0.3)
  _legend(axes, found, rows)
  figure.savefig(path, dpi=120)
  plt.close(figure)


def _point(axes, row: dict, at, ends, color: str) -> None:
  x, y = (min(n, 0.99 * end) for n, end in zip(at, ends))
  axes.plot(
    x, y, MARKS.get(row['micro_batches'], 'P'), ms=7, color=color, alpha=0.8,
    markerfacecolor=color if (x, y) == at else 'none',
  )  # fmt: skip


def _colors(rows: list[dict]) -> dict[str, str]:
  kinds = sorted({r['remat'] for r in rows})
  return {kind: f'C{number}' for number, kind in enumerate(kinds)}


def _ranked(found: dict) -> list[tuple[int, dict]]:
  """(1, row), ... of those planned whole, the fastest first."""
  rows = {tuple(r['bindings']): r for r in found['rows']}
  return [
    (number, rows[tuple(bindings)])
    for number, bindings in enumerate(found['ranked'], 1)
  ]


def _numbers(axes, found: dict, at: dict) -> None:
  """Those planned whole, by their rank, on alternate sides of the points."""
  for side, (number, row) in enumerate(
    sorted(_ranked(found), key=lambda pair: at[id(pair[1])])
  ):
    axes.plot(*at[id(row)], 'o', ms=14, color='black', markerfacecolor='none')
    axes.annotate(
      str(number), at[id(row)], xytext=(0, (13, -13)[side % 2]),
      textcoords='offset points', ha='center', va='center', weight='bold',
    )  # fmt: skip


def _legend(axes, found: dict, rows: list[dict]) -> None:
  from matplotlib.lines import Line2D

  entry = lambda label, **style: Line2D([], [], ls='', label=label, **style)
  handles = [
    entry(f'remat {kind}', marker='o', color=color)
    for kind, color in _colors(rows).items()
  ]
  for n in sorted({r['micro_batches'] for r in rows}):
    label = f'{n} micro-batch{"es" * (n > 1)}'
    handles.append(entry(label, marker=MARKS.get(n, 'P'), color='grey'))
  for number, r in _ranked(found):
    seconds = span(r['plan']['step_time_range_s'], '.1f')
    own = '\n   as bound' if r['own'] else ''
    handles.append(entry(
      f'{number}. data {r["data"]}, fsdp {r["fsdp"]}, tensor {r["tensor"]}\n'
      f'   planned: {seconds} s{own}',
      marker='o', ms=12, color='black', markerfacecolor='none',
    ))  # fmt: skip
  figure = axes.get_figure()
  figure.legend(handles=handles, loc='outside right center')
