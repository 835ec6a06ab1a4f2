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
from atm.data import token_store
from atm.data.input_format import MODES, InputFormat
from atm.messages import check_choice
from atm_tasks.pretraining import tasks
from atm_tasks.pretraining.pair_sets import (
  PairPaths,
  PairRates,
  check_weighed_all,
  check_weighed_sets,
)
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
    data_set: the set of pairs that it is of; '': PAIRS is no sets.
    language, source, form: what the task is, as of `tasks.ApplyObjective`.
    measured: counts of the task's training rows, set by who opens them.
  """

  form = ''

  def __init__(
    self,
    mode: str | None,
    direction: Direction | None = None,
    source: str = NAME,
    data_set: str = '',
  ):
    """Takes one of `input_format.MODES`, or None for the vocabulary's own."""
    check_choice('PAIRS_MODE', mode, MODES, optional=True)
    self.mode, self.direction = mode, direction
    self.data_set, self.source = data_set, data_set or source
    self.language = '-'.join(direction) if direction else 'all'
    self.measured: dict | None = None

  @property
  def made_from(self) -> dict:
    """The settings that the result depends on, besides the text."""
    facts = {'mode': self.get_mode()}
    if self.direction:
      facts['languages'] = list(self.direction)
    if self.data_set:
      facts['data_set'] = self.data_set
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
class PairSet:
  """A set of pairs: a source for each direction, None for all together.

  Attributes:
    sources: by direction.
    counts: pairs by direction, where they were counted.
  """

  sources: dict[Direction | None, TextSource]
  counts: dict[Direction | None, int] = dataclasses.field(default_factory=dict)


def register_pairs(
  paths: PairPaths | dict[str, PairPaths] | None,
  mode: str | None = None,
  skip_bad: bool = False,
  cache_dir: str | None = None,
  temperature: float | None = None,
  reader: PairReader = PairReader(),
  weights: dict[str, float] | None = None,
) -> None:
  """Registers `udhr_language`, and `pairs` of paths or of a cache's rows.

  Args:
    paths, skip_bad, reader: see `PairsSource`; several sets by name.
    mode: see `FramePairs`.
    cache_dir: a cache.
    temperature: see `PairRates`; None: all pairs of a set are one task,
      whatever their languages.
    weights: see `PairRates`.
  """
  name = 'udhr_language'
  tasks.register_task(name, LanguagePairs(), [FramePairs(mode, source=name)])
  if paths is not None:
    named = paths if isinstance(paths, dict) else {'': paths}
    if weights is not None:
      check_weighed_sets(weights, named)
      check_weighed_all(weights, named)
    sets = {
      name: _open_set(
        PairsSource(path, HELD_OUT, skip_bad, reader), temperature
      )
      for name, path in named.items()
    }
  else:
    sets = _find_cached_sets(cache_dir, temperature, weights)
  if sets:
    _register(sets, mode, PairRates(temperature or 1.0, weights))


def _open_set(source: PairsSource, temperature: float | None) -> PairSet:
  """Returns the directions of a source; None where they are not told apart."""
  counts = {} if temperature is None else source.count_directions()
  if counts:
    source.reader = dataclasses.replace(source.reader, required=True)
  return PairSet(dict.fromkeys(counts or (None,), source), counts)


def _find_cached_sets(
  cache_dir: str | None,
  temperature: float | None,
  weights: dict[str, float] | None,
) -> dict[str, PairSet]:
  """Returns the sets that a cache has rows of; '' is the one without a name."""
  if cache_dir is None:
    return {}
  sets: dict[str, PairSet] = {}
  for source in map(PairRows, list_cached_pairs(cache_dir)):
    own = sets.setdefault(source.data_set, PairSet({}))
    own.sources[source.direction] = source
  if weights is not None:
    sets.pop('', None)
    check_weighed_sets(weights, sets)
    sets = {name: sets[name] for name in weights}
  elif '' in sets:
    sets = {'': sets['']}
  for own in sets.values():
    found = own.sources
    # Rows of all directions together serve a run that does not weigh them.
    if None in found and (temperature is None or len(found) == 1):
      found = {None: found[None]}
    own.sources = {k: v for k, v in found.items() if k or len(found) == 1}
  return {name: own for name, own in sets.items() if own.sources}


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
  sets: dict[str, PairSet], mode: str | None, rates: PairRates
) -> None:
  """Registers the task `pairs`, or the mixture of a task for each direction."""
  tasks.unregister(NAME)
  if list(sets) == [''] and None in sets[''].sources:
    tasks.register_task(NAME, sets[''].sources[None], [FramePairs(mode)])
    return
  names = []
  for data_set, own in sorted(sets.items()):
    for direction, source in sorted(own.sources.items()):
      name = name_task(direction, data_set)
      # 'zh-CN' and 'zh_CN' of a model without codes are two directions.
      name += '_' * sum(n.rstrip('_') == name for n in names)
      names.append(name)
      frame = FramePairs(mode, direction, data_set=data_set)
      rates.add(name, source, frame, own.counts)
      tasks.register_task(name, source, [frame])
  tasks.add_mixture(NAME, dict.fromkeys(names, rates))


def name_task(direction: Direction | None, data_set: str = '') -> str:
  """Returns the name of a task: 'pairs_en_ta', 'pairs_flores_en_ta'."""
  parts = NAME, data_set, *(direction or ())
  return re.sub(r'\W', '_', '_'.join(filter(None, parts)))


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
