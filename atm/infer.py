"""Prompting a trained model: from Python, or a file in and JSONL out."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np

from atm import checkpoint, decode, optimizer, sharding, step
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
    vocabulary: its vocabulary.
    mesh, rules: where arrays live.
    step: updates it was trained for.
  """

  config: Config
  params: dict
  vocabulary: Vocabulary
  mesh: jax.sharding.Mesh
  rules: Rules
  step: int

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
    if mode not in MODES:
      raise ValueError(f'mode = {mode!r}.' + did_you_mean(str(mode), MODES))
    if max_tokens < 1:
      raise ValueError(f'max_tokens = {max_tokens}: expected 1 or more')
    max_tokens = min(max_tokens, self.config.positions)
    if isinstance(inputs, str):
      raise ValueError('inputs is one string: expected a list of strings')
    ids = [
      self.encode(x, mode) if isinstance(x, str) else list(x) for x in inputs
    ]
    for number, row in enumerate(ids):
      if not 1 <= len(row) <= self.config.positions:
        raise ValueError(
          f'input {number} has {len(row)} tokens: expected 1 to '
          f'Config.positions = {self.config.positions}'
        )
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

  def _batch(self, rows, max_tokens: int, batch_size: int) -> list[list[int]]:
    """Generates for a few rows, padded to lengths that recur.

    Lengths and batches grow in powers of two, so that few shapes compile.
    """
    c = self.config
    S = min(c.positions, _power_of_two(max(16, max(map(len, rows)))))
    T = min(c.positions, _power_of_two(max_tokens))
    B = min(_power_of_two(len(rows)), _power_of_two(batch_size))
    shards = self.mesh.size // self.mesh.shape['tensor']
    B = -(-B // shards) * shards
    tokens = np.full((B, S), c.pad_id, np.int32)
    segments = np.zeros((B, S), np.int32)
    for i, row in enumerate(rows):
      tokens[i, : len(row)] = row
      segments[i, : len(row)] = 1
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


def _power_of_two(n: int) -> int:
  return 1 << (n - 1).bit_length()


def load(
  directory: str, at_step: int | None = None, mesh=None, rules: Rules = Rules()
) -> Model:
  """A model from a MODEL_DIR.

  Args:
    directory: holds checkpoints/ and vocabulary/.
    at_step: which checkpoint; None takes the newest.
    mesh: default: all devices, data parallel.
    rules: logical to mesh axes.

  Raises:
    FileNotFoundError: there is no checkpoint, or not of that step.
  """
  if not os.path.isdir(os.path.join(directory, checkpoint.FOLDER)):
    raise FileNotFoundError(f'no checkpoints/ in MODEL_DIR = {directory!r}')
  mesh = sharding.mesh() if mesh is None else mesh
  checkpoints = checkpoint.Checkpoints(directory)
  steps = checkpoints.steps()
  if not steps or at_step not in (None, *steps):
    raise FileNotFoundError(
      f'no checkpoint {"" if at_step is None else f"of step {at_step} "}in '
      f'{checkpoints.directory}; steps there: {steps or "none"}'
    )
  number = steps[-1] if at_step is None else at_step
  config = Config(**checkpoints.meta(number)['model'])
  tx = optimizer.make(optimizer.Config())
  abstract = step.abstract_state(AlexaTM(config), tx, mesh, rules)
  params = checkpoints.restore_params(number, abstract.params)
  checkpoints.close()
  words = Vocabulary(os.path.join(directory, 'vocabulary'))
  return Model(config, params, words, mesh, rules, number)


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
      f'{int(left) // 60}:{int(left) % 60:02d} left'
    )

  texts = [row['input'] for row in rows]
  made = model.generate(texts, mode, max_tokens, batch_size, progress)
  with open(output + '.tmp', 'w', encoding='utf-8') as f:
    for row, text in zip(rows, made):
      f.write(json.dumps({**row, 'output': text}, ensure_ascii=False) + '\n')
  os.replace(output + '.tmp', output)
  say(f'wrote {output}')
  return output
