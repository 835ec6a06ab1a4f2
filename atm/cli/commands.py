"""What each run of the command line does."""

from __future__ import annotations

import dataclasses
import functools
import os
import sys

import gin
from atm.cli import gin_config

USAGE = (
  'usage: atm RUN [--gin_file=FILE]... [--gin.NAME=VALUE]... '
  '[--import=MODULE]...'
)


def pretrain() -> None:
  from atm.pages import train_summary
  from atm.parallel import distributed
  from atm.train import crash_report

  crash_report.hush()
  take_model()
  check_pairs()
  run = gin.get_configurable('trainer.train')(
    config_text=gin_config.config_text()
  )
  if not distributed.is_first():
    return
  train_summary.closing(run)
  print(next_steps(run.model_dir, run.step))


def next_steps(model_dir: str, steps: int) -> str:
  """Commands for what one may want after a training run."""
  atm = sys.argv[0] if sys.argv[0].endswith('atm') else 'atm'
  atm = min(atm, os.path.relpath(atm), key=len) if '/' in atm else atm
  text = lambda name, value: f'--gin.{name}="\'{value}\'"'
  mode = gin_config.setting('PAIRS_MODE')  # what `infer` frames prompts in
  tuned = gin_config.setting('INIT_FROM') is not None
  lines = [
    ('prompt it', 'echo "All human beings are born" > prompts.txt'),
    ('', f'{atm} infer {text("MODEL_DIR", model_dir)} '
     f'{text("INPUT", "prompts.txt")}'
     + (f' {text("MODE", mode)}' if tuned and mode != 'clm' else '')),
  ]  # fmt: skip
  if not tuned:  # that one's learning rate has come to 0
    config = f'--gin_file={model_dir}/config.gin'
    train_on = f'{atm} pretrain {config} --gin.TRAIN_STEPS={steps * 2}'
    lines = [('train on', train_on), *lines]
    lines += [
      ('your own pairs', f'{atm} finetune {text("INIT_FROM", model_dir)} '
       f'{text("MODEL_DIR", "runs/tuned")} \\'),
      ('', f'  {text("PAIRS", "pairs.jsonl")}   # `input` and `target` a line'),
      ('your own text', f'{atm} pretrain --gin_file=models/tiny.gin '
       f'{text("MODEL_DIR", "runs/mine")} \\'),
      ('', f'  {text("MIXTURE_OR_TASK_NAME", "text")} '
       f'{text("TEXT_DIR", "FOLDER")}   # holds en.txt, hi.txt, ...'),
    ]  # fmt: skip
  return '\n'.join(['next:', *(f'  {k:<16}{line}' for k, line in lines)])


def check_pairs() -> None:
  """Raises UserError where PAIRS are named, but not what is trained on."""
  from atm.data import registry

  path, mixture = (
    gin_config.setting('PAIRS'),
    gin_config.setting('MIXTURE_OR_TASK_NAME'),
  )
  if path is None:
    return
  gin.get_configurable('atm_tasks.configure')()
  if 'pairs' not in [
    task.name for task in registry.list_tasks(mixture, 'train')
  ]:
    raise gin_config.UserError(
      f'PAIRS = {path!r}, but MIXTURE_OR_TASK_NAME = {mixture!r}: leave out '
      "PAIRS, or set MIXTURE_OR_TASK_NAME = 'pairs'"
    )


def take_model() -> None:
  """Binds what the model that a run starts from says of itself.

  Only what is not bound yet: its fields of `config.Config`, and its positions
  as lengths. So config.gin tells all of the run's model, and starts it alone.
  """
  from atm.checkpoint import manager, pretrained
  from atm.model import config as config_lib

  source, own = map(gin_config.setting, ('INIT_FROM', 'MODEL_DIR'))
  if source is None:
    return
  for name, value in (('INIT_FROM', source), ('MODEL_DIR', own)):
    if not isinstance(value, str):
      raise gin_config.UserError(
        f'{name} = {value!r}: expected a folder, in quotes'
      )
  if manager.latest_step(own) is not None:
    config = pretrained.config_of(own)  # INIT_FROM need not be there any more
  else:
    try:
      config = pretrained.find(source).config
    except FileNotFoundError as e:
      parent = os.path.dirname(os.path.dirname(source.rstrip('/')))
      known = [parent] if os.path.isdir(f'{parent}/checkpoints') else []
      raise gin_config.UserError(
        f'INIT_FROM = {source!r}: expected a MODEL_DIR with a checkpoint, or a '
        'Hugging Face folder' + ''.join(f'. Did you mean {p!r}?' for p in known)
      ) from e
  bound = gin.get_bindings(config_lib.Config)
  with gin.unlock_config():
    for name, value in dataclasses.asdict(config).items():
      if name not in bound:
        gin.bind_parameter(f'model.Config.{name}', value)
    if gin_config.setting('TASK_FEATURE_LENGTHS') is None:
      lengths = dict.fromkeys(('inputs', 'targets'), config.positions)
      gin.bind_parameter('TASK_FEATURE_LENGTHS/gin.macro.value', lengths)


def plan() -> None:
  start = gin.get_configurable('sharding.start')
  if (program := gin.get_configurable('plan_decode.program')()) != 'train':
    for name in ('SEARCH', 'PODS'):
      if gin.query_parameter(f'%{name}'):
        raise gin_config.UserError(
          f"{name} is for PROGRAM = 'train', not {program!r}"
        )
    gin.get_configurable('plan_decode.plan_rows')(start=start)
    return
  gin.get_configurable('planner.run')(
    functools.partial(gin.get_configurable('plan.plan'), start=start), of_pod
  )


def of_pod(name: str) -> dict:
  """Settings of `train_plan.plan` with a pods file in place of the one given.

  Args:
    name: 'v5p_4x4x8'.

  Raises:
    UserError: no such file.
  """
  from atm import messages
  from atm.parallel import mesh

  known = [
    os.path.basename(f)[:-4]
    for f in gin_config.shipped_files()
    if f[:5] == 'pods/'
  ]
  try:
    path = gin_config.find_file(f'pods/{name}.gin')
  except gin_config.UserError:
    near = messages.did_you_mean(name, known)
    raise gin_config.UserError(f'PODS: no pods file {name!r}.' + near) from None
  files, bindings, modules = gin_config._given
  own = [f for f in files if os.path.basename(os.path.dirname(f)) != 'pods']
  with gin.unlock_config():
    gin.clear_config()
    gin_config.configure([*own, path], bindings, modules)
    given = gin.get_configurable('plan.plan')(instead=dict)
  # Bound now: the next pods file brings another mesh.
  bound = gin.get_bindings(mesh.mesh)
  return {**given, 'make_mesh': functools.partial(mesh.mesh, **bound)}


def vocab() -> None:
  gin.get_configurable('data.vocab')()


def cache() -> None:
  gin.get_configurable('cache.build')(
    prepare=functools.partial(gin_config.prepare_process, *gin_config._given)
  )


def mixture() -> None:
  gin.get_configurable('mixture.show')()


def inspect_() -> None:
  gin.get_configurable('look.inspect')()


def infer() -> None:
  gin.get_configurable('files.infer_file')().run()


def score() -> None:
  gin.get_configurable('files.score_file')().run()


def chat() -> None:
  gin.get_configurable('chat.chat')().run()


def eval_() -> None:
  from atm.evals.results import RESULTS_FILE
  from atm.pages import eval_page
  from atm.parallel import distributed

  evaluate = gin.get_configurable('suite.evaluate')
  folder = evaluate(config_text=gin_config.config_text()).run()
  if folder is not None and distributed.is_first():
    page = eval_page.write(folder)
    print(f'wrote {os.path.join(folder, RESULTS_FILE)}\n      {page}')


def compare() -> None:
  print(gin.get_configurable('compare.compare')())


def lm_eval() -> None:
  gin.get_configurable('harness.evaluate')().run()


def report() -> None:
  print(gin.get_configurable('run_page.write')())


def import_() -> None:
  gin.get_configurable('convert.import_weights')()


def export() -> None:
  gin.get_configurable('convert.export_weights')()


# They need not be where the devices are, and start JAX themselves if at all.
ELSEWHERE = ('plan',)
RUNS = {
  'pretrain': pretrain,
  'finetune': pretrain,  # with INIT_FROM and other defaults
  'plan': plan,
  'vocab': vocab,
  'cache': cache,
  'mixture': mixture,
  'inspect': inspect_,
  'report': report,
  'infer': infer,
  'score': score,
  'chat': chat,
  'eval': eval_,
  'compare': compare,
  'lm_eval': lm_eval,
  'import': import_,
  'export': export,
}


def list_runs() -> str:
  """Every run with the first comment line of its file."""
  lines = [USAGE, '', 'runs:']
  for name in RUNS:
    with open(gin_config.find_file(f'runs/{name}.gin')) as f:
      lines.append(f'  {name:<10}{f.readline().lstrip("# ").rstrip()}')
  lines += ['', 'gin files:', '  ' + '\n  '.join(gin_config.shipped_files())]
  return '\n'.join(lines)
