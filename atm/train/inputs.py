"""What a run reads: its vocabulary, training batches and held-out rows."""

import dataclasses
import functools
import os
from collections.abc import Callable

from atm.checkpoint.pretrained import PretrainedModel
from atm.data import batches as batches_lib
from atm.data import cache, mixture_stats, task_registry
from atm.data.batches import MixturePart
from atm.data.streaming import Stream
from atm.data.vocabulary import (
  Vocabulary,
  has_vocabulary,
  open_vocabulary,
  store_files,
)
from atm.data.vocabulary_extension import extend_files, list_new_tokens
from atm.parallel import distributed
from atm.train import config_checks
from atm.train.config import TrainConfig
from atm.train.run_folder import RunFolder


@dataclasses.dataclass
class Inputs:
  """What a run reads: vocabulary, batches, training and validation rows."""

  vocabulary: Vocabulary
  # Called with (number of a batch, slice of its rows).
  batches: Callable[[int, slice], dict]
  # Training rows; none of a stream.
  parts: list[MixturePart]
  held_out: list[MixturePart]
  # Changes whenever a training row does.
  digest: str


def open_inputs(
  config: TrainConfig, folder: RunFolder, source: PretrainedModel | None
) -> Inputs:
  """Opens, and where needed builds, what a run that starts from `source` reads.

  Raises:
    ValueError: see `find_run_vocabulary`, `cache.build`, `batches.load_parts`.
  """
  if config.cache_dir is None and not folder.step_found:
    task_registry.check_held_out(config.mixture)  # before a vocabulary is made
  words = distributed.run_main_process_first(
    lambda: find_run_vocabulary(config, folder, source)
  )
  config.configure_tasks(vocabulary=words.path)
  directory = config.cache_dir
  if directory is not None:
    cached = batches_lib.read_lengths(config.mixture, directory)
    config_checks.check_cached_lengths(config, cached)
  else:
    directory = folder.rows
    splits = ('validation',) if config.stream else ('train', 'validation')
    distributed.run_main_process_first(
      lambda: cache.build(
        config.mixture, words.path, config.lengths, directory, splits,
        config.row_passes, configure_tasks=config.configure_tasks,
        say=config.say,
      )
    )  # fmt: skip
  # A resumed run compares digests, and every row's own hash when it is read.
  verifies = config.verify_cache and not folder.step_found
  load = functools.partial(
    batches_lib.load_parts,
    config.mixture,
    vocabulary=words,
    lengths=config.sizes,
    directory=directory,
    verify=distributed.process_share() if verifies else None,
  )
  held_out = load(split='validation')
  settings = words, config.sizes, config.batch_size, config.seed
  start_id = config.model_config.start_id
  if config.stream:
    stream = Stream(config.mixture, *settings, start_id=start_id)
    return Inputs(words, stream, [], held_out, 'stream')
  parts = load(split='train', passes=config.row_passes)
  batches = batches_lib.Batches(parts, *settings, start_id)
  config.say(describe_reading(config, batches))
  for line in mixture_stats.describe_directions(parts):
    config.say(line)
  return Inputs(words, batches, parts, held_out, batches_lib.hash_parts(parts))


def describe_reading(config: TrainConfig, batches: batches_lib.Batches) -> str:
  """Returns a line of what a run reads in all its steps, and how often."""
  read, done, end = 0, 0, config.train_steps
  for first, last in (*sorted(config.skip_steps), (end + 1, end + 1)):
    # Ranges may overlap, or end behind the run.
    if done < min(first - 1, end):
      read = read + batches.count_rows(done, min(first - 1, end))
    done = max(done, last)
  read = read + batches.count_rows(0, 0)  # zeros, where all is skipped
  lines = mixture_stats.compute_lines(batches.parts, read)
  tokens, times = mixture_stats.count_epochs(lines)
  rows = sum(len(part.rows) for part in batches.parts)
  return (
    f'{config.mixture}: {len(batches.parts)} tasks, {tokens:,} tokens of text '
    f'in {rows:,} training rows; {read.sum():,} rows are read, the text '
    f'{mixture_stats.format_epochs(times)} times in all'
  )


def find_run_vocabulary(
  config: TrainConfig, folder: RunFolder, source: PretrainedModel | None
) -> Vocabulary:
  """Opens the vocabulary of a run, or trains its own where there is none.

  Tokens that are missing are added, see `vocabulary_extension`; the vocabulary
  with them is that of MODEL_DIR, or of CACHE_DIR.

  Raises:
    ValueError: the run or its source has weights, but no vocabulary or one that
      they were not trained with; or the model does not fit the vocabulary.
  """
  path, own = config.vocabulary, folder.vocabulary
  there = has_vocabulary(own)
  if path is None and config.cache_dir is not None:
    path = os.path.join(config.cache_dir, 'vocabulary')
  if folder.step_found and there and path and not os.path.exists(path):
    path = None  # as on another machine: the run has what it was trained with
  if source is not None:
    words = vocabulary_of(source, path, config, own)
    of = f'that INIT_FROM = {source.directory!r} was trained with'
  else:
    if path is None and not there:
      if folder.step_found is not None:
        raise ValueError(
          f'MODEL_DIR = {folder.path!r} has weights but no vocabulary: set '
          'VOCABULARY to the one they were trained with'
        )
      config.train_vocabulary(
        config.mixture, own, config.vocabulary_size,
        make_model=lambda: config.model_config,
      )  # fmt: skip
    words = open_vocabulary(own if path is None else path)
    words = add_tokens(words, config, own)
    of = f'that this run is given, {words.path}'
  # What reads the run later takes its own.
  if there and open_vocabulary(own).sha256 != words.sha256:
    raise ValueError(
      f'{own} is not the vocabulary {of}: remove it, or use another MODEL_DIR'
    )
  config_checks.check_vocabulary(words, config.model_config)
  return words


def add_tokens(
  words: Vocabulary, config: TrainConfig, directory: str
) -> Vocabulary:
  """Returns a vocabulary with what a run needs, in `directory` if extended."""
  files = extend_for(words, config)
  return words if files == words.files else store_files(files, directory)


def extend_for(words: Vocabulary, config: TrainConfig) -> dict[str, bytes]:
  """Returns the files of a vocabulary with the tokens that a run needs."""
  lacks = list_new_tokens(words, True)
  markers = bool(lacks) and task_registry.needs_markers(config.mixture)
  return extend_files(words, markers, config.new_languages)


def vocabulary_of(
  source: PretrainedModel, path: str | None, config: TrainConfig, directory: str
) -> Vocabulary:
  """Returns the vocabulary of `source`, with what a run needs besides.

  The one at `path` must be the same, with or without the new tokens; one that
  is extended here is written into `directory`.
  """
  own = source.vocabulary
  if path is None and own is None:
    raise ValueError(
      f'INIT_FROM = {source.directory!r} has no vocabulary: set VOCABULARY to '
      'the one it was trained with, or, for pairs of token ids, to a folder '
      'with token_ids.json'
    )
  for code in config.new_languages or ():
    if own is not None and code in own.languages:
      raise ValueError(
        f'NEW_LANGUAGES: INIT_FROM = {source.directory!r} has {code!r} '
        'already: leave it out'
      )
  words = own if path is None else open_vocabulary(path)
  if own is None or words.sha256 == own.sha256:
    return add_tokens(words, config, directory)
  if words.files != extend_for(own, config):
    raise ValueError(
      f'the vocabulary {words.path} is not the one that INIT_FROM = '
      f'{source.directory!r} was trained with: leave out VOCABULARY, or build '
      f'CACHE_DIR with VOCABULARY = {own.path!r}'
    )
  return words
