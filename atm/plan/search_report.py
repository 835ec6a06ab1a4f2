"""A search as text and as a picture; pods as a table."""

from atm import fileio
from atm.plan.report import format_list, format_range, format_table

PICTURE = 'search.png'
# Told apart by the colour-blind, too (Okabe and Ito, 2008).
COLORS = (
  '#0072b2', '#e69f00', '#009e73', '#cc79a7', '#56b4e9', '#d55e00', '#000000'
)  # fmt: skip
_MARKERS = {1: 'o', 2: 's', 4: '^', 8: 'D'}  # of micro-batches
_YES_NO = {True: 'yes', False: 'no', None: '-'}


def format_outcome(row: dict) -> str:
  """Formats what a plan found: '22.3 GiB, fits', or its seconds a step."""
  if row.get('error'):
    return f'failed: {row["error"]}'
  verdict = 'fits' if row['fits'] else 'does not fit'
  if seconds := row.get('step_time_range_s'):  # of whole plans
    verdict = f'{format_range(seconds)} s a step'
  if row.get('peak_hbm_gib') is None:
    return verdict
  return f'{row["peak_hbm_gib"]:.1f} GiB, {verdict}'


def search_page(summary: dict) -> str:
  """Formats `search.Search.summary`: table, notes, bindings to paste."""
  title = (
    f'{summary["topology"]}, {summary["usable_hbm_gib"]:.2f} GiB a chip: '
    f'{len(summary["rows"])} candidates tried in {summary["minutes"]:.1f} min'
    f'{_stopped(summary)}; * is the run as it is bound'
  )
  lines = ('the fastest that was planned whole:\n', *(summary['best'] or ()))
  last = '\n  '.join(lines) if summary['best'] else _explain_none(summary)
  table, notes = format_table(title, _rows(summary)), _notes(summary)
  return '\n\n'.join([table, format_list('notes', notes), last])


def _stopped(summary: dict) -> str:
  return '' if summary['finished'] else ', stopped before its end'


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
  """Formats the table of `command.compare_pods`."""
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
  """Draws memory of a chip against a step's estimated time, as PNG."""
  from matplotlib.figure import Figure  # heavy

  usable, kept = summary['usable_hbm_gib'], 1 - summary['headroom_wanted']
  rows = [r for r in summary['rows'] if r['peak_hbm_gib']]
  times = [_middle(r) for r in rows]
  right = usable * 1.35
  bottom, top = min(times), 1.03 * min(1.6 * min(times), max(times))
  figure = Figure(figsize=(10, 6), layout='constrained')
  axes = figure.subplots()
  axes.axvspan(usable, right, color='tab:red', alpha=0.12, lw=0)
  axes.axvline(usable * kept, color='tab:red', ls='--', lw=1)
  _draw_points(axes, rows, right, top)
  _draw_ranks(axes, summary)
  style = dict(va='top', color='tab:red', size=9)
  axes.text(
    usable, 0.995 * top, f' out of memory\n ({usable:.2f} GiB)', **style
  )
  left = f'{summary["headroom_wanted"]:.0%} left '
  axes.text(usable * kept, 0.995 * top, left, ha='right', **style)
  axes.set(
    xlim=(0, right),
    ylim=(0.95 * bottom, top),
    xlabel='memory of a chip at the peak, GiB',
    ylabel='a step, estimated seconds (middle of the range)',
    title=f'{summary["topology"]}: {len(rows)} candidates',
  )
  axes.grid(alpha=0.3)
  figure.legend(loc='outside right center')
  with fileio.replacing(path, 'wb') as f:
    figure.savefig(f, dpi=120)


def _middle(row: dict) -> float:
  return sum(row['estimate_s']) / 2


def _draw_points(axes, rows: list[dict], right: float, top: float) -> None:
  """Draws candidates: remats by colour, micro-batches by marker."""
  kinds = sorted({r['remat'] for r in rows})
  colors = {kind: COLORS[i % len(COLORS)] for i, kind in enumerate(kinds)}
  for kind, color in colors.items():
    axes.plot([], [], 'o', color=color, label=f'remat {kind}')
  for n in sorted({r['micro_batches'] for r in rows}):
    label = f'{n} micro-batch{"es" * (n > 1)}'
    axes.plot([], [], _MARKERS.get(n, 'P'), color='grey', label=label)
  for r in rows:
    # Candidates far beyond the axes stand hollow at the edge.
    at, color = (r['peak_hbm_gib'], _middle(r)), colors[r['remat']]
    shown = min(at[0], 0.99 * right), min(at[1], 0.99 * top)
    axes.plot(
      *shown, _MARKERS.get(r['micro_batches'], 'P'), ms=7, color=color,
      alpha=0.8, markerfacecolor=color if shown == at else 'none',
    )  # fmt: skip


def _draw_ranks(axes, summary: dict) -> None:
  """Draws ranks of whole plans, on alternate sides of the points."""
  rows = {tuple(r['bindings']): r for r in summary['rows']}
  ranked = [rows[tuple(bindings)] for bindings in summary['ranked']]
  sides = sorted(ranked, key=lambda r: (r['peak_hbm_gib'], _middle(r)))
  for number, r in enumerate(ranked, 1):
    at = r['peak_hbm_gib'], _middle(r)
    axes.annotate(
      str(number), at, xytext=(0, (13, -13)[sides.index(r) % 2]),
      textcoords='offset points', ha='center', va='center', weight='bold',
    )  # fmt: skip
    axes.plot(
      *at, 'o', ms=14, color='black', markerfacecolor='none',
      label=f'{number}. data {r["data"]}, fsdp {r["fsdp"]}, tensor '
      f'{r["tensor"]}\n   planned: '
      f'{format_range(r["plan"]["step_time_range_s"], ".1f")} s'
      + '\n   as bound' * r['own'],
    )  # fmt: skip
