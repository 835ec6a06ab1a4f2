"""Cross-entropy; knows no mesh and no model.

Letters as in transformer.py: B batch, T decoder length, D d_model, V
vocabulary.
"""

import functools

import jax
import jax.numpy as jnp

from atm.model import matmul, quantized


def cross_entropy(
  logits, targets, weights, z_loss: float = 0.0, label_smoothing: float = 0.0
) -> dict[str, jax.Array]:
  """Sums cross-entropy over the targets of each batch row.

  Args:
    logits: [B, T, V].
    targets: [B, T] ids.
    weights: [B, T]; 0 leaves a position out.
    z_loss: coefficient of log(Z)^2, which keeps logits near normalised
      (Mesh TensorFlow; PaLM, section 5). The paper mentions none.
    label_smoothing: share of a target's probability that is spread over all V
      ids, itself included (Szegedy et al., 2016, section 7), as PyTorch and
      transformers' Trainer do; fairseq spreads it over the V - 1 others.

  Returns:
    float32 [B]: `loss` in nats, without smoothing, `z_loss`, `correct` (targets
    that had the greatest logit) and `weight`; with label smoothing `smoothing`,
    what it adds to the loss. Divide by `weight` for means.
  """
  logits = logits.astype(jnp.float32)
  statistics = _token_statistics(logits, targets, label_smoothing)
  return _sums(*statistics, weights, z_loss, label_smoothing)


def total_loss(sums: dict[str, jax.Array]) -> jax.Array:
  """Adds up what a training step minimises, of `cross_entropy`: [B]."""
  total = sums['loss'] + sums['z_loss']
  return total + sums['smoothing'] if 'smoothing' in sums else total


def _token_statistics(logits, targets, smoothing=0.0):
  """Returns log Z, the target's logit, whether it is the greatest: [B, T].

  With label smoothing also how far the target's logit is above the mean.
  """
  log_z = jax.nn.logsumexp(logits, axis=-1)
  picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
  statistics = log_z, picked, picked >= logits.max(axis=-1)
  if smoothing:
    statistics += (picked - logits.mean(axis=-1),)
  return statistics


def _sums(log_z, picked, correct, *others):
  """Sums `_token_statistics` over rows; others end in (weights, penalties)."""
  *lead, weights, z_loss, smoothing = others
  total = lambda x: jnp.sum(x * weights, axis=-1)
  sums = {
    'loss': total(log_z - picked),
    'z_loss': z_loss * total(jnp.square(log_z)),
    'correct': total(correct),
    'weight': total(jnp.ones_like(log_z)),
  }
  if smoothing:
    # (1 - s) (log Z - picked) + s (log Z - mean) = loss + s (picked - mean).
    sums['smoothing'] = smoothing * total(*lead)
  return sums


def cross_entropy_from_states(
  states: jax.Array,
  targets: jax.Array,
  weights: jax.Array,
  head: jax.Array,
  bias: jax.Array | None,
  z_loss: float = 0.0,
  label_smoothing: float = 0.0,
  chunk: int = 64,
  constrain=lambda logits: logits,
) -> dict[str, jax.Array]:
  """Computes `cross_entropy` of states times `head` without [B, T, V].

  The logits of `chunk` positions of every row are made at a time, and once:
  where there will be a gradient its products are computed beside the loss. The
  gradient needs all rows to count alike in whatever is differentiated, as in
  `total_loss(sums).sum()`: where they do not, gradients are NaN.

  Args:
    states: [B, T, D].
    targets, weights, z_loss, label_smoothing: see `cross_entropy`.
    head: [V, D], in the dtype of `states`.
    bias: [V] or None; has no gradient.
    chunk: positions at a time; for T <= chunk JAX differentiates.
    constrain: pins the sharding of logits [B, chunk, V].
  """
  if states.shape[1] <= chunk:
    logits = constrain(compute_logits(states, head, bias))
    return cross_entropy(logits, targets, weights, z_loss, label_smoothing)
  rows = _pad_to_chunks(chunk, states, targets, weights)
  penalties = z_loss, label_smoothing
  return _chunked_loss(chunk, constrain, penalties, head, bias, *rows)


def token_log_probabilities(
  states: jax.Array,
  targets: jax.Array,
  head: jax.Array,
  bias: jax.Array | None,
  chunk: int = 64,
  constrain=lambda logits: logits,
) -> tuple[jax.Array, jax.Array]:
  """Returns each target's log-probability, and whether none is likelier.

  float32 [B, T] in nats, and bool [B, T]; arguments are those of
  `cross_entropy_from_states`. There is no gradient.
  """
  T = states.shape[1]
  chunk = min(chunk, T)
  rows = _pad_to_chunks(chunk, states, targets)
  statistics = _chunk_statistics(chunk, constrain, 0.0, head, bias, *rows)
  log_z, picked, correct = (x[:, :T] for x in statistics)
  return picked - log_z, correct


def compute_logits(states, head, bias, columns=None) -> jax.Array:
  """Returns float32 logits [B, T, V] of states [B, T, D] and head [V, D].

  `columns` is the head as [D, V], packed or not, which is read in its place.
  """
  # Two-dimensional, see `matmul.affine`.
  flat = states.reshape(-1, states.shape[-1])
  if isinstance(columns, quantized.Matrix):
    flat = matmul.affine_matrix(flat, columns, jnp.zeros(columns.outputs))
  elif columns is None:
    flat = matmul.rows_by_columns(flat, head)
  else:
    flat = matmul.dot_float32(flat, columns.astype(flat.dtype), (1, 0))
  if bias is not None:
    flat += jax.lax.stop_gradient(bias).astype(jnp.float32)
  return flat.reshape(*states.shape[:-1], -1)


def _chunk_statistics(chunk, constrain, smoothing, head, bias, *rows):
  """Returns `_token_statistics` of padded rows: states, targets, any others."""

  def one(part):
    states, targets = part[:2]
    # A head in int8 has columns only of few rows, see `matmul.product_int8`.
    if matmul.on_one_cpu() and isinstance(head, jax.Array):
      return _column_statistics(smoothing, states, targets, head, bias)[1]
    logits = constrain(compute_logits(states, head, bias))
    return _token_statistics(logits, targets, smoothing)

  return map(_join_chunks, jax.lax.map(one, _split_chunks(chunk, rows)))


# --- With the vocabulary first, for one CPU: the products of few positions with
# the head, and of both gradients, are in forms that its backend is fast in, see
# `matmul.rows_by_columns`.


def _column_statistics(smoothing, states, targets, head, bias):
  """Computes logits [V, N] of the N = B T positions, and what they tell.

  Returns:
    (powers e^(logits - the greatest) [V, N] and their sums [N], and
    `_token_statistics` [B, T]).
  """
  flat = states.reshape(-1, states.shape[-1])
  logits = matmul.dot_float32(head, flat, (1, 1))
  if bias is not None:
    logits += jax.lax.stop_gradient(bias).astype(jnp.float32)[:, None]
  top = logits.max(0)
  picked = jnp.take_along_axis(logits, targets.reshape(1, -1), 0)[0]
  powers = jnp.exp(logits - top)
  total = matmul.sum_columns(powers)
  statistics = top + jnp.log(total), picked, picked >= top
  if smoothing:
    statistics += (picked - matmul.sum_columns(logits) / len(head),)
  return (powers, total), [x.reshape(targets.shape) for x in statistics]


def _column_gradients(penalties, head, bias, states, targets, weights):
  """Returns `_token_statistics`, and the gradients of head and states."""
  z_loss, smoothing = penalties
  (powers, total), statistics = _column_statistics(
    smoothing, states, targets, head, bias
  )
  flat = states.reshape(-1, states.shape[-1])
  # As in `_chunked_forward`.
  log_z_grad = (weights * (1 + 2 * z_loss * statistics[0])).reshape(-1)
  chosen = jnp.arange(len(head))[:, None] == targets.reshape(-1)
  grad = powers * (log_z_grad / total)
  grad -= _target_gradient(chosen, weights.reshape(-1), smoothing, len(head))
  grad = grad.astype(flat.dtype)
  head_grad = matmul.dot_float32(grad, flat, (1, 0))
  if grad.dtype == jnp.float32:
    # Written out, as `weight_gradient` has it, grad' would be one more array of
    # the logits' size.
    states_grad = matmul.dot_float32(grad, head, (0, 0))
  else:
    states_grad = matmul.weight_gradient(grad, head)
  return *statistics, (head_grad, states_grad.reshape(states.shape))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _chunked_loss(chunk, constrain, penalties, head, bias, *rows):
  """Computes `cross_entropy` of (states, targets, weights), T in chunks.

  The penalties are (z_loss, label_smoothing).
  """
  given = constrain, penalties[1], head, bias
  statistics = _chunk_statistics(chunk, *given, *rows)
  return _sums(*statistics, rows[2], *penalties)


def _target_gradient(chosen, weights, smoothing: float, V: int):
  """Returns the target's part of the gradient of logits, to be subtracted."""
  if not smoothing:
    return jnp.where(chosen, weights, 0)
  return weights * jnp.where(chosen, 1 - smoothing + smoothing / V,
                             smoothing / V)  # fmt: skip


def _chunked_forward(chunk, constrain, penalties, head, bias, *rows):
  z_loss, smoothing = penalties

  def by_columns(head_grad, part):
    *given, grads = _column_gradients(penalties, head, bias, *part)
    head_grad += grads[0]
    return head_grad, (*given, grads[1])

  def by_rows(head_grad, part):
    states, targets, weights = part
    logits = constrain(compute_logits(states, head, bias))
    log_z, *others = _token_statistics(logits, targets, smoothing)
    # d/d logits of weight (log Z - picked + z_loss log Z^2): softmax times
    # log_z_grad, less the weight at the target, or smoothed over all.
    log_z_grad = weights * (1 + 2 * z_loss * log_z)
    grad = jnp.exp(logits - log_z[..., None]) * log_z_grad[..., None]
    chosen = jnp.arange(head.shape[0]) == targets[..., None]
    grad -= _target_gradient(
      chosen, weights[..., None], smoothing, head.shape[0]
    )
    grad = constrain(grad).astype(states.dtype)
    grad, flat = (x.reshape(-1, x.shape[-1]) for x in (grad, states))
    states_grad = matmul.dot_float32(grad, head, (1, 0)).reshape(states.shape)
    head_grad += matmul.weight_gradient(grad, flat)
    return head_grad, (log_z, *others, states_grad)

  zeros = jnp.zeros(head.shape, jnp.float32)  # bfloat16 would lose small chunks
  one = by_columns if matmul.on_one_cpu() else by_rows
  head_grad, found = jax.lax.scan(one, zeros, _split_chunks(chunk, rows))
  *statistics, states_grad = map(_join_chunks, found)
  log_z, picked, _, *lead = statistics
  each = log_z - picked + z_loss * jnp.square(log_z)
  if smoothing:
    each += smoothing * lead[0]
  sums = _sums(*statistics, rows[2], *penalties)
  return sums, (head, bias, rows[0], head_grad, states_grad, each)


def _chunked_backward(chunk, constrain, penalties, residuals, cotangents):
  head, bias, states, head_grad, states_grad, each = residuals
  by_row = cotangents['loss']
  # head_grad is summed over rows already: one factor is all it can be given.
  factor = by_row[0]
  alike = by_row == factor
  for penalty, name in zip(penalties, ('z_loss', 'smoothing')):
    if penalty:
      alike &= cotangents[name] == factor
  factor = jnp.where(alike.all(), factor, jnp.nan)
  return (
    (head_grad * factor).astype(head.dtype),
    None if bias is None else jnp.zeros_like(bias),
    (states_grad * factor).astype(states.dtype),
    None,
    each * factor,
  )


_chunked_loss.defvjp(_chunked_forward, _chunked_backward)


def _pad_to_chunks(n: int, *rows):
  """Yields [B, T, ...] arrays padded by zeros to a multiple of n in T."""
  fill = -rows[0].shape[1] % n
  pad = lambda x: jnp.pad(x, ((0, 0), (0, fill)) + ((0, 0),) * (x.ndim - 2))
  return map(pad, rows)


def _split_chunks(n: int, rows):
  """Reshapes [B, T, ...] to [T / n, B, n, ...] for each of `rows`."""
  split = lambda x: x.reshape(x.shape[0], -1, n, *x.shape[2:]).swapaxes(0, 1)
  return tuple(map(split, rows))


def _join_chunks(x):
  """Reshapes [T / n, B, n, ...] to [B, T, ...]."""
  x = x.swapaxes(0, 1)
  return x.reshape(x.shape[0], -1, *x.shape[3:])
