"""Speculative decoding whose drafts are looked up in the encoder's input.

Prompt lookup decoding, transformers' `prompt_lookup_num_tokens`: where the last
ids written are found in the input, the ids behind them are the draft. One pass
of the decoder reads a whole draft, and its tokens are chosen one by one, as
without it, up to the first that is another. So drafts change how long a token
takes, not which is chosen, by whatever settings.

Letters as in `generate`; K ids in a draft.
"""

import functools

import flax.struct
import jax
import jax.numpy as jnp

from atm.inference import generate as generate_lib
from atm.inference.generate import DecodeState
from atm.inference.outputs import fetch_array
from atm.inference.sampling import Config
from atm.model.quantized import JittedByWeights
from atm.model.transformer import AlexaTM
from atm.parallel import sharding

# So many ids of the input must equal the last that were written: what follows a
# single one is mostly another token.
LEAST_MATCH = 2
# Decoder rows whose products take as long as reading the weights does.
FREE_ROWS = {'cpu': 8, 'gpu': 200, 'tpu': 200}  # accelerators: not measured
# The share of the time without drafts that wrong ones may take in addition.
SHARE_TO_LOSE = 0.02


@flax.struct.dataclass
class LookupState(DecodeState):
  """Rows that are being written, whose caches have room for a draft, too.

  Attributes:
    input_ids: [R, S] of the encoder, -1 on padding.
    matches: [R, S], how many of the last ids written equal the ids of the input
      up to a position.
    gain: float32, passes that drafts spared, less those that they cost.
    due: bool, whether the next pass reads drafts.
  """

  input_ids: jax.Array
  matches: jax.Array
  gain: jax.Array
  due: jax.Array


def draft_cost(rows: int, K: int) -> float:
  """Returns the time of a pass of K + 1 ids a row, in passes of one."""
  free = FREE_ROWS[sharding.current_target()[0]]
  return (free + rows * (K + 1)) / (free + rows)


def extend_matches(matches, input_ids, token):
  """Returns matches [R, S] of rows that have written token [R] as well."""
  before = jnp.pad(matches, ((0, 0), (1, 0)))[:, :-1]
  return jnp.where(input_ids == token[:, None], before + 1, 0)


def find_drafts(state: LookupState, K: int):
  """Returns drafts, int32 [R, K], -1 where there is none.

  A draft follows the longest match of a row, the first of several.
  """
  at = jnp.argmax(state.matches, axis=1)[:, None]
  found = jnp.take_along_axis(state.matches, at, axis=1) >= LEAST_MATCH
  ids = jnp.pad(state.input_ids, ((0, 0), (0, K)), constant_values=-1)
  drafts = jnp.take_along_axis(ids, at + 1 + jnp.arange(K), axis=1)
  return jnp.where(found & ~state.done[:, None], drafts, -1)


def _plan_pass(state: LookupState, gain, K: int) -> LookupState:
  """Decides whether the next pass reads drafts, given what others gained."""
  # A gain is used up soon where drafts turn wrong; a loss is made up for by
  # passes without drafts.
  cost = draft_cost(len(state.done), K)
  gain = jnp.minimum(gain, 2 * cost)
  found = (find_drafts(state, 1) >= 0).sum()
  # Drafts of few rows do not pay for the others, even where all are right.
  pays = found * K > (cost - 1) * (~state.done).sum()
  return state.replace(gain=gain, due=(gain >= 0) & pays)


@functools.partial(
  JittedByWeights, static_argnames=('model', 'T', 'results', 'K')
)
def start_lookup(
  model, params, sampler, tokens, segments, prefix, lengths, numbers, seed, T,
  results=1, forced=None, K=1,
) -> LookupState:  # fmt: skip
  """Returns rows with their first token, see `generate`."""
  rows = generate_lib.start_decoding(
    model, params, sampler, tokens, segments, prefix, lengths, numbers, seed, T,
    results, forced, spare=K,
  )  # fmt: skip
  repeat = lambda x: jnp.repeat(x, results, axis=0)
  ids = repeat(jnp.where(segments > 0, tokens, -1))

  def read(at, matches):
    more = extend_matches(matches, ids, repeat(prefix[:, at]))
    return jnp.where(repeat(at < lengths)[:, None], more, matches)

  matches = jax.lax.fori_loop(0, prefix.shape[1], read, jnp.zeros_like(ids))
  state = LookupState(
    **{name: getattr(rows, name) for name in rows.__dataclass_fields__},
    input_ids=ids,
    matches=extend_matches(matches, ids, rows.token),
    gain=jnp.float32(0),
    due=jnp.bool_(False),
  )
  return _plan_pass(state, state.gain, K)


def advance_by_one(
  model, params, sampler, K: int, state: LookupState
) -> LookupState:
  """Reads the last token of each row and writes one more."""
  state = generate_lib.advance(model, params, sampler, state)
  matches = extend_matches(state.matches, state.input_ids, state.token)
  state = state.replace(matches=matches)
  return _plan_pass(state, state.gain + SHARE_TO_LOSE, K)


def advance_by_drafts(
  model, params, sampler, K: int, state: LookupState
) -> LookupState:
  """Reads the last token and a draft of each row; writes 1 to K + 1 tokens."""
  drafts, is_open = find_drafts(state, K), ~state.done
  room = state.caches[0].self_values.shape[2]
  # Rows that are done may stand behind what they have room to read.
  at = jnp.minimum(state.position, room - K - 1)
  slots = at[:, None] + jnp.arange(K + 1)
  logits, caches = model.apply(
    {'params': params},
    jnp.concatenate([state.token[:, None], jnp.maximum(drafts, 0)], axis=1),
    # Of ids that no token can be chosen behind.
    jnp.minimum(slots, model.config.positions - 1), state.caches, state.source,
    slots=slots, method=AlexaTM.decode_cached,
  )  # fmt: skip
  before = state.history.count
  state = _write_while_right(model, sampler, state, drafts, logits)
  count = jnp.where(is_open, state.history.count - before, 0).sum()
  mean = count / jnp.maximum(is_open.sum(), 1)
  gain = state.gain + mean - draft_cost(len(drafts), K)
  return _plan_pass(state.replace(caches=caches), gain, K)


def _write_while_right(model, sampler, state: LookupState, drafts, logits):
  """Writes tokens of logits [R, K + 1, V], in rows whose drafts were right."""
  drafts = jnp.pad(drafts, ((0, 0), (0, 1)), constant_values=-1)
  # The caches are written by now: a loop that carried them might copy them.
  state = state.replace(caches=[])

  def write(carry):
    at, right, state = carry
    cut = lambda x: jax.lax.dynamic_index_in_dim(x, at, 1, keepdims=False)
    new = state.replace(done=state.done | ~right)
    new = generate_lib.write_next(model, sampler, new, cut(logits))
    more = extend_matches(state.matches, state.input_ids, new.token)
    state = new.replace(
      token=jnp.where(right, new.token, state.token),
      position=jnp.where(right, new.position, state.position),
      done=jnp.where(right, new.done, state.done),
      matches=jnp.where(right[:, None], more, state.matches),
    )
    right &= ~state.done & (state.token == cut(drafts))
    return at + 1, right, state

  carry = jnp.int32(0), ~state.done, state
  return jax.lax.while_loop(lambda x: x[1].any(), write, carry)[2]


_step, _step_by_drafts = (
  JittedByWeights(f, static_argnames=('model', 'K'), donate_argnames='state')
  for f in (advance_by_one, advance_by_drafts)
)


def select_steps(config: Config) -> dict:
  """Returns `start` and `step` of `generate.stream_tokens` by the settings."""
  K = config.prompt_lookup_num_tokens
  if not K:
    return {}

  def step(model, params, sampler, state):
    run = _step_by_drafts if fetch_array(state.due) else _step
    return run(model, params, sampler, K, state)

  return dict(start=functools.partial(start_lookup, K=K), step=step)


@functools.partial(
  JittedByWeights, static_argnames=('model', 'T', 'results', 'K')
)
def generate_by_lookup(
  model, params, sampler, tokens, segments, prefix, lengths, numbers, seed, T,
  results=1, forced=None, K=1,
):  # fmt: skip
  """Writes tokens until every row is done, see `generate.generate`.

  K is how many ids a draft has at most.
  """
  state = start_lookup(
    model, params, sampler, tokens, segments, prefix, lengths, numbers, seed, T,
    results, forced, K,
  )  # fmt: skip
  loop, is_open = jax.lax.while_loop, lambda state: ~state.done.all()
  one, drafts = (
    functools.partial(f, model, params, sampler, K)
    for f in (advance_by_one, advance_by_drafts)
  )

  def write(state):
    # Two loops in place of a conditional, which would copy the caches.
    state = loop(lambda x: is_open(x) & ~x.due, one, state)
    return loop(lambda x: is_open(x) & x.due, drafts, state)

  state = loop(is_open, write, state)
  out = state.ids, state.log_probabilities, state.length, state.history.count
  return tuple(x.reshape(-1, results, *x.shape[1:]) for x in out)
