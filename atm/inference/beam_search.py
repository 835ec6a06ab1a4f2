"""Beam search over an explicit cache; letters as in `generate`, and k beams.

Beams change places after every token; the cache does not, for copying it would
cost more than the token. An input's row of it has the prefix, then a slot for
each beam and token: what beam j read at step t is in slot n + t k + j, and each
beam knows the slots that it descends from. One product reads them for all
beams.
"""

import functools

import flax.struct
import jax
import jax.numpy as jnp

from atm.inference import sampling
from atm.inference.generate import prefill
from atm.inference.sampling import History
from atm.model.transformer import AlexaTM

NO_SCORE = -1e9  # of what is no candidate


@flax.struct.dataclass
class BeamState:
  """k beams that are being written, and the k best that are finished.

  Attributes:
    caches, source: see DecodeState; B rows, n + k (T - 1) slots.
    seen: [B, k, n + k (T - 1)] bool, the slots that a beam descends from.
    token: [B, k], what each beam reads next.
    history: see History; B x k rows.
    running, finished: dicts of `ids` [B, k, T], `log_probabilities` [B, k, T],
      `length`, `count` (`length`, and the end token) and `score` [B, k], the
      best first.
    full: [B, k], that a place of `finished` is taken.
    open: [B], that a beam could still improve `finished`.
  """

  caches: list
  source: jax.Array
  seen: jax.Array
  token: jax.Array
  history: History
  running: dict
  finished: dict
  full: jax.Array
  open: jax.Array


def _gather_beams(tree, index):
  """Returns leaves [B, k, ...], the beams `index` [B, k] of [B, m, ...]."""
  row = jnp.arange(len(index))[:, None]
  return jax.tree.map(lambda x: x[row, index], tree)


def _unflatten_beams(tree, k: int):
  return jax.tree.map(lambda x: x.reshape(len(x) // k, k, *x.shape[1:]), tree)


def _flatten_beams(tree):
  return jax.tree.map(
    lambda x: x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]), tree
  )


def _extend_beams(model, sampler, beams: BeamState, logits) -> BeamState:
  """Writes one more token to each beam, chosen of logits [B, k, V]."""
  k, end_id = logits.shape[1], model.config.end_id
  log_probabilities = jax.nn.log_softmax(logits)
  # The 2 k best continuations are candidates: should k of them be ends, as many
  # are left to go on with.
  candidates, beam, token, history = _best_candidates(
    sampler, beams, log_probabilities, end_id
  )
  ended = token == end_id
  stopped = sampling.has_stopped(sampler, history)
  hits = ended | _unflatten_beams(stopped, 2 * k)
  count = history.count[0]
  at = (jnp.arange(candidates['ids'].shape[-1]) == count - 1)[None, None]
  picked = log_probabilities[jnp.arange(len(token))[:, None], beam, token]
  write = lambda name, new, at: jnp.where(at, new[..., None], candidates[name])
  candidates |= {
    'ids': write('ids', token, at & ~ended[..., None]),
    'log_probabilities': write('log_probabilities', picked, at),
    'length': candidates['length'] + ~ended,
    'count': candidates['count'] + 1,
  }
  going = jnp.where(hits, candidates['score'] + NO_SCORE, candidates['score'])
  going, kept = jax.lax.top_k(going, k)
  running = {**_gather_beams(candidates, kept), 'score': going}
  if history.forced is not None:  # rows may differ in how many these are
    count = _unflatten_beams(history.counted, 2 * k)[:, :1]
  finished, full = _finish_beams(sampler, beams, candidates, hits, count)
  is_open = _is_open(sampler, beams, running, finished, full, hits, count)
  gather = lambda tree: _gather_beams(tree, kept)
  return beams.replace(
    seen=_gather_beams(beams.seen, gather(beam)),
    token=gather(token),
    history=_flatten_beams(gather(_unflatten_beams(history, 2 * k))),
    running=running,
    finished=finished,
    full=full,
    open=is_open,
  )


def _best_candidates(sampler, beams: BeamState, log_probabilities, end_id):
  """Returns the 2 k best continuations of each input's beams.

  As (what BeamState.running has, with the new score; [B, 2 k] beams continued;
  [B, 2 k] tokens; histories of B x 2 k rows).
  """
  B, k, V = log_probabilities.shape
  scores = sampling.process_logits(
    sampler, beams.history, _flatten_beams(log_probabilities), end_id
  )
  scores = _unflatten_beams(scores, k) + beams.running['score'][..., None]
  score, index = jax.lax.top_k(scores.reshape(B, -1), 2 * k)
  beam, token = index // V, (index % V).astype(jnp.int32)
  candidates = _gather_beams(beams.running, beam)
  history = _gather_beams(_unflatten_beams(beams.history, k), beam)
  history, flat = _flatten_beams(history), _flatten_beams(token)
  history = sampling.append_token(sampler, history, flat)
  return {**candidates, 'score': score}, beam, token, history


def _finish_beams(sampler, beams: BeamState, candidates, hits, count) -> tuple:
  """Returns `finished` and `full` with the candidates that end."""
  # As in Hugging Face's `generate`, an end counts if it is among the k best.
  k = beams.full.shape[1]
  shut = ~beams.open | (beams.full.all(1) & (sampler.early_stopping is True))
  new = hits & (jnp.arange(2 * k) < k)
  count = count.astype(jnp.float32)
  ends = candidates['score'] / count**sampler.length_penalty
  ends = jnp.where(new & ~shut[:, None], ends, NO_SCORE)
  both = jax.tree.map(
    lambda a, b: jnp.concatenate([a, b], axis=1),
    (beams.finished, beams.full),
    ({**candidates, 'score': ends}, new & ~shut[:, None]),
  )
  _, best = jax.lax.top_k(both[0]['score'], k)
  return _gather_beams(both, best)


def _is_open(sampler, beams: BeamState, running, finished, full, hits, count):
  """Returns [B], whether a running beam could still be among the k best."""
  reach = sampler.max_tokens if sampler.early_stopping == 'never' else count
  reach = jnp.where(sampler.length_penalty > 0, reach, count)
  hope = running['score'][:, :1] / reach**sampler.length_penalty
  worst = jnp.where(full, finished['score'].min(1, keepdims=True), NO_SCORE)
  is_open = beams.open & (hope > worst).any(1) & ~hits.all(1)
  if sampler.early_stopping is True:
    is_open &= ~full.all(1)
  return is_open


@functools.partial(jax.jit, static_argnames=('model', 'T', 'k', 'results'))
def beam_search(
  model, params, sampler, tokens, segments, prefix, lengths, T, k, results=1,
  forced=None,
):  # fmt: skip
  """Returns the best of k beams by log-probability / tokens ** length_penalty.

  Arguments and results are those of `generate`, and the scores [B, results].
  Choices, their order and the end are those of Hugging Face's `generate`, but
  for an input by itself: others in the batch change nothing.
  """
  beams = start_beams(
    model, params, sampler, tokens, segments, prefix, lengths, T, k, forced
  )
  write = functools.partial(_advance, model, params, sampler, lengths)
  beams = jax.lax.while_loop(lambda x: x.open.any(), write, beams)
  best = jax.tree.map(lambda x: x[:, :results], beams.finished)
  names = ('ids', 'log_probabilities', 'length', 'count', 'score')
  return tuple(best[name] for name in names)


def start_beams(
  model, params, sampler, tokens, segments, prefix, lengths, T, k, forced=None
) -> BeamState:
  """Returns beams with their first token; see `beam_search`."""
  B, n = prefix.shape
  room = n + k * (T - 1)  # the last tokens are written, but never read
  logits, caches = prefill(
    model, params, tokens, segments, prefix, lengths, room
  )
  is_prefix = jnp.arange(room) < lengths[:, None, None]
  repeat = lambda x: jnp.repeat(x, k, axis=0)
  blank = {
    'ids': jnp.full((B, k, T), model.config.pad_id, jnp.int32),
    'log_probabilities': jnp.zeros((B, k, T), jnp.float32),
    'length': jnp.zeros((B, k), jnp.int32),
    'count': jnp.zeros((B, k), jnp.int32),
    'score': jnp.full((B, k), NO_SCORE),
  }
  # All k beams are one as yet: only the first has continuations that count.
  first_only = jnp.where(jnp.arange(k) == 0, 0.0, NO_SCORE)
  beams = BeamState(
    caches=caches,
    source=segments,
    seen=jnp.broadcast_to(is_prefix, (B, k, room)),
    token=jnp.zeros((B, k), jnp.int32),
    history=sampling.initial_history(
      model,
      sampler,
      repeat(prefix),
      repeat(lengths),
      n + T - 1,
      (tokens, segments),
      forced,
    ),
    running={**blank, 'score': jnp.broadcast_to(first_only, (B, k))},
    finished=blank,
    full=jnp.zeros((B, k), bool),
    open=segments.max(1) > 0,
  )
  logits = _unflatten_beams(repeat(logits), k)
  return _extend_beams(model, sampler, beams, logits)


def _advance(model, params, sampler, lengths, beams: BeamState) -> BeamState:
  """Reads every beam's token, and writes one more."""
  B, k, room = beams.seen.shape
  step = _unflatten_beams(beams.history.count, k) - 1
  n = room - k * (beams.running['ids'].shape[-1] - 1)
  slots = n + step * k + jnp.arange(k)
  seen = beams.seen | (jnp.arange(room) == slots[..., None])
  logits, caches = model.apply(
    {'params': params}, beams.token, lengths[:, None] + step, beams.caches,
    beams.source, slots=slots, seen=seen, method=AlexaTM.decode_cached,
  )  # fmt: skip
  beams = beams.replace(caches=caches, seen=seen)
  return _extend_beams(model, sampler, beams, logits)
