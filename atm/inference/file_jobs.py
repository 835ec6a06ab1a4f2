"""Prompts and scores whole files: `atm infer` and `atm score`.

Results go to a .part file beside the output as soon as they are computed, so a
run that was killed goes on where it was. The output itself is written whole, in
the order of the input, at the end.
"""

import contextlib
import dataclasses
import json
import os
import time
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar

from atm import fileio, messages
from atm.data import task_registry, text_lines, text_reader
from atm.inference import api, bucketing, framing, prompts, sampling
from atm.parallel import distributed


def read_inputs(
  path: str, required: Sequence[str] = ('input',), optional: Sequence[str] = ()
) -> tuple[list[dict], list[int]]:
  """Reads a row for each line of a text file, or for each object of JSON Lines.

  Args:
    path: see `text_reader`; `-` is standard input, a text a line.
    required: fields with a text; `text` may stand for `input`.
    optional: fields with a text, or without a value.

  Returns:
    (rows, their line numbers).

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: a line has no such row; names file and line.
  """
  if path not in text_lines.STDIN and not os.path.exists(path):
    raise FileNotFoundError(f'INPUT = {path!r}: no such file')
  rows, lines = [], []
  if text_lines.detect_text_format(path)[0] == 'jsonl':
    numbered = text_reader.read_objects(path)
  else:
    numbered = ((i, {'input': x}) for i, x in text_reader.read_text_lines(path))
  for number, row in numbered:
    row.setdefault('input', row.get('text'))  # a usual name of prompts
    for name in required:
      if not isinstance(row.get(name), str):
        names = ' and '.join(f'`{x}`' for x in required)
        raise ValueError(
          f'{path}, line {number}: expected JSON with a string {names}; '
          f'got {messages.quote(row)}'
        )
    for name in optional:
      place = f'{path}, line {number}: {name}'
      messages.check_text(place, row.get(name), optional=True)
    rows.append(row)
    lines.append(number)
  return rows, lines


def find_free_names(
  rows: Sequence[dict], added: Sequence[str]
) -> dict[str, str]:
  """Maps fields of rows that are called as one of `added` to free names.

  `output` becomes `given_output`, in all rows alike.
  """
  used, names = {name for row in rows for name in row}, {}
  for name in added:
    if name in used:
      names[name] = f'given_{name}'
      while names[name] in used:
        names[name] = f'given_{names[name]}'
  return names


def rename_fields(rows: Sequence[dict], names: dict[str, str]) -> list[dict]:
  """Returns rows with some fields called otherwise, in their order."""
  return [{names.get(k, k): v for k, v in row.items()} for row in rows]


def read_task(name: str, split: str, lengths: dict | None) -> list[dict]:
  """Returns a seqio task's examples, trimmed to the lengths of both sides.

  Each has `input` and `target`, texts for the output, and `input_ids` and
  `target_ids`, what the model reads and is scored on.
  """
  task = task_registry.find_task(name)
  rows = []
  with task_registry.shorten_tf_errors(name):
    dataset = task.get_dataset(
      lengths, split, shuffle=False, num_epochs=1, seed=0
    )
    for example in dataset.as_numpy_iterator():
      row = {}
      for side, field in (('inputs', 'input'), ('targets', 'target')):
        ids = [int(i) for i in example[side]]
        if (text := example.get(f'{side}_pretokenized')) is not None:
          text = text.decode('utf-8')
        else:
          text = task.output_features[side].vocabulary.decode(ids)
        row |= {field: text, f'{field}_ids': ids}
      rows.append(row)
  return rows


class PartialResults:
  """Results by row number, appended to a .part file as they are computed.

  Attributes:
    done: row number -> the fields that are added to the row.
    left: numbers of the rows without results.
  """

  def __init__(self, output: str, settings: dict, count: int):
    """Reads what an earlier run of the same settings left in `output`.part.

    Raises ValueError if it is of other settings, on which results depend, or
    is no such file.
    """
    self.output, self.part = output, output + '.part'
    self.done: dict[int, dict] = {}
    # What JSON does not know is hashed as `str` has it, so the names of
    # `sampling.Config` and of its fields are part of every .part file.
    mark = fileio.hash_json(settings)
    self._read(mark, count)
    self.left = [i for i in range(count) if i not in self.done]
    distributed.wait_for_all()  # all hosts have read it before one writes
    if distributed.is_main_process():
      with fileio.replacing(self.part, 'wb') as f:
        f.write(_json_bytes({'settings': mark, 'sealed': True}) + b'\n')
        f.writelines(_seal_row(i, row) for i, row in self.done.items())

  def _read(self, mark: str, count: int) -> None:
    """Reads rows that are done; those of damaged lines are done again."""
    if not os.path.exists(self.part):
      return
    fileio.check_regular(self.part)
    if not os.path.getsize(self.part):
      return
    with open(self.part, 'rb') as f:
      head, *lines = f.read().split(b'\n')
    head = _parse_object(head)
    if head.get('settings') != mark:
      raise ValueError(
        f'{self.part} is of a run with other settings or inputs, or is none of '
        'ours: delete it, or give another OUTPUT'
      )
    for line in lines[:-1]:  # a kill may have torn the last
      row = _parse_object(line)
      crc, number = row.pop('crc32', None), row.pop('row', None)
      if 'sealed' in head and crc != _checksum({'row': number, **row}):
        continue  # before there were seals, no row had one
      if number in range(count):
        self.done[number] = row

  def add(self, results: dict[int, dict]) -> None:
    """Keeps the results of some rows, on disk when this returns."""
    self.done |= results
    if distributed.is_main_process():
      with open(self.part, 'ab') as f:
        for number, row in results.items():
          f.write(_seal_row(number, row))
        f.flush()
        os.fsync(f.fileno())

  def discard_empty(self) -> None:
    """Removes the .part file while it holds no results."""
    if not self.done and distributed.is_main_process():
      os.remove(self.part)

  def finish(self, rows: Sequence[dict]) -> None:
    """Writes all rows with their results, in order, and removes the .part."""
    if not distributed.is_main_process():
      return
    with fileio.replacing(self.output, 'wb') as f:
      for number, row in enumerate(rows):
        f.write(_json_bytes({**row, **self.done[number]}) + b'\n')
    os.remove(self.part)


def _json_bytes(row: dict) -> bytes:
  return json.dumps(row, ensure_ascii=False).encode('utf-8')


def _seal_row(number: int, row: dict) -> bytes:
  """Returns the line of a row's results, with a checksum of them."""
  row = {'row': number, **row}
  return _json_bytes({**row, 'crc32': _checksum(row)}) + b'\n'


def _checksum(row: dict) -> int:
  return zlib.crc32(_json_bytes(row))


def _parse_object(line: bytes) -> dict:
  """Returns the object of a line of JSON; {} where it holds none."""
  with contextlib.suppress(ValueError):
    if isinstance(row := fileio.parse_json(line, ''), dict):
      return row
  return {}


def compute_missing(
  rows, lengths, results: PartialResults, chunk: int, compute, log
) -> None:
  """Computes rows without results, `chunk` at a time, and writes the output.

  `compute` takes row numbers and returns (results by number, tokens).
  """
  # Rows of like lengths go together, so that little of a batch is padding.
  order = sorted(results.left, key=lambda i: lengths[i])
  if len(order) < len(rows):
    log(f'{len(rows) - len(order):,} of {len(rows):,} were done before')
  start, tokens = time.perf_counter(), 0
  describe_left = lambda: (
    f'{len(results.done):,} of {len(rows):,} are in {results.part}; the same '
    'command goes on'
  )
  for at in range(0, len(order), chunk):
    with messages.note_work(describe_left):
      try:
        new, count = compute(order[at : at + chunk])
      except ValueError:  # a setting that only the model can refuse
        results.discard_empty()
        raise
      results.add(new)
    tokens += count
    done = min(at + chunk, len(order))
    seconds = time.perf_counter() - start
    left = seconds / done * (len(order) - done)
    log(
      f'{done:,}/{len(order):,}  {tokens / seconds:,.0f} tokens/s  '
      f'{messages.clock_text(left)} left'
    )
  results.finish(rows)


@dataclasses.dataclass
class FileJob(api.ModelSource):
  """Runs the rows of a file, or of a seqio task, through a model; JSONL out.

  Attributes:
    input: a text file, a prompt a line, or .jsonl with the fields of
      `required` a line; other fields are kept.
    output: default: the input's name with `suffix`.
    task, split, lengths: a seqio task instead of a file, see `read_task`.
    configure_tasks: called with vocabulary=FILE before the task is looked up.
    mode: how texts are framed, one of `prompts.MODES`.
    batch_size: rows at a time.
    say: prints a line.
    suffix, required, optional, added, counted: of a kind of job: the output's
      ending, fields of rows and of results, and the rows' name for readers.
  """

  input: str | None = None
  output: str | None = None
  task: str | None = None
  split: str = 'validation'
  lengths: dict | None = None
  configure_tasks: Callable = lambda **named: None
  mode: str = 'clm'
  batch_size: int = 32
  say: Callable[[str], None] = print

  suffix: ClassVar[str]
  required: ClassVar[tuple[str, ...]]
  optional: ClassVar[tuple[str, ...]] = ()
  added: ClassVar[tuple[str, ...]]
  counted: ClassVar[str]
  checks = api.ModelSource.checks | {
    'input': partial(messages.check_path, 'INPUT', optional=True),
    'output': partial(messages.check_path, 'OUTPUT', optional=True),
    'lengths': task_registry.check_task_lengths,
    'mode': partial(messages.check_choice, 'MODE', known=prompts.MODES),
    'batch_size': partial(messages.check_count, 'BATCH_SIZE'),
    'stop': partial(messages.check_texts, 'STOP', empty=False),
    'banned': framing.check_banned,
  }

  def run(self) -> str:
    """Writes the output and returns its path.

    Raises:
      FileNotFoundError: there is no input or no model.
      ValueError: a row is not as expected, or has no room in the model.
    """
    if (self.input is None) == (self.task is None):
      raise ValueError('expected one of INPUT, a file, and TASK, a seqio task')
    output = self._check_output()
    if self.task is None:  # wrong lines are named before a model is read
      rows, self._lines = read_inputs(self.input, self.required, self.optional)
    model = self.load()
    if self.task is not None:
      self.configure_tasks(vocabulary=model.vocabulary.path)
      rows = read_task(self.task, self.split, self.lengths)
    ids = self._encode(model, rows, 'input', self.mode)
    compute = self._prepare(model, rows, ids)
    settings = self._settings(model, rows)
    results = PartialResults(output, settings, len(rows))
    log = self.say if distributed.is_main_process() else lambda text: None
    log(
      f'step {model.step:,} of {self.model_dir}: {len(rows):,} {self.counted}, '
      f'mode {self.mode}'
    )
    if self.task is not None:  # ids are for the model, not for the reader
      rows = [{k: row[k] for k in row if k[-4:] != '_ids'} for row in rows]
    for own, name in find_free_names(rows, self.added).items():
      log(f'fields `{own}` of the input are written as `{name}`')
    rows = rename_fields(rows, find_free_names(rows, self.added))
    lengths = list(map(len, ids))
    compute_missing(rows, lengths, results, self.batch_size, compute, log)
    log(f'wrote {results.output}')
    return results.output

  def _check_output(self) -> str:
    """Returns the output's path; raises ValueError where it cannot be."""
    if self.output is None and self.input in text_lines.STDIN:
      raise ValueError(f'INPUT = {self.input!r}: OUTPUT = None has no name')
    output = self.output
    if output is None:
      name = self.task or text_lines.strip_endings(self.input)
      output = name + self.suffix
    if distributed.is_main_process():
      inputs = [self.input] if self.task is None else []
      is_ours = lambda line: {*self.added} <= _parse_object(line).keys()
      fileio.check_output('OUTPUT', output, inputs, is_ours)
      fileio.check_output('OUTPUT', output + '.part', inputs)
    return output

  def _encode(
    self, model: api.Model, rows, field: str, mode
  ) -> list[list[int]]:
    """Returns the ids of a field of rows; raises ValueError with the line."""
    if self.task is not None:
      return model.ids([row[f'{field}_ids'] for row in rows], mode)
    texts = [row[field] for row in rows]
    return self._by_line(lambda text: model.ids([text], mode)[0], texts, field)

  def _by_line(self, function: Callable, values: Sequence, what: str) -> list:
    """Maps a function over a field of rows; its errors name file and line."""
    results = []
    for i, value in enumerate(values):
      try:
        results.append(function(value))
      except ValueError as e:
        place = f'{self.input}, line {self._lines[i]}'
        text = str(e).replace('input 0 ', f'{what} ', 1)  # one at a time
        raise ValueError(f'{place}: {text}') from e
    return results

  def _settings(self, model: api.Model, rows: list[dict]) -> dict:
    """Returns all that the results depend on."""
    return dict(
      rows=rows, model=os.path.abspath(self.model_dir), step=model.step,
      mode=self.mode, weights=self.weights,
    )  # fmt: skip

  def _prepare(self, model: api.Model, rows: list[dict], ids) -> Callable:
    """Returns the `compute` of `compute_missing`; ids are the encoder's."""
    raise NotImplementedError


@dataclasses.dataclass
class InferJob(FileJob):
  """`atm infer`: each row of prompts with its `output` added.

  With config.results above 1 `output` is a list, the best first. A row's
  `prefix`, where it has one, begins its output.

  Attributes:
    config, stop, banned: see `api.Model.complete`.
  """

  config: sampling.Config = sampling.Config()
  stop: Sequence[str] = ()
  banned: Sequence[str] = ()

  suffix = '.out.jsonl'
  required = ('input',)
  optional = ('prefix',)
  added = ('output',)
  counted = 'inputs'

  def _settings(self, model, rows):
    settings = dict(config=self.config, stop=self.stop, banned=self.banned)
    # Not continued with results of the versions that cut prefixes.
    if self.stop and any(row.get('prefix') for row in rows):
      settings['stops_in_prefixes'] = False
    return super()._settings(model, rows) | settings

  def _prepare(self, model, rows, ids):
    prefixes = [row.get('prefix') or '' for row in rows]
    if any(prefixes):
      self._by_line(partial(self._encode_prefix, model), prefixes, '')

    def compute(numbers):
      begun = [prefixes[i] for i in numbers]
      generations = model.complete(
        [ids[i] for i in numbers], self.mode, self.config,
        begun if any(begun) else None, self.stop, self.banned, self.batch_size,
        numbers,
      )  # fmt: skip
      texts = [[x.text for x in row] for row in generations]
      outputs = texts if self.config.results > 1 else [row[0] for row in texts]
      results = {i: {'output': output} for i, output in zip(numbers, outputs)}
      return results, sum(len(x.ids) for row in generations for x in row)

    return compute

  def _encode_prefix(self, model: api.Model, text: str) -> list[int]:
    """Returns a prefix's ids; raises ValueError without room behind them."""
    ids = model.vocabulary.encode(text)
    bucketing.decoder_shape(model.config, 1 + len(ids), self.config.max_tokens)
    return ids


@dataclasses.dataclass
class ScoreJob(FileJob):
  """`atm score`: log-probabilities of given targets.

  Each row gets `log_probability`, in nats, the sum over the target's tokens,
  its end included, and `tokens`, how many these are.
  """

  suffix = '.scores.jsonl'
  required = ('input', 'target')
  added = ('log_probability', 'tokens')
  counted = 'targets'

  def _prepare(self, model, rows, ids):
    targets = self._encode(model, rows, 'target', None)

    def compute(numbers):
      pairs = [ids[i] for i in numbers], [targets[i] for i in numbers]
      totals, counts = model.score(*pairs, self.mode, self.batch_size)
      results = {
        i: {'log_probability': total, 'tokens': count}
        for i, total, count in zip(numbers, totals.tolist(), counts.tolist())
      }
      return results, int(counts.sum())

    return compute
