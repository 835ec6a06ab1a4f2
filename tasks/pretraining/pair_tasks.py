"""Fine-tuning tasks: pairs of input and target, framed as their model reads.

pairs           JSONL of pairs, after `configure(pairs=...)`; where they name
                their languages a mixture of a task for each direction, such
                as `pairs_en_ta`
udhr_language   the shipped text: a sentence, and the language it is in
"""

import dataclasses
import json
import re

import numpy as np

from atm import storage
from atm.data import task_table, token_store
from atm.data.input_format import MODES, InputFormat
from atm.messages import check_choice
from atm_tasks.pretraining import tasks
from atm_tasks.pretraining.pair_text import (
  Direction,
  PairReader,
  text_to_direction,
)
from atm_tasks.pretraining.pairs import (
  HELD_OUT,
  LanguagePairs,
  PairRows,
  PairsSource,
)
from atm_tasks.pretraining.text_source import TextSource

NAME = 'pairs'


class FramePairs:
  """Preprocessor: encodes pairs, cut to the lengths of a row.

  A text that is too long loses its end. What stands around it is kept, but in a
  mode of pre-training the `</s>` of a target: its text does not end there.

  Attributes:
    direction: of the pairs that it takes; None: takes all.
    language, source, form: what the task is, as of `tasks.ApplyObjective`.
    measured: counts of the task's training rows, set by who opens them.
  """

  form = ''

  def __init__(
    self,
    mode: str | None,
    direction: Direction | None = None,
    source: str = NAME,
  ):
    """Takes one of `input_format.MODES`, or None for the vocabulary's own."""
    check_choice('PAIRS_MODE', mode, MODES, optional=True)
    self.mode, self.direction, self.source = mode, direction, source
    self.language = '-'.join(direction) if direction else 'all'
    self.measured: dict | None = None

  @property
  def made_from(self) -> dict:
    """The settings that the result depends on, besides the text."""
    facts = {'mode': self.get_mode()}
    if self.direction:
      facts['languages'] = list(self.direction)
    return facts

  def get_mode(self) -> str:
    """Returns the mode that is set, or the name of the model's own frame."""
    frame = tasks.WORDS.words.input_format
    if self.mode is None and frame.name != 'alexatm':
      return frame.name
    return self.mode or ('denoise' if frame.clm_id is None else 'clm')

  def read_direction(self, text: str) -> Direction | None:
    """Returns the languages of a text of `pair_to_text`, if it has any."""
    return text_to_direction(text)

  def pair(self, text: str, S: int, T: int) -> tuple[np.ndarray, np.ndarray]:
    """Encodes a text of `pair_to_text`: int32 ids, at most S and T."""
    words = tasks.WORDS.words
    frame, mode = words.input_format, self.mode
    source, target, *codes = json.loads(text)
    source, target = map(words.encode_any, (source, target))
    if mode is not None or not frame.has_languages:
      codes = ()
    source_code, target_code = codes or (None, None)
    head, tail = frame.encoder_frame(source_code, mode)
    source = [*head, *source[: max(0, S - len(head) - len(tail))], *tail]
    as_pretrained = mode or (frame.clm_id is not None and not codes)
    if as_pretrained or frame.name == 'alexatm':
      labels = [*target, frame.eos_id][:T]
    else:
      room = T - len(frame.labels((), target_code))
      labels = frame.labels(target[: max(0, room)], target_code)
    return np.array(source, np.int32), np.array(labels, np.int32)

  def __call__(self, dataset, sequence_length=None):
    """Returns a tf.data.Dataset of framed pairs, for seqio's own readers."""
    import tensorflow as tf

    sizes = sequence_length or {}
    S, T = (sizes.get(side) or 1 << 30 for side in ('inputs', 'targets'))

    def frame(example):
      made = tf.numpy_function(
        lambda raw: self.pair(raw.decode(), S, T), (example['text'],),
        (tf.int32, tf.int32), stateful=False,
      )  # fmt: skip
      for ids in made:
        ids.set_shape([None])
      return dict(zip(('inputs', 'targets'), made))

    def takes(example):
      return tf.numpy_function(
        lambda raw: text_to_direction(raw.decode()) == self.direction,
        (example['text'],), tf.bool, stateful=False,
      )  # fmt: skip

    return (dataset.filter(takes) if self.direction else dataset).map(frame)


@dataclasses.dataclass
class PairRates:
  """Rates of tasks of pairs: each direction has count ** (1 / T) of the pairs.

  At temperature T = 1 these are its own; more brings rare directions nearer to
  the others (Arivazhagan et al. 2019, as mBART-50 and NLLB are trained).

  Attributes:
    temperature: T.
    counts: direction -> its pairs, where its rows were not counted yet.
  """

  temperature: float
  counts: dict[Direction, int]

  def __call__(self, task: task_table.TextTask) -> float:
    frame = task.preprocessors[-1]
    count, rows = self.counts.get(frame.direction, 0), None
    if frame.measured is not None:
      count, rows = (frame.measured[name] for name in ('examples', 'rows'))
    if not count:
      return 0.0
    # A row holds several pairs, more where they are short.
    a_pair = 1.0 if rows is None else rows / count
    return count ** (1 / self.temperature) * a_pair


def register_pairs(
  path: str | tuple[str, str] | None,
  mode: str | None = None,
  skip_bad: bool = False,
  cache_dir: str | None = None,
  temperature: float | None = None,
  reader: PairReader = PairReader(),
) -> None:
  """Registers `udhr_language`, and `pairs` of a path or of a cache's rows.

  Args:
    path, skip_bad, reader: see `PairsSource`.
    mode: see `FramePairs`.
    cache_dir: a cache.
    temperature: see `PairRates`; None: all pairs are one task, whatever their
      languages.
  """
  name = 'udhr_language'
  tasks.register_task(name, LanguagePairs(), [FramePairs(mode, source=name)])
  if path is not None:
    source = PairsSource(path, HELD_OUT, skip_bad, reader)
    counts = {} if temperature is None else source.count_directions()
    if counts:
      source.reader = dataclasses.replace(source.reader, required=True)
    found = dict.fromkeys(counts or (None,), source)
    _register(found, mode, temperature or 1.0, counts)
  elif cache_dir is not None:
    rows = map(PairRows, list_cached_pairs(cache_dir))
    found = {source.direction: source for source in rows}
    # Rows of all directions together serve a run that does not weigh them.
    if None in found and (temperature is None or len(found) == 1):
      found = {None: found[None]}
    found = {k: v for k, v in found.items() if k or len(found) == 1}
    if found:
      _register(found, mode, temperature or 1.0, {})


def know_languages(
  reader: PairReader, frame: InputFormat, mode: str | None
) -> PairReader:
  """Returns a reader that turns languages into a model's own codes.

  Args:
    reader: takes languages as they are.
    frame: the model's; one that names no languages changes nothing.
    mode: of pre-training, which names none either.
  """
  known = tuple(frame.languages) if frame.has_languages and not mode else ()
  required = bool(known) and frame.clm_id is None
  return dataclasses.replace(reader, known=known, required=required)


def _register(
  found: dict[Direction | None, TextSource],
  mode: str | None,
  temperature: float,
  counts: dict[Direction, int],
) -> None:
  """Registers the task `pairs`, or the mixture of a task for each direction."""
  tasks.unregister(NAME)
  if None in found:
    tasks.register_task(NAME, found[None], [FramePairs(mode)])
    return
  rate, names = PairRates(temperature, counts), []
  for direction, source in sorted(found.items()):
    name = name_task(direction)
    # 'zh-CN' and 'zh_CN' of a model without codes are two directions.
    names.append(name + '_' * sum(n.rstrip('_') == name for n in names))
    tasks.register_task(names[-1], source, [FramePairs(mode, direction)])
  tasks.add_mixture(NAME, dict.fromkeys(names, rate))


def name_task(direction: Direction) -> str:
  """Returns the name of a direction's task, such as 'pairs_en_ta'."""
  return re.sub(r'\W', '_', '_'.join((NAME, *direction)))


def list_cached_pairs(cache_dir: str) -> list[str]:
  """Lists the folders of finished rows of pairs in a cache."""
  cache_dir = cache_dir.rstrip('/')
  if not storage.is_folder(cache_dir):
    return []
  names = storage.list_names(cache_dir)
  folders = [
    f'{cache_dir}/{name}'
    for name in names
    if re.fullmatch(rf'{NAME}(_\w+)?-train', name)
  ]
  return list(filter(token_store.has_manifest, folders))
