"""Refuses a run whose settings do not fit each other, before it starts."""

import dataclasses
import math

from atm.data.task_registry import Lengths
from atm.data.vocabulary import Vocabulary
from atm.messages import check_number
from atm.model import parameters
from atm.model.attention import KERNELS
from atm.model.config import ModelConfig
from atm.parallel import sharding
from atm.train import optimizer


def check_micro_batches(mesh, rules, batch_size: int, number: int) -> None:
  """Raises ValueError unless each data shard's rows divide by `number`."""
  number = check_number('MICRO_BATCHES', number, 1)
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


def check_same_model(config: ModelConfig, source) -> None:
  """Raises ValueError unless a `PretrainedModel` has the parameters of this.

  Embeddings may have more rows, see `new_rows`.
  """
  there, here = map(dataclasses.asdict, (source.config, config))
  if here['vocab_size'] > there['vocab_size']:
    here['vocab_size'] = there['vocab_size']
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

  The checkpoint is of step `start`, 0 if there is none, and has the meta
  `then`. Raises ValueError if it was not split off, and is to be frozen now.
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
  mesh, rules, config: ModelConfig, lengths, batch_size, micro_batches=1
):
  """Raises ValueError for sizes that the mesh or the model cannot hold."""
  for side in ('inputs', 'targets'):
    name, n = f'TASK_FEATURE_LENGTHS[{side!r}]', getattr(lengths, side)
    if n > config.positions:
      raise ValueError(
        f'{name} = {n} is more than model.Config.positions = '
        f'{config.positions}: leave out TASK_FEATURE_LENGTHS for rows as long '
        'as the model reads'
      )
    sharding.check_divides(mesh, rules, {'length': (name, n)})
  if not config.has_encoder and sum(lengths.both) > config.positions:
    raise ValueError(
      f'TASK_FEATURE_LENGTHS = {lengths.as_setting()}: inputs and targets have '
      f'{sum(lengths.both)} tokens together, more than model.Config.positions '
      f'= {config.positions}, which bounds both where Config.architecture = '
      f'{config.architecture!r}: leave out TASK_FEATURE_LENGTHS for rows of '
      'half as many each, or raise model.Config.positions'
    )
  sharding.check_divides(mesh, rules, {'batch': ('BATCH_SIZE', batch_size)})
  parameters.check_mesh(mesh, rules, config)
  check_micro_batches(mesh, rules, batch_size, micro_batches)


def check_cached_lengths(config, cached: Lengths | None) -> None:
  """Raises ValueError unless a `TrainConfig` has the lengths of its cache."""
  sizes, positions = config.sizes, config.model_config.positions
  if cached in (None, sizes):
    return
  name = lambda lengths: f'TASK_FEATURE_LENGTHS = {lengths.as_setting()}'
  remedy = f'build it in another folder with {name(sizes)}'
  if max(cached.both) <= positions:
    remedy = f'set {name(cached)}, or {remedy}'
  raise ValueError(
    f'CACHE_DIR = {config.cache_dir!r} was built with {name(cached)}, but this '
    f'run has {name(sizes)} and model.Config.positions = {positions}: {remedy} '
    "(`atm cache` takes a model's --gin_file, too)"
  )


def check_platform(mesh, config: ModelConfig) -> None:
  """Raises ValueError for what a model asks of devices that are not here."""
  needed, offloads = KERNELS.get(config.attention), 'offload' in config.remat
  if not needed and not offloads:
    return
  here = mesh.devices.flat[0].platform
  if needed and here != needed:
    raise ValueError(
      f'model.Config.attention = {config.attention!r} is a kernel of '
      f'{needed.upper()}s, and the devices are {here}: set '
      "model.Config.attention = 'auto'"
    )
  if offloads and here == 'cpu':
    raise ValueError(
      f"model.Config.remat = {config.remat!r} moves results to the host's "
      "memory, where those of a CPU are already: set 'save_widened', which "
      'keeps as much'
    )


def check_vocabulary(words: Vocabulary, config: ModelConfig) -> None:
  """Raises ValueError where the model does not fit the vocabulary."""
  if words.least_rows > config.vocab_size:
    raise ValueError(
      f'the vocabulary {words.path} has {words.least_rows} pieces, more than '
      f'Config.vocab_size = {config.vocab_size}'
    )
  pieces = dict(pad_id=words.pad_id, end_id=words.eos_id)
  # Public models start from `</s>`, padding or a language: their config says.
  if words.input_format.name == 'alexatm':
    pieces['start_id'] = words.bos_id
  for name, piece in pieces.items():
    if getattr(config, name) != piece:
      raise ValueError(
        f'Config.{name} = {getattr(config, name)}, but it is {piece} in the '
        f'vocabulary {words.path}'
      )


# Facts that no setting is, and what is said where they differ.
DIGESTS = {
  'PAIRS_RATES': 'the directions or sets of pairs have other shares than this '
  'MODEL_DIR was trained with so far: use the same PAIRS_TEMPERATURE and '
  'PAIRS_WEIGHTS, or another MODEL_DIR',
  'ROWS': 'the rows of tokens are not those that this MODEL_DIR was trained on '
  'so far: use the same CACHE_DIR, ROW_PASSES, PAIRS_TEMPERATURE and STREAM, '
  'or another MODEL_DIR',
  'VOCABULARY': 'the checkpoint was trained with another vocabulary than this '
  'run has: use the one in MODEL_DIR/vocabulary, or another MODEL_DIR',
}


# Settings of `LoraConfig` that a run may not change; dropout it may.
LORA = 'rank', 'alpha', 'targets', 'rslora'


def check_resumable(then: dict, now: dict) -> None:
  """Raises ValueError where a run would not go on as it began.

  Args:
    then: meta of its checkpoint.
    now: meta of those that it would write.
  """
  before = _settings(then)
  for name, value in _settings(now).items():
    if before.get(name, value) != value:
      raise ValueError(
        DIGESTS.get(name)
        or f'{name} = {value!r}, but this MODEL_DIR was trained with '
        f'{before[name]!r}: use that, or another MODEL_DIR'
      )
  _check_same_skips(
    then['data'].get('step', 0),
    then.get('skip_steps', ()),
    now.get('skip_steps', ()),
  )


def _settings(meta: dict) -> dict:
  """Returns what a run may not change, under the names that users write."""
  # Checkpoints that say nothing of the optimizer had the default one.
  state = optimizer.describe_state(optimizer.OptimizerConfig())
  state |= meta.get('optimizer') or {}
  names = {'mixture': 'MIXTURE_OR_TASK_NAME'}
  lora = meta.get('lora') or {}
  return {
    **{names.get(key, key.upper()): x for key, x in meta['data'].items()},
    **{f'{optimizer.GIN_NAME}.{key}': x for key, x in state.items()},
    'VOCABULARY': meta['vocabulary'],
    'FREEZE': tuple(meta.get('freeze', ())),
    # None of a run that trains all parameters.
    **{f'LORA_{key.upper()}': lora.get(key) for key in LORA},
  }


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
