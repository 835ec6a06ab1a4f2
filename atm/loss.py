"""Cross-entropy; knows no mesh and no model.

Letters as in model.py: B batch, T decoder length, D d_model, V vocabulary.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp


def cross_entropy(
  logits: jax.Array,
  targets: jax.Array,
  weights: jax.Array,
  z_loss: float = 0.0,
) -> dict[str, jax.Array]:
  """Sums over the targets of each row.

  Args:
    logits: [B, T, V].
    targets: [B, T] ids.
    weights: [B, T]; 0 leaves a position out.
    z_loss: coefficient of log(Z)^2, which keeps logits near normalised
      (Mesh TensorFlow; PaLM, section 5). The paper mentions none.

  Returns:
    float32 [B]: `loss` in nats, `z_loss`, `correct` (targets that had the
    greatest logit) and `weight`. Divide by `weight` for means.
  """
  log_z, picked, correct = _of_logits(logits.astype(jnp.float32), targets)
  return _sums(log_z, picked, correct, weights, z_loss)


def _of_logits(logits, targets):
  """(log Z, the target's logit, whether it is the greatest), each [B, T]."""
  log_z = jax.nn.logsumexp(logits, axis=-1)
  picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
  return log_z, picked, picked >= logits.max(axis=-1)


def _sums(log_z, picked, correct, weights, z_loss):
  total = lambda x: jnp.sum(x * weights, axis=-1)
  return {
    'loss': total(log_z - picked),
    'z_loss': z_loss * total(jnp.square(log_z)),
    'correct': total(correct),
    'weight': total(jnp.ones_like(log_z)),
  }


def from_states(
  states: jax.Array,
  targets: jax.Array,
  weights: jax.Array,
  head: jax.Array,
  bias: jax.Array | None,
  z_loss: float = 0.0,
  chunk: int = 64,
  constrain=lambda logits: logits,
) -> dict[str, jax.Array]:
  """`cross_entropy` of states times `head`; for T > chunk without [B, T, V].

  Both passes then make the logits of `chunk` positions of every row at a time;
  the backward makes them again.

  Args:
    states: [B, T, D].
    targets, weights, z_loss: see `cross_entropy`.
    head: [V, D], in the dtype of `states`.
    bias: [V] or None; has no gradient.
    chunk: positions at a time.
    constrain: pins the sharding of logits [B, chunk, V].
  """
  T = states.shape[1]
  if T <= chunk:
    logits = constrain(logits_of(states, head, bias))
    return cross_entropy(logits, targets, weights, z_loss)
  fill = -T % chunk
  widen = lambda x: jnp.pad(x, ((0, 0), (0, fill)) + ((0, 0),) * (x.ndim - 2))
  inputs = (widen(states), head, bias, widen(targets))
  log_z, picked, correct = _chunked(chunk, constrain, *inputs)
  cut = lambda x: x[:, :T]
  return _sums(cut(log_z), cut(picked), cut(correct), weights, z_loss)


def logits_of(states, head, bias) -> jax.Array:
  """float32 [B, T, V] of states [B, T, D] and head [V, D].

  On two-dimensional operands, see `layers.Dense`.
  """
  flat = jax.lax.dot_general(
    states.reshape(-1, states.shape[-1]),
    head,
    (((1,), (1,)), ((), ())),
    preferred_element_type=jnp.float32,
  )
  if bias is not None:
    flat += jax.lax.stop_gradient(bias).astype(jnp.float32)
  return flat.reshape(*states.shape[:-1], -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _chunked(chunk, constrain, states, head, bias, targets):
  """`_of_logits`, [B, T] each, T a multiple of `chunk`."""

  def one(part):
    states, targets = part
    return _of_logits(constrain(logits_of(states, head, bias)), targets)

  parts = (_chunks(chunk, states), _chunks(chunk, targets))
  return jax.tree.map(_joined, jax.lax.map(one, parts))


def _chunks(n: int, x):
  """[B, T, ...] -> [T / n, B, n, ...]."""
  x = x.reshape(x.shape[0], -1, n, *x.shape[2:])
  return x.swapaxes(0, 1)


def _joined(x):
  """[T / n, B, n, ...] -> [B, T, ...]."""
  x = x.swapaxes(0, 1)
  return x.reshape(x.shape[0], -1, *x.shape[3:])


def _chunked_forward(chunk, constrain, states, head, bias, targets):
  out = _chunked(chunk, constrain, states, head, bias, targets)
  return out, (states, head, bias, targets, out[0])


def _chunked_backward(chunk, constrain, kept, slopes):
  states, head, bias, targets, log_z = kept
  of_log_z, of_picked, _ = slopes

  def one(head_slope, part):
    states, targets, log_z, of_log_z, of_picked = part
    logits = constrain(logits_of(states, head, bias))
    chosen = jnp.arange(head.shape[0]) == targets[..., None]
    slope = jnp.exp(logits - log_z[..., None]) * of_log_z[..., None]
    slope += jnp.where(chosen, of_picked[..., None], 0)
    slope = constrain(slope).astype(states.dtype)
    flat = slope.reshape(-1, slope.shape[-1])
    states_slope = (flat @ head).reshape(states.shape)
    head_slope += jax.lax.dot_general(
      flat,
      states.reshape(-1, states.shape[-1]),
      (((0,), (0,)), ((), ())),
      preferred_element_type=jnp.float32,
    )
    return head_slope, states_slope

  parts = (states, targets, log_z, of_log_z, of_picked)
  parts = jax.tree.map(functools.partial(_chunks, chunk), parts)
  none = jnp.zeros(head.shape, jnp.float32)
  head_slope, states_slope = jax.lax.scan(one, none, parts)
  bias_slope = None if bias is None else jnp.zeros_like(bias)
  return _joined(states_slope), head_slope.astype(head.dtype), bias_slope, None


_chunked.defvjp(_chunked_forward, _chunked_backward)
