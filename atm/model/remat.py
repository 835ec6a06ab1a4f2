"""Rematerialisation: names of activations, and policies of which to keep.

A name is given to a result by `jax.ad_checkpoint.checkpoint_name`.
"""

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


# What each layer keeps for its backward pass; the rest it computes again.
REMAT = {
  # All that JAX's derivatives read.
  'none': None,
  # The layer's input alone.
  'full': _keep(),
  # Results of products, attention, norms and activations.
  'outputs': _keep(PRODUCT, ATTENTION, NORM, ACTIVATION),
  # Results of products and attention: what is computed again is cheap.
  'dots': _keep(PRODUCT, ATTENTION),
  # As 'save_attended', and the feed-forward's first product, the widest array.
  'save_widened': _keep(ATTENTION, UP, STREAM),
  # Attention's result, and the sum that the feed-forward's norm reads.
  'save_attended': _keep(ATTENTION, STREAM),
  # Attention's result and the feed-forward's first product, both in the host's
  # memory until the backward pass.
  'offload_widened': jax.checkpoint_policies.save_and_offload_only_these_names(
    names_which_can_be_saved=[MOMENTS],
    names_which_can_be_offloaded=[ATTENTION, UP],
    offload_src='device',
    offload_dst='pinned_host',  # the only host memory a device copies from
  ),
  # Attention alone, whose backward pass then computes nothing again.
  'save_attention': _keep(ATTENTION, HEADS),
}
