"""Lists the training runs in a folder: the table and the page of `atm runs`.

Made of what lies in each MODEL_DIR, and only read, so it may be called while
runs go on.
"""

import dataclasses
import os
import time
from collections.abc import Iterator
from functools import partial

import rich.box
import rich.console
import rich.markup
import rich.table

from atm import storage
from atm.checkpoint import best_step
from atm.data import mixture_stats
from atm.data.objectives import OBJECTIVE_NAMES
from atm.messages import check_arguments, check_path, clock_text
from atm.pages import render, train_charts, train_page
from atm.pages.plots import COLOURS, SMALL_FIGURE
from atm.pages.train_charts import EVAL, NATS, Chart, curve
from atm.train import crash_report, goodput, metric_writer, run_folder

PAGE = 'runs.html'
MOST_LEVELS = 3  # of a run below the folder that is looked through
CAPTION = (
  'Losses are held-out, nats a token; idle: since the run wrote last, h:mm:ss.'
)
STATES = {
  'running': 'a process holds its lock',
  'finished': 'it is at its last step, or stopped early',
  'failed': 'an error ended it, see failure.txt',
  'stopped': 'it was interrupted, and the same command goes on',
  'damaged': 'a file of it cannot be read',
}


@dataclasses.dataclass
class RunFacts:
  """What is known of one training run.

  Attributes:
    name: its folder, below the one that was looked through.
    path: its folder.
    state: one of STATES.
    step, last_step: done, and of how many; None: not known.
    stopped_at: the step that early stopping ended it with, or None.
    losses: objective -> last held-out loss, nats a token.
    tokens: read so far, targets included; None: not known.
    goodput: see `goodput`; None: not known.
    changed: when it last wrote, in seconds since 1970.
    problem: why it is damaged.
    rows: its metrics.
  """

  name: str
  path: str
  state: str
  changed: float
  step: int | None = None
  last_step: int | None = None
  stopped_at: int | None = None
  losses: dict[str, float] = dataclasses.field(default_factory=dict)
  tokens: float | None = None
  goodput: float | None = None
  problem: str = ''
  rows: list[dict] = dataclasses.field(default_factory=list, repr=False)


def find_runs(folder: str) -> Iterator[str]:
  """Yields the folders of runs in a folder, in order of their names."""
  depth = folder.rstrip(os.sep).count(os.sep) + MOST_LEVELS
  for path, names, files in storage.walk(folder):
    # In a store logs are folders.
    is_run = metric_writer.METRICS_FILE in (*files, *names)
    # Before its first row a run has its configuration and its lock.
    if is_run or ('config.gin' in files and run_folder.has_lock(files)):
      yield path
      names.clear()
    elif path.count(os.sep) >= depth:
      names.clear()
    names[:] = sorted(name for name in names if not name.startswith('.'))


def read_run_facts(path: str, name: str) -> RunFacts:
  """Reads what is known of the run in a folder."""
  changed = run_folder.get_change_time(path)
  try:
    rows = metric_writer.read_metrics(path)
    times = goodput.read_goodput(path)
    config = train_page.read_config_text(path)
    best = best_step.read_best(path)
  except (OSError, ValueError) as e:
    return RunFacts(name, path, 'damaged', changed, problem=str(e))
  trained = [row for row in rows if row.get('loss') is not None]
  facts = RunFacts(
    name, path, '', changed,
    step=rows[-1]['step'] if rows else None,
    last_step=train_page.find_last_step(config),
    losses={
      objective: loss['last']
      for objective, loss in train_page.held_out_losses(rows)[None].items()
    },
    tokens=train_page.sum_tokens(trained),
    goodput=goodput.goodput_share(goodput.sum_by_kind(times)) or None,
    rows=rows, stopped_at=best and best.stopped_at,
  )  # fmt: skip
  return dataclasses.replace(facts, state=_find_state(facts))


def _find_state(run: RunFacts) -> str:
  """Returns which of STATES a run is in, whose files could be read."""
  if run_folder.is_locked(run.path):
    return 'running'
  if None not in (run.step, run.last_step) and run.step >= run.last_step:
    return 'finished'
  if run.stopped_at is not None and run.stopped_at == run.step:
    return 'finished'
  failure = os.path.join(run.path, crash_report.FAILURE_FILE)
  # A run that went on after an error has written since.
  if storage.exists(failure) and storage.get_time(failure) >= run.changed:
    return 'failed'
  return 'stopped'


# --- The table


def format_cells(runs: list[RunFacts], now: float) -> list[dict[str, str]]:
  """Returns column -> text of each run."""
  objectives = list_objectives(runs)
  number = lambda value, form: '' if value is None else format(value, form)
  return [
    {
      'run': run.name,
      'state': run.state,
      'step': number(run.step, ','),
      'of': number(run.last_step, ','),
      **{name: number(run.losses.get(name), '.3f') for name in objectives},
      'tokens': ''
      if run.tokens is None
      else mixture_stats.format_count(run.tokens),
      'goodput': number(run.goodput, '.0%'),
      'idle': clock_text(max(0, now - run.changed)),
    }
    for run in runs
  ]


def list_objectives(runs: list[RunFacts]) -> list[str]:
  """Returns the objectives that any run has a held-out loss of."""
  return [k for k in OBJECTIVE_NAMES if any(k in run.losses for run in runs)]


def make_table(cells: list[dict[str, str]]) -> rich.table.Table:
  """Returns the table of runs for a terminal."""
  table = rich.table.Table(caption=CAPTION, box=rich.box.SIMPLE, pad_edge=False)
  for name in cells[0]:
    is_text = name in ('run', 'state')
    table.add_column(
      name, justify='left' if is_text else 'right', no_wrap=name != 'run',
      overflow='fold',
    )  # fmt: skip
  for row in cells:
    table.add_row(*map(rich.markup.escape, row.values()))
  return table


# --- The page


def run_charts(runs: list[RunFacts]) -> list[Chart]:
  """Returns a chart of held-out losses for each run that has any."""
  charts = []
  for run in runs:
    lines = [
      (curve(run.rows, f'{EVAL}{name}'), dict(color=COLOURS[name], lw=1.5))
      for name in OBJECTIVE_NAMES
      if name in run.losses
    ]
    if lines:
      charts.append(Chart(run.name, lines, NATS))
  return charts


@check_arguments(
  folder=partial(check_path, 'FOLDER'),
  output=partial(check_path, 'OUTPUT', optional=True),
)
def write_run_list(folder: str, output: str | None = None) -> str:
  """Prints a table of the runs in a folder, and writes their page.

  Args:
    folder: looked through for runs, three levels deep.
    output: the page; None: FOLDER/runs.html.

  Returns:
    What names the page.

  Raises:
    FileNotFoundError: there is no run in the folder.
  """
  folder = os.path.expanduser(folder)
  runs = [read_run_facts(path, storage.relative(path, folder))
          for path in find_runs(folder)]  # fmt: skip
  if not runs:
    raise FileNotFoundError(
      f'FOLDER = {folder!r}: expected a folder with the folders of runs in it, '
      f'which have {metric_writer.METRICS_FILE}'
    )
  runs.sort(key=lambda run: -run.changed)
  cells = format_cells(runs, time.time())
  rich.console.Console().print(make_table(cells))
  for run in runs:
    if run.problem:
      print(f'{run.name}: {run.problem}')
  path = output or os.path.join(folder, PAGE)
  render.write_page(path, 'runs', run_list_data(folder, path, runs, cells))
  return f'wrote {path}'


def run_list_data(
  folder: str, path: str, runs: list[RunFacts], cells: list[dict[str, str]]
) -> dict:
  """Returns what the page shows, for a page at `path`."""
  links = []
  for run in runs:
    report = os.path.join(run.path, train_page.TRAIN_PAGE)
    here = os.path.dirname(storage.absolute(path))
    known = storage.is_remote(report) == storage.is_remote(path)
    there = known and storage.exists(report)
    links.append(storage.relative(report, here) if there else None)
  states = {run.state for run in runs}
  return {
    'name': os.path.basename(storage.absolute(folder).rstrip('/')),
    'count': len(runs),
    'columns': list(cells[0]),
    'runs': list(zip(cells, links)),
    'states': [(k, v) for k, v in STATES.items() if k in states],
    'problems': [f'{run.name}: {run.problem}' for run in runs if run.problem],
    'objectives': list_objectives(runs),
    'caption': CAPTION,
    'figures': train_charts.draw_charts(
      run_charts(runs), SMALL_FIGURE, shared=True
    ),
  }
