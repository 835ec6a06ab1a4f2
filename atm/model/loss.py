"""Cross-entropy; knows no mesh and no model.

Letters as in model.py: B batch, T decoder length, D d_model, V vocabulary.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from atm.model import matmul


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
  log_z, picked, correct = _token_statistics(
    logits.astype(jnp.float32), targets
  )
  return _sums(log_z, picked, correct, weights, z_loss)


def _token_statistics(logits, targets):
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


def cross_entropy_from_states(
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

  The logits of `chunk` positions of every row are made at a time, and once:
  where there will be a gradient its products are made beside the loss. That
  needs all rows to count alike in whatever is differentiated, as they do in
  `loss.sum() + z_loss.sum()`: where they do not, gradients are NaN.

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
    logits = constrain(compute_logits(states, head, bias))
    return cross_entropy(logits, targets, weights, z_loss)
  fill = -T % chunk
  widen = lambda x: jnp.pad(x, ((0, 0), (0, fill)) + ((0, 0),) * (x.ndim - 2))
  rows = map(widen, (states, targets, weights))
  return _chunked_loss(chunk, constrain, z_loss, head, bias, *rows)


def token_log_probabilities(
  states: jax.Array,
  targets: jax.Array,
  head: jax.Array,
  bias: jax.Array | None,
  chunk: int = 64,
  constrain=lambda logits: logits,
) -> tuple[jax.Array, jax.Array]:
  """Each target's log-probability, and whether none is likelier.

  Args:
    See `cross_entropy_from_states`; there is no gradient.

  Returns:
    float32 [B, T], in nats; bool [B, T].
  """
  T = states.shape[1]
  chunk = min(chunk, T)
  fill = ((0, 0), (0, -T % chunk))
  states, targets = jnp.pad(states, (*fill, (0, 0))), jnp.pad(targets, fill)

  def one(part):
    states, targets = part
    return _token_statistics(
      constrain(compute_logits(states, head, bias)), targets
    )

  found = jax.lax.map(one, _split_chunks(chunk, (states, targets)))
  log_z, picked, correct = (_join_chunks(x)[:, :T] for x in found)
  return picked - log_z, correct


def compute_logits(states, head, bias) -> jax.Array:
  """float32 [B, T, V] of states [B, T, D] and head [V, D].

  On two-dimensional operands, see `layers.Dense`.
  """
  flat = matmul.dot_float32(states.reshape(-1, states.shape[-1]), head, (1, 1))
  if bias is not None:
    flat += jax.lax.stop_gradient(bias).astype(jnp.float32)
  return flat.reshape(*states.shape[:-1], -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _chunked_loss(
  chunk, constrain, z_loss, head, bias, states, targets, weights
):
  """`cross_entropy`, [B] each, T a multiple of `chunk`."""

  def one(part):
    states, targets, _ = part
    return _token_statistics(
      constrain(compute_logits(states, head, bias)), targets
    )

  parts = _split_chunks(chunk, (states, targets, weights))
  found = map(_join_chunks, jax.lax.map(one, parts))
  return _sums(*found, weights, z_loss)


def _chunked_forward(chunk, constrain, z_loss, head, bias, *rows):
  def one(head_slope, part):
    states, targets, weights = part
    logits = constrain(compute_logits(states, head, bias))
    log_z, picked, correct = _token_statistics(logits, targets)
    # d/d logits of weight (log Z - picked + z_loss log Z^2)
    of_log_z = weights * (1 + 2 * z_loss * log_z)
    slope = jnp.exp(logits - log_z[..., None]) * of_log_z[..., None]
    chosen = jnp.arange(head.shape[0]) == targets[..., None]
    slope -= jnp.where(chosen, weights[..., None], 0)
    slope = constrain(slope).astype(states.dtype)
    slope, flat = (x.reshape(-1, x.shape[-1]) for x in (slope, states))
    states_slope = matmul.dot_float32(slope, head, (1, 0)).reshape(states.shape)
    pair = (flat, slope) if turned else (slope, flat)
    head_slope += matmul.weight_gradient(*pair)
    return head_slope, (log_z, picked, correct, states_slope)

  # [D, V] on one CPU device: [V, D] would be transposed in every turn.
  turned = matmul.on_cpu()
  shape = head.shape[::-1] if turned else head.shape
  none = jnp.zeros(shape, jnp.float32)
  head_slope, found = jax.lax.scan(one, none, _split_chunks(chunk, rows))
  head_slope = head_slope.T if turned else head_slope
  *found, states_slope = map(_join_chunks, found)
  log_z, picked, _ = found
  each = log_z - picked + z_loss * jnp.square(log_z)
  sums = _sums(*found, rows[2], z_loss)
  return sums, (head, bias, rows[0], head_slope, states_slope, each)


def _chunked_backward(chunk, constrain, z_loss, kept, slopes):
  head, bias, states, head_slope, states_slope, each = kept
  by_row = slopes['loss']
  factor = by_row[0]
  alike = by_row == factor
  if z_loss:
    alike &= slopes['z_loss'] == factor
  factor = jnp.where(alike.all(), factor, jnp.nan)
  return (
    (head_slope * factor).astype(head.dtype),
    None if bias is None else jnp.zeros_like(bias),
    (states_slope * factor).astype(states.dtype),
    None,
    each * factor,
  )


_chunked_loss.defvjp(_chunked_forward, _chunked_backward)


def _split_chunks(n: int, rows):
  """[B, T, ...] -> [T / n, B, n, ...] for each of `rows`."""
  cut = lambda x: x.reshape(x.shape[0], -1, n, *x.shape[2:]).swapaxes(0, 1)
  return tuple(map(cut, rows))


def _join_chunks(x):
  """[T / n, B, n, ...] -> [B, T, ...]."""
  x = x.swapaxes(0, 1)
  return x.reshape(x.shape[0], -1, *x.shape[3:])
