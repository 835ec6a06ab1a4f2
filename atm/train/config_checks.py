"""Refuses a run whose settings do not fit each other, before it starts."""

import dataclasses
import math

from atm.data.vocabulary import Vocabulary
from atm.messages import check_number
from atm.model import config as config_lib
from atm.model import parameters
from atm.parallel import sharding
from atm.train import optimizer
from atm.train.config import TrainConfig


def check_fits(config: TrainConfig, mesh) -> None:
  """Raises ValueError where a run's sizes do not fit its mesh."""
  rules, batch_size = config.rules, config.batch_size
  check_sizes(mesh, rules, config.model_config, config.sizes, batch_size)
  check_micro_batches(mesh, rules, batch_size, config.micro_batches)
  sharding.host_rows(mesh, rules, batch_size)  # raises where it does not divide


def check_micro_batches(mesh, rules, batch_size: int, number: int) -> None:
  """Raises ValueError unless each data shard's rows divide by `number`."""
  check_number('MICRO_BATCHES', number, 1)
  shards = math.prod(mesh.shape[a] for a in rules.mesh_axes('batch'))
  rows = batch_size // shards
  if rows % number:
    fit = [n for n in range(1, rows + 1) if rows % n == 0]
    off = min(abs(n - number) for n in fit)
    nearest = ' or '.join(str(n) for n in fit if abs(n - number) == off)
    raise ValueError(
      f'MICRO_BATCHES = {number} does not divide the {rows} rows that each of '
      f'{shards} data shards has of BATCH_SIZE = {batch_size}; the nearest '
      f'that does: {nearest}.'
    )


# What may differ between a model and the one that its parameters come from:
# how it computes and what it drops, not what.
MAY_DIFFER = (
  'dropout', 'attention_dropout', 'activation_dropout', 'norm_float32',
  'scores_float32', 'init_std', 'dtype', 'remat', 'attention', 'loss_chunk',
  'unroll',
)  # fmt: skip


def check_same_model(config: config_lib.ModelConfig, source) -> None:
  """Raises ValueError unless the parameters of `source` are this model's.

  Args:
    config: of the model; what FREE names may be another.
    source: a `pretrained.PretrainedModel`.
  """
  there = dataclasses.asdict(source.config)
  here = dataclasses.asdict(config)
  wrong = [k for k in there if k not in MAY_DIFFER and here[k] != there[k]]
  if wrong:
    name = wrong[0]
    raise ValueError(
      f'Config.{name} = {here[name]!r}, but {there[name]!r} in INIT_FROM = '
      f'{source.directory!r}: leave out what binds '
      f'{", ".join(f"model.Config.{k}" for k in wrong)}'
    )


def decide_split(start: int, then: dict, freeze: int) -> bool:
  """Tells whether the optimizer splits off the encoder, as the run began.

  Args:
    start: the checkpoint's step; 0: there is none.
    then: its meta.
    freeze: FREEZE_ENCODER_STEPS.

  Raises:
    ValueError: a run that keeps it with the rest's is to freeze the encoder.
  """
  if not start:
    return freeze > 0
  apart = then.get('encoder_apart', False)
  if freeze > start and not apart:
    raise ValueError(
      f'FREEZE_ENCODER_STEPS = {freeze}, but this MODEL_DIR began with 0 and '
      f'has trained its encoder for {start} steps: use 0, or another MODEL_DIR'
    )
  return apart


def check_sizes(
  mesh, rules, config: config_lib.ModelConfig, lengths, batch_size: int
):
  """Raises ValueError for sizes that the mesh or the model cannot hold."""
  for side in ('inputs', 'targets'):
    name, n = f'TASK_FEATURE_LENGTHS[{side!r}]', getattr(lengths, side)
    if n > config.positions:
      raise ValueError(
        f'{name} = {n} is more than Config.positions = {config.positions}'
      )
    sharding.check_divides(mesh, rules, {'length': (name, n)})
  batch = {'batch': ('BATCH_SIZE', batch_size)}
  sharding.check_divides(mesh, rules, batch)
  parameters.check_mesh(mesh, rules, config)


def check_vocabulary(words: Vocabulary, config: config_lib.ModelConfig) -> None:
  """Raises ValueError where the model does not fit the vocabulary."""
  if words.size > config.vocab_size:
    raise ValueError(
      f'the vocabulary {words.path} has {words.size} pieces, more than '
      f'Config.vocab_size = {config.vocab_size}'
    )
  pieces = dict(pad_id=words.pad_id, start_id=words.bos_id, end_id=words.eos_id)
  for name, piece in pieces.items():
    if getattr(config, name) != piece:
      raise ValueError(
        f'Config.{name} = {getattr(config, name)}, but it is {piece} in the '
        f'vocabulary {words.path}'
      )


def check_resumable(then: dict, now: dict) -> None:
  """Raises ValueError where the data would not go on as it began."""
  names = {'mixture': 'MIXTURE_OR_TASK_NAME'}
  for key, value in now['data'].items():
    before = then['data'].get(key, value)
    if before != value and key == 'rows':
      raise ValueError(
        'the rows of tokens are not those that this MODEL_DIR was trained on '
        'so far: use the same CACHE_DIR, ROW_PASSES and STREAM, or another '
        'MODEL_DIR'
      )
    if before != value:
      raise ValueError(
        f'{names.get(key, key.upper())} = {value!r}, but this MODEL_DIR was '
        f'trained with {before!r}: use that, or another MODEL_DIR'
      )
  _check_same_optimizer(then.get('optimizer'), now.get('optimizer'))
  _check_same_skips(
    then['data'].get('step', 0),
    then.get('skip_steps', ()),
    now.get('skip_steps', ()),
  )
  if then['vocabulary'] != now['vocabulary']:
    raise ValueError(
      'the checkpoint was trained with another vocabulary than this run has: '
      'use the one in MODEL_DIR/vocabulary, or another MODEL_DIR'
    )


def _check_same_optimizer(then: dict | None, now: dict | None) -> None:
  """Raises ValueError where the optimizer's state is of another kind."""
  then, now = (
    {**optimizer.describe_state(optimizer.OptimizerConfig()), **(x or {})}
    for x in (then, now)
  )
  for name in now:
    if then.get(name) != now[name]:
      raise ValueError(
        f'optimizer.Config.{name} = {now[name]!r}, but this MODEL_DIR was '
        f'trained with {then.get(name)!r}: use that, or another MODEL_DIR'
      )


def _check_same_skips(start: int, then, now) -> None:
  """Raises ValueError where the steps up to `start` were other ones.

  What lies ahead may be skipped or not; what was trained on, or was not,
  cannot be changed any more.
  """
  done = lambda ranges: {
    n for first, last in ranges for n in range(first, min(last, start) + 1)
  }
  other = done(then) ^ done(now)
  if not other:
    return
  first = min(other)
  was = 'was skipped' if first in done(then) else 'was trained on'
  past = [(a, min(b, start)) for a, b in then if a <= start]
  ahead = [(max(a, start + 1), b) for a, b in now if b > start]
  raise ValueError(
    f'SKIP_STEPS = {tuple(map(tuple, now))}, but step {first} {was}, and the '
    f'newest checkpoint is of step {start}: take the checkpoints of step '
    f'{first} and later out of MODEL_DIR/checkpoints, or use SKIP_STEPS = '
    f'{(*past, *ahead)}'
  )
