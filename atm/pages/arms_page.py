"""Compares training runs in arms: curves by FLOPs and by shots, on one page.

  atm compare --gin.RUNS="{'wide': ('runs/w0', 'runs/w1'), 'deep': (...)}"

What is drawn is condensed into a file beside the page, from which the same
functions draw the page, and PNGs, again.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import rich.console
import rich.markup
import rich.table

from atm.messages import clock_text
from atm.model.config import ModelConfig
from atm.pages import arm_charts, arm_records, arm_scores, render
from atm.pages.arm_charts import Arms, format_flops
from atm.pages.arm_scores import FLOPS_APART
from atm.pages.plots import draw_png

RECORDS = '.jsonl'  # ends the name of the file beside the page
SIZE_COLUMNS = (
  'parameters',
  'steps',
  'FLOPs a step',
  'FLOPs',
  'tokens',
  'h:mm:ss a run',
)


def compare_arms(runs: Mapping[str, Sequence[str]] | str, output: str) -> str:
  """Prints the sizes of arms and what figures show, and writes the page.

  Args:
    runs: arm -> folders of training runs, whose evaluations lie below their
      folder `eval`; or a file that an earlier comparison wrote.
    output: the page. Of folders a file of its name, with RECORDS, is written
      beside it, and draws the page again.

  Returns:
    The page's path.

  Raises:
    FileNotFoundError: a folder has no run with a checkpoint.
    ValueError: runs cannot be compared.
  """
  if isinstance(runs, str):
    records = arm_records.read_arm_file(runs)
  else:
    records = arm_records.read_arms(runs)
  arms = arm_charts.group_arms(records)
  data = arms_page_data(arms)
  if not isinstance(runs, str):
    arm_records.write_arm_file(records_path(output), records)
  console = rich.console.Console()
  for name in ('sizes', 'overview'):
    console.print(arms_console_table(*data[name]))
  return render.write_page(output, 'arms', data)


def records_path(page: str) -> str:
  """Returns the path of the file that a page is drawn from."""
  return os.path.splitext(page)[0] + RECORDS


def arms_console_table(
  heads: Sequence[str], rows: Sequence[Sequence[tuple[str, bool]]]
) -> rich.table.Table:
  """Returns a table for a terminal; what is sure is bold."""
  table = rich.table.Table()
  for i, head in enumerate(heads):
    table.add_column(rich.markup.escape(head), justify='right' if i else 'left')
  for row in rows:
    texts = ((rich.markup.escape(text), sure) for text, sure in row)
    table.add_row(*(f'[bold]{x}[/bold]' if sure else x for x, sure in texts))
  return table


def draw_figures(records: Sequence[Mapping[str, Any]]) -> dict[str, bytes]:
  """Draws the page's figures: name -> PNG, of those that have any."""
  arms = arm_charts.group_arms(records)
  figures = {
    'loss': arm_charts.loss_figures(arms),
    'shots': arm_scores.score_figures(arms, 'shots'),
    'flops': arm_scores.score_figures(arms, 'flops'),
  }
  return {
    name: draw_png([figure.panel() for figure in some])
    for name, some in figures.items()
    if some
  }


def format_markdown(records: Sequence[Mapping[str, Any]]) -> str:
  """Formats the page's sizes, sentences and tables as Markdown."""
  arms = arm_charts.group_arms(records)
  figures = [
    *arm_charts.loss_figures(arms),
    *arm_scores.score_figures(arms, 'shots'),
    *arm_scores.score_figures(arms, 'flops'),
  ]
  overview = arm_charts.overview_table([f for f in figures if f.main])
  parts = [_markdown_cells(*sizes_table(arms)), _markdown_cells(*overview)]
  for figure in figures:
    lines = '\n'.join(f'- {line}' for line in figure.sentences)
    table = _markdown_table(*figure.table())
    parts.append(f'### {figure.caption}, by {figure.x}\n\n{lines}\n\n{table}')
  heads, rows = arm_charts.language_table(arms)
  if rows:
    table = _markdown_table(heads, rows)
    parts.append(f'### Held-out loss by language\n\n{table}')
  return '\n\n'.join(parts) + '\n'


def _markdown_cells(
  heads: list[str], rows: Sequence[Sequence[tuple[str, bool]]]
) -> str:
  """Formats a table whose sure cells are bold."""
  bold = lambda text, sure: f'**{text}**' if sure else text
  return _markdown_table(heads, [[bold(*cell) for cell in row] for row in rows])


def _markdown_table(heads: list[str], rows: list[list[str]]) -> str:
  """Formats a table, its numbers to the right."""
  escape = lambda cells: ' | '.join(x.replace('|', '\\|') for x in cells)
  line = ' | '.join(['---'] + ['---:'] * (len(heads) - 1))
  return '\n'.join(f'| {text} |' for text in (
    escape(heads), line, *map(escape, rows)
  ))  # fmt: skip


# --- The page


def arms_page_data(arms: Arms) -> dict[str, Any]:
  """Returns what the page shows of runs by arm."""
  losses = arm_charts.loss_figures(arms)
  shots = arm_scores.score_figures(arms, 'shots')
  flops = arm_scores.score_figures(arms, 'flops')
  return {
    'arms': list(arms),
    'sizes': sizes_table(arms),
    'warnings': list_warnings(arms),
    'overview': arm_charts.overview_table(
      [figure for figure in [*losses, *shots] if figure.main]
    ),
    'languages': arm_charts.language_table(arms),
    'sections': [
      ('Held-out loss by training FLOPs', [f.page_data() for f in losses]),
      ('Scores by shots', [f.page_data() for f in shots]),
      ('Scores by training FLOPs', [f.page_data() for f in flops]),
    ],
  }


def sizes_table(arms: Arms) -> tuple[list[str], list[list[tuple[str, bool]]]]:
  """Returns heads and rows: what arms differ in, and what their runs cost."""
  names = list_differing([run for mine in arms.values() for run in mine])
  defaults = {f.name: f.default for f in dataclasses.fields(ModelConfig)}
  rows = []
  for arm, mine in arms.items():
    mean = lambda key, mine=mine: float(np.mean([run[key][-1] for run in mine]))
    seconds = np.mean([sum(run['seconds'].values()) for run in mine])
    steps, flops = mean('steps'), mean('flops')
    texts = [
      arm,
      ', '.join(str(run['seed']) for run in mine),
      *(str(mine[0]['config'].get(x, defaults.get(x))) for x in names),
      f'{mine[0]["parameters"]:,}', f'{steps:,.0f}',
      format_flops(flops / steps if steps else 0.0), format_flops(flops),
      f'{mean("tokens"):,.0f}', clock_text(float(seconds)),
    ]  # fmt: skip
    rows.append([(text, False) for text in texts])
  return ['arm', 'seeds', *names, *SIZE_COLUMNS], rows


def list_differing(runs: Sequence[Mapping[str, Any]]) -> list[str]:
  """Lists the fields of ModelConfig in which runs differ."""
  fields = dict.fromkeys(key for run in runs for key in run['config'])
  value = lambda run, field: repr(run['config'].get(field))
  return [f for f in fields if len({value(run, f) for run in runs}) > 1]


def list_warnings(arms: Arms) -> list[str]:
  """Lists what makes a comparison unfair or weak."""
  lines = []
  for arm, mine in arms.items():
    if fields := list_differing(mine):
      lines.append(f'Runs of {arm} differ in {", ".join(fields)}.')
    if len(mine) == 1:
      lines.append(f'{arm} has one run: nothing is known of other seeds.')
    elif len({run['seed'] for run in mine}) < len(mine):
      lines.append(f'Runs of {arm} have the same seed.')
    for run in mine:
      if run['last_step'] and run['steps'][-1] < run['last_step']:
        lines.append(
          f'{run["run"]} of {arm} is at step {run["steps"][-1]:,} of '
          f'{run["last_step"]:,}.'
        )
  every = [run for mine in arms.values() for run in mine]
  ends = [run['flops'][-1] for run in every]
  if max(ends) > (1 + FLOPS_APART) * min(ends):
    lines.append(
      f'Runs end at {format_flops(min(ends))} to {format_flops(max(ends))} '
      'FLOPs: scores of last evaluations are not at equal compute.'
    )
  for key in ('batch_size', 'lengths'):
    if len({str(run[key]) for run in every}) > 1:
      lines.append(f'Runs differ in {key.replace("_", " ")}.')
  return lines
