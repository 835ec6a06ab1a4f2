"""Chooses the next token of logits, by settings and what was written.

R rows, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import ClassVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from atm.data import counter_rng
from atm.inference import logits_processors
from atm.inference.given_fields import note_given
from atm.messages import (
  MOST_INT32,
  check_choice,
  check_fields,
  check_flag,
  check_number,
)
from atm.model.matmul import on_one_cpu


def check_early_stopping(value) -> bool | str | None:
  """Returns True, False, 'never' or None; else raises ValueError."""
  if value is None:
    return None
  if isinstance(value, str):
    return check_choice('early_stopping', value, ('never',))
  return check_flag('early_stopping', value)


def check_forced_eos(value) -> bool | None:
  """Returns True, False or None; raises ValueError for anything else."""
  return None if value is None else check_flag('forced_eos', value)


MOST_DRAFT = 255  # ids; from some tens on a pass takes longer than it spares
_NUMBERS = {
  'max_tokens': dict(least=1, most=MOST_INT32),
  'min_tokens': dict(least=0, most=MOST_INT32),
  'beams': dict(least=1, most=MOST_INT32),
  'results': dict(least=1, most=MOST_INT32),
  'length_penalty': dict(whole=False),
  'temperature': dict(least=0, whole=False),
  'top_k': dict(least=0, most=MOST_INT32),
  'top_p': dict(above=0, most=1, whole=False),
  'min_p': dict(least=0, most=1, whole=False),
  'repetition_penalty': dict(above=0, whole=False),
  'no_repeat_ngram_size': dict(least=0, most=MOST_INT32),
  'encoder_no_repeat_ngram_size': dict(least=0, most=MOST_INT32),
  'prompt_lookup_num_tokens': dict(least=0, most=MOST_DRAFT),
}


# Fields that `repr` leaves out at their defaults: earlier versions had none.
LATER = {
  'no_repeat_ngram_size': 0,
  'encoder_no_repeat_ngram_size': 0,
  'forced_eos': False,
}


@note_given
@dataclasses.dataclass(frozen=True)
class Config:
  """Settings of generation, greedy by default, as in the paper.

  None for a field is as if it were not given: `with_defaults` takes a model's
  own value for it, and the default stands where that has none.

  Names and meanings are those of Hugging Face's `generate`. Class and fields
  keep their names and order: `str` of them is hashed in .part files, and has
  the fields of LATER only where they are set.

  Attributes:
    max_tokens: at most this many a generation, its end token included.
    min_tokens: no end token before this many.
    beams: beam search with so many; 1: none.
    results: generations of each input, the best first; at most `beams`, or,
      where tokens are sampled, any number.
    length_penalty: a beam's score is its log-probability over its tokens to
      this power.
    early_stopping: of beams: True ends as soon as `beams` are finished, False
      where no running one could be better at its length now, 'never' where
      none could be at any length.
    temperature: 0 takes the likeliest token; else tokens are sampled, with
      logits divided by it.
    top_k: sample among this many likeliest tokens only; 0: all.
    top_p: among the likeliest that together have this probability.
    min_p: among those with this share of the likeliest one's probability.
    repetition_penalty: divides positive logits of tokens already written, and
      multiplies negative ones.
    seed: of sampling, together with the input's number.
    no_repeat_ngram_size: no so many tokens in a row are written twice, the
      decoder's first ids included; 0: any may be.
    encoder_no_repeat_ngram_size: nor so many in a row that the encoder read.
    forced_eos: the last token that max_tokens allow is the end token.
    prompt_lookup_num_tokens: speculative decoding: up to so many tokens are
      looked up in the input and verified at once, see `prompt_lookup`; 0: none.
      Outputs are the same; not for beams.

  Raises:
    ValueError: a value out of its range, or results that cannot be.
  """

  max_tokens: int = 64
  min_tokens: int = 0
  beams: int = 1
  results: int = 1
  length_penalty: float = 1.0
  early_stopping: bool | str = False
  temperature: float = 0.0
  top_k: int = 0
  top_p: float = 1.0
  min_p: float = 0.0
  repetition_penalty: float = 1.0
  seed: int = 0
  no_repeat_ngram_size: int = 0
  encoder_no_repeat_ngram_size: int = 0
  forced_eos: bool = False
  # Not in `repr`: outputs do not depend on it.
  prompt_lookup_num_tokens: int = dataclasses.field(default=0, repr=False)

  given: ClassVar[frozenset[str]] = frozenset()
  checks: ClassVar[dict[str, Callable]] = {
    **{
      name: partial(check_number, name, **x, optional=True)
      for name, x in _NUMBERS.items()
    },
    'early_stopping': check_early_stopping,
    'seed': partial(
      check_number, 'seed', least=0, most=2**63 - 1, optional=True
    ),
    'forced_eos': check_forced_eos,
  }

  def __post_init__(self):
    check_fields(self)
    for field in dataclasses.fields(self):
      if getattr(self, field.name) is None:
        object.__setattr__(self, field.name, field.default)
    if self.beams > 1 and self.temperature:
      raise ValueError(
        f'beams = {self.beams} and temperature = {self.temperature}: expected '
        'beam search (temperature = 0) or sampling (beams = 1)'
      )
    if self.beams > 1 and self.prompt_lookup_num_tokens:
      raise ValueError(
        f'beams = {self.beams} and prompt_lookup_num_tokens = '
        f'{self.prompt_lookup_num_tokens}: expected beam search '
        '(prompt_lookup_num_tokens = 0) or speculative decoding (beams = 1)'
      )
    most = self.results if self.temperature else self.beams
    if self.results > most:
      raise ValueError(
        f'results = {self.results}: expected at most beams = {self.beams}, or '
        'a temperature above 0'
      )

  def __repr__(self) -> str:
    fields = dataclasses.fields(self)
    fields = {x.name: getattr(self, x.name) for x in fields if x.repr}
    shown = {k: v for k, v in fields.items() if v != LATER.get(k, ...)}
    return f'Config({", ".join(f"{k}={v!r}" for k, v in shown.items())})'

  def list_given(self) -> dict:
    """Returns the fields that were given, or are a model's own."""
    return {name: getattr(self, name) for name in sorted(self.given)}

  def with_defaults(self, defaults: Mapping) -> Config:
    """Returns these settings, with others where none were given.

    Args:
      defaults: fields, as a model has them. Its beams do not count where a
        temperature was given, nor its temperature or its
        prompt_lookup_num_tokens where beams were.
    """
    given = self.list_given()
    others = {k: v for k, v in defaults.items() if k not in given}
    if given.get('temperature'):
      others.pop('beams', None)
    elif given.get('beams', 1) > 1:
      others.pop('temperature', None)
      others.pop('prompt_lookup_num_tokens', None)
    return Config(**given, **others)

  @property
  def program_seed(self) -> int:
    """The seed as an int32: itself, or a hash where it is greater."""
    if self.seed <= MOST_INT32:
      return self.seed
    key = counter_rng.make_key(self.seed)
    return int(key.astype(np.uint32).view(np.int32))


@flax.struct.dataclass
class Sampler:
  """A Config as arrays, so that other values compile no other program.

  Attributes:
    banned: [N, M] ids of sequences that are not written, -1 in front of those
      shorter than M.
    stops: [states, V] of `stop_strings.build_table`, or None.
    sampled, cut, repeats: whether tokens are sampled, from a part of the
      vocabulary, and whether repetition counts.
    no_repeat_ngram_size, encoder_no_repeat_ngram_size, forced_eos: see Config;
      a program without them looks no further back than `banned` does.
  """

  max_tokens: jax.Array
  min_tokens: jax.Array
  length_penalty: jax.Array
  temperature: jax.Array
  top_k: jax.Array
  top_p: jax.Array
  min_p: jax.Array
  repetition_penalty: jax.Array
  banned: jax.Array
  stops: jax.Array | None
  sampled: bool = flax.struct.field(pytree_node=False)
  cut: bool = flax.struct.field(pytree_node=False)
  repeats: bool = flax.struct.field(pytree_node=False)
  early_stopping: bool | str = flax.struct.field(pytree_node=False)
  no_repeat_ngram_size: int = flax.struct.field(pytree_node=False)
  encoder_no_repeat_ngram_size: int = flax.struct.field(pytree_node=False)
  forced_eos: bool = flax.struct.field(pytree_node=False)

  @classmethod
  def from_config(cls, config: Config, banned=(), stops=None) -> Sampler:
    """Returns a Config's arrays, with those of ids and strings not to write."""
    array = lambda kind, names: {x: kind(getattr(config, x)) for x in names}
    # Powers of two, so that few shapes compile.
    size = lambda n: n and 1 << (n - 1).bit_length()
    longest = max((len(row) for row in banned), default=1)
    table = np.full((size(len(banned)), size(longest)), -1, np.int32)
    for out, row in zip(table, banned):
      out[-len(row) :] = row
    return cls(
      **array(np.int32, ('max_tokens', 'min_tokens', 'top_k')),
      **array(np.float32, ('length_penalty', 'temperature', 'top_p', 'min_p')),
      **array(np.float32, ('repetition_penalty',)),
      banned=table,
      stops=stops,
      sampled=config.temperature > 0,
      cut=config.top_k > 0 or config.top_p < 1 or config.min_p > 0,
      repeats=config.repetition_penalty != 1,
      early_stopping=config.early_stopping,
      **{name: getattr(config, name) for name in LATER},
    )

  @property
  def stop_end(self) -> int:
    """The state of `stops` that has read a stop string."""
    return len(self.stops) - 1

  def reach(self, room: int) -> int:
    """Returns how many of `room` decoder ids a token's choice looks back on."""
    return max(
      self.banned.shape[1] - 1,
      room if self.no_repeat_ngram_size else 0,
      self.encoder_no_repeat_ngram_size - 1,
    )


@flax.struct.dataclass
class History:
  """What choosing a token looks back on; R rows.

  Attributes:
    count: [R], tokens written.
    tail: [R, Sampler.reach], the decoder's last ids, -1 before its start.
    written: [R, V] bool, ids that the decoder has read or will; or None.
    state: [R] of the stops' table; or None.
    forced: [R], ids at the prefix's end that count as written; or None.
    read: [R, S], the encoder's ids, -1 on padding; or None.
  """

  count: jax.Array
  tail: jax.Array
  written: jax.Array | None
  state: jax.Array | None
  forced: jax.Array | None = None
  read: jax.Array | None = None

  @property
  def counted(self) -> jax.Array:
    """[R], tokens written, as lengths and their penalty count them."""
    return self.count if self.forced is None else self.count + self.forced


def initial_history(
  model, sampler: Sampler, prefix, lengths, room=0, source=None, forced=None
) -> History:
  """Returns the history of rows whose prefix [R, n] was prefilled.

  Args:
    model, sampler: what chooses tokens.
    prefix, lengths: the decoder's first ids, padded behind, and how many.
    room: how many decoder ids there may be.
    source: encoder ids and segments [B, S], of R / B rows each.
    forced: see History, but of [B].
  """
  R, n = prefix.shape
  M = sampler.reach(room)
  at = lengths[:, None] - M + jnp.arange(M)
  tail = jnp.take_along_axis(prefix, jnp.maximum(at, 0), axis=1)
  written = None
  if sampler.repeats:
    real = jnp.arange(n) < lengths[:, None]
    blank = jnp.zeros((R, model.config.vocab_size), bool)
    written = blank.at[jnp.arange(R)[:, None], prefix].max(real)
  none, state = jnp.zeros(R, jnp.int32), None
  if sampler.stops is not None:
    # Not what the prefix holds of a stop string, but whether it has any text.
    state = (sampler.stops[0, prefix] > 0).any(axis=1).astype(jnp.int32)
  read = None
  if sampler.encoder_no_repeat_ngram_size:
    read = jnp.where(source[1] > 0, source[0], -1)
  repeat = lambda x: jnp.repeat(x, R // len(x), axis=0)
  forced, read = jax.tree.map(repeat, (forced, read))
  tail = jnp.where(at < 0, -1, tail)
  return History(none, tail, written, state, forced, read)


def append_token(sampler: Sampler, history: History, token) -> History:
  """Returns the history with token [R] written."""
  written, state = history.written, history.state
  if written is not None:
    written = written.at[jnp.arange(len(token)), token].set(True)
  if state is not None:
    state = sampler.stops[state, token]
  tail = jnp.concatenate([history.tail, token[:, None]], axis=1)[:, 1:]
  return history.replace(
    count=history.count + 1, tail=tail, written=written, state=state
  )


def has_stopped(sampler: Sampler, history: History) -> jax.Array:
  """Returns [R]: a stop string was written, or there is no room for more."""
  full = history.counted >= sampler.max_tokens
  if history.state is None:
    return full
  return full | (history.state == sampler.stop_end)


def process_logits(sampler: Sampler, history: History, logits, end_id: int):
  """Applies penalties, bans and lengths to logits or their log softmax."""
  if sampler.repeats:
    logits = logits_processors.penalize_written(
      logits, history.written, sampler.repetition_penalty
    )
  if n := sampler.no_repeat_ngram_size:
    logits = logits_processors.ban_ngrams(logits, history.tail, history.tail, n)
  if n := sampler.encoder_no_repeat_ngram_size:
    logits = logits_processors.ban_ngrams(logits, history.read, history.tail, n)
  if sampler.banned.size:
    logits = logits_processors.ban_sequences(
      logits, history.tail, sampler.banned
    )
  logits = logits_processors.ban_early_end(
    logits, history.counted, sampler.min_tokens, end_id
  )
  if sampler.forced_eos:
    logits = logits_processors.force_end(
      logits, history.counted, sampler.max_tokens, end_id
    )
  return logits


def truncate_logits(sampler: Sampler, logits):
  """Sets logits [R, V] to -inf where top_k, top_p and min_p, in turn, cut."""
  return logits_processors.truncate(
    logits, sampler.top_k, sampler.top_p, sampler.min_p
  )


def adjust_logits(sampler: Sampler, history: History, logits, end_id: int):
  """Applies `process_logits`, and for sampling temperature and truncation."""
  logits = process_logits(sampler, history, logits, end_id)
  if sampler.sampled:
    logits /= sampler.temperature
    logits = truncate_logits(sampler, logits) if sampler.cut else logits
  return logits


def find_best(x) -> jax.Array:
  """Returns int32 [R], the place of each row's greatest value in x [R, V].

  As `jnp.argmax` it is the first of several, and the first NaN where one is.
  """
  if not on_one_cpu():
    return jnp.argmax(x, axis=-1).astype(jnp.int32)
  # XLA's CPU backend computes argmax value by value. Here x is read once, for
  # the greatest of each part; then parts are searched, and the first of them.
  R, V = x.shape
  size = max(n for n in range(1, 257) if V % n == 0)
  part = _find_first(x.reshape(R, V // size, size).max(-1))[:, None]
  places = part * size + jnp.arange(size, dtype=jnp.int32)
  found = _find_first(jnp.take_along_axis(x, places, axis=-1))
  return part[:, 0] * size + found


def _find_first(x) -> jax.Array:
  """Returns where the greatest value of each row is, the first of several."""
  is_best = (x == x.max(axis=-1, keepdims=True)) | (x != x)
  places = jnp.arange(x.shape[-1], dtype=jnp.int32)
  return jnp.where(is_best, places, x.shape[-1]).min(axis=-1)


def pick_log_probability(logits, token) -> jax.Array:
  """Returns the log-probabilities [R] of tokens [R] by logits [R, V].

  Those of other tokens are not written out.
  """
  top = logits.max(-1)
  picked = jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0]
  return picked - top - jnp.log(jnp.exp(logits - top[:, None]).sum(-1))


def choose_tokens(
  sampler: Sampler, history: History, keys, logits, end_id: int
):
  """Returns a token [R] a row, and its log-probability [R] by the model."""
  adjusted = adjust_logits(sampler, history, logits, end_id)
  if sampler.sampled:
    keys = jax.vmap(jax.random.fold_in)(keys, history.count)
    token = jax.vmap(jax.random.categorical)(keys, adjusted).astype(jnp.int32)
  else:
    token = find_best(adjusted)
  return token, pick_log_probability(logits, token)
