"""What each run of the command line does: a function, or a gin name, a run."""

import dataclasses
import functools
import os
import sys

from atm import storage
from atm.cli import gin_config, gin_files, machine_settings
from atm.cli.gin_config import get_configurable, get_setting
from atm.cli.gin_text import UserError
from atm.messages import check_count, check_path, did_you_mean, quote

USAGE = (
  'usage: atm RUN [--gin_file=FILE]... [--gin.NAME=VALUE]... '
  '[--import=MODULE]...\n'
  '       atm RUN --help    settings of a run: defaults, meanings\n'
  '       atm --version'
)


def run_pretrain() -> None:
  """Trains, or resumes, and closes with a summary and what to do next."""
  from atm.inference import generation_defaults
  from atm.pages import train_summary
  from atm.parallel import distributed
  from atm.train import trainer

  adopt_source_model()
  adopt_vocabulary_size()
  check_pairs()
  check_few_shot()
  make_config = get_configurable('trainer.train')
  config = make_config(config_text=gin_config.config_text())
  generation_defaults.check_own_settings(
    config.generation or {}, config.model_config
  )
  run = trainer.train(config)
  if not distributed.is_main_process():
    return
  train_summary.print_summary(run)
  steps = None if run.stopped_early else run.step
  print(next_steps(run.model_dir, steps, bool(run.vocabulary.languages)))


def next_steps(
  model_dir: str, steps: int | None, has_languages: bool = False
) -> str:
  """Lists commands for what one may want after a training run.

  Its `steps` are None where early stopping ended it: more would change nothing.
  """
  atm = sys.argv[0] if sys.argv[0].endswith('atm') else 'atm'
  atm = min(atm, os.path.relpath(atm), key=len) if '/' in atm else atm
  text = lambda name, value: f'--gin.{name}="\'{value}\'"'
  tuned = get_setting('INIT_FROM') is not None
  # What `infer` frames prompts in.
  framed_by = {'MODE': get_setting('PAIRS_MODE')}
  if has_languages:
    names = 'SOURCE_LANGUAGE', 'TARGET_LANGUAGE'
    framed_by |= {name: get_setting(name) for name in names}
  framing = [text(*item) for item in framed_by.items() if tuned and item[1]]
  lines = [
    ('prompt it', 'echo "All human beings are born" > prompts.txt'),
    ('', f'{atm} infer {text("MODEL_DIR", model_dir)} '
     f'{" ".join([text("INPUT", "prompts.txt"), *framing])}'),
  ]  # fmt: skip
  if not tuned:  # that one's learning rate has come to 0
    config = f'--gin_file={model_dir}/config.gin'
    if steps is not None:
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
  from atm.data import task_registry

  path, mixture = map(get_setting, ('PAIRS', 'MIXTURE_OR_TASK_NAME'))
  if path is None:
    return
  get_configurable('atm_tasks.configure')()
  tasks = task_registry.list_tasks(mixture, 'train')
  labels = list(map(task_registry.get_labels, tasks))
  sources = [getattr(each, 'source', None) for each in labels]
  sets = [getattr(each, 'data_set', None) for each in labels]
  if 'pairs' not in sources and not any(sets):
    raise UserError(
      f'PAIRS = {path!r}, but MIXTURE_OR_TASK_NAME = {mixture!r}: leave out '
      "PAIRS, or set MIXTURE_OR_TASK_NAME = 'pairs'"
    )


def check_few_shot() -> None:
  """Raises ValueError where ASK_EVERY asks what cannot be scored or read."""
  from atm.evals import during_training

  if get_setting('ASK_EVERY') is not None:
    make_tasks = gin_config.get_bindings('suite.Asker')['make_tasks']
    during_training.check_tasks(make_tasks())


def adopt_source_model() -> None:
  """Binds what the model that a run starts from says of itself."""
  # Only what is not bound yet: its fields of `ModelConfig`, and its positions
  # as lengths. So config.gin tells all of the run's model, and starts it alone.
  from atm.checkpoint import pretrained, reader
  from atm.model import config as config_lib

  source, own = map(get_setting, ('INIT_FROM', 'MODEL_DIR'))
  if source is None:
    return
  source, own = check_path('INIT_FROM', source), check_path('MODEL_DIR', own)
  rows = 0
  if reader.latest_step(own) is not None:
    config = pretrained.read_config(own)  # INIT_FROM need not be there any more
  else:
    try:
      model = pretrained.open_pretrained(source)
    except FileNotFoundError as e:
      parent = os.path.dirname(os.path.dirname(source.rstrip('/')))
      known = [parent] if os.path.isdir(f'{parent}/checkpoints') else []
      raise UserError(
        f'INIT_FROM = {source!r}: expected a MODEL_DIR with a checkpoint, or a '
        'Hugging Face folder' + ''.join(f'. Did you mean {p!r}?' for p in known)
      ) from e
    config, rows = model.config, count_tokens(model.vocabulary)
  bound = gin_config.get_bindings(config_lib.ModelConfig)
  own = dataclasses.asdict(config).items()
  values = {f'model.Config.{k}': v for k, v in own if k not in bound}
  if get_setting('TASK_FEATURE_LENGTHS') is None:
    lengths = dict.fromkeys(('inputs', 'targets'), config.positions)
    values['TASK_FEATURE_LENGTHS'] = lengths
  if (size := 'model.Config.vocab_size') in values:
    values[size] = max(values[size], rows)
  gin_config.bind(values)


def count_tokens(words) -> int:
  """Returns the size of a vocabulary with a run's new tokens; 0 of none."""
  from atm.data import task_registry, vocabulary, vocabulary_extension

  path = get_setting('VOCABULARY')
  if words is None and path is not None:
    words = vocabulary.open_vocabulary(path)
  if words is None:
    return 0  # the run will say that there is none
  languages = vocabulary_extension.check_new_languages(
    get_setting('NEW_LANGUAGES')
  )
  added = lambda markers: vocabulary_extension.list_new_tokens(
    words, markers, languages
  )
  if not added(True):
    return 0
  get_configurable('atm_tasks.configure')()
  mixture = get_setting('MIXTURE_OR_TASK_NAME')
  new = added(task_registry.needs_markers(mixture))
  return words.size + len(new) if new else 0


def adopt_vocabulary_size() -> None:
  """Gives a fresh model as many entries as a vocabulary that is asked for."""
  size = get_setting('VOCABULARY_SIZE')
  if size is None or get_setting('INIT_FROM') is not None:
    return
  size = check_count('VOCABULARY_SIZE', size)
  if size > get_configurable('model.Config')().vocab_size:
    gin_config.bind({'model.Config.vocab_size': size})


def run_plan() -> None:
  """Plans training, decoding or serving, for devices that need not be here."""
  start = get_configurable('sharding.start')
  if (program := get_configurable('plan_decode.program')()) != 'train':
    for name in ('SEARCH', 'PODS'):
      if get_setting(name):
        raise UserError(f"{name} is for PROGRAM = 'train', not {program!r}")
    name = 'serve.plan_engine' if program == 'serve' else 'decode.plan_rows'
    get_configurable(f'plan_{name}')(start=start)
    return
  get_configurable('planner.run')(
    functools.partial(get_configurable('plan.plan'), start=start),
    settings_for_pod,
  )


def settings_for_pod(name: str) -> dict:
  """Returns the settings of `train_plan.plan` with pods file 'v5p_4x4x8'."""
  from atm.parallel import mesh

  pods = (f for f in gin_files.shipped_files() if f.startswith('pods/'))
  known = [os.path.basename(f).removesuffix('.gin') for f in pods]
  try:
    if os.path.basename(str(name)) != name:  # a path to elsewhere
      raise UserError(name)
    path = gin_files.find_file(f'pods/{name}.gin')
  except UserError:
    near = did_you_mean(str(name), known)
    raise UserError(f'PODS: no pods file {quote(name)}.' + near) from None
  files, bindings, modules = gin_config.arguments()
  own = [f for f in files if os.path.basename(os.path.dirname(f)) != 'pods']
  gin_config.replace_config([*own, path], bindings, modules)
  given = get_configurable('plan.plan')(instead=dict)
  # Bound now: the next pods file brings another mesh.
  bound = gin_config.get_bindings(mesh.make_mesh)
  return {**given, 'make_mesh': functools.partial(mesh.make_mesh, **bound)}


def run_cache() -> None:
  """Turns a mixture's text into rows of tokens, in several processes."""
  # Files are not read again: they may have changed.
  prepare = functools.partial(
    gin_config.prepare_process, *gin_config.last_configuration()
  )
  get_configurable('cache.build')(prepare=prepare)


def run_evaluation() -> None:
  """Asks a suite's questions, and writes the page of the answers."""
  from atm.evals.results import RESULTS_FILE
  from atm.pages import eval_page
  from atm.parallel import distributed

  evaluation = get_configurable('suite.evaluate')
  folder = evaluation(config_text=gin_config.config_text()).run()
  if folder is not None and distributed.is_main_process():
    page = eval_page.write_eval_page(folder)
    print(f'wrote {os.path.join(folder, RESULTS_FILE)}\n      {page}')


def run_check() -> int:
  """Checks a downloaded folder; returns the exit status: 1 where it differs."""
  return 0 if get_configurable('check.check_folder')().run() else 1


# A function, or the gin name of what to call, whose text is printed.
RUNS = {
  'pretrain': run_pretrain,
  'finetune': run_pretrain,  # with INIT_FROM and other defaults
  'plan': run_plan,
  'vocab': 'data.vocab',
  'cache': run_cache,
  'mixture': 'mixture.show',
  'inspect': 'look.inspect',
  'report': 'run_page.write',
  'card': 'card.write',
  'runs': 'run_list.write',
  'infer': 'files.infer_file',
  'score': 'files.score_file',
  'chat': 'chat.chat',
  'serve': 'serving.serve',
  'eval': run_evaluation,
  'compare': 'compare.compare',
  'lm_eval': 'harness.evaluate',
  'check': run_check,
  'import': 'convert.import_weights',
  'export': 'convert.export_weights',
}
# Runs whose standard output is a log: their results are files.
LOGGING = (
  'pretrain', 'finetune', 'vocab', 'cache', 'infer', 'score', 'eval', 'import',
  'export', 'lm_eval', 'serve',
)  # fmt: skip
# Runs that need no device here, and start JAX themselves if at all.
WITHOUT_DEVICES = ('plan',)
# What an argument without a name sets: `atm check FOLDER`.
UNNAMED = {'card': 'MODEL_DIR', 'check': 'MODEL_DIR', 'runs': 'FOLDER'}


def writes_files(run: str) -> bool:
  """Tells whether a run goes on where nobody reads its standard output."""
  if run == 'eval' and (get_setting('DRY_RUN') or get_setting('CHECK_DATA')):
    return False
  return run in LOGGING


def check_run_folder() -> None:
  """Raises UserError where a run's own config.gin names another folder.

  It does where the folder was moved or copied, or its name is a relative one,
  of another working directory: the run would begin anew there.
  """
  path = gin_config.get_origin('MODEL_DIR')
  named = path and get_setting('MODEL_DIR')
  if not isinstance(named, str) or os.path.basename(path) != 'config.gin':
    return
  here = os.path.dirname(path)
  here = here if storage.is_remote(here) else os.path.normpath(here)
  there = os.path.expanduser(named)
  is_run = machine_settings.is_run_folder(here)
  if is_run and os.path.realpath(here) != os.path.realpath(there):
    raise UserError(
      f'{path} lies in a run folder, but names another, MODEL_DIR = '
      f'{quote(named)}, as after a move or a copy: to take the run in that '
      f'folder add --gin.MODEL_DIR="{here!r}"'
    )


def fit_mesh() -> None:
  """Fits the mesh of a run's own config.gin to the devices, and says so."""
  from atm.parallel import distributed

  configuration, _ = gin_config.last_configuration()
  bound = gin_config.get_bindings('sharding.mesh')
  if (fitted := machine_settings.fit_mesh_sizes(configuration, bound)) is None:
    return
  sizes, note = fitted
  gin_config.bind({f'sharding.mesh.{k}': v for k, v in sizes.items()})
  if distributed.is_main_process():
    print(f'atm: {note}', file=sys.stderr)


def execute(run: str) -> int:
  """Does what a run of RUNS is for, with gin configured.

  Returns:
    The exit status: of a function that returns one; else 0.
  """
  gin_config.check_settings()
  check_run_folder()
  if run not in WITHOUT_DEVICES:
    fit_mesh()
  command = RUNS[run]
  made = command() if callable(command) else get_configurable(command)()
  if hasattr(made, 'run'):  # a job: a dataclass that gin configured
    made.run()  # reports by itself what it wrote
  elif isinstance(made, str):
    print(made)
  return made if callable(command) and isinstance(made, int) else 0


def list_runs() -> str:
  """Lists every run with the first comment line of its file."""
  lines = [USAGE, '', 'runs:']
  for name in RUNS:
    with open(gin_files.run_file(name), encoding='utf-8') as f:
      lines.append(f'  {name:<10}{f.readline().lstrip("# ").rstrip()}')
  lines += ['', 'gin files:', '  ' + '\n  '.join(gin_files.shipped_files())]
  return '\n'.join(lines)
