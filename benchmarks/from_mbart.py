"""Goes on from a model in mBART-50's format, and from scratch: the losses.

Trains with `atm pretrain` on OUTPUT/text of mbart_stand_in.py, from
OUTPUT/model and from random parameters: the same sizes, vocabulary, rows and
steps, from random parameters with each rate of RATES. Prints the held-out
losses and draws them into OUTPUT/losses.png. About 5 minutes a run on a core.

  python benchmarks/from_mbart.py OUTPUT [--steps=200]
"""

import argparse
import os
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

RATES = (1e-3, 3e-3)
RUNS = (('from-mbart', 1e-3), *(('scratch', rate) for rate in RATES))
KINDS = ('denoise', 'clm')


def list_runs(output: str, steps: int) -> dict[str, list[str]]:
  """Returns folder -> arguments of `atm pretrain`; the first starts others."""
  first = os.path.join(output, f'from-mbart-{RUNS[0][1]}')
  settings = dict(
    MIXTURE_OR_TASK_NAME="'text'", TEXT_DIR=f"'{output}/text'", BATCH_SIZE=16,
    TRAIN_STEPS=steps, DECAY_STEPS=steps, EVAL_EVERY=40, LOG_EVERY=20,
    SAVE_EVERY=steps, TASK_FEATURE_LENGTHS={'inputs': 48, 'targets': 48},
  )  # fmt: skip
  settings['optimizer.Config.warmup_steps'] = 20
  settings['trainer.train.eval_rows'] = 16
  runs = {}
  for name, rate in RUNS:
    folder = os.path.join(output, f'{name}-{rate}')
    own = {**settings, 'MODEL_DIR': f"'{folder}'", 'LEARNING_RATE': rate}
    files = []
    if name == 'scratch':
      files = [f'--gin_file={first}/config.gin']
      own |= {'INIT_FROM': None, 'VOCABULARY': f"'{first}/vocabulary'"}
    else:
      own['INIT_FROM'] = f"'{output}/model'"
    runs[folder] = files + [f'--gin.{k}={value}' for k, value in own.items()]
  return runs


def read_losses(folder: str) -> dict[str, dict[int, float]]:
  """Returns objective -> step -> held-out loss."""
  from atm.train import metric_writer

  losses = {kind: {} for kind in KINDS}
  for row in metric_writer.read_metrics(folder):
    for kind in KINDS:
      if f'eval/loss/{kind}' in row:
        losses[kind][row['step']] = row[f'eval/loss/{kind}']
  return losses


def draw(runs: dict, path: str) -> None:
  """Draws the losses of all runs, one chart an objective."""
  from matplotlib import pyplot

  figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.2), sharey=True)
  for folder, losses in runs.items():
    name = os.path.basename(folder)
    style = '-' if name.startswith('from') else '--'
    for chart, kind in zip(axes, KINDS):
      chart.plot(*zip(*sorted(losses[kind].items())), style, label=name)
      chart.set(title=kind, xlabel='step', ylabel='held-out loss (nats)')
  axes[0].legend()
  figure.tight_layout()
  figure.savefig(path, dpi=110)


def main() -> None:
  """Trains what is not trained yet, prints and draws."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('output')
  parser.add_argument('--steps', type=int, default=200)
  arguments = parser.parse_args()
  runs = {}
  for folder, settings in list_runs(arguments.output, arguments.steps).items():
    if not os.path.exists(f'{folder}/checkpoints/{arguments.steps}'):
      command = [sys.executable, '-m', 'atm', 'pretrain', *settings]
      subprocess.run(command, check=True)
    runs[folder] = read_losses(folder)
  for kind in KINDS:
    print(f'{kind}: held-out loss by step')
    for folder, losses in runs.items():
      steps = sorted(losses[kind].items())
      line = '  '.join(f'{step}: {loss:.3f}' for step, loss in steps)
      print(f'  {os.path.basename(folder):<20}{line}')
  draw(runs, os.path.join(arguments.output, 'losses.png'))


if __name__ == '__main__':
  main()
