"""The optax chain and the paper's schedule."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import optax

# The model's parameters that are the encoder's. Where an embedding is tied the
# shared matrix is stored under the encoder's name, and is the encoder's.
ENCODER = (
  'encoder',
  'encoder_embedding',
  'encoder_positions',
  'encoder_types',
)


@dataclasses.dataclass(frozen=True)
class Config:
  """AdamW with the paper's linear schedule (section 2.3).

  The paper gives learning rates, steps and weight decay. It is silent on the
  betas, epsilon and clipping, and mentions no warm-up.

  Attributes:
    learning_rate: at the end of the warm-up.
    final_learning_rate: reached at `decay_steps`, and kept.
    decay_steps: length of the linear fall, the warm-up included.
    warmup_steps: linear rise from 0.
    weight_decay: times the learning rate; not on biases and norms.
    b1, b2, eps: Adam's.
    clip_norm: greatest global norm of a gradient; None does not clip.

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

  def __post_init__(self):
    for name in ('learning_rate', 'final_learning_rate', 'weight_decay', 'eps'):
      if getattr(self, name) < 0:
        raise ValueError(
          f'optimizer.Config.{name} = {getattr(self, name)}: expected >= 0'
        )
    for name in ('b1', 'b2'):
      if not 0 <= getattr(self, name) < 1:
        raise ValueError(
          f'optimizer.Config.{name} = {getattr(self, name)}: expected [0, 1)'
        )
    if self.clip_norm is not None and self.clip_norm <= 0:
      raise ValueError(
        f'optimizer.Config.clip_norm = {self.clip_norm}: expected > 0 or None'
      )
    if not 0 <= self.warmup_steps < self.decay_steps:
      raise ValueError(
        f'optimizer.Config.warmup_steps = {self.warmup_steps}: expected '
        f'0 <= warmup_steps < decay_steps = {self.decay_steps}'
      )


def schedule(config: Config) -> optax.Schedule:
  """Update number (from 0) to learning rate."""
  fall = optax.linear_schedule(
    config.learning_rate,
    config.final_learning_rate,
    config.decay_steps - config.warmup_steps,
  )
  if not config.warmup_steps:
    return fall
  rise = optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps)
  return optax.join_schedules([rise, fall], [config.warmup_steps])


def decayed(params):
  """Tree of bools: True where weight decay applies (paper section 2.3)."""

  def matrix(path, _):
    names = {getattr(key, 'key', None) for key in path}
    return not names & {'bias', 'scale', 'logits_bias'}

  return jax.tree_util.tree_map_with_path(matrix, params)


class Parts(NamedTuple):
  """Something of the encoder, and the same of everything else."""

  encoder: Any
  rest: Any


def split(tree: dict) -> Parts:
  """Parameters (or gradients) to those under ENCODER and the others."""
  return Parts(
    {name: x for name, x in tree.items() if name in ENCODER},
    {name: x for name, x in tree.items() if name not in ENCODER},
  )


def apart(each: optax.GradientTransformation) -> optax.GradientTransformation:
  """`each` for the encoder and for the rest, with a state of its own for each.

  Gradients may come without the encoder's: its state then stays as it is, and
  so the encoder counts only the updates that it had. With one count for all,
  Adam would take the zero moments of an encoder that starts late for settled
  ones, and make its first updates 3 to 6 times as long as the learning rate.
  """

  def init(params):
    return Parts(*map(each.init, split(params)))

  def update(updates, state, params=None):
    done, states = {}, []
    params = Parts({}, {}) if params is None else split(params)
    for mine, old, now in zip(split(updates), state, params, strict=True):
      if mine:
        mine, old = each.update(mine, old, now or None)
      done |= mine
      states.append(old)
    return done, Parts(*states)

  return optax.GradientTransformation(init, update)


def make(
  config: Config, encoder_apart: bool = False
) -> optax.GradientTransformation:
  """Clip, Adam, decay, learning rate; the state holds the rate applied.

  Args:
    config: the optimizer.
    encoder_apart: Adam's state is `Parts`, see `apart`; a frozen step needs
      it. The gradients there are are clipped together, and the schedule is the
      same for all. As long as no step was frozen this changes no update.
  """
  clip = (
    optax.identity()
    if config.clip_norm is None
    else optax.clip_by_global_norm(config.clip_norm)
  )
  rate = optax.inject_hyperparams(optax.scale_by_learning_rate)
  adam = (
    optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps),
    optax.add_decayed_weights(config.weight_decay, mask=decayed),
  )
  if encoder_apart:
    adam = (apart(optax.chain(*adam)),)
  return optax.chain(clip, *adam, rate(learning_rate=schedule(config)))


def is_apart(state) -> bool:
  """Whether a state is one of `make(..., encoder_apart=True)`."""
  return any(isinstance(part, Parts) for part in state)


def applied_rate(state) -> jax.Array:
  """The learning rate that the update which made this state applied."""
  return optax.tree_utils.tree_get(state, 'hyperparams')['learning_rate']
