"""Refuses a run whose settings do not fit each other, before it starts."""

from __future__ import annotations

import math

from atm import model, sharding, step
from atm.vocabulary import Vocabulary


def check_numbers(**values) -> None:
  """Raises ValueError unless all are whole numbers above 0."""
  for name, value in values.items():
    if not isinstance(value, int) or value < 1:
      raise ValueError(f'{name} = {value!r}: expected a whole number above 0')


def check_freeze(steps) -> None:
  """Raises ValueError unless `steps` is a whole number, 0 or more."""
  number = isinstance(steps, int | float) and not isinstance(steps, bool)
  if not number or not isinstance(steps, int) or steps < 0:
    text = f'FREEZE_ENCODER_STEPS = {steps!r}: expected a whole number from 0'
    if number and math.isfinite(steps):
      text += f'. Did you mean {max(0, round(steps))}?'
    raise ValueError(text)


def encoder_apart(start: int, then: dict, freeze: int) -> bool:
  """Whether the optimizer keeps the encoder's state apart; as the run began.

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


def check_sizes(mesh, rules, config: model.Config, lengths, batch_size: int):
  """Raises ValueError for sizes that the mesh or the model cannot hold."""
  for name, n in (('inputs', lengths.inputs), ('targets', lengths.targets)):
    if n > config.positions:
      raise ValueError(
        f'TASK_FEATURE_LENGTHS[{name!r}] = {n} is more than '
        f'Config.positions = {config.positions}'
      )
  for name, n in (('inputs', lengths.inputs), ('targets', lengths.targets)):
    bound = (f'TASK_FEATURE_LENGTHS[{name!r}]', n)
    sharding.check_divides(mesh, rules, {'length': bound})
  batch = {'batch': ('BATCH_SIZE', batch_size)}
  sharding.check_divides(mesh, rules, batch)
  step.check_mesh(mesh, rules, config)


def check_vocabulary(words: Vocabulary, config: model.Config) -> None:
  """Raises ValueError where the model does not fit the vocabulary."""
  if words.size > config.vocab_size:
    raise ValueError(
      f'the vocabulary {words.path} has {words.size} pieces, more than '
      f'Config.vocab_size = {config.vocab_size}'
    )
  for name, piece in (
    ('pad_id', words.pad_id),
    ('start_id', words.bos_id),
    ('end_id', words.eos_id),
  ):
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
  if then['vocabulary'] != now['vocabulary']:
    raise ValueError(
      'the checkpoint was trained with another vocabulary than this run has: '
      'use the one in MODEL_DIR/vocabulary, or another MODEL_DIR'
    )
