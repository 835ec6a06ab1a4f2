"""Beam search over an explicit cache; letters as in decode.py, k beams.

Beams change places after every token; the cache stays. An input's row of it has
its prefix, then a slot for each beam and token: the token that beam j read at
step t is in slot n + t k + j, and each beam knows the slots that it descends
from. One product reads them for all beams.
"""

from __future__ import annotations

import functools

import flax.struct
import jax
import jax.numpy as jnp

from atm.inference.generate import prefill
from atm.inference.sampling import (
  History,
  Sampler,
  append_token,
  has_stopped,
  initial_history,
  process_logits,
)
from atm.model.transformer import AlexaTM

NO_SCORE = -1e9  # the score of what is no candidate


@flax.struct.dataclass
class BeamState:
  """k beams that are being written, and the k best that are finished.

  Attributes:
    caches, source: see Rows; B rows, n + k (T - 1) slots.
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
  """Leaves [B, m, ...] by index [B, k] to [B, k, ...]."""
  row = jnp.arange(len(index))[:, None]
  return jax.tree.map(lambda x: x[row, index], tree)


def _unflatten_beams(tree, k: int):
  return jax.tree.map(lambda x: x.reshape(len(x) // k, k, *x.shape[1:]), tree)


def _flatten_beams(tree):
  return jax.tree.map(
    lambda x: x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]), tree
  )


def _extend_beams(
  model, sampler: Sampler, beams: BeamState, logits
) -> BeamState:
  """Beams with one more token each, of logits [B, k, V].

  The 2 k best continuations are looked at: were k of them ends, as many would
  be left to go on with. An end counts if it is among the k best.
  """
  B, k, V = logits.shape
  end_id = model.config.end_id
  each = jax.nn.log_softmax(logits)
  scores = process_logits(sampler, beams.history, _flatten_beams(each), end_id)
  scores = _unflatten_beams(scores, k) + beams.running['score'][..., None]
  score, index = jax.lax.top_k(scores.reshape(B, -1), 2 * k)
  beam, token = index // V, (index % V).astype(jnp.int32)

  made = _gather_beams(beams.running, beam)
  past = append_token(
    sampler,
    _flatten_beams(_gather_beams(_unflatten_beams(beams.history, k), beam)),
    _flatten_beams(token),
  )
  ended = token == end_id
  hits = ended | _unflatten_beams(has_stopped(sampler, past), 2 * k)
  count = past.count[0]
  at = (jnp.arange(made['ids'].shape[-1]) == count - 1)[None, None]
  picked = each[jnp.arange(B)[:, None], beam, token]
  made = {
    'ids': jnp.where(at & ~ended[..., None], token[..., None], made['ids']),
    'log_probabilities': jnp.where(
      at, picked[..., None], made['log_probabilities']
    ),
    'length': made['length'] + ~ended,
    'count': made['count'] + 1,
    'score': score,
  }

  going = jnp.where(hits, score + NO_SCORE, score)
  going, kept = jax.lax.top_k(going, k)
  running = {**_gather_beams(made, kept), 'score': going}

  eager = sampler.early_stopping is True
  shut = ~beams.open | (beams.full.all(1) & eager)
  new = hits & (jnp.arange(2 * k) < k)
  ends = score / count.astype(jnp.float32) ** sampler.length_penalty
  ends = jnp.where(new & ~shut[:, None], ends, NO_SCORE)
  both = jax.tree.map(
    lambda a, b: jnp.concatenate([a, b], axis=1),
    (beams.finished, beams.full),
    ({**made, 'score': ends}, new & ~shut[:, None]),
  )
  _, best = jax.lax.top_k(both[0]['score'], k)
  finished, full = _gather_beams(both, best)

  reach = sampler.max_tokens if sampler.early_stopping == 'never' else count
  reach = jnp.where(sampler.length_penalty > 0, reach, count)
  hope = running['score'][:, :1] / reach**sampler.length_penalty
  worst = jnp.where(full, finished['score'].min(1, keepdims=True), NO_SCORE)
  open_ = beams.open & (hope > worst).any(1) & ~hits.all(1)
  if eager:
    open_ &= ~full.all(1)
  return beams.replace(
    seen=_gather_beams(beams.seen, _gather_beams(beam, kept)),
    token=_gather_beams(token, kept),
    history=_flatten_beams(_gather_beams(_unflatten_beams(past, 2 * k), kept)),
    running=running,
    finished=finished,
    full=full,
    open=open_,
  )


@functools.partial(jax.jit, static_argnames=('model', 'T', 'k', 'results'))
def beam_search(
  model, params, sampler, tokens, segments, prefix, lengths, T, k, results=1
):  # fmt: skip
  """The best of k beams by log-probability / tokens ** length_penalty.

  The choices, their order and when it ends are those of Hugging Face's
  `generate`, but for an input by itself: another in the batch changes nothing.

  Args:
    model, params, sampler, tokens, segments, prefix, lengths, T, results: see
      `generate`.
    k: beams.

  Returns:
    `generate`'s, and the scores [B, results].
  """
  beams = start_beams(
    model, params, sampler, tokens, segments, prefix, lengths, T, k
  )
  beams = jax.lax.while_loop(
    lambda beams: beams.open.any(),
    lambda beams: _advance(model, params, sampler, beams, lengths),
    beams,
  )
  best = jax.tree.map(lambda x: x[:, :results], beams.finished)
  names = ('ids', 'log_probabilities', 'length', 'count', 'score')
  return tuple(best[name] for name in names)


def start_beams(
  model, params, sampler, tokens, segments, prefix, lengths, T, k
) -> BeamState:
  """Beams with their first token; see `beam_search`."""
  B, n = prefix.shape
  room = n + k * (T - 1)  # nobody reads the last tokens
  logits, caches = prefill(
    model, params, tokens, segments, prefix, lengths, room
  )
  read = jnp.arange(room) < lengths[:, None, None]
  repeat = lambda x: jnp.repeat(x, k, axis=0)
  blank = {
    'ids': jnp.full((B, k, T), model.config.pad_id, jnp.int32),
    'log_probabilities': jnp.zeros((B, k, T), jnp.float32),
    'length': jnp.zeros((B, k), jnp.int32),
    'count': jnp.zeros((B, k), jnp.int32),
    'score': jnp.full((B, k), NO_SCORE),
  }
  only = jnp.where(jnp.arange(k) == 0, 0.0, NO_SCORE)  # all k are one as yet
  beams = BeamState(
    caches=caches,
    source=segments,
    seen=jnp.broadcast_to(read, (B, k, room)),
    token=jnp.zeros((B, k), jnp.int32),
    history=initial_history(model, sampler, repeat(prefix), repeat(lengths)),
    running={**blank, 'score': jnp.broadcast_to(only, (B, k))},
    finished=blank,
    full=jnp.zeros((B, k), bool),
    open=segments.max(1) > 0,
  )
  return _extend_beams(
    model, sampler, beams, _unflatten_beams(repeat(logits), k)
  )


def _advance(
  model, params, sampler: Sampler, beams: BeamState, lengths
) -> BeamState:
  """Every beam reads its token, and has one more."""
  B, k, room = beams.seen.shape
  step = _unflatten_beams(beams.history.count, k) - 1
  n = room - k * (beams.running['ids'].shape[-1] - 1)
  slots = n + step * k + jnp.arange(k)
  seen = beams.seen | (jnp.arange(room) == slots[..., None])
  logits, caches = model.apply(
    {'params': params},
    beams.token,
    lengths[:, None] + step,
    beams.caches,
    beams.source,
    slots=slots,
    seen=seen,
    method=AlexaTM.decode_cached,
  )
  return _extend_beams(
    model, sampler, beams.replace(caches=caches, seen=seen), logits
  )
