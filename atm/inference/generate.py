"""Generation, greedy or sampled, over an explicit cache.

Pure functions of arrays whose unit is the row: `prefill` reads prompts,
`choose_first_tokens` begins the outputs, `advance` writes one more token, and
`insert_row` puts a prefilled row in another's place, for continuous batching.
`generate` is a loop of them in one program, which ends when all rows are done.
Beam search has its own loop, in `beam_search`.

Letters as in `atm.model.transformer`; R rows, of which an encoder input has
R / B; n the length of the decoder's prefix, its start token included.
"""

from __future__ import annotations

import functools

import flax.struct
import jax
import jax.numpy as jnp

from atm.inference.sampling import (
  History,
  Sampler,
  append_token,
  choose_tokens,
  has_stopped,
  initial_history,
)
from atm.model.transformer import AlexaTM, split_layer_params
from atm.parallel import sharding


@flax.struct.dataclass
class DecodeState:
  """Rows that are being written; R rows, of T tokens at most.

  Attributes:
    caches: a `layers.KVCache` for each layer.
    source: [B, S], segment ids of the encoder inputs.
    token: [R], the decoder's next input.
    position: [R], where it stands.
    ids: [R, T] written so far, padding behind; the end token is not among them.
    log_probabilities: float32 [R, T] of ids, by the model itself, before the
      sampler's penalties; the end token's is behind the last.
    length: [R], ids written.
    done: [R].
    history: see History.
    keys: [R] random keys.
  """

  caches: list
  source: jax.Array
  token: jax.Array
  position: jax.Array
  ids: jax.Array
  log_probabilities: jax.Array
  length: jax.Array
  done: jax.Array
  history: History
  keys: jax.Array


# --- Reading


unstack_layers = jax.jit(split_layer_params, static_argnames='count')


def prepare_params(model: AlexaTM, params, unstack=unstack_layers) -> dict:
  """Parameters as decoding on a CPU is fastest with: layers apart.

  XLA's CPU backend copies a layer out of the stack for each token. The
  decoder's layers are in memory twice then; elsewhere they are left stacked.
  """
  if sharding.current_target()[0] != 'cpu':
    return params
  decoder = dict(params['decoder'])
  layers = unstack(decoder['layers'], model.config.decoder_layers)
  return {**params, 'decoder': {**decoder, 'layers': layers}}


def encode(model: AlexaTM, params, tokens, segments):
  """Encoder states [B, S, D] of ids [B, S], segments 0 on padding."""
  return model.apply(
    {'params': params},
    tokens,
    segments,
    enable_dropout=False,
    method=AlexaTM.encode,
  )


def prefill(model: AlexaTM, params, tokens, segments, prefix, lengths, room):
  """Reads encoder inputs and the beginning of the decoder's.

  Args:
    model: the model.
    params: its parameters.
    tokens: [B, S] encoder ids.
    segments: [B, S], 1 on ids and 0 on padding.
    prefix: [B, n] decoder ids, from the start token on, padded behind.
    lengths: [B], how many of prefix are not padding.
    room: how many positions the cache has.

  Returns:
    (float32 logits [B, V] of the token behind the prefix, the caches).
  """
  apply = functools.partial(model.apply, {'params': params})
  encoded = encode(model, params, tokens, segments)
  caches = apply(encoded, room, method=AlexaTM.empty_cache)
  positions = jnp.broadcast_to(jnp.arange(prefix.shape[1]), prefix.shape)
  return apply(
    prefix,
    positions,
    caches,
    segments,
    lengths - 1,
    method=AlexaTM.decode_cached,
  )


def decode_token(model: AlexaTM, params, token, position, caches, source):
  """Reads one token [R] at `position` [R]; returns (logits [R, V], caches)."""
  return model.apply(
    {'params': params},
    token[:, None],
    position[:, None],
    caches,
    source,
    jnp.zeros_like(position),
    method=AlexaTM.decode_cached,
  )


def repeat_caches(caches: list, times: int) -> list:
  """Caches of B rows for B x times, which share the encoder's part."""
  repeat = lambda x: jnp.repeat(x, times, axis=0)
  return [
    c.replace(self_keys=repeat(c.self_keys), self_values=repeat(c.self_values))
    for c in caches
  ]


# --- Rows


def choose_first_tokens(
  model, sampler, logits, caches, source, prefix, lengths, keys, T
):
  """Rows with their first token chosen, of what `prefill` returned.

  Args:
    model: the model.
    sampler: a `Sampler`.
    logits: [R, V].
    caches: for R rows.
    source: [B, S]; an input of zeros is done before it begins.
    prefix, lengths: [R, n] and [R], what was read.
    keys: [R] random keys.
    T: room for tokens.
  """
  R = len(logits)
  rows = DecodeState(
    caches=caches,
    source=source,
    token=jnp.zeros(R, jnp.int32),
    position=lengths - 1,
    ids=jnp.full((R, T), model.config.pad_id, jnp.int32),
    log_probabilities=jnp.zeros((R, T), jnp.float32),
    length=jnp.zeros(R, jnp.int32),
    done=jnp.repeat(source.max(1) == 0, R // len(source)),
    history=initial_history(model, sampler, prefix, lengths),
    keys=keys,
  )
  return _chosen(model, sampler, rows, logits)


def advance(model, params, sampler: Sampler, rows: DecodeState) -> DecodeState:
  """One more token for every row that is not done."""
  at = jnp.minimum(rows.position, rows.caches[0].self_values.shape[2] - 1)
  logits, caches = decode_token(
    model, params, rows.token, at, rows.caches, rows.source
  )
  return _chosen(model, sampler, rows.replace(caches=caches), logits)


def _chosen(model, sampler, rows: DecodeState, logits) -> DecodeState:
  end_id = model.config.end_id
  token, log_probability = choose_tokens(
    sampler, rows.history, rows.keys, logits, end_id
  )
  row, at, open_ = jnp.arange(len(token)), rows.length, ~rows.done
  ended = token == end_id
  put = lambda x, new, where: x.at[row, at].set(
    jnp.where(where, new, x[row, at]), mode='drop'
  )
  past = jax.tree.map(
    lambda new, old: jnp.where(
      open_[(...,) + (None,) * (new.ndim - 1)], new, old
    ),
    append_token(sampler, rows.history, token),
    rows.history,
  )
  return rows.replace(
    token=token,
    position=rows.position + 1,
    ids=put(rows.ids, token, open_ & ~ended),
    log_probabilities=put(rows.log_probabilities, log_probability, open_),
    length=at + (open_ & ~ended),
    done=rows.done | ended | has_stopped(sampler, past),
    history=past,
  )


def insert_row(rows: DecodeState, row: DecodeState, at) -> DecodeState:
  """`rows` with the one row of `row` in place `at`; R = B in both."""
  return jax.tree.map(lambda x, new: x.at[at].set(new[0]), rows, row)


@functools.partial(jax.jit, static_argnames=('model', 'T', 'results'))
def start_decoding(
  model, params, sampler, tokens, segments, prefix, lengths, numbers, seed, T,
  results=1,
) -> DecodeState:  # fmt: skip
  """Rows with their first token, see `generate`."""
  room = prefix.shape[1] + T - 1  # nobody reads the last token
  logits, caches = prefill(
    model, params, tokens, segments, prefix, lengths, room
  )
  repeat = lambda x: jnp.repeat(x, results, axis=0)
  fold = jax.random.fold_in
  keys = jax.vmap(functools.partial(fold, jax.random.key(seed)))(numbers)
  keys = jax.vmap(fold)(
    repeat(keys), jnp.tile(jnp.arange(results), len(tokens))
  )
  return choose_first_tokens(
    model, sampler, repeat(logits), repeat_caches(caches, results), segments,
    repeat(prefix), repeat(lengths), keys, T,
  )  # fmt: skip


decode_step = jax.jit(advance, static_argnames='model', donate_argnames='rows')


@functools.partial(jax.jit, static_argnames=('model', 'T', 'results'))
def generate(
  model, params, sampler, tokens, segments, prefix, lengths, numbers, seed, T,
  results=1,
):  # fmt: skip
  """Greedy or sampled tokens until every row is done.

  Args:
    model: the model.
    params: its parameters.
    sampler: a `Sampler`.
    tokens, segments, prefix, lengths: see `prefill`.
    numbers: [B] of the inputs, for sampling.
    seed: scalar.
    T: room for tokens, sampler.max_tokens or more.
    results: generations of each input.

  Returns:
    (ids [B, results, T], padding behind; log-probabilities [B, results, T];
    how many ids and how many log-probabilities there are, [B, results]: where
    the end token was chosen, one more of these).
  """
  rows = start_decoding(
    model, params, sampler, tokens, segments, prefix, lengths, numbers, seed, T,
    results,
  )  # fmt: skip
  rows = jax.lax.while_loop(
    lambda rows: ~rows.done.all(),
    lambda rows: advance(model, params, sampler, rows),
    rows,
  )
  out = rows.ids, rows.log_probabilities, rows.length, rows.history.count
  return tuple(x.reshape(-1, results, *x.shape[1:]) for x in out)
