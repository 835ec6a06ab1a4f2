"""Generation, greedy or sampled, over an explicit cache.

Pure functions of arrays whose unit is the row: `prefill` reads prompts,
`start_decoding` begins the outputs, `advance` writes one more token, and
`insert_row` puts a prefilled row in another's place, for continuous batching.
`generate` is a loop of them in one program, which ends when all rows are done.
Beam search has its own loop, in `beam_search`.

Letters as in `atm.model.transformer`; R rows, of which an encoder input has
R / B; n the length of the decoder's prefix, its start token included.
"""

import functools

import flax.struct
import jax
import jax.numpy as jnp

from atm.inference import sampling
from atm.inference.outputs import fetch_array
from atm.inference.sampling import History, Sampler
from atm.model import embeddings, matmul, packed, quantized
from atm.model.quantized import JittedByWeights
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


@functools.partial(jax.jit, static_argnames='count')
def unstack_packed(layers: dict, count: int) -> dict:
  """Unstacks layers, with packed matrices."""
  return packed.pack_kernels(split_layer_params(layers, count))


def prepare_params(model: AlexaTM, params, unstack=unstack_layers) -> dict:
  """Returns parameters as they decode fastest: on a CPU with layers unstacked.

  The decoder's layers are in memory twice then, and on one CPU the LM head, by
  its columns; in int8 the encoder's, too. Elsewhere they stay as they are.
  Matrices are packed where `packed` has products for them.
  """
  # XLA's CPU backend copies a layer out of the stack for each token.
  if sharding.current_target()[0] != 'cpu':
    return params
  head = params[embeddings.name_head(model.config)]
  packs = _packs(model, params)
  params = _unstack(model, params, 'decoder', unstack)
  if packs and quantized.has_int8(head):
    # XLA's products in int8 take as long as those in float32.
    params = unstack_encoder(model, params)
  # Plans have shapes in place of arrays; XLA is as fast in int8 by rows.
  if packs or (matmul.on_one_cpu() and isinstance(head, jax.Array)):
    # For few rows the product by columns takes two fifths of the time.
    arrange = packed.pack_head if packs else jnp.transpose
    params[embeddings.HEAD_COLUMNS] = jax.jit(arrange)(head)
  return params


def unstack_encoder(model: AlexaTM, params, unstack=unstack_layers) -> dict:
  """Returns parameters that encode few tokens fastest, see `prepare_params`."""
  # Copies out of the stack take as long as 70 tokens of gin/models/small.gin.
  on_cpu = sharding.current_target()[0] == 'cpu'
  has_encoder = model.config.has_encoder
  if not (on_cpu and has_encoder) or '0' in params['encoder']['layers']:
    return params
  return _unstack(model, params, 'encoder', unstack)


def _packs(model: AlexaTM, params) -> bool:
  """Tells whether matrices are packed: on one CPU that has kernels for them."""
  head = params[embeddings.name_head(model.config)]
  is_float = model.config.dtype == 'float32'
  return is_float and matmul.on_one_cpu() and packed.can_pack(head)


def _unstack(model: AlexaTM, params, name: str, unstack) -> dict:
  """Returns parameters with the layers of a stack by themselves."""
  stack, count = params[name], getattr(model.config, f'{name}_layers')
  unstack = unstack_packed if _packs(model, params) else unstack
  return {**params, name: {**stack, 'layers': unstack(stack['layers'], count)}}


def encode(model: AlexaTM, params, tokens, segments):
  """Returns encoder states [B, S, D] of ids [B, S], segments 0 on padding."""
  apply = functools.partial(model.apply, {'params': params})
  return apply(tokens, segments, enable_dropout=False, method=AlexaTM.encode)


def prefill(model: AlexaTM, params, tokens, segments, prefix, lengths, room):
  """Reads encoder inputs and the beginning of the decoder's.

  Args:
    model, params: what reads.
    tokens, segments: [B, S] encoder ids, and 1 on ids, 0 on padding.
    prefix: [B, n] decoder ids, from the start token on, padded behind.
    lengths: [B], how many of prefix are not padding.
    room: how many positions the cache has.

  Returns:
    (float32 logits [B, V] of the token behind the prefix, the caches).
  """
  apply = functools.partial(model.apply, {'params': params})
  encoded = encode(model, params, tokens, segments)
  caches = apply(encoded, room, segments, method=AlexaTM.empty_cache)
  positions = jnp.broadcast_to(jnp.arange(prefix.shape[1]), prefix.shape)
  read = functools.partial(apply, method=AlexaTM.decode_cached)
  return read(prefix, positions, caches, segments, lengths - 1)


# --- Writing


@functools.partial(
  JittedByWeights, static_argnames=('model', 'T', 'results', 'spare')
)
def start_decoding(
  model, params, sampler, tokens, segments, prefix, lengths, numbers, seed, T,
  results=1, forced=None, spare=0,
) -> DecodeState:  # fmt: skip
  """Returns rows with their first token, see `generate`.

  `spare` is how many positions more than it needs the cache has.
  """
  B, n = prefix.shape
  room = n + T - 1  # the last token is written, but never read
  logits, caches = prefill(
    model, params, tokens, segments, prefix, lengths, room + spare
  )
  repeat = lambda x: jnp.repeat(x, results, axis=0)
  fold = jax.random.fold_in
  keys = jax.vmap(functools.partial(fold, jax.random.key(seed)))(numbers)
  keys = jax.vmap(fold)(repeat(keys), jnp.tile(jnp.arange(results), B))
  logits = repeat(logits)
  caches = [  # the results of an input share the encoder's part
    c.replace(self_keys=repeat(c.self_keys), self_values=repeat(c.self_values))
    for c in caches
  ]
  prefix, lengths, R = repeat(prefix), repeat(lengths), B * results
  state = DecodeState(
    caches=caches,
    source=segments,
    token=jnp.zeros(R, jnp.int32),
    position=lengths - 1,
    ids=jnp.full((R, T), model.config.pad_id, jnp.int32),
    log_probabilities=jnp.zeros((R, T), jnp.float32),
    length=jnp.zeros(R, jnp.int32),
    # An input of padding alone is done before it begins.
    done=jnp.repeat(segments.max(1) == 0, results),
    history=sampling.initial_history(
      model, sampler, prefix, lengths, room, (tokens, segments), forced
    ),
    keys=keys,
  )
  return write_next(model, sampler, state, logits)


def advance(model, params, sampler: Sampler, state: DecodeState) -> DecodeState:
  """Reads each row's last token and writes one more, but in rows done."""
  at = jnp.minimum(state.position, state.caches[0].self_values.shape[2] - 1)
  logits, caches = model.apply(
    {'params': params}, state.token[:, None], at[:, None], state.caches,
    state.source, jnp.zeros_like(at), method=AlexaTM.decode_cached,
  )  # fmt: skip
  return write_next(model, sampler, state.replace(caches=caches), logits)


def write_next(model, sampler, state: DecodeState, logits) -> DecodeState:
  """Writes each row's next token, chosen of logits [R, V]."""
  end_id = model.config.end_id
  token, log_probability = sampling.choose_tokens(
    sampler, state.history, state.keys, logits, end_id
  )
  row, at, is_open = jnp.arange(len(token)), state.length, ~state.done
  ended = token == end_id
  put = lambda x, new, where: x.at[row, at].set(
    jnp.where(where, new, x[row, at]), mode='drop'
  )
  history = jax.tree.map(
    lambda new, old: jnp.where(
      is_open[(...,) + (None,) * (new.ndim - 1)], new, old
    ),
    sampling.append_token(sampler, state.history, token),
    state.history,
  )
  return state.replace(
    token=token,
    position=state.position + 1,
    ids=put(state.ids, token, is_open & ~ended),
    log_probabilities=put(state.log_probabilities, log_probability, is_open),
    length=at + (is_open & ~ended),
    done=state.done | ended | sampling.has_stopped(sampler, history),
    history=history,
  )


def insert_row(state: DecodeState, row: DecodeState, at) -> DecodeState:
  """Returns `state` with the one row of `row` in place `at`; R = B in both."""
  return jax.tree.map(lambda x, new: x.at[at].set(new[0]), state, row)


decode_step = JittedByWeights(
  advance, static_argnames='model', donate_argnames='state'
)


def stream_tokens(
  model, params, sampler, batch, seed: int, T: int, use,
  start=start_decoding, step=decode_step,
):  # fmt: skip
  """Yields the ids of the first row of a batch, each as soon as it is chosen.

  `use` returns the context of mesh and rules that a program needs; `start` and
  `step` begin a state and write a token or more; for the rest see `generate`
  and `bucketing.pad_batch`.
  """
  # The context is not open while the caller runs, who may need another.
  with use():
    state = start(model, params, sampler, **batch, seed=seed, T=T)
  told = 0
  while True:
    length = fetch_array(state.length)[0]  # the end token is not counted
    ids = fetch_array(state.ids)[0, told:length] if length > told else ()
    yield from map(int, ids)
    told = length
    if fetch_array(state.done)[0]:
      return
    with use():
      state = step(model, params, sampler, state)


@functools.partial(JittedByWeights, static_argnames=('model', 'T', 'results'))
def generate(
  model, params, sampler, tokens, segments, prefix, lengths, numbers, seed, T,
  results=1, forced=None,
):  # fmt: skip
  """Writes greedy or sampled tokens until every row is done.

  Args:
    model, tokens, segments, prefix, lengths: see `prefill`.
    params, sampler: of `prepare_params`, and a `Sampler`.
    numbers, seed: [B] of the inputs, and a scalar, for sampling.
    T: room for tokens, sampler.max_tokens or more.
    results: generations of each input.
    forced: [B], how many ids at the end of each prefix count as written, as
      Hugging Face's `generate` counts what `forced_bos_token_id` writes: in
      max_tokens, in min_tokens and in the length penalty; None: none.

  Returns:
    (ids [B, results, T], padding behind; log-probabilities [B, results, T];
    how many ids and how many log-probabilities there are, [B, results]: where
    the end token was chosen, one more of these).
  """
  state = start_decoding(
    model, params, sampler, tokens, segments, prefix, lengths, numbers, seed, T,
    results, forced,
  )  # fmt: skip
  write = functools.partial(advance, model, params, sampler)
  state = jax.lax.while_loop(lambda x: ~x.done.all(), write, state)
  out = state.ids, state.log_probabilities, state.length, state.history.count
  return tuple(x.reshape(-1, results, *x.shape[1:]) for x in out)
