"""The settings of a training run, which gin binds as `trainer.train`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from functools import partial
from typing import ClassVar

from atm.checkpoint import manager
from atm.data import vocabulary_training
from atm.data.task_registry import Lengths, check_lengths
from atm.data.vocabulary_extension import check_new_languages
from atm.messages import (
  MOST_INT32,
  check_choice,
  check_count,
  check_fields,
  check_flag,
  check_instance,
  check_number,
  check_path,
  check_seed,
  check_text,
  check_texts,
  quote,
)
from atm.model import config as model_config_lib
from atm.model.lora import LoraConfig
from atm.parallel import mesh as mesh_lib
from atm.parallel.sharding import Rules
from atm.parallel.xla_options import check_options
from atm.train import optimizer
from atm.train.lora_base import BASE_DTYPES
from atm.train.trackers import TRACKERS

# The least value of each whole number; a user writes the names in capitals.
LEAST = {
  'batch_size': 1, 'train_steps': 1, 'log_every': 1, 'eval_every': 1,
  'eval_rows': 1, 'save_every': 1, 'row_passes': 1, 'micro_batches': 1,
  'abort_after_nonfinite': 1, 'freeze_encoder_steps': 0,
}  # fmt: skip
_FOLDERS = (
  'vocabulary', 'init_from', 'init_encoder', 'cache_dir', 'checkpoint_dir'
)  # fmt: skip


def check_range(name: str, steps) -> tuple[int, int]:
  """Returns (first, last); raises ValueError unless 1 <= first <= last."""
  if not _is_pair(steps):
    raise ValueError(f'{name} = {quote(steps)}: expected (first, last)')
  first, last = (check_number(name, n, most=MOST_INT32) for n in steps)
  if not 1 <= first <= last:
    raise ValueError(
      f'{name}: {quote((first, last))}: expected 1 <= first <= last. Did you '
      f'mean {quote(tuple(sorted((max(1, first), max(1, last)))))}?'
    )
  return first, last


def check_profile_steps(steps) -> tuple[int, int] | None:
  """Returns PROFILE_STEPS, see `check_range`, or None."""
  return None if steps is None else check_range('PROFILE_STEPS', steps)


def check_skip_steps(ranges) -> tuple[tuple[int, int], ...]:
  """Returns SKIP_STEPS; raises ValueError unless pairs of `check_range`."""
  if not isinstance(ranges, tuple | list) or not all(map(_is_pair, ranges)):
    hint = ', such as ((120, 140),), or () for none'
    if _is_pair(ranges):
      hint = f'. Did you mean ({tuple(ranges)},)?'
    raise ValueError(
      f'SKIP_STEPS = {quote(ranges)}: expected pairs of a first and a last '
      f'step{hint}'
    )
  return tuple(check_range('SKIP_STEPS', steps) for steps in ranges)


def _is_pair(steps) -> bool:
  """Tells whether `steps` is a pair, of numbers it may be."""
  pair = isinstance(steps, tuple | list) and len(steps) == 2
  return pair and not any(isinstance(n, tuple | list) for n in steps)


def check_generation(value) -> dict | None:
  """Returns GENERATION; raises ValueError unless names with values, or None."""
  if value is None:
    return None
  check_instance('GENERATION', value, dict)
  return {check_text('a name in GENERATION', k): x for k, x in value.items()}


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """What decides a training run.

  Attributes:
    model_dir: the folder of the run, see `run_folder`.
    mixture: a seqio task or mixture, see `atm.data.task_registry`.
    lengths: {'inputs': S, 'targets': T}, in tokens; None: the model's
      positions.
    batch_size: B, rows a step over all devices.
    train_steps: updates in all.
    vocabulary: a SentencePiece file; None takes the one of `cache_dir`, or
      trains model_dir/vocabulary on the mixture's text.
    vocabulary_size: pieces of one that is trained; None: as many as the text
      supports, up to the model's `vocab_size`.
    make_mesh: called without arguments, once devices may be used.
    rules: logical to mesh axes.
    seed: of parameters, shuffle, noise and dropout.
    z_loss, label_smoothing: of training, see `loss.cross_entropy`.
    prompt_loss: train a decoder-only model on the inputs of CLM rows, too,
      which are text as their targets are. Held-out losses are of targets.
    micro_batches: parts of the batch that a step runs one after another, to
      save memory; changes the update by rounding only, and dropout's draws.
    skip_steps: ranges (first, last) of steps, both included and numbered as
      in the log, whose batches are not trained on: such a step changes
      nothing but the number of the step.
    abort_after_nonfinite: so many steps in a row whose loss or gradient is
      not finite, and whose update was skipped therefore, end the run.
    init_from: a fresh run starts from all parameters of this model, a MODEL_DIR
      or a Hugging Face folder, and takes its vocabulary; see
      `config_checks.check_same_model` for what of `model_config` may differ.
    lora: train adapters of `init_from` in place of its parameters, which are
      read again where a run is resumed; None: train all.
    lora_base_dtype: what those are held in, one of BASE_DTYPES.
    new_languages: new code -> code of a language of `init_from`, whose row the
      new one begins as; added to the vocabulary, as markers are that text
      needs, see `vocabulary_extension` and `new_rows`.
    init_encoder: a fresh run's encoder starts from this MODEL_DIR or Hugging
      Face folder, see `warm_start`.
    freeze_encoder_steps: updates, from the first, that leave the encoder and
      its embedding as they are, see `step.train_step`. The paper freezes its
      pre-trained encoder for the first 100,000 or so. May be another number
      when a run is resumed, unless a run that began with 0 were to freeze now.
    freeze: patterns of parameters that stay as they are, see `freezing`.
    row_passes: `passes` of `cache.build`.
    cache_dir: rows that `cache.build` made; None builds model_dir/rows.
    verify_cache: compare the checksums of the rows' files before the first
      step, shared by the hosts; a resumed run compares what the manifests say
      with its checkpoint.
    stream: train on seqio's own stream of the mixture, see `Stream`; only
      the validation split has rows.
    log_every, eval_every, save_every: in steps.
    eval_rows: held-out rows of each task in an evaluation.
    ask_every: run the few-shot suite every so many steps, a multiple of
      `eval_every`, and at the end; None: never.
    keep_best: a metric of evaluations; the checkpoint that is best by it is
      kept beside the newest ones, and MODEL_DIR/best.json names it, see
      `best_tracker`. None: none is.
    patience: evaluations in a row that are no better than those before, after
      which the run ends. None: it does not.
    min_delta: what is better by no more does not count for `patience`.
    make_asker: called with (model_config, vocabulary, mesh, rules, say), gives
      what runs the suite, see `during_training`.
    profile_steps: (first, last) steps that JAX's profiler records into
      model_dir/profile, for TensorBoard or Perfetto.
    tracker: 'wandb' or 'mlflow', which get the metrics, too, see `trackers`.
    debug_hang: seconds without the end of a step, after which every host writes
      its stacks, and the first one the step's HLO, to model_dir/hang and exits
      with status 75. More than the longest step, evaluation or save takes;
      compiling does not count. None: never.
    xla_options: `changes` of `xla_options.compile_program`, for the step.
    checkpoint_dir: where checkpoints lie if not in model_dir, a folder of
      gs:// say; model_dir keeps its name.
    generation: names and values of generation_config.json, which the model is
      to keep beside those of `init_from`; see `RunFolder.save_setup`.
    keep: how many checkpoints; None keeps all.
    on_save_error: 'stop', or 'go_on' without the checkpoint that could not be
      written; the last one must be.
    train_vocabulary: called where there is none, see
      `vocabulary_training.train_vocabulary`.
    configure_tasks: called before the mixture is looked up, and again with
      vocabulary=FILE before a task is read.
    config_text: kept in model_dir/config.gin and in every checkpoint.
    say: prints a line; of several hosts the first calls it.

  Raises:
    ValueError: a value out of its range, or two that do not fit each other.
  """

  model_dir: str
  mixture: str
  lengths: dict[str, int] | None
  batch_size: int
  train_steps: int
  model_config: model_config_lib.ModelConfig
  optimizer_config: optimizer.OptimizerConfig
  vocabulary: str | None = None
  vocabulary_size: int | None = None
  make_mesh: Callable = mesh_lib.make_mesh
  rules: Rules = Rules()
  seed: int = 0
  z_loss: float = 0.0
  label_smoothing: float = 0.0
  prompt_loss: bool = False
  micro_batches: int = 1
  skip_steps: tuple[tuple[int, int], ...] = ()
  abort_after_nonfinite: int = 10
  init_from: str | None = None
  init_encoder: str | None = None
  freeze_encoder_steps: int = 0
  freeze: tuple[str, ...] = ()
  row_passes: int = 1
  cache_dir: str | None = None
  verify_cache: bool = True
  stream: bool = False
  log_every: int = 10
  eval_every: int = 100
  eval_rows: int = 64
  ask_every: int | None = None
  keep_best: str | None = None
  patience: int | None = None
  min_delta: float = 0.0
  make_asker: Callable | None = None
  profile_steps: tuple[int, int] | None = None
  tracker: str | None = None
  debug_hang: float | None = None
  xla_options: dict | None = None
  save_every: int = 100
  checkpoint_dir: str | None = None
  generation: dict | None = None
  keep: int | None = 3
  on_save_error: str = 'stop'
  train_vocabulary: Callable = vocabulary_training.train_vocabulary
  configure_tasks: Callable = lambda **named: None
  config_text: str = ''
  new_languages: dict[str, str] | None = None
  lora: LoraConfig | None = None
  lora_base_dtype: str = 'float32'
  say: Callable[[str], None] = print

  checks: ClassVar[dict[str, Callable]] = {
    **{
      name: partial(check_number, name.upper(), least=least, most=MOST_INT32)
      for name, least in LEAST.items()
    },
    **{
      name: partial(check_path, name.upper(), optional=True)
      for name in _FOLDERS
    },
    'model_dir': partial(check_path, 'MODEL_DIR'),
    'mixture': partial(check_text, 'MIXTURE_OR_TASK_NAME', empty=False),
    'lengths': partial(check_lengths, 'TASK_FEATURE_LENGTHS', optional=True),
    'vocabulary_size': partial(check_count, 'VOCABULARY_SIZE', optional=True),
    'seed': partial(check_seed, 'SEED'),
    'z_loss': partial(check_number, 'Z_LOSS', least=0, whole=False),
    'label_smoothing': partial(
      check_number, 'LABEL_SMOOTHING', least=0, below=1, whole=False
    ),
    'prompt_loss': partial(check_flag, 'PROMPT_LOSS'),
    'skip_steps': check_skip_steps,
    'freeze': partial(check_texts, 'FREEZE', empty=False, single=True),
    'lora_base_dtype': partial(
      check_choice, 'LORA_BASE_DTYPE', known=BASE_DTYPES
    ),
    'new_languages': check_new_languages,
    'ask_every': partial(
      check_number, 'ASK_EVERY', most=MOST_INT32, optional=True
    ),
    'keep_best': partial(check_text, 'KEEP_BEST', optional=True, empty=False),
    'patience': partial(check_count, 'PATIENCE', optional=True),
    'min_delta': partial(check_number, 'MIN_DELTA', least=0, whole=False),
    'profile_steps': check_profile_steps,
    'tracker': partial(check_choice, 'TRACKER', known=TRACKERS, optional=True),
    'debug_hang': partial(
      check_number, 'DEBUG_HANG', least=1, whole=False, optional=True
    ),
    'xla_options': partial(check_options, 'XLA_OPTIONS'),
    'generation': check_generation,
    'keep': partial(check_count, 'KEEP', optional=True),
    'on_save_error': partial(
      check_choice, 'ON_SAVE_ERROR', known=manager.ON_ERROR
    ),
  }

  def __post_init__(self):
    check_fields(self)
    if self.lengths is None:
      lengths = Lengths.of_model(self.model_config).as_setting()
      object.__setattr__(self, 'lengths', lengths)
    ask, evaluate = self.ask_every, self.eval_every
    check_number('ASK_EVERY', ask, evaluate, optional=True)
    if ask and ask % evaluate:
      raise ValueError(
        f'ASK_EVERY = {ask}: expected a multiple of EVAL_EVERY = {evaluate}, '
        f'or None. Did you mean {evaluate * max(1, round(ask / evaluate))}?'
      )
    _check_stopping(self)
    _check_one_start(self)
    _check_lora(self)
    if self.prompt_loss:
      self.model_config.check_prompt_loss()
    for name in ('init_encoder', 'freeze_encoder_steps'):
      if value := getattr(self, name):
        self.model_config.check_encoder(f'{name.upper()} = {value!r}')

  @property
  def sizes(self) -> Lengths:
    """Encoder length S and decoder length T."""
    return Lengths.of(self.lengths)

  def skips(self, step: int) -> bool:
    """Tells whether the batch of a step is not trained on."""
    return any(first <= step <= last for first, last in self.skip_steps)


def _check_stopping(config: TrainConfig) -> None:
  """Raises ValueError where what is best cannot be known."""
  name = config.keep_best
  if config.patience is not None and name is None:
    raise ValueError(
      f'PATIENCE = {config.patience}, but KEEP_BEST = None: set KEEP_BEST to a '
      "metric of evaluations, such as 'eval/loss/pair', or leave out PATIENCE"
    )
  if name and name.startswith('few_shot/') and config.ask_every is None:
    raise ValueError(
      f'KEEP_BEST = {name!r}, but ASK_EVERY = None: set ASK_EVERY to a '
      'multiple of EVAL_EVERY'
    )


def _check_one_start(config: TrainConfig) -> None:
  """Raises ValueError where a run is to start from two models, or itself."""
  source = config.init_from
  if source is None:
    return
  if os.path.realpath(source) == os.path.realpath(config.model_dir):
    raise ValueError(
      f'INIT_FROM = {source!r} is MODEL_DIR: use another MODEL_DIR, or, to '
      'go on with that run, leave out INIT_FROM'
    )
  if config.init_encoder is not None:
    raise ValueError(
      f'INIT_FROM = {source!r} and INIT_ENCODER = {config.init_encoder!r}: '
      'expected one of them; INIT_FROM brings an encoder'
    )


def _check_lora(config: TrainConfig) -> None:
  """Raises ValueError for settings that adapters leave no room for."""
  if config.lora is None:
    return
  rank = f'LORA_RANK = {config.lora.rank}'
  if config.init_from is None:
    raise ValueError(
      f'{rank}, but INIT_FROM = None: name the model that is adapted, or '
      'leave out LORA_RANK'
    )
  for name, value, remedy in (
    ('NEW_LANGUAGES', config.new_languages, 'train all parameters first'),
    (
      'FREEZE_ENCODER_STEPS', config.freeze_encoder_steps,
      "set LORA_TARGETS = ('decoder',), which adapts the decoder alone",
    ),
    ('FREEZE', config.freeze, 'set LORA_TARGETS, which says what is adapted'),
  ):  # fmt: skip
    if value:
      raise ValueError(
        f'{name} = {quote(value)}, but {rank} leaves all parameters of '
        f'INIT_FROM as they are: leave out {name}, or {remedy}'
      )
