"""Prompts and scores whole files: `atm infer` and `atm score`."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar

from atm import fileio, messages, storage
from atm.checkpoint.pretrained import PretrainedModel
from atm.data import task_registry, text_lines
from atm.inference import (
  api,
  bucketing,
  framing,
  generation_defaults,
  prompts,
  sampling,
)
from atm.inference.framed_inputs import fit_pairs, reserve_rows
from atm.inference.framing import TRUNCATIONS, Framing
from atm.inference.input_rows import (
  find_free_names,
  read_inputs,
  read_task,
  rename_fields,
)
from atm.inference.model_frame import SOURCE_AND_TARGET
from atm.inference.partial_results import (
  PartialResults,
  compute_missing,
  parse_part_line,
)
from atm.parallel import distributed

LANGUAGE_SETTINGS = 'SOURCE_LANGUAGE', 'TARGET_LANGUAGE'
# A row's own, which count before the settings.
ROW_LANGUAGES = 'source_language', 'target_language'


@dataclasses.dataclass
class Encoded:
  """What the model reads of rows: ids [rows], and how many were cut off each.

  `targets` are those of `atm score`, else without rows.
  """

  inputs: list[list[int]]
  input_cuts: list[int]
  targets: list[list[int]]
  target_cuts: list[int]


@dataclasses.dataclass
class RowFrames:
  """What rows are framed by: a mode by name, and languages [rows] or none."""

  mode: str = 'clm'
  sources: Sequence[str | None] = ()
  targets: Sequence[str | None] = ()

  def select(self, numbers: Sequence[int]) -> dict[str, list]:
    """Returns the languages of some rows, as `api.Model.complete` has them."""
    both = zip(SOURCE_AND_TARGET, (self.sources, self.targets))
    return {name: [codes[i] for i in numbers] for name, codes in both}


@dataclasses.dataclass
class FileJob(api.ModelSource):
  """Runs the rows of a file, or of a seqio task, through a model; JSONL out.

  Attributes:
    input: a text file, a prompt a line, or .jsonl with the fields of
      `required` a line; other fields are kept.
    output: default: the input's name with `suffix`.
    task, split, lengths: a seqio task instead of a file, see `read_task`.
    configure_tasks: called with vocabulary=FILE before the task is looked up.
    mode: how texts are framed, one of `prompts.MODES`; None: as the model was
      trained, see `api.Model.complete`.
    source, target: the languages of inputs and outputs, of a model that has
      languages; a row's fields of ROW_LANGUAGES count before them.
    batch_size: rows at a time.
    truncate: see `api.Model.complete`; not 'refuse' adds fields to each row:
      `truncated`, how many tokens were cut off its input, `target_truncated`,
      off its target, and `truncated_at`, at the 'start' or the 'end', or null.
    overwrite: replace an output that is there, and begin anew where a .part is
      of other settings.
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
  mode: str | None = None
  source: str | None = None
  target: str | None = None
  batch_size: int = 32
  truncate: str = 'refuse'
  overwrite: bool = False
  say: Callable[[str], None] = print

  _frames = RowFrames()  # `run` sets another

  suffix: ClassVar[str]
  required: ClassVar[tuple[str, ...]]
  optional: ClassVar[tuple[str, ...]] = ()
  added: ClassVar[tuple[str, ...]]
  counted: ClassVar[str]
  checks = api.ModelSource.checks | {
    'input': partial(messages.check_path, 'INPUT', optional=True),
    'output': partial(messages.check_path, 'OUTPUT', optional=True),
    'lengths': task_registry.check_task_lengths,
    'mode': partial(
      messages.check_choice, 'MODE', known=prompts.MODES, optional=True
    ),
    **{
      field: partial(messages.check_text, name, optional=True, empty=False)
      for field, name in zip(SOURCE_AND_TARGET, LANGUAGE_SETTINGS)
    },
    'batch_size': partial(messages.check_count, 'BATCH_SIZE'),
    'truncate': partial(messages.check_choice, 'TRUNCATE', known=TRUNCATIONS),
    'stop': partial(messages.check_texts, 'STOP', empty=False),
    'banned': framing.check_banned,
  }

  def run(self) -> str:
    """Writes the output and returns its path.

    All that can be wrong with the input is told before the parameters are read.

    Raises:
      FileNotFoundError: there is no input or no model.
      ValueError: the output is there, a row is not as expected, or has no room
        in the model.
    """
    if (self.input is None) == (self.task is None):
      raise ValueError('expected one of INPUT, a file, and TASK, a seqio task')
    output = self._check_output()
    if self.task is None:
      rows, self._lines = read_inputs(self.input, self.required, self.optional)
    source = self.open()
    if self.task is not None:
      self.configure_tasks(vocabulary=source.vocabulary.path)
      rows = read_task(self.task, self.split, self.lengths)
    self._framing = Framing(source.config, source.vocabulary)
    self._frames = self._find_frames(rows)
    note = self._take_defaults(source)
    self._check_rows(rows)
    encoded = self._encode_rows(rows)
    settings = self._settings(source, rows)
    results = PartialResults(output, settings, len(rows), self.overwrite)
    model = self.load(source.step)
    frames = self._frames
    languages = self._framing.describe_languages(frames.sources, frames.targets)
    log = self.say if distributed.is_main_process() else lambda text: None
    log(
      f'step {model.step:,} of {self.title}: {len(rows):,} {self.counted}, '
      f'mode {frames.mode}' + (languages and f', {languages}')
    )
    if note:
      log(note)
    compute = self._prepare(model, rows, encoded)
    if self.task is not None:  # ids are for the model, not for the reader
      rows = [{k: row[k] for k in row if k[-4:] != '_ids'} for row in rows]
    names = find_free_names(
      rows, (*self.added, *self._list_cuts(encoded, None))
    )
    for own, name in names.items():
      log(f'fields `{own}` of the input are written as `{name}`')
    rows = rename_fields(rows, names)
    lengths = list(map(len, encoded.inputs))
    compute_missing(rows, lengths, results, self.batch_size, compute, log)
    log(f'wrote {results.output}{self._describe_cuts(encoded)}')
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
      is_ours = lambda line: {*self.added} <= parse_part_line(line).keys()
      fileio.check_output('OUTPUT', output, inputs, is_ours, self.overwrite)
      if not storage.is_remote(output):  # of a store it is a folder
        fileio.check_output('OUTPUT', output + '.part', inputs, overwrite=True)
    return output

  def _encode_rows(self, rows: list[dict]) -> Encoded:
    """Returns what the model reads; raises ValueError naming lines."""
    framing, frames, truncate = self._framing, self._frames, self.truncate
    ids = self._frame(rows, 'input', framing.frame_all, frames.sources)
    if 'target' not in self.required:
      reserved = self._count_reserved(rows)
      self._check_lengths(ids, 'input', reserved)
      return Encoded(*framing.fit(ids, truncate, reserved=reserved), [], [])
    targets = self._frame(rows, 'target', framing.frame_targets, frames.targets)
    reserve = partial(reserve_rows, framing, truncate=truncate)
    self._check_lengths(ids, 'input', reserve(targets))
    self._check_lengths(targets, 'target', reserve(ids))
    return Encoded(*fit_pairs(framing, ids, targets, truncate))

  def _count_reserved(self, rows: list[dict]) -> list[int]:
    """Returns how many positions the input of each row leaves to its output."""
    return [0] * len(rows)

  def _frame(self, rows, field: str, frame, languages) -> list[list[int]]:
    """Returns the ids of a field of rows, of any length."""
    if self.task is not None:
      return frame([row[f'{field}_ids'] for row in rows], self._frames.mode)
    texts = [row[field] for row in rows]
    one = lambda x: frame([x[0]], self._frames.mode, languages=[x[1]])[0]
    return self._by_line(one, list(zip(texts, languages)), field)

  def _find_frames(self, rows: list[dict]) -> RowFrames:
    """Returns the mode and the languages of rows; raises ValueError."""
    framing, found = self._framing, []
    for setting, given, field in zip(
      LANGUAGE_SETTINGS, (self.source, self.target), ROW_LANGUAGES
    ):
      code = framing.find_language(setting, given)
      codes = [code] * len(rows)
      if framing.known_languages and self.task is None:
        own = [row.get(field) for row in rows]
        find = partial(framing.find_language, field)
        codes = [x or code for x in self._by_line(find, own, field)]
      found.append(codes)
    mode = framing.name_mode(self.mode, any(sum(found, [])), 'MODE')
    if self.task is None and mode not in prompts.MODES:
      framing.check_named(*found, LANGUAGE_SETTINGS)
    return RowFrames(mode, *found)

  def _check_lengths(self, ids: Sequence, field: str, reserved) -> None:
    """Raises ValueError where TRUNCATE is 'refuse' and rows have no room."""
    long = self._framing.find_long(ids, reserved)
    if not long or self.truncate != 'refuse':
      return
    named = [f'{self._name_row(i)} ({len(ids[i]):,})' for i in long]
    place = self.input if self.task is None else f'TASK = {self.task!r}'
    raise ValueError(
      f'{place}: {len(long):,} of {len(ids):,} {field}s have more tokens than '
      f'{self._framing.config.room_name}: '
      f"{framing.list_some(named)}. TRUNCATE='start' or 'end' cuts them there"
    )

  def _name_row(self, i: int) -> str:
    """Returns the name of a row as an editor counts lines, or of an example."""
    return f'line {self._lines[i]}' if self.task is None else f'example {i + 1}'

  def _list_cuts(self, encoded: Encoded, i: int | None) -> dict:
    """Returns the fields that tell what was cut off row i, if any may be."""
    if self.truncate == 'refuse':
      return {}
    cuts = {'truncated': encoded.input_cuts}
    if 'target' in self.required:
      cuts['target_truncated'] = encoded.target_cuts
    fields = {
      name: count[i] if i is not None else 0 for name, count in cuts.items()
    }
    return fields | {
      'truncated_at': self.truncate if any(fields.values()) else None
    }

  def _describe_cuts(self, encoded: Encoded) -> str:
    """Returns how many inputs and targets were cut, for the closing line."""
    text = ''
    for name, cuts in (
      ('inputs', encoded.input_cuts), ('targets', encoded.target_cuts)
    ):  # fmt: skip
      if count := sum(map(bool, cuts)):
        text += (
          f'; {count:,} of {len(cuts):,} {name} were cut at the '
          f'{self.truncate}, by {sum(cuts):,} tokens in all'
        )
    return text

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

  def _settings(self, source: PretrainedModel, rows: list[dict]) -> dict:
    """Returns all that the results depend on."""
    more = {} if self.truncate == 'refuse' else {'truncate': self.truncate}
    if any((*self._frames.sources, *self._frames.targets)):
      more['languages'] = [self._frames.sources, self._frames.targets]
    if self.adapter is not None:
      more['adapter'] = self.adapter_mark
    return dict(
      rows=rows, model=storage.absolute(self.model_dir), step=source.step,
      mode=self._frames.mode, weights=self.weights, **more,
    )  # fmt: skip

  def _take_defaults(self, source: PretrainedModel) -> str | None:
    """Takes the model's own settings where none were given; describes them."""

  def _check_rows(self, rows: list[dict]) -> None:
    """Raises ValueError with the line of a row that cannot be asked."""

  def _prepare(self, model: api.Model, rows, encoded: Encoded) -> Callable:
    """Returns the `compute` of `compute_missing`."""
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

  def _take_defaults(self, source):
    defaults = generation_defaults.read_defaults(source)
    self.config, self.banned, note = generation_defaults.fill_settings(
      source.generation_path, defaults, self.config, self.banned
    )
    return note

  def _settings(self, source, rows):
    settings = dict(config=self.config, stop=self.stop, banned=self.banned)
    # Not continued with results of the versions that cut prefixes.
    if self.stop and any(row.get('prefix') for row in rows):
      settings['stops_in_prefixes'] = False
    return super()._settings(source, rows) | settings

  def _check_rows(self, rows):
    if self.task is None:  # prefixes are never cut: outputs begin with them
      prefixes = [row.get('prefix') or '' for row in rows]
      pairs = list(zip(prefixes, self._frames.targets))
      self._by_line(self._check_prefix, pairs, '')

  def _check_prefix(self, begun: tuple[str, str | None]) -> None:
    """Raises ValueError for a prefix and a language without room behind."""
    text, language = begun
    if text:
      (ids,) = self._framing.prefixes([text], 1, self._frames.mode, [language])
      bucketing.decoder_shape(
        self._framing.config, len(ids), self.config.max_tokens
      )

  def _count_reserved(self, rows):
    framing, codes = self._framing, self._frames.targets
    if framing.config.has_encoder:
      return super()._count_reserved(rows)
    begun = [row.get('prefix') or None for row in rows]
    written = 1 if self.truncate == 'refuse' else self.config.max_tokens
    reserved = []
    for text, code in zip(begun, codes):
      texts = None if text is None else [text]
      (ids,) = framing.prefixes(texts, 1, self._frames.mode, [code])
      reserved.append(framing.count_reserved(len(ids) + written, self.truncate))
    return reserved

  def _prepare(self, model, rows, encoded):
    prefixes = [row.get('prefix') or '' for row in rows]

    def compute(numbers):
      begun = [prefixes[i] for i in numbers]
      generations = model.complete(
        [encoded.inputs[i] for i in numbers], self.mode, self.config,
        begun if any(begun) else None, self.stop, self.banned, self.batch_size,
        numbers, **self._frames.select(numbers),
      )  # fmt: skip
      texts = [[x.text for x in row] for row in generations]
      outputs = texts if self.config.results > 1 else [row[0] for row in texts]
      results = {
        i: {'output': output, **self._list_cuts(encoded, i)}
        for i, output in zip(numbers, outputs)
      }
      return results, sum(len(x.ids) for row in generations for x in row)

    return compute


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

  def _prepare(self, model, rows, encoded):
    def compute(numbers):
      sides = encoded.inputs, encoded.targets
      pairs = [[side[i] for i in numbers] for side in sides]
      totals, counts = model.score(
        *pairs, self.mode, self.batch_size, **self._frames.select(numbers)
      )
      results = {
        i: {
          'log_probability': total,
          'tokens': count,
          **self._list_cuts(encoded, i),
        }
        for i, total, count in zip(numbers, totals.tolist(), counts.tolist())
      }
      return results, int(counts.sum())

    return compute
