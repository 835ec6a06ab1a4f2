"""Rematerialisation policies: which activations the backward pass keeps."""

from __future__ import annotations

import jax

from atm.model import attention, matmul

# Names of results; STREAM is what the feed-forward's norm reads, MOMENTS two
# numbers a position of every norm.
NORM, ACTIVATION, UP, STREAM = 'norm', 'activation', 'up', 'stream'
MOMENTS = 'moments'


def _saved(*names: str):
  return jax.checkpoint_policies.save_only_these_names(MOMENTS, *names)


# What each layer keeps for its backward pass; the rest it computes again.
REMAT = {
  'none': None,  # all that JAX's derivatives read
  'full': _saved(),
  'outputs': _saved(matmul.PRODUCT, attention.ATTENTION, NORM, ACTIVATION),
  'dots': _saved(matmul.PRODUCT, attention.ATTENTION),
  'save_widened': _saved(attention.ATTENTION, UP, STREAM),
  'save_attended': _saved(attention.ATTENTION, STREAM),
  'offload_widened': jax.checkpoint_policies.save_and_offload_only_these_names(
    names_which_can_be_saved=[MOMENTS],
    names_which_can_be_offloaded=[attention.ATTENTION, UP],
    offload_src='device',
    offload_dst='pinned_host',
  ),
  'save_attention': _saved(attention.ATTENTION, attention.HEADS),
}
