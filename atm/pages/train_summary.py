"""Prints what a finished training run learned: tables, completions, the curve.

The figures are those of the run's page, see `train_page`.
"""

import json
import os

import jax
import numpy as np
import rich.console
import rich.markup
import rich.table

from atm import fileio
from atm.checkpoint import paths
from atm.data.objectives import OBJECTIVE_NAMES
from atm.inference import api
from atm.pages import render, train_charts, train_page
from atm.pages.plots import PNG_COLOURS, format_tick
from atm.pages.train_page import SAMPLE_TEXTS
from atm.train import metric_writer

LOSS_CURVE_FILE = 'loss.png'
SAMPLE_TITLES = {
  'denoise': "Denoising: text with 15% dropped, and the model's text",
  'clm': "CLM: the beginning of a text, and the model's continuation",
  'pair': "Pairs: an input, and the model's answer",
}


def draw_loss_curves(model_dir: str) -> str:
  """Draws training and held-out loss by objective; returns the PNG's path."""
  from matplotlib.figure import Figure  # heavy

  figure = Figure(figsize=(8, 4.5), layout='constrained')
  axes = figure.subplots()
  charts = train_charts.loss_charts(metric_writer.read_metrics(model_dir))
  for chart in charts:
    for points, style in chart.lines:
      label = f'{chart.caption}, {style["label"]}'
      own = {'color': PNG_COLOURS[chart.caption], 'label': label}
      train_charts.draw_lines(axes, [(points, style | own)])
  axes.set(xlabel='step', ylabel='loss, nats a token')
  axes.xaxis.set_major_formatter(lambda step, _: format_tick(step))
  axes.grid(alpha=0.3)
  axes.legend()
  path = os.path.join(model_dir, LOSS_CURVE_FILE)
  with fileio.replacing(path, 'wb') as f:
    figure.savefig(f, dpi=120)
  return path


def loss_table(rows: list[dict]) -> rich.table.Table:
  """Returns first and last held-out loss, by objective and by language."""
  losses = train_page.held_out_losses(rows)
  total = losses.pop(None)
  steps = [r['step'] for r in rows if any(k.startswith('eval/loss') for k in r)]
  table = rich.table.Table(
    title=f'Held-out loss (nats a token), step {steps[0]:,} -> {steps[-1]:,}; '
    'in brackets: a unigram model'
  )
  table.add_column('')
  for name in total:
    table.add_column(name, justify='right')
  if list(losses) != ['all']:  # of pairs, which are of no language
    for language, mine in losses.items():
      table.add_row(
        language, *(train_page.format_change(mine.get(n)) for n in total)
      )
    table.add_section()
  table.add_row(
    'all', *map(train_page.format_change, total.values()), style='bold'
  )
  return table


def compare_with_unigram(rows: list[dict]) -> list[str]:
  """Says of each objective whether the loss is below a unigram model's."""
  return [
    f'{name}: held-out loss {loss["last"]:.3f} is '
    f'{"below" if loss["last"] < loss["unigram"] else "NOT below"} the '
    f'{loss["unigram"]:.3f} of a unigram model'
    for name, loss in train_page.held_out_losses(rows)[None].items()
    if loss['unigram'] is not None
  ]


def generate_samples(run, model, count: int = 3) -> list[dict]:
  """Completes `count` held-out examples of each objective in many languages."""
  decode, samples = model.vocabulary.decode_any, []
  for name in OBJECTIVE_NAMES:
    for part, source, target in _held_out_examples(run, name, count):
      options = {'max_tokens': len(target) + 16}
      if code := find_target_language(model.vocabulary, target):
        options['target'] = code
      (output,) = model.generate([source], **options)
      texts = map(decode, (source, output, target))
      texts = dict(zip(SAMPLE_TEXTS, texts))
      samples.append({'objective': name, 'language': part.language, **texts})
  return samples


def find_target_language(vocabulary, ids: list[int]) -> str | None:
  """Returns the code of the language that a target begins or ends with."""
  codes = {i: code for code, i in vocabulary.languages.items()}
  return codes.get(ids[0]) or codes.get(ids[-1])


def sample_tables(samples: list[dict]) -> list[rich.table.Table]:
  """Returns a table of samples for each objective that has any."""
  tables = []
  for name, some in render.group_by(samples, lambda s: s['objective']).items():
    table = rich.table.Table(title=SAMPLE_TITLES[name], show_lines=True)
    for column in ('', *SAMPLE_TEXTS):
      table.add_column(column, ratio=1 if column else None)
    for sample in some:
      texts = (sample[what] for what in SAMPLE_TEXTS)
      table.add_row(sample['language'], *map(rich.markup.escape, texts))
    texts = (sample[what] for sample in some for what in SAMPLE_TEXTS)
    signs = render.explain_signs(texts)
    table.caption = ' '.join(f'{sign} {meaning}' for sign, meaning in signs)
    tables.append(table)
  return tables


def _held_out_examples(run, objective: str, count: int):
  """Yields (part, encoder ids, target ids) of languages spread over all."""
  # Where they are fewer than `count`, some have several, each of another row.
  parts = run.held_out.parts
  mine = [i for i, p in enumerate(parts) if p.objective.name == objective]
  chosen = [mine[i * len(mine) // count] for i in range(count) if mine]
  for at, i in enumerate(chosen):
    rows = [
      {k: v[row] for k, v in batch.items()}
      for owner, batch in run.held_out.batches
      for row in np.flatnonzero(owner == i)
    ]
    before, every = chosen[:at].count(i), len(rows) / chosen.count(i)
    if before < len(rows):
      row = rows[int(before * every)]
      source = row['encoder_input_tokens'][row['encoder_segment_ids'] == 1]
      target = row['decoder_target_tokens'][row['decoder_segment_ids'] == 1]
      yield parts[i], source.tolist(), target.tolist()


def print_summary(run, console: rich.console.Console | None = None) -> None:
  """Prints what a finished training run learned and where its files are."""
  console = console or rich.console.Console()
  folder, step = run.model_dir, run.step
  tables = [loss_table(run.history)]
  # Completions only after a run of one process: they need a model of its own,
  # and process 0 of several calls this alone.
  if jax.process_count() == 1:
    model = api.load(folder)
    step, samples = model.step, generate_samples(run, model)
    text = json.dumps({'step': step, 'samples': samples}, ensure_ascii=False)
    path = os.path.join(folder, train_page.SAMPLES_FILE)
    fileio.write_atomically(path, text)
    tables += sample_tables(samples)
  for table in tables:
    console.print(table)
  parts = ', '.join(
    f'{meaning} {share:.0%}'
    for meaning, _, share in train_page.wall_time(folder)
    if share >= 0.005
  )
  for line in (f'wall time: {parts}', *compare_with_unigram(run.history)):
    console.print(line, highlight=False)
  for what, path in (
    ('checkpoint', paths.find_checkpoint_dir(folder) / str(step)),
    ('TensorBoard log', os.path.join(folder, 'tensorboard')),
    ('metrics', os.path.join(folder, metric_writer.METRICS_FILE)),
    ('loss curve', draw_loss_curves(folder)),
    ('report', train_page.write_train_page(folder)),
    ('configuration', os.path.join(folder, 'config.gin')),
  ):
    console.print(f'{what:>16}  {path}', highlight=False, soft_wrap=True)
