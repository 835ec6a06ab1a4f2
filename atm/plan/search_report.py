"""A search as text and as a picture; pods as a table."""

from __future__ import annotations

from atm.plan.report import format_list, format_range, format_table

PICTURE = 'search.png'
_MARKERS = {1: 'o', 2: 's', 4: '^', 8: 'D'}  # of micro-batches
_YES_NO = {True: 'yes', False: 'no', None: '-'}


def format_outcome(row: dict) -> str:
  """Formats what a partial plan found: '22.3 GiB, fits'."""
  if row.get('error'):
    return f'failed: {row["error"]}'
  verdict = 'fits' if row['fits'] else 'does not fit'
  if row.get('peak_hbm_gib') is None:
    return verdict
  return f'{row["peak_hbm_gib"]:.1f} GiB, {verdict}'


def format_plan(made: dict) -> str:
  """Formats what a whole plan found: '22.3 GiB, 2.10 to 2.50 s a step'."""
  if made.get('error'):
    return f'failed: {made["error"]}'
  seconds = format_range(made['step_time_range_s'])
  return f'{made["peak_hbm_gib"]:.1f} GiB, {seconds} s a step'


def search_page(summary: dict) -> str:
  """Formats a search: its table, what was left out, bindings to paste.

  Args:
    summary: of `search.Search`.
  """
  last = 'the fastest that was planned whole:\n\n' + '\n'.join(
    f'  {line}' for line in summary['best'] or ()
  )
  return '\n\n'.join(
    [
      format_table(_title(summary), _rows(summary)),
      format_list('notes', _notes(summary)),
      last if summary['best'] else _explain_none(summary),
    ]
  )


def _stopped(summary: dict) -> str:
  return '' if summary['finished'] else ', stopped before its end'


def _title(summary: dict) -> str:
  return (
    f'{summary["topology"]}, {summary["usable_hbm_gib"]:.2f} GiB a chip: '
    f'{len(summary["rows"])} candidates tried in {summary["minutes"]:.1f} min'
    f'{_stopped(summary)}; * is the run as it is bound'
  )


def _number(row: dict, name: str, form: str) -> str:
  value = row.get(name)
  return '-' if value is None else f'{value:{form}}'


def _left(row: dict) -> str:
  """Formats the headroom of what fits."""
  return _number(row, 'headroom', '.0%') if row.get('fits') else '-'


def _rows(summary: dict) -> list[tuple[str, ...]]:
  rows = [(
    '', 'data', 'fsdp', 'tensor', 'remat', 'micro', 'fits', 'GiB', 'left',
    'sent GB', 'estimated s', 'planned s', 'MFU',
  )]  # fmt: skip
  for r in summary['rows']:
    plan = r['plan'] or {}
    seconds, mfu = plan.get('step_time_range_s'), plan.get('mfu_range')
    failed = r['error'] or plan.get('error')
    sent = r['wire_bytes'] / 1e9
    rows.append((
      '*' * r['own'], *(str(r[axis]) for axis in ('data', 'fsdp', 'tensor')),
      r['remat'], str(r['micro_batches']), _YES_NO[r['fits']],
      _number(r, 'peak_hbm_gib', '.1f'), _left(r),
      '-' if r['peak_hbm_gib'] is None else f'{sent:.0f}',
      format_range(r['estimate_s']),
      failed or (format_range(seconds) if seconds else ''),
      format_range(mfu, '.0%') if mfu else '',
    ))  # fmt: skip
  return rows


def _notes(summary: dict) -> list[str]:
  shares = ', '.join(
    f'{s:.0%} ({k})' for k, s in summary['shares_of_peak'].items()
  )
  return [
    'estimated: compiled as far as memory and collectives; computation at the '
    f'share of peak that cycles of whole plans have by remat: {shares}',
    'planned: compiled whole, from cycles, as `atm plan` has it',
    f'at least {summary["headroom_wanted"]:.0%} of memory left where any '
    'candidate leaves it',
    *(f'{n} candidates {reason}' for reason, n in summary['left_out'].items()),
  ]


def _explain_none(summary: dict) -> str:
  """Tells why nothing is best, and what comes nearest."""
  sizes = [r['peak_hbm_gib'] for r in summary['rows'] if r['peak_hbm_gib']]
  if any(r['fits'] for r in summary['rows']):
    return 'none was planned whole'
  if not sizes:
    return 'none fits'
  return (
    f'none fits: the smallest needs {min(sizes):.1f} of '
    f'{summary["usable_hbm_gib"]:.2f} GiB. A larger pod, or a smaller batch?'
  )


def pods_page(table: dict) -> str:
  """Formats the table of pods.

  Args:
    table: of `command.compare_pods`.
  """
  searched = table['searched']
  rows = [(
    'pod', 'chips', 'batch', 'fits', 'GiB', 'usable', 'left',
    'planned s' if searched else 'estimated s', 'days',
  )]  # fmt: skip
  for r in table['rows']:
    seconds, fits = r.get('step_s'), r.get('fits')
    days = [s * r['train_steps'] / 86400 for s in seconds or ()]
    rows.append((
      r['pod'], str(r['chips']), f'{r["batch_size"]:,}',
      r.get('error') or _YES_NO[fits],
      _number(r, 'peak_hbm_gib', '.1f'), _number(r, 'usable_hbm_gib', '.2f'),
      _left(r), format_range(seconds) if seconds else '-',
      format_range(days, '.0f') if days and fits else '-',
    ))  # fmt: skip
  note = (
    'each as `atm plan --gin.SEARCH=True` has its best'
    if searched
    else 'compiled as far as memory and collectives; estimated: computation '
    'taken for the share of peak that 20b reaches on such chips'
  )
  return format_table('pods' + _stopped(table), rows, [note])


# --- The picture


def draw(summary: dict, path: str) -> None:
  """Draws memory of a chip against a step's estimated time, as PNG.

  Candidates far beyond stand hollow at the edge.
  """
  import matplotlib  # heavy

  matplotlib.use('agg')
  import matplotlib.pyplot as plt

  usable, kept = summary['usable_hbm_gib'], 1 - summary['headroom_wanted']
  rows = [r for r in summary['rows'] if r['peak_hbm_gib']]
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
    _draw_point(axes, r, at[id(r)], ends, _colors(rows)[r['remat']])
  _draw_ranks(axes, summary, {id(r): at[id(r)] for r in rows})
  style = dict(va='top', color='tab:red', size=9)
  top = ends[1] * 0.995
  axes.text(usable, top, f' out of memory\n ({usable:.2f} GiB)', **style)
  left = f'{summary["headroom_wanted"]:.0%} left '
  axes.text(usable * kept, top, left, ha='right', **style)
  axes.set(
    xlim=(0, ends[0]),
    ylim=(0.95 * quickest, ends[1]),
    xlabel='memory of a chip at the peak, GiB',
    ylabel='a step, estimated seconds (middle of the range)',
    title=f'{summary["topology"]}: {len(rows)} candidates',
  )
  axes.grid(alpha=0.3)
  _draw_legend(axes, summary, rows)
  figure.savefig(path, dpi=120)
  plt.close(figure)


def _draw_point(axes, row: dict, at, ends, color: str) -> None:
  x, y = (min(n, 0.99 * end) for n, end in zip(at, ends))
  axes.plot(
    x, y, _MARKERS.get(row['micro_batches'], 'P'), ms=7, color=color, alpha=0.8,
    markerfacecolor=color if (x, y) == at else 'none',
  )  # fmt: skip


def _colors(rows: list[dict]) -> dict[str, str]:
  kinds = sorted({r['remat'] for r in rows})
  return {kind: f'C{number}' for number, kind in enumerate(kinds)}


def _ranked(summary: dict) -> list[tuple[int, dict]]:
  """Returns (1, row), ... of those planned whole, the fastest first."""
  rows = {tuple(r['bindings']): r for r in summary['rows']}
  return [
    (number, rows[tuple(bindings)])
    for number, bindings in enumerate(summary['ranked'], 1)
  ]


def _draw_ranks(axes, summary: dict, at: dict) -> None:
  """Draws ranks of whole plans, on alternate sides of the points."""
  for side, (number, row) in enumerate(
    sorted(_ranked(summary), key=lambda pair: at[id(pair[1])])
  ):
    axes.plot(*at[id(row)], 'o', ms=14, color='black', markerfacecolor='none')
    axes.annotate(
      str(number), at[id(row)], xytext=(0, (13, -13)[side % 2]),
      textcoords='offset points', ha='center', va='center', weight='bold',
    )  # fmt: skip


def _draw_legend(axes, summary: dict, rows: list[dict]) -> None:
  from matplotlib.lines import Line2D

  entry = lambda label, **style: Line2D([], [], ls='', label=label, **style)
  handles = [
    entry(f'remat {kind}', marker='o', color=color)
    for kind, color in _colors(rows).items()
  ]
  for n in sorted({r['micro_batches'] for r in rows}):
    label = f'{n} micro-batch{"es" * (n > 1)}'
    handles.append(entry(label, marker=_MARKERS.get(n, 'P'), color='grey'))
  for number, r in _ranked(summary):
    seconds = format_range(r['plan']['step_time_range_s'], '.1f')
    own = '\n   as bound' if r['own'] else ''
    handles.append(entry(
      f'{number}. data {r["data"]}, fsdp {r["fsdp"]}, tensor {r["tensor"]}\n'
      f'   planned: {seconds} s{own}',
      marker='o', ms=12, color='black', markerfacecolor='none',
    ))  # fmt: skip
  figure = axes.get_figure()
  figure.legend(handles=handles, loc='outside right center')
