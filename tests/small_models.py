"""Untrained models small enough for tests."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from atm.inference import api
from atm.model.config import ModelConfig
from atm.model.transformer import AlexaTM
from atm.parallel import mesh as mesh_lib
from atm.parallel.sharding import Rules

# What public models do otherwise than the paper's.
_TIED = dict(ties='all', embed_scale=True, pad_id=1, start_id=2, end_id=2)
PUBLIC = {
  'mbart': dict(
    **_TIED, embedding_norm=True, logits_bias=True, position_offset=2,
    encoder_position_offset=2,
  ),
  'm2m_100': dict(
    **_TIED, activation='relu', position_embedding='sinusoidal_fairseq',
    position_offset=2, encoder_position_offset=2,
  ),
  'pegasus': dict(
    **{**_TIED, 'pad_id': 0, 'start_id': 0, 'end_id': 1}, activation='relu',
    position_embedding='sinusoidal', logits_bias=True,
  ),
}  # fmt: skip
# All of it in one model.
EVERY = {**PUBLIC['mbart'], **PUBLIC['m2m_100']}


def init(config: ModelConfig, seed: int = 0) -> dict:
  """Returns random parameters, with biases and norms that tests can see."""
  return jax.tree.map(lambda x: x, _init(config, seed))  # dicts of the caller's


@functools.lru_cache(maxsize=32)
def _init(config: ModelConfig, seed: int) -> dict:
  ids = jnp.ones((1, 1), jnp.int32)
  make = jax.jit(
    lambda key: AlexaTM(config).init(key, ids, ids, enable_dropout=False)
  )
  params = nn.unbox(make(jax.random.key(seed)))['params']
  leaves, tree = jax.tree.flatten(params)
  draws = np.random.default_rng(seed)
  leaves = [x + 0.1 * draws.standard_normal(x.shape) for x in leaves]
  return jax.tree.unflatten(tree, [x.astype(jnp.float32) for x in leaves])


def untrained(vocabulary, **sizes) -> api.Model:
  """Returns a model over a vocabulary, on one device."""
  config = ModelConfig(**{
    **dict(
      vocab_size=vocabulary.size, d_model=32, encoder_layers=1,
      decoder_layers=1, encoder_heads=4, decoder_heads=4, encoder_ff=64,
      decoder_ff=64, positions=64, dtype='float32', init_std=0.3,
    ),
    **sizes,
  })  # fmt: skip
  mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
  return api.Model(config, init(config), vocabulary, mesh, Rules(), 7)


def make_ending_model(vocabulary, **sizes) -> api.Model:
  """Returns `untrained`, but for a bias that ends about half of its outputs."""
  model = untrained(vocabulary, logits_bias=True, **sizes)
  bias = jnp.zeros(model.config.vocab_size).at[model.config.end_id].set(1.5)
  return dataclasses.replace(
    model, params={**model.params, 'logits_bias': bias}
  )
