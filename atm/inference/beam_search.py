"""Beam search over an explicit cache; letters as in `generate`, and k beams.

Beams change places after every token; the cache does not, for copying it would
cost more than the token. An input's row of it has the prefix, then a slot for
each beam and token: what beam j read at step t is in slot n + t k + j, and each
beam knows the slots that it descends from. One product reads them for all
beams.
"""

import dataclasses
import functools

import flax.struct
import jax
import jax.numpy as jnp

from atm.inference import sampling
from atm.inference.generate import prefill
from atm.inference.sampling import History
from atm.model.quantized import JittedByWeights
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


def gather_beams(tree, index):
  """Returns leaves [B, k, ...], the beams `index` [B, k] of [B, m, ...]."""
  row = jnp.arange(len(index))[:, None]
  return jax.tree.map(lambda x: x[row, index], tree)


def unflatten_beams(tree, k: int):
  """Returns leaves [B, k, ...] of [B x k, ...]."""
  return jax.tree.map(lambda x: x.reshape(len(x) // k, k, *x.shape[1:]), tree)


def flatten_beams(tree):
  """Returns leaves [B x k, ...] of [B, k, ...]."""
  return jax.tree.map(
    lambda x: x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]), tree
  )


@dataclasses.dataclass(frozen=True)
class BeamRules:
  """What decides over beams where one Sampler is that of all inputs.

  A server's inputs each have settings of their own, and fewer beams than there
  are rows: it has other rules.

  Attributes:
    sampler: see Sampler.
    end_id: of the token that ends an output.
    k: beams of an input.
  """

  sampler: sampling.Sampler
  end_id: int
  k: int

  @property
  def own(self):
    """Beams of each input."""
    return self.k

  @property
  def length_penalty(self):
    """The power of a beam's tokens that its log-probability is divided by."""
    return self.sampler.length_penalty

  def limit(self, x, fill, times: int = 1):
    """Returns x [B, times x beams], `fill` past an input's own beams."""
    del fill, times
    return x

  def process(self, history: History, log_probabilities):
    """Applies penalties, bans and lengths to log-probabilities [B x k, V]."""
    return sampling.process_logits(
      self.sampler, history, log_probabilities, self.end_id
    )

  def branch(self, history: History, beam, token) -> History:
    """Returns the history of B x m rows: beams [B, m] with a token more."""
    history = gather_beams(unflatten_beams(history, self.k), beam)
    history, token = flatten_beams(history), flatten_beams(token)
    return self.append(history, token)

  def append(self, history: History, token) -> History:
    """Returns the history with token [B x m] written."""
    return sampling.append_token(self.sampler, history, token)

  def select(self, history: History, kept) -> History:
    """Returns the history of beams `kept` [B, k] of `branch`'s 2 k."""
    history = gather_beams(unflatten_beams(history, 2 * self.k), kept)
    return flatten_beams(history)

  def has_stopped(self, history: History):
    """Returns [B x m], see `sampling.has_stopped`."""
    return sampling.has_stopped(self.sampler, history)

  def count(self, history: History):
    """Returns how many tokens `branch`'s rows have written, [] or [B, 1, 1]."""
    return history.count[0]

  def counted(self, history: History, count):
    """Returns `count` with the forced tokens, [] or [B, 1]."""
    if history.forced is None:
      return count
    # Rows may differ in how many these are.
    return unflatten_beams(history.counted, 2 * self.k)[:, :1]

  def note(self, candidates: dict, beam, at) -> dict:
    """Returns what else is noted of candidates, beams [B, m] with a token more.

    `at` is the place of that token, [1 or B, 1, T].
    """
    del candidates, beam, at
    return {}

  def reach(self, count):
    """Returns the tokens at which a running beam's score is looked at."""
    never = self.sampler.early_stopping == 'never'
    return self.sampler.max_tokens if never else count

  @property
  def ends_early(self):
    """Whether an input ends as soon as all places are taken."""
    return self.sampler.early_stopping is True

  def close_full(self, is_open, full):
    """Returns is_open [B] without those that end early, as they are `full`."""
    return is_open & ~full.all(1) if self.ends_early else is_open


def extend_beams(rules: BeamRules, beams: BeamState, logits) -> BeamState:
  """Writes one more token to each beam, chosen of logits [B, k, V]."""
  k = logits.shape[1]
  log_probabilities = jax.nn.log_softmax(logits)
  # The 2 k best continuations are candidates: should k of them be ends, as many
  # are left to go on with.
  candidates, beam, token, history = _best_candidates(
    rules, beams, log_probabilities
  )
  ended = token == rules.end_id
  stopped = rules.has_stopped(history)
  hits = rules.limit(ended | unflatten_beams(stopped, 2 * k), True, 2)
  count = rules.count(history)
  at = jnp.arange(candidates['ids'].shape[-1]) == count - 1
  at = at[(None,) * (3 - at.ndim)]
  picked = log_probabilities[jnp.arange(len(token))[:, None], beam, token]
  write = lambda name, new, at: jnp.where(at, new[..., None], candidates[name])
  candidates |= {
    'ids': write('ids', token, at & ~ended[..., None]),
    'log_probabilities': write('log_probabilities', picked, at),
    'length': candidates['length'] + ~ended,
    'count': candidates['count'] + 1,
    **rules.note(candidates, beam, at),
  }
  going = jnp.where(hits, candidates['score'] + NO_SCORE, candidates['score'])
  going, kept = jax.lax.top_k(going, k)
  going = rules.limit(going, -jnp.inf)
  running = {**gather_beams(candidates, kept), 'score': going}
  count = rules.counted(history, count)
  finished, full = _finish_beams(rules, beams, candidates, hits, count)
  is_open = _is_open(rules, beams, running, finished, full, hits, count)
  gather = lambda tree: gather_beams(tree, kept)
  return beams.replace(
    seen=gather_beams(beams.seen, gather(beam)),
    token=gather(token),
    history=rules.select(history, kept),
    running=running,
    finished=finished,
    full=full,
    open=is_open,
  )


def _best_candidates(rules, beams: BeamState, log_probabilities):
  """Returns the 2 k best continuations of each input's beams.

  As (what BeamState.running has, with the new score; [B, 2 k] beams continued;
  [B, 2 k] tokens; histories of B x 2 k rows).
  """
  B, k, V = log_probabilities.shape
  scores = rules.process(beams.history, flatten_beams(log_probabilities))
  scores = unflatten_beams(scores, k) + beams.running['score'][..., None]
  score, index = jax.lax.top_k(scores.reshape(B, -1), 2 * k)
  score = rules.limit(score, -jnp.inf, 2)
  beam, token = index // V, (index % V).astype(jnp.int32)
  candidates = gather_beams(beams.running, beam)
  history = rules.branch(beams.history, beam, token)
  return {**candidates, 'score': score}, beam, token, history


def _finish_beams(rules, beams: BeamState, candidates, hits, count) -> tuple:
  """Returns `finished` and `full` with the candidates that end."""
  # As in Hugging Face's `generate`, an end counts if it is among the k best.
  shut = ~beams.open | (beams.full.all(1) & rules.ends_early)
  new = hits & (jnp.arange(hits.shape[1]) < rules.own)
  count = count.astype(jnp.float32)
  ends = candidates['score'] / count**rules.length_penalty
  ends = jnp.where(new & ~shut[:, None], ends, NO_SCORE)
  both = jax.tree.map(
    lambda a, b: jnp.concatenate([a, b], axis=1),
    (beams.finished, beams.full),
    ({**candidates, 'score': ends}, new & ~shut[:, None]),
  )
  _, best = jax.lax.top_k(both[0]['score'], beams.full.shape[1])
  finished, full = gather_beams(both, best)
  finished |= {'score': rules.limit(finished['score'], -jnp.inf)}
  return finished, rules.limit(full, True)


def _is_open(rules, beams: BeamState, running, finished, full, hits, count):
  """Returns [B], whether a running beam could still be among the k best."""
  reach = jnp.where(rules.length_penalty > 0, rules.reach(count), count)
  hope = running['score'][:, :1] / reach**rules.length_penalty
  scores = rules.limit(finished['score'], jnp.inf)
  worst = jnp.where(full, scores.min(1, keepdims=True), NO_SCORE)
  is_open = beams.open & (hope > worst).any(1) & ~hits.all(1)
  return rules.close_full(is_open, full)


@functools.partial(
  JittedByWeights,
  static_argnames=('model', 'T', 'k', 'results'),
)
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
  logits = unflatten_beams(repeat(logits), k)
  return extend_beams(BeamRules(sampler, model.config.end_id, k), beams, logits)


def _advance(model, params, sampler, lengths, beams: BeamState) -> BeamState:
  """Reads every beam's token, and writes one more."""
  B, k, room = beams.seen.shape
  step = unflatten_beams(beams.history.count, k) - 1
  n = room - k * (beams.running['ids'].shape[-1] - 1)
  slots = n + step * k + jnp.arange(k)
  seen = beams.seen | (jnp.arange(room) == slots[..., None])
  logits, caches = model.apply(
    {'params': params}, beams.token, lengths[:, None] + step, beams.caches,
    beams.source, slots=slots, seen=seen, method=AlexaTM.decode_cached,
  )  # fmt: skip
  beams = beams.replace(caches=caches, seen=seen)
  return extend_beams(BeamRules(sampler, model.config.end_id, k), beams, logits)
