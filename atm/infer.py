"""Prompting a trained model: from Python, or a file in and JSONL out."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from atm import (
  checkpoint,
  decode,
  hf,
  intact,
  layouts,
  metrics,
  sharding,
  step,
)
from atm.model import AlexaTM, Config
from atm.sharding import Rules, did_you_mean
from atm.vocabulary import Vocabulary

MODES = ('clm', 'denoise')


@dataclasses.dataclass
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
    with sharding.use(self.mesh, self.rules):
      out = _logits(
        AlexaTM(self.config),
        self.params,
        encoder_ids.astype(np.int32),
        decoder_ids.astype(np.int32),
        (np.asarray(encoder_mask) > 0).astype(np.int32),
      )
    return np.asarray(out)

  def score(
    self, inputs, targets, mode: str = 'clm', batch_size: int = 32
  ) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities of targets, teacher-forced.

    Args:
      inputs: texts, or lists of encoder ids, to which nothing is added.
      targets: texts, which end in `</s>`, or lists of ids, scored as they are.
      mode: see `generate`.
      batch_size: pairs scored at a time.

    Returns:
      (summed log-probabilities float64 [N], token counts int [N]), a pair each.

    Raises:
      ValueError: not as many targets as inputs, or one is too long or empty.
    """
    if len(inputs) != len(targets):
      raise ValueError(f'{len(inputs)} inputs, but {len(targets)} targets')
    source = self._ids(inputs, mode)
    target = self._ids(targets, None)
    total = np.zeros(len(source))
    counts = np.array([len(row) for row in target], np.int64)
    order = sorted(range(len(source)), key=lambda i: len(source[i]))
    for start in range(0, len(order), batch_size):
      chosen = order[start : start + batch_size]
      total[chosen] = self._score(
        [source[i] for i in chosen], [target[i] for i in chosen], batch_size
      )
    return total, counts

  def _score(self, sources, targets, batch_size: int) -> np.ndarray:
    c = self.config
    tokens, segments = self._pad(sources, len(sources), batch_size)
    B = len(tokens)
    T = min(c.positions, _power_of_two(max(16, max(map(len, targets)))))
    inputs, labels = np.full((2, B, T), c.pad_id, np.int32)
    weights = np.zeros((B, T), np.float32)
    inputs[:, 0] = c.start_id
    for i, row in enumerate(targets):
      labels[i, : len(row)] = row
      inputs[i, 1 : len(row)] = row[:-1]
      weights[i, : len(row)] = 1
    batch = {
      'encoder_input_tokens': tokens,
      'encoder_segment_ids': segments,
      'decoder_input_tokens': inputs,
      'decoder_segment_ids': np.ones_like(inputs),
      'decoder_target_tokens': labels,
      'decoder_loss_weights': weights,
    }
    batch = sharding.place(batch, self.mesh, self.rules)
    with sharding.use(self.mesh, self.rules):
      sums = _losses(AlexaTM(c), self.params, batch)
    return -np.asarray(sums['loss'])[: len(targets)]

  def _ids(self, inputs, mode: str | None) -> list[list[int]]:
    """Ids of texts or ids; mode None encodes texts as targets.

    Raises:
      ValueError: see `generate`.
    """
    if mode not in (None, *MODES):
      raise ValueError(f'mode = {mode!r}.' + did_you_mean(str(mode), MODES))
    if isinstance(inputs, str):
      raise ValueError('inputs is one string: expected a list of strings')
    ids = []
    for number, x in enumerate(inputs):
      if isinstance(x, str) and self.vocabulary is None:
        raise ValueError('this model has no tokenizer: give lists of ids')
      if not isinstance(x, str):
        row = [int(i) for i in x]
      elif mode is None:
        row = [*self.vocabulary.encode(x), self.config.end_id]
      else:
        row = self.encode(x, mode)
      if not 1 <= len(row) <= self.config.positions:
        raise ValueError(
          f'input {number} has {len(row)} tokens: expected 1 to '
          f'Config.positions = {self.config.positions}'
        )
      wrong = [i for i in row if not 0 <= i < self.config.vocab_size]
      if wrong:
        raise ValueError(
          f'input {number} has the id {wrong[0]}: expected 0 to '
          f'{self.config.vocab_size - 1}'
        )
      ids.append(row)
    return ids

  def encode(self, text: str, mode: str = 'clm') -> list[int]:
    """The encoder ids of a text: `<s> [CLM] text </s>`, or without `[CLM]`."""
    v = self.vocabulary
    marker = [v.clm_id] if mode == 'clm' else []
    return [v.bos_id, *marker, *v.encode(text), v.eos_id]

  def generate(
    self,
    inputs: Sequence[str] | Sequence[Sequence[int]],
    mode: str = 'clm',
    max_tokens: int = 64,
    batch_size: int = 32,
    progress: Callable[[int, int], None] = lambda done, tokens: None,
  ) -> list[str] | list[list[int]]:
    """Greedy generation.

    Args:
      inputs: texts, or lists of encoder ids, to which nothing is added.
      mode: 'clm' puts `[CLM]` in front and continues the text; 'denoise'
        returns the text completed. Without effect on ids.
      max_tokens: at most this many a generation, and never more than
        Config.positions.
      batch_size: inputs decoded at a time, those of a like length together.
      progress: called with (inputs done, tokens written) after each batch.

    Returns:
      Texts for texts, ids for ids (without start, end and padding), in order.

    Raises:
      ValueError: an unknown mode, or an input longer than Config.positions,
        which it names.
    """
    if max_tokens < 1:
      raise ValueError(f'max_tokens = {max_tokens}: expected 1 or more')
    max_tokens = min(max_tokens, self.config.positions)
    ids = self._ids(inputs, mode)
    out: list[list[int]] = [[]] * len(ids)
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    done = written = 0
    for start in range(0, len(order), batch_size):
      chosen = order[start : start + batch_size]
      rows = self._batch([ids[i] for i in chosen], max_tokens, batch_size)
      for i, row in zip(chosen, rows):
        out[i] = row
        written += len(row)
      done += len(chosen)
      progress(done, written)
    return [
      self.vocabulary.decode(row) if isinstance(x, str) else row
      for x, row in zip(inputs, out)
    ]

  def _pad(self, rows, count: int, batch_size: int) -> tuple:
    """Rows of ids to (tokens, segments) [B, S] of sizes that recur.

    Lengths and batches grow in powers of two, so that few shapes compile.
    """
    c = self.config
    S = min(c.positions, _power_of_two(max(16, max(map(len, rows)))))
    B = min(_power_of_two(count), _power_of_two(batch_size))
    shards = self.mesh.size // self.mesh.shape['tensor']
    B = -(-B // shards) * shards
    tokens = np.full((B, S), c.pad_id, np.int32)
    segments = np.zeros((B, S), np.int32)
    for i, row in enumerate(rows):
      tokens[i, : len(row)] = row
      segments[i, : len(row)] = 1
    return tokens, segments

  def _batch(self, rows, max_tokens: int, batch_size: int) -> list[list[int]]:
    """Generates for a few rows."""
    c = self.config
    T = min(c.positions, _power_of_two(max_tokens))
    tokens, segments = self._pad(rows, len(rows), batch_size)
    batch = {'tokens': tokens, 'segments': segments}
    batch = sharding.place(batch, self.mesh, self.rules)
    with sharding.use(self.mesh, self.rules):
      made, length = decode.greedy(
        AlexaTM(c), self.params, batch['tokens'], batch['segments'], T
      )
    made, length = np.asarray(made), np.asarray(length)
    return [
      made[i, : min(length[i], max_tokens)].tolist() for i in range(len(rows))
    ]


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


@functools.partial(jax.jit, static_argnums=0)
def _losses(model, params, batch):
  return step.forward(model, params, batch)


def _power_of_two(n: int) -> int:
  return 1 << (n - 1).bit_length()


def load(
  directory: str,
  at_step: int | None = None,
  mesh=None,
  rules: Rules = Rules(),
  dtype: str | None = None,
) -> Model:
  """A model from a MODEL_DIR or from a Hugging Face folder.

  Args:
    directory: holds checkpoints/ and vocabulary/, or config.json and weights.
    at_step: which checkpoint; None takes the newest.
    mesh: default: all devices, data parallel.
    rules: logical to mesh axes.
    dtype: of activations: 'float32' or 'bfloat16'; None takes the model's own.

  Raises:
    FileNotFoundError: there is no model, or no checkpoint of that step.
    integrity.Damaged: it is not what was saved; names steps that are.
    layouts.WeightsError: a Hugging Face folder that is not sound.
  """
  mesh = sharding.mesh() if mesh is None else mesh
  if os.path.exists(os.path.join(directory, 'config.json')):
    return _load_hf(directory, mesh, rules, dtype)
  checkpoints, number = checkpoint.open_step(directory, at_step)
  with intact.naming_intact(checkpoints):
    config = Config(**checkpoints.meta(number)['model'])
    config = dataclasses.replace(config, dtype=dtype or config.dtype)
    abstract = step.abstract_params(AlexaTM(config), mesh, rules)
    params = checkpoints.restore_params(number, abstract, as_saved=True)
  checkpoints.close()
  folder = os.path.join(directory, 'vocabulary')
  words = Vocabulary(folder) if os.path.isdir(folder) else None
  return Model(config, params, words, mesh, rules, number)


def _load_hf(directory: str, mesh, rules: Rules, dtype: str | None) -> Model:
  described = hf.read_json(os.path.join(directory, 'config.json'))
  config = layouts.config_of(described, dtype or 'float32')
  abstract = step.abstract_params(AlexaTM(config), mesh, rules)
  layout = layouts.LAYOUTS[layouts.model_type(described)]
  reader = hf.Reader(hf.Folder(directory), layout, abstract)
  params = hf.nested(dict(reader.arrays()))
  tokenizer = hf.find_tokenizer(directory)
  words = Vocabulary(tokenizer) if tokenizer else None
  return Model(config, params, words, mesh, rules, 0)


def read_inputs(path: str) -> list[dict]:
  """The lines of a text file, or of JSONL with an `input` (or `text`) each.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: a line is not UTF-8 or not such an object; names the line.
  """
  if not os.path.exists(path):
    raise FileNotFoundError(f'INPUT = {path!r}: no such file')
  rows = []
  with open(path, 'rb') as f:
    for number, raw in enumerate(f, 1):
      try:
        line = raw.decode('utf-8').rstrip('\r\n')
        if not path.endswith('.jsonl'):
          rows.append({'input': line})
        elif line.strip():
          row = json.loads(line)
          text = row['input'] if 'input' in row else row['text']
          if not isinstance(text, str):
            raise TypeError
          rows.append({**row, 'input': text})
      except (ValueError, KeyError, TypeError) as e:
        raise ValueError(
          f'{path}, line {number}: expected UTF-8'
          + (' JSON with a string `input`' if path.endswith('.jsonl') else '')
          + f'; got {raw[:60]!r}'
        ) from e
  return rows


def infer(
  model_dir: str,
  input: str,
  output: str | None = None,
  mode: str = 'clm',
  max_tokens: int = 64,
  batch_size: int = 32,
  at_step: int | None = None,
  make_mesh: Callable = sharding.mesh,
  rules: Rules = Rules(),
  say: Callable[[str], None] = print,
) -> str:
  """A file of prompts in, JSONL out: each row with its `output` added.

  Args:
    model_dir: the trained model's.
    input: a text file, a prompt a line, or .jsonl with an `input` a line;
      other fields are kept.
    output: default: the input's name with `.out.jsonl`. Written whole or not
      at all.
    mode, max_tokens, batch_size: see `Model.generate`.
    at_step: which checkpoint; None takes the newest.
    make_mesh: called without arguments.
    rules: logical to mesh axes.
    say: prints a line.

  Returns:
    The path written.
  """
  rows = read_inputs(input)
  output = output or os.path.splitext(input)[0] + '.out.jsonl'
  model = load(model_dir, at_step, make_mesh(), rules)
  say(f'step {model.step:,} of {model_dir}: {len(rows):,} inputs, mode {mode}')
  start = time.perf_counter()

  def progress(done: int, tokens: int):
    seconds = time.perf_counter() - start
    left = seconds / done * (len(rows) - done)
    say(
      f'{done:,}/{len(rows):,}  {tokens / seconds:,.0f} tokens/s  '
      f'{metrics.clock_text(left)} left'
    )

  texts = [row['input'] for row in rows]
  made = model.generate(texts, mode, max_tokens, batch_size, progress)
  with open(output + '.tmp', 'w', encoding='utf-8') as f:
    for row, text in zip(rows, made):
      f.write(json.dumps({**row, 'output': text}, ensure_ascii=False) + '\n')
  os.replace(output + '.tmp', output)
  say(f'wrote {output}')
  return output
