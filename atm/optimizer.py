"""The optax chain and the paper's schedule."""

from __future__ import annotations

import dataclasses

import jax
import optax


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


def make(config: Config) -> optax.GradientTransformation:
  """Clip, Adam, decay, learning rate; the state holds the rate applied."""
  clip = (
    optax.identity()
    if config.clip_norm is None
    else optax.clip_by_global_norm(config.clip_norm)
  )
  rate = optax.inject_hyperparams(optax.scale_by_learning_rate)
  return optax.chain(
    clip,
    optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps),
    optax.add_decayed_weights(config.weight_decay, mask=decayed),
    rate(learning_rate=schedule(config)),
  )


def applied_rate(state) -> jax.Array:
  """The learning rate that the update which made this state applied."""
  return optax.tree_utils.tree_get(state, 'hyperparams')['learning_rate']
