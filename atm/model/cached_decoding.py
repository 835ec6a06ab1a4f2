"""The decoder through a cache of keys and values, a few tokens at a time.

Letters as in transformer.py; R batch rows, a multiple of the B encoder inputs,
and n tokens of each.
"""

import jax.numpy as jnp

from atm.model import cache_blocks, one_stack
from atm.model.embeddings import Embeddings
from atm.model.layers import norm_moments


class CachedDecoding(Embeddings):
  """Base of a model: decoding with the stack `decoder` of its subclass."""

  def empty_cache(self, encoded, length: int, source=None):
    """Returns each layer's `KVCache` of `length` for encoded [B, S, D].

    Without an encoder the stack reads `encoded`, with segment ids `source`
    [B, S], 0 on padding.
    """
    layers = self.decoder.each_layer()
    if self.config.has_encoder:
      return [layer(encoded, length, method='empty_cache') for layer in layers]
    if self.config.embedding_norm:
      encoded = self.decoder.apply_norm(encoded, 'embedding_norm')
    carry, caches = (encoded, norm_moments(encoded, self.config)), []
    mask = one_stack.join_masks(self.config, source)
    for layer in layers:
      carry, cache = layer(carry, mask, length, method='read_prompt')
      caches.append(cache)
    return caches

  def decode_cached(
    self, tokens, positions, caches, source, last=None, slots=None, seen=None
  ):
    """Reads [R, n] ids at [R, n] positions through a cache.

    Args:
      tokens: [R, n] decoder inputs.
      positions: [R, n], from 0.
      caches: of `empty_cache`, or of an earlier call.
      source: [B, S] segment ids of the encoder input, 0 on padding.
      last: [R], the one of the n whose logits are wanted; None: all.
      slots: [R, n], where in the cache they are written; None: at `positions`.
      seen: [R, n, T] bool, which of its T slots a query attends to; None: all
        up to its own.

    Returns:
      (float32 logits [R, n, V], or [R, V] of `last`; the caches).
    """
    x, written = self._cached_states(
      tokens, positions, caches, source, slots, seen
    )
    if last is not None:
      x = jnp.take_along_axis(x, last[:, None, None], axis=1)
    logits = self.logits(x)
    return logits if last is None else logits[:, 0], written

  def _cached_states(self, tokens, positions, caches, source, slots, seen):
    """Returns the states [R, n, D] of `decode_cached`, and the caches."""
    T = cache_blocks.count_positions(caches[0].self_values)
    slots = positions if slots is None else slots
    seen = jnp.arange(T) <= slots[..., None] if seen is None else seen
    if not self.config.has_encoder:
      positions = one_stack.shift_positions(positions, source)
    source = (source > 0)[:, None]
    x, written = self.embed_target(tokens, positions), []
    if self.config.embedding_norm:
      x = self.decoder.apply_norm(x, 'embedding_norm')
    for layer, cache in zip(self.decoder.each_layer(), caches, strict=True):
      x, cache = layer(x, cache, slots, seen, source, method='cached')
      written.append(cache)
    return self.decoder.apply_norm(x), written

  def _decode_t5x(self, encoded, source, tokens):
    """Decodes through linen's 'cache' collection, see `decode`."""
    B, T = tokens.shape
    if not self.has_variable('cache', 'kv'):
      self.put_variable('cache', 'kv', self.empty_cache(encoded, T, source))
      self.put_variable('cache', 'index', jnp.zeros(B, jnp.int32))
      return jnp.zeros((B, T, self.config.vocab_size))
    index = self.get_variable('cache', 'index')
    positions = jnp.broadcast_to(jnp.arange(T), (B, T)) + index[:, None]
    # t5x makes the cache with other inputs than it then decodes: the encoder's
    # keys and values are those of the call.
    caches = [
      fresh.replace(self_keys=old.self_keys, self_values=old.self_values)
      for fresh, old in zip(
        self.empty_cache(encoded, 1, source), self.get_variable('cache', 'kv')
      )
    ]
    logits, caches = self.decode_cached(tokens, positions, caches, source)
    self.put_variable('cache', 'kv', caches)
    self.put_variable('cache', 'index', index + T)
    return logits
