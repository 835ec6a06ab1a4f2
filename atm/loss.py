"""Cross-entropy; knows no mesh and no model."""

from __future__ import annotations

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
  logits = logits.astype(jnp.float32)
  log_z = jax.nn.logsumexp(logits, axis=-1)
  picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
  correct = picked >= logits.max(axis=-1)

  def total(x):
    return jnp.sum(x * weights, axis=-1)

  return {
    'loss': total(log_z - picked),
    'z_loss': z_loss * total(jnp.square(log_z)),
    'correct': total(correct),
    'weight': total(jnp.ones_like(log_z)),
  }
