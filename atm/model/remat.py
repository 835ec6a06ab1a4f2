"""Rematerialisation: names of activations, and policies of which to keep.

A name is given to a result by `jax.ad_checkpoint.checkpoint_name`.
"""

from __future__ import annotations

import jax

PRODUCT = 'product'  # results of matrix products with a bias
HEADS = 'heads'  # queries, keys and values of an attention
ATTENTION = 'attention'  # its result, and the normalisers of its backward pass
NORM, ACTIVATION = 'norm', 'activation'  # their results
UP = 'up'  # the feed-forward's first product, of width F
STREAM = 'stream'  # the sum that the feed-forward's norm reads
# Two numbers a position of every norm: always kept, since they spare a pass
# over the norm's input and take next to nothing.
MOMENTS = 'moments'


def _keep(*names: str):
  return jax.checkpoint_policies.save_only_these_names(MOMENTS, *names)


# What each layer keeps for its backward pass; the rest it computes again. From
# most memory to least: 'none' keeps all that JAX's derivatives read; 'dots' all
# whose recomputation would be a product; 'full' only a layer's input.
REMAT = {
  'none': None,
  'full': _keep(),
  'outputs': _keep(PRODUCT, ATTENTION, NORM, ACTIVATION),
  'dots': _keep(PRODUCT, ATTENTION),
  'save_widened': _keep(ATTENTION, UP, STREAM),
  'save_attended': _keep(ATTENTION, STREAM),
  'offload_widened': jax.checkpoint_policies.save_and_offload_only_these_names(
    names_which_can_be_saved=[MOMENTS],
    names_which_can_be_offloaded=[ATTENTION, UP],
    offload_src='device',
    offload_dst='pinned_host',  # the only host memory a device copies from
  ),
  'save_attention': _keep(ATTENTION, HEADS),
}
