"""Prompting a trained model from Python."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from atm.checkpoint import pretrained
from atm.data.vocabulary import Vocabulary
from atm.inference import (
  bucketing,
  loglikelihood,
  prompts,
  sampling,
  stop_strings,
)
from atm.inference import generate as generate_lib
from atm.messages import check_choice
from atm.model.config import Config
from atm.model.transformer import AlexaTM
from atm.parallel import mesh as mesh_lib
from atm.parallel import sharding
from atm.parallel.sharding import Rules


@dataclasses.dataclass
class Generation:
  """One output of `Model.complete`.

  Attributes:
    text: prefix and tokens decoded, up to a stop string; None where the model
      has no tokenizer.
    ids: the tokens, without prefix, start and end.
    log_probabilities: by the model, of each of `ids` and of the end token,
      where there is one.
    score: of beam search, else the sum of the log-probabilities.
  """

  text: str | None
  ids: list[int]
  log_probabilities: list[float]
  score: float


@dataclasses.dataclass(eq=False)
class Model:
  """A trained model with its vocabulary, ready to generate.

  Attributes:
    config: the model's sizes.
    params: its parameters, sharded over `mesh`.
    vocabulary: its vocabulary, or None where it came without.
    mesh, rules: where arrays live.
    step: updates it was trained for.
  """

  config: Config
  params: dict
  vocabulary: Vocabulary | None
  mesh: jax.sharding.Mesh
  rules: Rules
  step: int

  @functools.cached_property
  def _ready(self) -> dict:
    with sharding.use_mesh(self.mesh, self.rules):
      return generate_lib.prepare_params(AlexaTM(self.config), self.params)

  def logits(self, encoder_ids, decoder_ids, encoder_mask=None) -> np.ndarray:
    """Logits of every next token, teacher-forced.

    Args:
      encoder_ids: [B, S] integers.
      decoder_ids: [B, T] integers, the decoder's inputs: they begin with
        Config.start_id.
      encoder_mask: [B, S], 0 on padding; default: no padding.

    Returns:
      float32 [B, T, V].
    """
    encoder_ids, decoder_ids = map(np.asarray, (encoder_ids, decoder_ids))
    if encoder_mask is None:
      encoder_mask = np.ones_like(encoder_ids)
    with sharding.use_mesh(self.mesh, self.rules):
      out = _logits(
        AlexaTM(self.config),
        self.params,
        encoder_ids.astype(np.int32),
        decoder_ids.astype(np.int32),
        (np.asarray(encoder_mask) > 0).astype(np.int32),
      )
    return _fetched(out)

  def score(
    self, inputs, targets, mode: str = 'clm', batch_size: int = 32
  ) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities of targets, teacher-forced.

    Args:
      inputs: texts, or lists of encoder ids, to which nothing is added;
        padding on either side of them is dropped.
      targets: texts, which end in `</s>`, or lists of ids, scored as they are.
      mode: see `generate`.
      batch_size: pairs scored at a time.

    Returns:
      (summed log-probabilities float64 [N], token counts int [N]), a pair each.

    Raises:
      ValueError: not as many targets as inputs, or one is too long or empty.
    """
    return self.likelihoods(inputs, targets, None, mode, batch_size)[:2]

  def likelihoods(
    self,
    inputs,
    targets,
    given: Sequence[int] | None = None,
    mode: str = 'clm',
    batch_size: int = 32,
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`score`, of the ends of targets, and whether these are the likeliest.

    Args:
      inputs, targets, mode, batch_size: see `score`.
      given: how many of each target's first tokens the decoder reads, but are
        not scored; None: all are scored.

    Returns:
      (summed log-probabilities float64 [N], tokens scored int [N], bool [N]),
      a pair each; True where no token has a greater logit than one scored, in
      its place, so that greedy decoding writes them.

    Raises:
      ValueError: see `score`; or nothing of a target is left to score.
    """
    if len(inputs) != len(targets):
      raise ValueError(f'{len(inputs)} inputs, but {len(targets)} targets')
    source = self.ids(inputs, mode)
    target = self.ids(targets, None)
    given = [0] * len(target) if given is None else given
    counts = np.array([len(row) - n for row, n in zip(target, given)], np.int64)
    for i, (row, n) in enumerate(zip(target, given, strict=True)):
      if not 0 <= n < len(row):
        raise ValueError(f'given[{i}] = {n}: expected 0 to {len(row) - 1}')
    total, greedy = np.zeros(len(source)), np.zeros(len(source), bool)
    rows = loglikelihood.pack_targets(source, target, self.config.positions)
    for start in range(0, len(rows), batch_size):
      some = rows[start : start + batch_size]
      found = self._by_token(some, target, batch_size)
      for row, logs, likeliest in zip(some, *found):
        for i, *sums in loglikelihood.sum_targets(
          row, target, given, logs, likeliest
        ):
          total[i], greedy[i] = sums
    return total, counts, greedy

  def _by_token(self, rows, targets, batch_size: int) -> list[np.ndarray]:
    """(log-probabilities, whether likeliest), each [B, T], of packed rows."""
    c = self.config
    tokens, segments = self._pad(
      [row.source for row in rows], len(rows), batch_size
    )
    longest = max(row.length for row in rows)
    T = loglikelihood.padded_length(longest)
    batch = {
      'encoder_input_tokens': tokens,
      'encoder_segment_ids': segments,
      **loglikelihood.decoder_batch(rows, targets, (len(tokens), T), c),
    }
    batch = sharding.shard_batch(batch, self.mesh, self.rules)
    with sharding.use_mesh(self.mesh, self.rules):
      made = loglikelihood.score_tokens(AlexaTM(c), self.params, batch)
    return list(map(_fetched, made))

  def ids(self, inputs, mode: str | None) -> list[list[int]]:
    """What the model reads of each input, or, mode None, of each target.

    Raises:
      ValueError: see `complete`.
    """
    if mode is not None:
      check_choice('mode', mode, prompts.MODES)
    if isinstance(inputs, str):
      raise ValueError('inputs is one string: expected a list of strings')
    ids = []
    for number, x in enumerate(inputs):
      if isinstance(x, str) and self.vocabulary is None:
        raise ValueError('this model has no tokenizer: give lists of ids')
      if not isinstance(x, str):
        row = self._stripped(x, mode)
      elif mode is None:
        row = [*self.vocabulary.encode(x), self.config.end_id]
      else:
        row = self.encode(x, mode)
      if not 1 <= len(row) <= self.config.positions:
        raise ValueError(
          f'input {number} has {len(row)} tokens: expected 1 to '
          f'Config.positions = {self.config.positions}'
        )
      ids.append(self._known(row, f'input {number}'))
    return ids

  def _known(self, ids: list[int], what: str) -> list[int]:
    """The ids; raises ValueError where the vocabulary has not one of them."""
    last = self.config.vocab_size - 1
    for i in ids:
      if not 0 <= i <= last:
        raise ValueError(f'{what} has the id {i}: expected 0 to {last}')
    return ids

  def _stripped(self, ids, mode: str | None) -> list[int]:
    """Ids without padding on either side; targets (mode None) as they are."""
    row, pad = [int(i) for i in ids], self.config.pad_id
    while mode is not None and len(row) > 1 and pad in (row[0], row[-1]):
      row = row[1:] if row[0] == pad else row[:-1]
    return row

  def encode(self, text: str, mode: str = 'clm') -> list[int]:
    """The encoder ids of a text: `<s> [CLM] text </s>`, or without `[CLM]`."""
    return self.framed(self.vocabulary.encode(text), mode)

  def framed(self, ids: Sequence[int], mode: str = 'clm') -> list[int]:
    """The encoder ids of a text of these ids, as `encode` has them."""
    v = self.vocabulary
    marker = [v.clm_id] if mode == 'clm' else []
    return [v.bos_id, *marker, *ids, v.eos_id]

  def generate(
    self,
    inputs: Sequence[str] | Sequence[Sequence[int]],
    mode: str = 'clm',
    batch_size: int = 32,
    **options,
  ) -> list[str] | list[list[int]]:
    """The best generation of each input, see `complete`.

    Args:
      inputs, mode, batch_size: see `complete`.
      options: `prefixes`, `stop`, `banned` of `complete`, and the fields of
        `sampling.Config`, greedy by default.

    Returns:
      Texts for texts, ids for ids (without start, end and padding), in order.

    Raises:
      ValueError: see `complete`; or an option of another name.
    """
    known = ('prefixes', 'stop', 'banned')
    fields = [field.name for field in dataclasses.fields(sampling.Config)]
    for name in options:
      check_choice('option', name, (*known, *fields))
    config = sampling.Config(
      **{k: v for k, v in options.items() if k not in known}
    )
    made = self.complete(
      inputs, mode, config, batch_size=batch_size,
      **{k: v for k, v in options.items() if k in known},
    )  # fmt: skip
    return [
      best.text if isinstance(x, str) else best.ids
      for x, (best, *_) in zip(inputs, made)
    ]

  def complete(
    self,
    inputs: Sequence[str] | Sequence[Sequence[int]],
    mode: str = 'clm',
    config: sampling.Config = sampling.Config(),
    prefixes: Sequence | None = None,
    stop: Sequence[str] = (),
    banned: Sequence[str] | Sequence[Sequence[int]] = (),
    batch_size: int = 32,
    numbers: Sequence[int] | None = None,
  ) -> list[list[Generation]]:
    """Generations of each input, as many as config.results, the best first.

    Args:
      inputs: texts, or lists of encoder ids, to which nothing is added; padding
        on either side of them is dropped.
      mode: 'clm' puts `[CLM]` in front and continues the text; 'denoise'
        returns the text completed. Without effect on ids.
      config: how tokens are chosen.
      prefixes: what each output begins with: texts, or lists of ids.
      stop: strings that end an output, and are not in its text.
      banned: texts, or lists of ids, that no output has; a text is banned
        behind a space and without one.
      batch_size: inputs decoded at a time, those of a like length together.
      numbers: of the inputs, for sampling: an input's tokens depend on its
        number and the seed, not on the others. Default: 0, 1, ...

    Returns:
      A list for each input, in order.

    Raises:
      ValueError: an unknown mode, or an input, prefix or number of tokens that
        Config.positions has no room for, which it names.
    """
    ids = self.ids(inputs, mode)
    begun = self._prefixes(prefixes, len(ids))
    sampler = sampling.Sampler.from_config(
      config, self._banned(banned), self._stops(stop)
    )
    numbers = range(len(ids)) if numbers is None else numbers
    out: list[list[Generation]] = [[]] * len(ids)
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    for start in range(0, len(order), batch_size):
      chosen = order[start : start + batch_size]
      made = self._batch(
        *([rows[i] for i in chosen] for rows in (ids, begun, numbers)),
        config, sampler, batch_size,
      )  # fmt: skip
      for i, rows in zip(chosen, made):
        out[i] = [self._generation(begun[i], *row, stop) for row in rows]
    return out

  def translate(
    self,
    sentences: Sequence[str],
    to: str,
    shots: Sequence[tuple[str, str]] = (),
    mode: str = 'clm',
    **options,
  ) -> list[str]:
    """Translations, in the paper's 1-shot format.

    Args:
      sentences: texts.
      to: the target's language, a code or an English name of
        `languages.LANGUAGES`.
      shots: (sentence, translation) pairs to learn from; the paper has one.
      mode: one of `prompts.MODES`.
      options: see `generate`.
    """
    example = lambda text: {'sentence': text, 'language': to}
    return self.answers(
      prompts.TRANSLATION,
      list(map(example, sentences)),
      [{**example(x), 'translation': y} for x, y in shots],
      mode,
      **options,
    )

  def summarize(
    self,
    documents: Sequence[str],
    shots: Sequence[tuple[str, str]] = (),
    mode: str = 'clm',
    **options,
  ) -> list[str]:
    """Summaries, in the paper's 1-shot format; documents of over 550 tokens
    lose what is behind the last whole sentence of these.

    Args:
      documents: texts.
      shots: (document, summary) pairs to learn from; the paper has one.
      mode: one of `prompts.MODES`.
      options: see `generate`.
    """
    short = lambda text: prompts.cut_document(
      text, self.vocabulary.encode, self.vocabulary.decode
    )
    return self.answers(
      prompts.SUMMARY,
      [{'document': short(text)} for text in documents],
      [{'document': short(x), 'summary': y} for x, y in shots],
      mode,
      **options,
    )

  def answers(
    self, template: prompts.Template, queries, shots=(), mode='clm', **options
  ) -> list[str]:
    """Generated answers to queries of a template, cut as it says.

    Args:
      template: one of `prompts.TEMPLATES`, or another.
      queries: a dict of the template's fields each.
      shots: the same, with answers.
      mode: one of `prompts.MODES`.
      options: see `generate`; `stop` is the template's delimiter where the
        decoder writes nothing but the answer.
    """
    if self.vocabulary is None:
      raise ValueError('this model has no tokenizer: prompts are texts')
    texts = [prompts.build_prompt(template, query, shots) for query in queries]
    if mode == 'clm':
      options = {'stop': [template.cut], **options}
    made = self.generate(texts, mode, **options)
    return [
      prompts.extract_answer(template, output, mode, text)
      for text, output in zip(texts, made)
    ]

  def stream(
    self,
    text: str,
    mode: str = 'clm',
    config: sampling.Config = sampling.Config(),
    stop: Sequence[str] = (),
    number: int = 0,
  ) -> Iterator[str]:
    """The output of one input, as `complete` gives it, piece by piece.

    What could still be the beginning of a stop string, or is half a character,
    is held back until it is known.

    Args:
      text, mode, config, stop: see `complete`; greedy or sampled, one result.
      number: of the input, for sampling.

    Raises:
      ValueError: see `complete`; or beams or several results.
    """
    if config.beams > 1 or config.results > 1:
      raise ValueError(
        f'beams = {config.beams}, results = {config.results}: expected 1 of '
        'each where tokens are shown as they come'
      )
    shown, ids = '', []
    for token in self._tokens(self.ids([text], mode)[0], config, stop, number):
      ids.append(token)
      made = self.vocabulary.decode(ids)
      whole = stop_strings.cut_at_stop(made, stop)
      if whole != made:
        break
      sure = stop_strings.hold_back(made, stop)
      if sure.startswith(shown) and len(sure) > len(shown):
        yield sure[len(shown) :]
        shown = sure
    whole = stop_strings.cut_at_stop(self.vocabulary.decode(ids), stop)
    if len(whole) > len(shown):
      yield whole[len(shown) :]

  def _tokens(self, row, config, stop, number) -> Iterator[int]:
    """The ids of an output, each as soon as it is chosen."""
    c = self.config
    net = AlexaTM(c)
    room = min(config.max_tokens, c.positions - 1)
    sampler = sampling.Sampler.from_config(config, (), self._stops(stop))
    sampler = sampler.replace(max_tokens=np.int32(room))
    tokens, segments = self._pad([row], 1, 1)
    B = len(tokens)
    batch = dict(
      tokens=tokens, segments=segments, number=np.full(B, number, np.int32)
    )
    batch = sharding.shard_batch(batch, self.mesh, self.rules)
    with sharding.use_mesh(self.mesh, self.rules):
      rows = generate_lib.start_decoding(
        net, self._ready, sampler, batch['tokens'], batch['segments'],
        np.full((B, 1), c.start_id, np.int32), np.ones(B, np.int32),
        batch['number'], config.seed, T=bucketing.next_power_of_two(room),
      )  # fmt: skip
    length = 0
    while True:
      new = int(_fetched(rows.length)[0])
      if new > length:
        yield int(_fetched(rows.ids)[0, length])
      length = new
      if _fetched(rows.done)[0]:
        return
      with sharding.use(self.mesh, self.rules):  # not open while others run
        rows = generate_lib.decode_step(net, self._ready, sampler, rows)

  def _generation(self, prefix, ids, log_probabilities, score, stop):
    text = None
    if self.vocabulary is not None:
      text = stop_strings.cut_at_stop(
        self.vocabulary.decode([*prefix[1:], *ids]), stop
      )
    return Generation(text, ids, log_probabilities, score)

  def _prefixes(self, prefixes, count: int) -> list[list[int]]:
    """The decoder's first ids of each input, its start token included."""
    if prefixes is None:
      return [[self.config.start_id]] * count
    if len(prefixes) != count:
      raise ValueError(f'{count} inputs, but {len(prefixes)} prefixes')
    return [
      [self.config.start_id, *self._plain_ids(x, 'prefix')] for x in prefixes
    ]

  def _banned(self, banned) -> list[list[int]]:
    rows = []
    for x in banned:
      rows.append(self._plain_ids(x, 'banned'))
      if isinstance(x, str):
        rows.append(self.vocabulary.inside(x))
    return [row for row in rows if row and row != [self.config.end_id]]

  def _plain_ids(self, x, what: str) -> list[int]:
    """Ids of a text without special pieces, or the ids themselves."""
    if not isinstance(x, str):
      return self._known([int(i) for i in x], what)
    if self.vocabulary is None:
      raise ValueError(f'this model has no tokenizer: give {what} as ids')
    return self.vocabulary.encode(x)

  def _stops(self, stop: Sequence[str]):
    if not stop:
      return None
    if isinstance(stop, str):
      raise ValueError(f'stop = {stop!r}: expected a list of strings')
    if self.vocabulary is None:
      raise ValueError('this model has no tokenizer: stop strings need one')
    return self._stop_table(tuple(stop))

  @functools.cached_property
  def _stop_table(self):
    """`stop_strings.build_table` of stop strings, kept for the next batch."""
    pieces = self.vocabulary.spelling()
    pieces += [''] * (self.config.vocab_size - len(pieces))
    return functools.lru_cache(8)(
      functools.partial(stop_strings.build_table, pieces)
    )

  def _pad(self, rows, count: int, batch_size: int) -> tuple:
    """Rows of ids to (tokens, segments) [B, S] of `bucketing.encoder_shape`."""
    c, longest = self.config, max(map(len, rows))
    B, S = bucketing.encoder_shape(c, self.mesh, longest, count, batch_size)
    tokens = np.full((B, S), c.pad_id, np.int32)
    segments = np.zeros((B, S), np.int32)
    for i, row in enumerate(rows):
      tokens[i, : len(row)] = row
      segments[i, : len(row)] = 1
    return tokens, segments

  def _batch(self, rows, prefixes, numbers, config, sampler, batch_size: int):
    """(ids, log-probabilities, score) of each result of a few inputs."""
    c = self.config
    longest = max(map(len, prefixes))
    n, T, room = bucketing.decoder_shape(c, longest, config.max_tokens)
    sampler = sampler.replace(max_tokens=np.int32(room))
    tokens, segments = self._pad(rows, len(rows), batch_size)
    B = len(tokens)
    prefix = np.full((B, n), c.pad_id, np.int32)
    prefix[:, 0], lengths = c.start_id, np.ones(B, np.int32)
    number = np.zeros(B, np.int32)
    number[: len(rows)] = np.asarray(numbers, np.int64) % 2**31
    for i, row in enumerate(prefixes):
      prefix[i, : len(row)], lengths[i] = row, len(row)
    batch = dict(tokens=tokens, segments=segments, prefix=prefix,
                 lengths=lengths, number=number)  # fmt: skip
    batch = sharding.shard_batch(batch, self.mesh, self.rules)
    with sharding.use_mesh(self.mesh, self.rules):
      run, given, named = bucketing.select_program(
        AlexaTM(c), self._ready, sampler, batch, config, T
      )
      made = run(*given, **named)
    return _results(made, len(rows))


@functools.partial(jax.jit, static_argnums=0)
def _logits(model, params, tokens, decoder_tokens, segments):
  logits = model.apply(
    {'params': params},
    tokens,
    decoder_tokens,
    encoder_segment_ids=segments,
    decoder_segment_ids=jnp.ones_like(decoder_tokens),
    enable_dropout=False,
  )
  return logits.astype(jnp.float32)


def _results(made, count: int) -> list[list[tuple]]:
  """What decoding returned, as (ids, log-probabilities, score) of each."""
  ids, each, lengths, counts, *scores = map(_fetched, made)
  out = []
  for i in range(count):
    out.append([])
    for j, n in enumerate(lengths[i]):
      logs = each[i, j, : counts[i, j]]
      score = scores[0][i, j] if scores else logs.sum()
      out[-1].append((ids[i, j, :n].tolist(), logs.tolist(), float(score)))
  return out


def _fetched(x) -> np.ndarray:
  """An array of any mesh, whole on every host."""
  if jax.process_count() > 1:
    x = multihost_utils.process_allgather(x, tiled=True)
  return np.asarray(x)


def load(
  directory: str,
  at_step: int | None = None,
  mesh=None,
  rules: Rules = Rules(),
  dtype: str | None = None,
  weights: str | None = None,
) -> Model:
  """A model from a MODEL_DIR or from a Hugging Face folder.

  Args:
    directory: holds checkpoints/ and vocabulary/, or config.json and weights.
    at_step: which checkpoint; None takes the newest.
    mesh: default: all devices, data parallel.
    rules: logical to mesh axes.
    dtype: of activations: 'float32' or 'bfloat16'; None takes the model's own.
    weights: 'bfloat16' keeps parameters and activations in it: half the memory,
      and half to read for a token. None and 'float32' change nothing.

  Raises:
    FileNotFoundError: there is no model, or no checkpoint of that step.
    checksums.DamageError: it is not what was saved; names steps that are.
    hf_keys.WeightsError: a Hugging Face folder that is not sound.
  """
  mesh = mesh_lib.make_mesh() if mesh is None else mesh
  if weights is not None:
    check_choice('WEIGHTS', weights, ('float32', 'bfloat16'))
  found = pretrained.open_pretrained(directory, at_step)
  config = dataclasses.replace(found.config, dtype=dtype or found.config.dtype)
  params = found.read_params(mesh, rules)
  model = Model(config, params, found.vocabulary, mesh, rules, found.step)
  return cast_to_bfloat16(model) if weights == 'bfloat16' else model


@dataclasses.dataclass
class ModelSource:
  """Names a trained model and where its parameters are to live.

  The commands infer, score, chat, eval and lm_eval inherit these fields, so a
  user sets them alike on each.

  Attributes:
    model_dir: a run's MODEL_DIR, or a Hugging Face folder.
    at_step: the checkpoint to read; None: the newest.
    weights: 'bfloat16' halves the memory of parameters; None: as saved.
    make_mesh: builds the mesh. A function, because a mesh needs devices, which
      are not asked for before a command runs.
    rules: logical to mesh axes.
  """

  model_dir: str
  _: dataclasses.KW_ONLY
  at_step: int | None = None
  weights: str | None = None
  make_mesh: Callable[[], jax.sharding.Mesh] = mesh_lib.make_mesh
  rules: Rules = Rules()

  def load(self) -> Model:
    """Reads the model; raises what `load` raises."""
    return load(
      self.model_dir,
      self.at_step,
      self.make_mesh(),
      self.rules,
      weights=self.weights,
    )


def cast_to_bfloat16(model: Model) -> Model:
  """The model with weights and activations in bfloat16; it keeps no others."""

  def half(x):
    if x.dtype == jnp.bfloat16:
      return x
    out = x.astype(jnp.bfloat16)
    x.delete()  # one at a time, so that there are never two models
    return out

  config = dataclasses.replace(model.config, dtype='bfloat16')
  params = jax.tree.map(half, model.params)
  return dataclasses.replace(model, config=config, params=params)
