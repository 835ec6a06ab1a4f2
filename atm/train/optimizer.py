"""The optax chains and the paper's schedule."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from atm.messages import MOST_INT32, check_choice, check_fields, check_number
from atm.train import freezing

OPTIMIZER_CHOICES = {
  'name': ('adamw', 'adafactor'),
  'moments_dtype': ('float32', 'bfloat16'),
  'schedule': ('linear', 'cosine'),
}
GIN_NAME = 'optimizer.Config'  # what a user calls the class below
_NUMBERS = {
  'learning_rate': dict(least=0),
  'final_learning_rate': dict(least=0),
  'weight_decay': dict(least=0),
  'eps': dict(least=0),
  'b1': dict(least=0, below=1),
  'b2': dict(least=0, below=1),
  'decay_steps': dict(least=1),
  'warmup_steps': dict(least=0),
  'clip_norm': dict(above=0, optional=True),
}

# The model's parameters that are the encoder's. Where an embedding is tied the
# shared matrix is stored under the encoder's name, and is the encoder's.
ENCODER_PARAMETERS = (
  'encoder', 'encoder_embedding', 'encoder_positions', 'encoder_types',
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """AdamW or Adafactor; by default with the paper's linear schedule (2.3).

  The paper's is Adam; it gives learning rates, steps and weight decay. It is
  silent on the betas, epsilon and clipping, and mentions no warm-up.

  What is stored for a parameter of n numbers, with sides R and C:

    adamw, float32     8 n bytes: both moments in float32
    adamw, bfloat16    4 n bytes: the first rounded to the nearest, the second
                       stochastically, see `store_in_bfloat16`
    adafactor          4 (R + C) bytes a matrix, 4 n a vector: no first moment,
                       the second as means of rows and of columns (Shazeer and
                       Stern, 2018)

  Adafactor here differs from the paper of that name in what the other settings
  mean: the step is the learning rate's, not relative to the parameter's size,
  and weight decay is times the learning rate, so that schedule, clipping and
  decay are those of AdamW.

  Attributes:
    name: 'adamw' or 'adafactor'.
    moments_dtype: 'float32' or, of AdamW only, 'bfloat16'; computed in float32.
    learning_rate: at the end of the warm-up.
    final_learning_rate: reached at `decay_steps`, and kept.
    decay_steps: the update where the fall ends, which begins with the warm-up's
      end.
    warmup_steps: length of the linear rise from 0.
    schedule: how it falls: 'linear', or 'cosine' (Loshchilov and Hutter, 2017,
      without restarts).
    weight_decay: times the learning rate; not on biases and norms.
    b1, b2, eps: Adam's.
    clip_norm: greatest global norm of a gradient; None does not clip.
    factor_from: Adafactor factors the two greatest sides of a parameter where
      both are at least this.

  Raises:
    ValueError: a value out of its range.
  """

  learning_rate: float = 1e-4
  final_learning_rate: float = 5e-6
  decay_steps: int = 500_000
  warmup_steps: int = 0
  weight_decay: float = 0.1
  b1: float = 0.9
  b2: float = 0.999
  eps: float = 1e-8
  clip_norm: float | None = 1.0
  name: str = 'adamw'
  moments_dtype: str = 'float32'
  factor_from: int = 128
  schedule: str = 'linear'

  checks: ClassVar[dict[str, Callable]] = {
    **{
      name: partial(check_choice, f'{GIN_NAME}.{name}', known=known)
      for name, known in OPTIMIZER_CHOICES.items()
    },
    **{
      name: partial(check_number, f'{GIN_NAME}.{name}', whole=False, **bounds)
      for name, bounds in _NUMBERS.items()
    },
    'factor_from': partial(
      check_number, f'{GIN_NAME}.factor_from', least=2, most=MOST_INT32
    ),
  }

  def __post_init__(self):
    check_fields(self)
    if self.name == 'adafactor' and self.moments_dtype != 'float32':
      raise ValueError(
        f'{GIN_NAME}.moments_dtype = {self.moments_dtype!r}: Adafactor '
        "has no first moment, and of the second only vectors: use 'float32', "
        f"or {GIN_NAME}.name = 'adamw'"
      )
    if self.warmup_steps >= self.decay_steps:
      raise ValueError(
        f'{GIN_NAME}.warmup_steps = {self.warmup_steps}: expected fewer than '
        f'decay_steps = {self.decay_steps} (DECAY_STEPS; of a fine-tuning '
        'TRAIN_STEPS)'
      )


def make_schedule(config: OptimizerConfig) -> optax.Schedule:
  """Makes the function from the number of an update, from 0, to its rate."""
  rates = config.learning_rate, config.final_learning_rate
  steps = config.decay_steps - config.warmup_steps
  if config.schedule == 'cosine':
    fall = partial(_cosine_rate, *rates, steps)
  else:
    fall = optax.linear_schedule(*rates, steps)
  if not config.warmup_steps:
    return fall
  rise = optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps)
  return optax.join_schedules([rise, fall], [config.warmup_steps])


def _cosine_rate(first: float, last: float, steps: int, count) -> jax.Array:
  """Returns the rate after `count` of the steps of half a cosine wave."""
  # optax's divides by the first, which may be 0.
  part = jnp.minimum(count, steps) / steps
  return last + (first - last) * (1 + jnp.cos(jnp.pi * part)) / 2


def weight_decay_mask(params):
  """Returns a tree of bools: where weight decay applies (paper section 2.3)."""

  def matrix(path, _):
    names = {getattr(key, 'key', None) for key in path}
    return not names & {'bias', 'scale', 'logits_bias'}

  return jax.tree_util.tree_map_with_path(matrix, params)


class EncoderSplit(NamedTuple):
  """A tree's part of the encoder, and the rest of it."""

  encoder: Any
  rest: Any


def split_encoder(tree: dict) -> EncoderSplit:
  """Splits parameters, or gradients, into the encoder's and the others."""
  return EncoderSplit(
    {name: x for name, x in tree.items() if name in ENCODER_PARAMETERS},
    {name: x for name, x in tree.items() if name not in ENCODER_PARAMETERS},
  )


def split_by_encoder(
  each: optax.GradientTransformation,
) -> optax.GradientTransformation:
  """Gives the encoder and the rest a state of `each` of their own.

  Gradients may come without the encoder's: its state then stays as it is.
  """
  # So the encoder counts only the updates that it had. With one count for all,
  # Adam would take the zero moments of an encoder that starts late for settled
  # ones, and make its first updates 3 to 6 times as long as the learning rate.

  def init(params):
    return EncoderSplit(*map(each.init, split_encoder(params)))

  def update(updates, state, params=None):
    done, states = {}, []
    params = EncoderSplit({}, {}) if params is None else split_encoder(params)
    for mine, old, now in zip(
      split_encoder(updates), state, params, strict=True
    ):
      if mine:
        mine, old = each.update(mine, old, now or None)
      done |= mine
      states.append(old)
    return done, EncoderSplit(*states)

  return optax.GradientTransformation(init, update)


def store_in_bfloat16(
  adam: optax.GradientTransformation,
) -> optax.GradientTransformation:
  """Stores the moments of Adam in bfloat16; computes them in float32."""

  # The first moment is rounded to the nearest. The second moves by 1 - b2 =
  # 0.001 of itself a step, less than half of bfloat16's spacing (1/256 to
  # 1/128): rounded to the nearest it would stand still. So it is rounded up or
  # down at random, in proportion, and is right in the mean; the key is the
  # number of the update, so that a resumed run, or one on another mesh, draws
  # the same.
  def stored(state):
    key = jax.random.fold_in(jax.random.key(0), state.count)
    leaves, tree = jax.tree.flatten(state.nu)
    nu = [
      round_randomly(x, jax.random.fold_in(key, i))
      for i, x in enumerate(leaves)
    ]
    mu = optax.tree.cast(state.mu, jnp.bfloat16)
    return state._replace(mu=mu, nu=tree.unflatten(nu))

  def init(params):
    return stored(adam.init(params))

  def update(updates, state, params=None):
    whole = state._replace(
      mu=optax.tree.cast(state.mu, jnp.float32),
      nu=optax.tree.cast(state.nu, jnp.float32),
    )
    updates, state = adam.update(updates, whole, params)
    return updates, stored(state)

  return optax.GradientTransformation(init, update)


def round_randomly(x: jax.Array, key: jax.Array) -> jax.Array:
  """Rounds float32 to a neighbour in bfloat16; the mean over keys is x."""
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
  draw = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
  bits = (bits + draw) & jnp.uint32(0xFFFF0000)
  return jax.lax.bitcast_convert_type(bits, jnp.float32).astype(jnp.bfloat16)


def clip_blocks(threshold: float) -> optax.GradientTransformation:
  """Clips the RMS of each parameter's update, layer by layer (Adafactor)."""
  # optax's takes an array for a block; arrays below 'layers' hold one of every
  # layer of a stack.
  clip = optax.clip_by_block_rms(threshold)

  def block(path, x):
    each = lambda x: clip.update(x, optax.EmptyState())[0]
    stacked = any(getattr(key, 'key', None) == 'layers' for key in path)
    return jax.vmap(each)(x) if stacked else each(x)

  def update(updates, state, params=None):
    return jax.tree_util.tree_map_with_path(block, updates), state

  return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def factored_axes(path: tuple, shape: tuple, left: tuple) -> tuple[int, ...]:
  """Returns the axes of a parameter that an array of Adafactor's state has.

  The parameter has `shape`, the array at `path` of the state the shape `left`.
  """
  # optax means away the greatest axis for `v_row`, the second greatest for
  # `v_col`, and keeps arrays of one number where there is nothing to keep.
  if len(shape) < 2:
    return ()
  column = any(getattr(key, 'name', None) == 'v_col' for key in path)
  gone = np.argsort(shape)[-2 if column else -1]  # as optax finds it
  kept = tuple(axis for axis in range(len(shape)) if axis != gone)
  return kept if left == tuple(shape[axis] for axis in kept) else ()


def make_optimizer(
  config: OptimizerConfig, encoder_apart: bool = False,
  freeze: tuple[str, ...] = (),
) -> optax.GradientTransformation:  # fmt: skip
  """Chains clipping, Adam or Adafactor, decay and the learning rate.

  Args:
    config: the optimizer.
    encoder_apart: split the moments, see `split_by_encoder`; a frozen step
      needs it. The gradients there are are clipped together, and the schedule
      is the same for all. As long as no step was frozen this changes no update.
    freeze: patterns of parameters without a state, see `freezing`.
  """
  clip = optax.identity()
  if config.clip_norm is not None:
    clip = optax.clip_by_global_norm(config.clip_norm)
  rate = optax.inject_hyperparams(optax.scale_by_learning_rate)
  # What turns gradients into steps of about 1, then decay.
  if config.name == 'adafactor':
    rms = optax.scale_by_factored_rms(min_dim_size_to_factor=config.factor_from)
    steps = [rms, clip_blocks(1.0)]
  else:
    adam = optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps)
    low = config.moments_dtype == 'bfloat16'
    steps = [store_in_bfloat16(adam) if low else adam]
  steps.append(
    optax.add_decayed_weights(config.weight_decay, mask=weight_decay_mask)
  )
  if encoder_apart:
    steps = [split_by_encoder(optax.chain(*steps))]
  tx = optax.chain(clip, *steps, rate(learning_rate=make_schedule(config)))
  return freezing.leave_out_frozen(tx, freeze) if freeze else tx


def describe_state(config: OptimizerConfig) -> dict:
  """Returns what decides the state's shapes and dtypes, for checkpoints."""
  names = ['name', 'moments_dtype']
  if config.name == 'adafactor':
    names.append('factor_from')
  return {name: getattr(config, name) for name in names}


def is_split(state) -> bool:
  """Tells whether a state keeps the encoder apart, see `make_optimizer`."""
  return any(isinstance(part, EncoderSplit) for part in state)


def get_learning_rate(state) -> jax.Array:
  """Returns the rate of the update that made this state."""
  return optax.tree_utils.tree_get(state, 'hyperparams')['learning_rate']
