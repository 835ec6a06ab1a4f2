"""Decoders alone of atm/model's layers, in the sizes of published runs.

Measurements compare plans of them with runs of others, see published_runs.py;
nothing trains them. Embeddings, attention, loss, remat, sharding and optimizer
are this project's. Norms, products and activations are as published, for the
models here have biases, which would be sums more in the backward pass.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from atm.model import attention, layers, remat
from atm.model import config as config_lib
from atm.model import loss as loss_lib
from atm.model.embeddings import Embeddings
from atm.parallel import sharding

# What a layer keeps, and what of it in the host's memory; by the names that
# `Layer` gives.
POLICIES = {
  'full': ((), ()),
  'minimal': (('qkv', 'out', remat.UP, 'down'), ()),
  'minimal but up': (('qkv', 'out', 'down'), ()),
  'offload qkv': ((), ('qkv',)),
  'offload input, qkv': ((), ('input', 'qkv')),
  'offload input, qkv, out': ((), ('input', 'qkv', 'out')),
}


class Layer(nn.Module):
  """Causal self-attention and feed-forward, each behind a norm."""

  config: config_lib.ModelConfig
  run: object  # a published_runs.Run

  @nn.compact
  def __call__(self, x, mask):
    r = self.run
    x = checkpoint_name(x, 'input')
    h = RMSNorm(name='attention_norm')(x)
    D, K, kv = r.width, r.head, r.kv_heads or r.heads
    query, key, value = (
      self.multiply(h, name, ('embed', 'heads'), (D, n * K), (D, n, K))
      for name, n in (('query', r.heads), ('key', kv), ('value', kv))
    )
    if r.rotary:
      query, key = rotate(query), rotate(key)
    query, key, value = (checkpoint_name(y, 'qkv') for y in (query, key, value))
    y = attention.dot_product_attention(
      query, key, value, mask, implementation=r.attention
    )
    shape = r.heads * K, D
    out = self.multiply(
      y, 'out', ('heads', 'embed'), shape, (r.heads, K, D), axes=2
    )
    x += checkpoint_name(out, 'out')
    h = RMSNorm(name='feed_forward_norm')(x)
    x += checkpoint_name(self.feed_forward(h), 'down')
    return sharding.constrain(x, 'batch', 'length', 'hidden'), None

  def feed_forward(self, h):
    """Computes ReLU, GELU, or SiLU by a gate, between two products or three."""
    r = self.run
    inward = ('embed', 'mlp'), (r.width, r.ff)
    names = ('up', 'gate') if r.gated else ('up',)
    up, *gate = (
      checkpoint_name(self.multiply(h, name, *inward), remat.UP)
      for name in names
    )
    h = up * nn.silu(*gate) if gate else getattr(nn, r.activation)(up)
    h = sharding.constrain(h, 'batch', 'length', 'mlp')
    return self.multiply(h, 'down', ('mlp', 'embed'), (r.ff, r.width))

  def multiply(self, x, name, logical, shape, split=None, axes=1):
    """Multiplies the last axes of x by a parameter, its heads split apart."""
    init = layers.normal_init(self.config, *logical)
    matrix = self.param(name, init, shape).astype(x.dtype)
    return jnp.tensordot(x, matrix.reshape(split or shape), axes)


class RMSNorm(nn.Module):
  """Norm by the root of the mean square (Zhang and Sennrich, 2019)."""

  @nn.compact
  def __call__(self, x):
    init = layers.ones_init(('vector',))
    scale = self.param('scale', init, x.shape[-1:]).astype(x.dtype)
    y = x.astype(jnp.float32)
    y *= jax.lax.rsqrt(jnp.mean(jnp.square(y), -1, keepdims=True) + 1e-6)
    return y.astype(x.dtype) * scale


def rotate(x):
  """Turns [B, T, H, K] by position: rotary embeddings (Su et al., 2021)."""
  T, K = x.shape[1], x.shape[3]
  angle = jnp.arange(T)[:, None] * 10_000.0 ** (-jnp.arange(K // 2) / (K // 2))
  cosine, sine = (f(angle)[:, None].astype(x.dtype) for f in (jnp.cos, jnp.sin))
  first, second = jnp.split(x, 2, axis=-1)
  return jnp.concatenate(
    [first * cosine - second * sine, second * cosine + first * sine], -1
  )


class Decoder(Embeddings):
  """A decoder alone; reads what `step.train_step` gives an AlexaTM."""

  run: object = None  # a published_runs.Run

  def setup(self):
    super().setup()
    kept, offloaded = POLICIES[self.run.remat]
    layer = nn.remat(
      Layer,
      prevent_cse=False,
      policy=jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=list(kept),
        names_which_can_be_offloaded=list(offloaded),
        offload_src='device',
        offload_dst='pinned_host',
      ),
    )
    self.layers = nn.scan(
      layer,
      variable_axes={'params': 0},
      split_rngs={'params': True},
      in_axes=nn.broadcast,
      length=self.run.depth,
      metadata_params={nn.PARTITION_NAME: 'layers'},
    )(self.config, self.run)
    self.norm = RMSNorm()

  def __call__(self, source, tokens, enable_dropout=False):
    x = self.encoder_embedding[tokens].astype(self.config.dtype)
    x = sharding.constrain_columns(x)
    x = sharding.constrain(x, 'batch', 'length', 'hidden')
    ones = jnp.ones_like(tokens)
    mask = attention.AttentionMask(ones, ones, causal=self.run.causal)
    x, _ = self.layers(x, mask)
    return self.norm(x)

  def loss(self, batch, enable_dropout=True, z_loss=0.0, label_smoothing=0.0):
    states = self(None, batch['decoder_input_tokens'])
    targets = batch['decoder_target_tokens'], batch['decoder_loss_weights']
    compute = functools.partial(
      loss_lib.cross_entropy_from_states,
      z_loss=z_loss,
      label_smoothing=label_smoothing,
      chunk=self.config.loss_chunk,
      constrain=lambda y: sharding.constrain(y, None, 'length', 'vocab'),
    )
    head = self.head_and_bias(states.dtype)
    return sharding.map_batch_shards(compute, (states, *targets), *head)
