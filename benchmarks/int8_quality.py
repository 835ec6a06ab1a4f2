"""What int8 weights cost: perplexity, greedy tokens, and scores of a suite.

Compares a run's weights as they were trained, in bfloat16 and in int8. Held-out
perplexity is by objective and language; greedy tokens are those of held-out
inputs; the suite is the shipped Declaration. What is compared is bfloat16.

  python benchmarks/int8_quality.py MODEL_DIR [ROWS [PROMPTS [QUESTIONS]]]

ROWS are held-out rows of each task, PROMPTS inputs that are continued, and
QUESTIONS those of each task of the suite; 0 leaves the suite out.
"""

import dataclasses
import math
import os
import subprocess
import sys
import tempfile

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import numpy as np

from atm.cli import gin_config
from atm.cli import main as command_line
from atm.evals import results as results_lib
from atm.inference import api, sampling
from atm.model.transformer import AlexaTM
from atm.parallel import mesh as mesh_lib
from atm.parallel import sharding, xla_options
from atm.train import held_out_loss, run_folder
from atm.train.inputs import Inputs, open_inputs

WEIGHTS = 'float32', 'bfloat16', 'int8'
MAX_TOKENS = 32


def open_run(model_dir: str, rows: int) -> tuple:
  """Returns (settings of a run, its inputs), as it was started."""
  config_file = f'--gin_file={model_dir}/config.gin'
  _, files, bindings, modules = command_line.parse_arguments(
    ['pretrain', config_file, f'--gin.MODEL_DIR={model_dir!r}']
  )
  gin_config.apply_config(files, bindings, modules, 'pretrain', print)
  config = gin_config.get_configurable('trainer.train')(config_text='')
  config = dataclasses.replace(config, eval_rows=rows)
  inputs = open_inputs(config, run_folder.RunFolder(model_dir), None)
  return config, inputs


def measure_losses(config, inputs: Inputs, model: api.Model) -> dict:
  """Returns held-out losses in nats by 'OBJECTIVE' and 'OBJECTIVE/LANGUAGE'."""
  held_out = held_out_loss.HeldOutLoss(
    config, AlexaTM(model.config), inputs, model.mesh
  )
  with sharding.use_mesh(model.mesh, model.rules):
    row = held_out(model.params)
  prefix = 'eval/loss/'
  return {
    name.removeprefix(prefix): value
    for name, value in row.items()
    if name.startswith(prefix)
  }


def print_perplexities(losses: dict[str, dict]) -> None:
  """Prints a table of perplexities, and how far int8's are off bfloat16's."""
  print('\n| held-out perplexity | ' + ' | '.join(WEIGHTS) + ' | change |')
  print('| --- |' + ' ---: |' * (len(WEIGHTS) + 1))
  off = {}
  for name in losses['bfloat16']:
    row = [losses[weights][name] for weights in WEIGHTS]
    off[name] = math.expm1(row[2] - row[1])
    shown = ' | '.join(f'{math.exp(x):.3f}' for x in row)
    print(f'| {name} | {shown} | {off[name]:+.2%} |')
  least, most = min(off, key=off.get), max(off, key=off.get)
  print(f'\nfrom {off[least]:+.2%} ({least}) to {off[most]:+.2%} ({most})')


def list_prompts(config, inputs: Inputs, count: int) -> list[list[int]]:
  """Returns encoder ids of held-out rows, spread over all tasks."""
  made = held_out_loss.evaluation_batches(
    inputs.held_out, inputs.vocabulary, config.sizes, config.batch_size,
    config.seed, config.eval_rows, config.model_config.start_id,
  )  # fmt: skip
  prompts = [
    [int(i) for i in ids[segments == 1]]
    for owner, batch in made
    for task, ids, segments in zip(
      owner, batch['encoder_input_tokens'], batch['encoder_segment_ids']
    )
    if task >= 0
  ]
  each = np.linspace(0, len(prompts) - 1, min(count, len(prompts)))
  return [prompts[int(i)] for i in each]


def count_equal(ours: list, theirs: list) -> float:
  """Returns the share of tokens of `theirs` that `ours` has at its place."""
  same = sum(a == b for x, y in zip(ours, theirs) for a, b in zip(x, y))
  return same / sum(map(len, theirs))


def agree_on_next(model: api.Model, prompts: list, outputs: list) -> float:
  """Returns the share of tokens that a model chooses behind those before."""
  same, start = 0, [model.config.start_id]
  for prompt, ids in zip(prompts, outputs):
    logits = model.logits([prompt], [start + ids[:-1]])[0]
    same += int((logits.argmax(-1) == np.array(ids)).sum())
  return same / sum(map(len, outputs))


def compare_greedy(models: dict[str, api.Model], prompts: list) -> None:
  """Prints how many greedy tokens are those of bfloat16."""
  config = sampling.Config(max_tokens=MAX_TOKENS)
  written = {
    weights: [
      list(best.ids) for (best, *_) in model.complete(prompts, config=config)
    ]
    for weights, model in models.items()
  }
  kept = [i for i, ids in enumerate(written['bfloat16']) if ids]
  prompts = [prompts[i] for i in kept]
  written = {k: [ids[i] for i in kept] for k, ids in written.items()}
  theirs = written['bfloat16']
  print(
    f'\n{len(prompts):,} held-out inputs, {sum(map(len, theirs)):,} greedy '
    'tokens of bfloat16; the same are:\n\n'
    '| weights | behind the same tokens | at the same place | whole outputs |\n'
    '| --- | ---: | ---: | ---: |'
  )
  for weights, model in models.items():
    if weights != 'bfloat16':
      whole = np.mean([a == b for a, b in zip(written[weights], theirs)])
      print(
        f'| {weights} | {agree_on_next(model, prompts, theirs):.2%} | '
        f'{count_equal(written[weights], theirs):.2%} | {whole:.2%} |'
      )


def evaluate_suite(model_dir: str, weights: str, questions: int) -> dict:
  """Returns (value, low, high) of each score of the suite, by its name."""
  with tempfile.TemporaryDirectory() as folder:
    settings = dict(
      MODEL_DIR=model_dir, WEIGHTS=weights, OUTPUT=f'{folder}/out',
      TASKS=('udhr_next_*',), LIMIT=questions, SPLIT='train',
      TRUNCATE='start',
    )  # fmt: skip
    bindings = [f'--gin.{name}={value!r}' for name, value in settings.items()]
    command = [sys.executable, '-m', 'atm.cli.main', 'eval']
    subprocess.run(
      [*command, '--gin_file=suites/shipped.gin', *bindings],
      check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    found = results_lib.read_results(f'{folder}/out')
  return {
    f'{task["name"]}, {name}': tuple(score[k] for k in ('value', 'low', 'high'))
    for task in found['tasks']
    for name, score in task['scores'].items()
  }


def compare_suites(model_dir: str, questions: int) -> None:
  """Prints each score in bfloat16, with its interval, beside int8's."""
  theirs, ours = (
    evaluate_suite(model_dir, weights, questions) for weights in WEIGHTS[1:]
  )
  print('\n| score | bfloat16 | int8 | within |\n| --- | --- | --- | --- |')
  for name, (value, low, high) in theirs.items():
    mine = ours[name][0]
    bounds = f'{value:.1f} [{low:.1f}, {high:.1f}]'
    within = 'yes' if low <= mine <= high else 'no'
    print(f'| {name} | {bounds} | {mine:.1f} | {within} |')


def main(
  model_dir: str, rows: int = 64, prompts: int = 200, questions: int = 50
) -> None:
  """Prints what changes from bfloat16 to int8."""
  xla_options.set_flags()
  xla_options.set_compilation_cache()
  config, inputs = open_run(model_dir, rows)
  mesh = mesh_lib.make_mesh()
  models = {
    weights: api.load(model_dir, None, mesh, weights=weights)
    for weights in WEIGHTS
  }
  print_perplexities(
    {
      weights: measure_losses(config, inputs, model)
      for weights, model in models.items()
    }
  )
  compare_greedy(models, list_prompts(config, inputs, prompts))
  if questions:
    compare_suites(model_dir, questions)


if __name__ == '__main__':
  main(sys.argv[1], *map(int, sys.argv[2:]))
