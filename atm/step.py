"""The state of training and the pure functions over it."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from atm import objectives, optimizer
from atm.sharding import NamedSharding, Rules, check_divides


@flax.struct.dataclass
class State:
  """Everything an update changes.

  Attributes:
    step: int32 scalar, updates done.
    params: the model's, float32.
    opt_state: optax's.
  """

  step: jax.Array
  params: Any
  opt_state: Any


def _init(model, tx, seed: int) -> State:
  ids = jnp.ones((1, 1), jnp.int32)
  variables = model.init(jax.random.key(seed), ids, ids, enable_dropout=False)
  params = variables['params']
  return State(jnp.zeros((), jnp.int32), params, tx.init(params))


def abstract_state(model, tx, mesh, rules: Rules) -> State:
  """The state's shapes, dtypes and shardings, without making it.

  Args:
    model: an AlexaTM.
    tx: an optax transformation.
    mesh: the mesh.
    rules: from the parameters' logical axes to the mesh's.

  Returns:
    A State of jax.ShapeDtypeStruct with shardings.
  """
  boxed = jax.eval_shape(lambda: _init(model, tx, 0))
  return _placed(boxed, mesh, rules)


def abstract_params(model, mesh, rules: Rules) -> dict:
  """`abstract_state(...).params`, without an optimizer.

  Raises:
    ValueError: a size does not divide by the mesh.
  """
  check_mesh(mesh, rules, model.config)
  boxed = jax.eval_shape(lambda: _init(model, optax.identity(), 0))
  return _placed(boxed, mesh, rules).params


def check_mesh(mesh, rules: Rules, config) -> None:
  """Raises ValueError where a model.Config's size does not divide."""
  check_divides(
    mesh,
    rules,
    {
      'embed': ('Config.d_model', config.d_model),
      'vocab': ('Config.vocab_size', config.vocab_size),
    },
  )
  for stack in ('encoder', 'decoder'):
    heads, mlp = f'{stack}_heads', f'{stack}_ff'
    check_divides(
      mesh,
      rules,
      {
        'heads': (f'Config.{heads}', getattr(config, heads)),
        'mlp': (f'Config.{mlp}', getattr(config, mlp)),
      },
    )


def _placed(boxed: State, mesh, rules: Rules) -> State:
  """Boxes of logical axes to shapes with shardings."""

  def leaf(x):
    logical = x.get_partition_spec() if isinstance(x, nn.Partitioned) else ()
    x = nn.unbox(x)
    sharding = NamedSharding(mesh, rules.spec(*logical))
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

  return jax.tree.map(
    leaf, boxed, is_leaf=lambda x: isinstance(x, nn.Partitioned)
  )


def init_state(model, tx, seed: int, abstract: State) -> State:
  """A fresh state, born sharded; the same for every mesh."""
  shardings = jax.tree.map(lambda x: x.sharding, abstract)
  make = lambda: nn.unbox(_init(model, tx, seed))
  return jax.jit(make, out_shardings=shardings)()


def forward(model, params, batch, dropout_key=None, z_loss=0.0) -> dict:
  """Per-row sums of `loss.cross_entropy` for a batch."""
  return model.apply(
    {'params': params},
    batch,
    dropout_key is not None,
    z_loss,
    rngs=None if dropout_key is None else {'dropout': dropout_key},
    method=model.loss,
  )


def train_step(
  model,
  tx,
  state: State,
  batch: dict,
  seed: int = 0,
  z_loss: float = 0.0,
  frozen: bool = False,
) -> tuple[State, dict]:
  """One update by the mean loss over the batch's targets.

  A frozen step runs the encoder forward only, dropout included: it
  differentiates by the other parameters alone, so that the encoder has no
  backward pass, and leaves the encoder's parameters (`optimizer.ENCODER`) and
  their optimizer state bit for bit. A matrix tied to the encoder's embedding
  is frozen with it: with `ties` 'embeddings' the decoder's embedding, with
  'encoder_head' the LM head, with 'all' both.

  Args:
    model: an AlexaTM (static).
    tx: an optax transformation (static).
    state: the state.
    batch: arrays of `data.Batches`.
    seed: dropout's key is this seed's, folded with the step.
    z_loss: see `loss.cross_entropy`.
    frozen: keep the encoder as it is (static); `tx` must be one of
      `optimizer.make(..., encoder_apart=True)`.

  Returns:
    (the next state, metrics). Metrics are float32 scalars: sums named
    `sum/...` with their weights `weight/...`, to be divided by whoever logs
    them, and `grad_norm` (before clipping, of the gradients there are),
    `param_norm`, `learning_rate`.

  Raises:
    ValueError: `frozen`, and the optimizer does not keep the encoder apart.
  """
  if frozen and not optimizer.is_apart(state.opt_state):
    raise ValueError(
      'frozen = True: expected an optimizer that keeps the encoder apart, '
      'optimizer.make(config, encoder_apart=True)'
    )
  kept, trained = {}, state.params
  if frozen:
    kept, trained = optimizer.split(state.params)
  key = jax.random.fold_in(jax.random.key(seed), state.step)

  def mean_loss(trained):
    sums = forward(model, {**kept, **trained}, batch, key, z_loss)
    total = (sums['loss'] + sums['z_loss']).sum()
    return total / jnp.maximum(sums['weight'].sum(), 1.0), sums

  grads, sums = jax.grad(mean_loss, has_aux=True)(trained)
  updates, opt_state = tx.update(grads, state.opt_state, state.params)
  params = {**kept, **optax.apply_updates(trained, updates)}
  metrics = {
    **summed(sums, batch),
    'grad_norm': optax.global_norm(grads),
    'param_norm': optax.global_norm(params),
    'learning_rate': optimizer.applied_rate(opt_state),
  }
  return State(state.step + 1, params, opt_state), metrics


def summed(sums: dict, batch: dict) -> dict:
  """Per-row sums to `sum/...` and `weight/...` scalars, by objective too."""
  out = {
    'sum/loss': sums['loss'].sum(),
    'sum/accuracy': sums['correct'].sum(),
    'sum/z_loss': sums['z_loss'].sum(),
    'tokens/target': sums['weight'].sum(),
    'tokens/input': (batch['encoder_segment_ids'] > 0).sum(dtype=jnp.float32),
  }
  for number, name in enumerate(objectives.NAMES):
    mine = batch['objective'] == number
    out[f'sum/loss/{name}'] = jnp.where(mine, sums['loss'], 0).sum()
    out[f'weight/loss/{name}'] = jnp.where(mine, sums['weight'], 0).sum()
  return out


def eval_step(model, params, batch: dict) -> dict:
  """Per-row sums [B] of `loss.cross_entropy`, without dropout."""
  return forward(model, params, batch)
