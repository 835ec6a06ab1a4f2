"""What a person looks at after a run: tables, completions, the curve."""

from __future__ import annotations

import json
import os

import jax
import numpy as np
import rich.console
import rich.markup
import rich.table

from atm.checkpoint import paths
from atm.data.objectives import OBJECTIVE_NAMES
from atm.inference import api
from atm.pages import train_page
from atm.train import goodput, metric_writer

CURVE_FILE = 'loss.png'


def loss_curve(directory: str) -> str:
  """Draws training and held-out loss by objective; returns the PNG's path."""
  import matplotlib  # heavy

  matplotlib.use('agg')
  import matplotlib.pyplot as plt

  rows = metric_writer.read(directory)
  figure, axes = plt.subplots(figsize=(8, 4.5), layout='constrained')
  for name, color in zip(
    OBJECTIVE_NAMES, ('tab:blue', 'tab:orange', 'tab:green')
  ):
    for key, style, label in (
      (f'loss/{name}', {'lw': 1, 'alpha': 0.6}, 'training'),
      (f'eval/loss/{name}', {'lw': 1.5, 'marker': 'o', 'ms': 4}, 'held out'),
    ):
      points = [(r['step'], r[key]) for r in rows if key in r]
      if points:
        axes.plot(*zip(*points), color=color, label=f'{name}, {label}', **style)
    marks = [r[k] for r in rows if (k := f'eval/unigram/{name}') in r]
    if marks:
      axes.axhline(marks[0], color=color, ls=':', label=f'{name}, unigram')
  axes.set(xlabel='step', ylabel='loss (nats a token)')
  axes.grid(alpha=0.3)
  axes.legend()
  path = os.path.join(directory, CURVE_FILE)
  figure.savefig(path, dpi=120)
  plt.close(figure)
  return path


def losses(run) -> list[rich.table.Table]:
  """Held-out loss, first against last, by objective and by language."""
  rows = [r for r in run.history if any(k.startswith('eval/loss') for k in r)]
  first, last = rows[0], rows[-1]
  names = [n for n in OBJECTIVE_NAMES if f'eval/loss/{n}' in last]
  keys = [k.removeprefix('eval/loss/') for k in last if k.startswith('eval/l')]
  languages = sorted({k.split('/')[1] for k in keys if '/' in k})
  table = rich.table.Table(
    title=f'Held-out loss (nats a token), step {first["step"]:,} -> '
    f'{last["step"]:,}; in brackets: a unigram model'
  )
  table.add_column('')
  for name in names:
    table.add_column(name, justify='right')

  def cell(key):
    if f'eval/loss/{key}' not in last:
      return ''
    mark = first.get(f'eval/unigram/{key}')
    text = f'{first[f"eval/loss/{key}"]:.2f} -> {last[f"eval/loss/{key}"]:.2f}'
    return text if mark is None else f'{text} ({mark:.2f})'

  if languages != ['all']:  # of pairs, which are of no language
    for language in languages:
      table.add_row(language, *(cell(f'{n}/{language}') for n in names))
    table.add_section()
  table.add_row('all', *(cell(name) for name in names), style='bold')
  return [table]


def verdict(run) -> list[str]:
  """A line an objective: is the held-out loss below a unigram model's?"""
  keys = [f'eval/loss/{name}' for name in OBJECTIVE_NAMES]
  rows = [r for r in run.history if any(key in r for key in keys)]
  first, last = rows[0], rows[-1]
  lines = []
  for name in OBJECTIVE_NAMES:
    mark, loss = (
      first.get(f'eval/unigram/{name}'),
      last.get(f'eval/loss/{name}'),
    )
    if mark is not None and loss is not None:
      side = 'below' if loss < mark else 'NOT below'
      lines.append(
        f'{name}: held-out loss {loss:.3f} is {side} the {mark:.3f} of a '
        'unigram model'
      )
  return lines


def samples(run, model, count: int = 3) -> list[dict]:
  """`count` held-out examples of each objective in different languages.

  Returns:
    {objective, language, input, output, truth}.
  """
  decode, made = model.vocabulary.decode, []
  for name in OBJECTIVE_NAMES:
    for part, source, target in _examples(run, name, count):
      (output,) = model.generate([source], max_tokens=len(target) + 16)
      texts = map(decode, (source, output, target))
      made.append(
        dict(
          zip(
            ('objective', 'language', 'input', 'output', 'truth'),
            (name, part.language, *texts),
          )
        )
      )
  return made


def sample_tables(found: list[dict]) -> list[rich.table.Table]:
  """The samples, a table an objective."""
  tables = []
  for name in OBJECTIVE_NAMES:
    table = rich.table.Table(
      title={
        'denoise': "Denoising: text with 15% dropped, and the model's text",
        'clm': "CLM: the beginning of a text, and the model's continuation",
        'pair': "Pairs: an input, and the model's answer",
      }[name],
      show_lines=True,
    )
    for column in ('', 'input', 'output', 'truth'):
      table.add_column(column, ratio=None if column == '' else 1)
    for sample in (s for s in found if s['objective'] == name):
      texts = (sample[what] for what in ('input', 'output', 'truth'))
      table.add_row(sample['language'], *map(rich.markup.escape, texts))
    if table.row_count:
      tables.append(table)
  return tables


def _examples(run, objective: str, count: int):
  """(part, encoder ids, target ids) of languages spread over those there.

  Where they are fewer than `count`, some have several, each of another row.
  """
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


def closing(run, console: rich.console.Console | None = None) -> None:
  """Prints what a finished training run learned and where it lies.

  Completions only after a run of one process: they need a model of its own, and
  process 0 of several calls this alone.
  """
  console = console or rich.console.Console()
  tables, step = losses(run), run.step
  if jax.process_count() == 1:
    model = api.load(run.model_dir)
    step, found = model.step, samples(run, model)
    path = os.path.join(run.model_dir, train_page.SAMPLES)
    with open(path, 'w', encoding='utf-8') as f:
      json.dump({'step': step, 'samples': found}, f, ensure_ascii=False)
    tables = [*tables, *sample_tables(found)]
  for table in tables:
    console.print(table)
  spent = goodput.summary(goodput.read(run.model_dir))
  parts = ', '.join(
    f'{goodput.MEANING[kind]} {seconds / sum(spent.values()):.0%}'
    for kind, seconds in spent.items()
    if seconds / sum(spent.values()) >= 0.005
  )
  console.print(f'wall time: {parts}', highlight=False)
  for line in verdict(run):
    console.print(line, highlight=False)
  curve = loss_curve(run.model_dir)
  folder = run.model_dir
  for what, path in (
    ('checkpoint', paths.checkpoints(folder) / str(step)),
    ('TensorBoard log', os.path.join(folder, 'tensorboard')),
    ('metrics', os.path.join(folder, metric_writer.METRICS_FILE)),
    ('loss curve', curve),
    ('report', train_page.write(folder)),
    ('configuration', os.path.join(folder, 'config.gin')),
  ):
    console.print(f'{what:>16}  {path}', highlight=False, soft_wrap=True)
