"""Writes the page of `atm report`: a training run as one HTML file.

Made of what lies in MODEL_DIR: metrics.jsonl, goodput.jsonl, config.gin, and
samples.json where the run has ended. So it may be made while a run goes on. The
functions here prepare plain data; templates/train.html.jinja lays it out.
"""

import ast
import contextlib
import os
import re
from functools import partial
from typing import Any

from atm import fileio, storage
from atm.checkpoint import best_step
from atm.data.objectives import OBJECTIVE_NAMES
from atm.messages import check_arguments, check_path
from atm.pages import page_warnings, render, train_charts
from atm.pages.plots import SMALL_FIGURE
from atm.pages.train_charts import EVAL, UNIGRAM, draw_charts, metric_points
from atm.train import goodput, metric_writer, run_folder

TRAIN_PAGE = 'report.html'
SAMPLES_FILE = 'samples.json'
MOST_HOSTS = 16  # of a table
SAMPLE_TEXTS = ('input', 'output', 'truth')
SAMPLE = dict.fromkeys(('objective', 'language', *SAMPLE_TEXTS), str)


@check_arguments(model_dir=partial(check_path, 'MODEL_DIR'))
def write_train_page(model_dir: str) -> str:
  """Writes MODEL_DIR/report.html; returns its path.

  Raises:
    FileNotFoundError: there is no run in MODEL_DIR.
  """
  rows = metric_writer.read_metrics(model_dir)
  if not rows:
    raise FileNotFoundError(
      f'MODEL_DIR = {model_dir!r}: expected a folder with '
      f'{metric_writer.METRICS_FILE}, which `atm pretrain` writes'
    )
  path = os.path.join(model_dir, TRAIN_PAGE)
  return render.write_page(path, 'train', train_page_data(model_dir, rows))


def train_page_data(model_dir: str, rows: list[dict]) -> dict[str, Any]:
  """Returns what the page shows of a run's folder and its metrics."""
  config = read_config_text(model_dir)
  samples = read_samples(model_dir)
  losses = held_out_losses(rows)
  steps = find_last_step(config)
  times = goodput.read_goodput_lines(model_dir)
  source = read_macros(config).get('INIT_FROM')
  charts = train_charts.loss_charts(rows)
  texts = [s[what] for s in (samples or {'samples': []})['samples']
           for what in SAMPLE_TEXTS]  # fmt: skip
  return {
    'name': os.path.basename(storage.absolute(model_dir).rstrip('/')),
    'answer': _final_losses(rows, losses[None]),
    'warnings': [
      *page_warnings.training_warnings(rows, losses[None], steps),
      *page_warnings.host_warnings(times),
    ],
    'facts': [*([('started from', source)] if source else []),
              *_list_facts(rows, steps), *_list_best(model_dir)],
    'loss': draw_charts(charts, shared=True),
    'kinds': {style['label'] for chart in charts for _, style in chart.lines},
    'by_language': _by_language(rows, losses, _list_sources(model_dir)),
    'few_shot': draw_charts(
      train_charts.few_shot_charts(rows), shared=True, from_zero=True
    ),
    'updates': draw_charts(train_charts.update_charts(rows)),
    'speed': draw_charts(train_charts.speed_charts(rows), from_zero=True),
    'time': wall_time(model_dir),
    'hosts': list_hosts(times),
    'objectives': OBJECTIVE_NAMES,
    'samples': samples,
    'signs': render.explain_signs(texts),
    'config': config,
    'config_path': os.path.join(model_dir, 'config.gin'),
  }  # fmt: skip


def read_macros(config: str | None) -> dict[str, Any]:
  """Reads the macros of a config.gin that a run wrote, without references."""
  macros = {}
  lines = re.findall(
    r'^([A-Z]\w*) = (.*(?:\n[ \t)\]}].*)*)', config or '', re.M
  )
  for name, value in lines:
    with contextlib.suppress(ValueError, SyntaxError):
      text = value.removeprefix('\\').strip()  # gin breaks long lines
      macros[name] = ast.literal_eval(text)
  return macros


def find_last_step(config: str | None) -> int | None:
  """Returns TRAIN_STEPS of the text of a config.gin, None if not there."""
  steps = read_macros(config).get('TRAIN_STEPS')
  return steps if isinstance(steps, int) else None


def sum_tokens(rows: list[dict]) -> float:
  """Returns how many tokens the steps of metrics read, targets included."""
  counts = 'tokens/input', 'tokens/target'
  return sum(row.get(key) or 0 for row in rows for key in counts)


def read_config_text(model_dir: str) -> str | None:
  """Returns the text of a run's config.gin, None where there is none."""
  path = os.path.join(model_dir, 'config.gin')
  if not storage.exists(path):
    return None
  fileio.check_regular(path)
  return storage.read_bytes(path).decode('utf-8', 'replace')


def read_samples(model_dir: str) -> dict | None:
  """Returns samples.json of a run, None where there is none yet.

  Raises ValueError if it is not as `atm pretrain` writes it.
  """
  path = os.path.join(model_dir, SAMPLES_FILE)
  if not storage.exists(path):
    return None
  samples = fileio.read_json(path)
  fileio.check_json(samples, {'step': int, 'samples': [SAMPLE]}, path)
  return samples


def _final_losses(
  rows: list[dict], losses: dict[str, dict]
) -> dict[str, Any] | None:
  """Returns the held-out losses that the page begins with, None without any."""
  held_out = [r['step'] for r in rows if any(k.startswith(EVAL) for k in r)]
  if not losses:
    return None
  values = []
  for name, loss in losses.items():
    notes = []
    if held_out[0] < held_out[-1]:
      notes.append(f'from {loss["first"]:.3f} at step {held_out[0]:,}')
    if loss['unigram'] is not None:
      notes.append(f'a unigram model has {loss["unigram"]:.3f}')
    values.append((name, f'{loss["last"]:.3f}', '; '.join(notes)))
  return {
    'title': f'Held-out loss at step {held_out[-1]:,}, nats a token',
    'losses': values,
  }


def _list_facts(rows: list[dict], steps: int | None) -> list[tuple[str, str]]:
  """Returns names and values of the last row, and of all together."""
  trained = [row for row in rows if row.get('loss') is not None]
  last = trained[-1] if trained else {}
  step = f'{rows[-1]["step"]:,}' + (f' of {steps:,}' if steps else '')
  facts = [('step', step), ('tokens read', f'{sum_tokens(trained):,.0f}')]
  for key, name, form in (
    ('loss', 'training loss', '{:.3f}'),
    ('tokens_per_second', 'tokens a second', '{:,.0f}'),
    ('mfu', 'model FLOPs utilization', '{:.1%}'),
    ('goodput', 'goodput', '{:.1%}'),
  ):
    if last.get(key) is not None:
      facts.append((name, form.format(last[key])))
  return facts


def _list_best(model_dir: str) -> list[tuple[str, str]]:
  """Returns which checkpoint is kept as the best, and where the run stopped."""
  best = best_step.read_best(model_dir)
  if best is None:
    return []
  facts = [('best checkpoint', f'step {best.step:,}, {best.describe()}')]
  if best.stopped_at is not None:
    facts.append(('stopped early', f'step {best.stopped_at:,} (PATIENCE)'))
  return facts


# --- Losses


def held_out_losses(rows: list[dict]) -> dict[str | None, dict[str, dict]]:
  """Returns the first and the last held-out loss of a run.

  Returns:
    {language, or None for all: {objective: {'first', 'last', 'unigram'}}},
    nats a token; `unigram` is None where it is not known. Objectives without a
    loss are left out.
  """
  keys = {key for row in rows for key in row if key.startswith(EVAL)}
  parts = [key.removeprefix(EVAL).split('/') for key in keys]
  languages = sorted({part[1] for part in parts if len(part) == 2})
  losses: dict[str | None, dict[str, dict]] = {}
  for language in (*languages, None):
    losses[language] = {}
    for name in OBJECTIVE_NAMES:
      key = name if language is None else f'{name}/{language}'
      values = metric_points(rows, f'{EVAL}{key}')[:, 1]
      unigram = next(iter(metric_points(rows, f'{UNIGRAM}{key}')[:, 1]), None)
      if len(values):
        losses[language][name] = {
          'first': values[0], 'last': values[-1], 'unigram': unigram
        }  # fmt: skip
  return losses


def format_change(loss: dict | None) -> str:
  """Formats a loss of `held_out_losses` as 'first -> last (unigram)'."""
  if loss is None:
    return ''
  text = f'{loss["first"]:.2f} -> {loss["last"]:.2f}'
  unigram = loss['unigram']
  return text if unigram is None else f'{text} ({unigram:.2f})'


def _list_sources(model_dir: str) -> set[str]:
  """Lists the sources that a run mixed; none where it has no data.json."""
  data = run_folder.read_data(model_dir)
  return {part['source'] for part in data['parts']} if data else set()


def _by_language(
  rows: list[dict], losses: dict[str | None, dict], sources: set[str]
) -> dict[str, Any] | None:
  """Returns curves and a table of the held-out loss by language.

  Metrics of a set of pairs have its name, see `sources`, in a language's place.
  """
  by_language = {key: mine for key, mine in losses.items() if key is not None}
  if list(by_language) in ([], ['all']):  # pairs are of no language
    return None
  charts = train_charts.language_charts(rows, by_language)
  return {
    'objectives': list(losses[None]),
    'figures': draw_charts(charts, SMALL_FIGURE, shared=True),
    'losses': by_language,
    'kind': 'set of pairs' if sources & {*by_language} else 'language',
  }


def list_hosts(times: list[dict]) -> dict[str, Any] | None:
  """Returns the newest times of hosts, those first that others wait for.

  Args:
    times: lines of goodput.jsonl.

  Returns:
    'step', 'steps' and 'count' of hosts, and of MOST_HOSTS each process, name
    and seconds a step; None of a run of one process.
  """
  windows = [line for line in times if len(line.get('hosts', ())) > 1]
  if not windows:
    return None
  most = max(window['hosts'][0]['steps'] for window in windows)
  last = [w for w in windows if w['hosts'][0]['steps'] == most][-1]
  hosts = sorted(last['hosts'], key=lambda host: -host['idle'])
  return {
    'step': last['step'],
    'steps': most,
    'count': len(hosts),
    'rows': [
      (
        host['process'], host['host'], host['process'] in last.get('slow', ()),
        [host[kind] / max(1, host['steps']) for kind in goodput.HOST_SECONDS],
      )
      for host in hosts[:MOST_HOSTS]
    ],
  }  # fmt: skip


def wall_time(model_dir: str) -> list[tuple[str, float, float]]:
  """Returns (what it was spent on, seconds, share) of a run's wall time."""
  spent = goodput.sum_by_kind(goodput.read_goodput(model_dir))
  total = sum(spent.values())
  return [
    (goodput.MEANING[kind], seconds, seconds / total)
    for kind, seconds in spent.items()
    if seconds
  ]
