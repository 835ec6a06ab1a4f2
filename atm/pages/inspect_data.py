"""`atm inspect`: a look at the data, on the terminal and as a page.

On the terminal: the mixture's table and the beginnings of some rows. In
OUTPUT_DIR/index.html: all of them, and histograms.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable

import rich.console
import rich.text

from atm.data import batches as batches_lib
from atm.data import cache, mixture_stats, registry, vocabulary_training
from atm.data.batches import Batches
from atm.data.inspection import (
  DROPPED,
  MEASURED_ROWS,
  READ,
  WRITTEN,
  Inspection,
  Reader,
  TextRun,
  measure_objectives,
  pick_examples,
  summarize_counts,
)
from atm.data.languages import name_language
from atm.data.registry import Lengths
from atm.data.vocabulary import MODEL_FILE, Vocabulary
from atm.pages import inspect_page

ON_TERMINAL = 240  # characters of a text


def inspect(
  mixture: str,
  output_dir: str,
  lengths: dict[str, int],
  cache_dir: str | None = None,
  vocabulary: str | None = None,
  vocabulary_size: int = 1280,
  examples: int = 2,
  seed: int = 0,
  tokens: float = 1e12,
  train_vocabulary: Callable = vocabulary_training.train_vocabulary,
  configure_tasks: Callable = lambda **named: None,
  console: rich.console.Console | None = None,
) -> Inspection:
  """Prints rows of a mixture and writes output_dir/index.html.

  Args:
    mixture: a seqio task or mixture.
    output_dir: gets the page.
    lengths: {'inputs': S, 'targets': T}, of rows that are built.
    cache_dir: made by `cache.build`; None builds output_dir/rows if need be.
    vocabulary: a SentencePiece file or folder; None takes the one beside the
      rows, or trains it.
    vocabulary_size: of one that is trained.
    examples: how many of each task are shown.
    seed: that of the run.
    tokens: of a run, over which epochs are counted; the paper's is 1e12.
    train_vocabulary: called with (mixture, directory, size).
    configure_tasks: called first, then again with vocabulary=FILE.
    console: where to print.

  Raises:
    ValueError: a setting out of range, an unknown name, rows made otherwise.
    FileNotFoundError: `cache_dir` has no finished rows of the mixture.
  """
  check(examples, seed, tokens)
  console, sizes = console or rich.console.Console(), Lengths.of(lengths)
  say = lambda text: console.print(rich.text.Text(text), soft_wrap=True)
  configure_tasks()
  registry.find_task(mixture)
  if cache_dir is not None:
    words, sizes = cache.open_cache(cache_dir)
    words = Vocabulary(vocabulary) if vocabulary else words
  else:
    cache_dir = os.path.join(output_dir, 'rows')
    train = lambda folder: train_vocabulary(mixture, folder, vocabulary_size)
    words = own_vocabulary(vocabulary, cache_dir, mixture, train, say)
    cache.build(
      mixture, words.path, lengths, cache_dir, ('train',), say=say,
      configure_tasks=configure_tasks,
    )  # fmt: skip
  configure_tasks(vocabulary=words.path)
  look = look_at(mixture, words, sizes, cache_dir, examples, seed, tokens)
  show(look, console)
  say(f'page: {inspect_page.write_inspect_page(look, output_dir)}')
  return look


def check(examples, seed, tokens) -> None:
  """Raises ValueError for a setting out of range."""
  whole = lambda x: isinstance(x, int) and not isinstance(x, bool)
  if not whole(examples) or examples < 1:
    raise ValueError(
      f'EXAMPLES = {examples!r}: expected a whole number above 0'
    )
  if not whole(seed):
    raise ValueError(f'SEED = {seed!r}: expected a whole number')
  if not isinstance(tokens, int | float) or not 0 < tokens < math.inf:
    raise ValueError(f'TRAIN_TOKENS = {tokens!r}: expected more than 0')


def own_vocabulary(
  path: str | None, directory: str, mixture: str, train: Callable, say: Callable
) -> Vocabulary:
  """The vocabulary at `path`, or the one beside the rows, trained if missing.

  Raises:
    ValueError: there is no text to train it on.
  """
  own = os.path.join(directory, 'vocabulary')
  if path is None and os.path.exists(os.path.join(own, MODEL_FILE)):
    say(f'the vocabulary is the one beside the rows: {own}')
  elif path is None:
    if not any(map(registry.get_apply, registry.list_tasks(mixture, 'train'))):
      raise ValueError(
        f'VOCABULARY = None: {mixture!r} has inputs and targets, and no text '
        'to train one on: expected a SentencePiece file or folder'
      )
    train(own)
  return Vocabulary(path or own)


def look_at(
  mixture, words, lengths: Lengths, directory, examples: int, seed, tokens
) -> Inspection:
  """Reads what is shown of a mixture's rows in `directory`."""
  parts = batches_lib.load_parts(
    mixture, 'train', words, lengths, directory, passes=None, verify=None
  )
  batches = Batches(parts, words, lengths, 1, seed)
  counts = measure_objectives(batches, MEASURED_ROWS)
  notes = [
    *mixture_stats.describe_padding(parts, words, lengths),
    *(summarize_counts(kind, found) for kind, found in counts.items()),
    *mixture_stats.lost(parts),
  ]
  return Inspection(
    mixture, words, lengths, directory, seed, tokens, parts,
    mixture_stats.compute_lines(parts, tokens), notes,
    pick_examples(batches, Reader(words), examples), counts,
  )  # fmt: skip


# --- On the terminal


def show(look: Inspection, console: rich.console.Console) -> None:
  """Prints the mixture's table and the beginnings of the examples."""
  console.print(mixture_stats.build_table(look.lines, look.tokens))
  color = console.is_terminal
  Text = rich.text.Text
  put = lambda text: console.print(text, soft_wrap=not color)
  for line in look.notes:
    put(Text(line))
  for language, examples in look.by_language().items():
    put(Text(f'\n{name_language(language)} ({language})', 'bold'))
    for each in examples:
      put(Text(f'\n{each.title()}', 'cyan'))
      for what, runs in each.blocks:
        put(Text(f'{what}:', 'dim'))
        put(styled(shortened(runs, ON_TERMINAL), color))
  put('')


def styled(runs: list[TextRun], color: bool) -> rich.text.Text:
  """Runs in colour, or with marks where they begin and end."""
  style = {READ: '', DROPPED: 'red strike', WRITTEN: 'green'}
  around = {READ: ('', ''), DROPPED: ('[-', '-]'), WRITTEN: ('{+', '+}')}
  made = rich.text.Text()
  for run in runs:
    text = ''.join(c if c.isprintable() else '\ufffd' for c in run.text)
    if color:
      made.append(text, 'reverse ' * run.special + style[run.mark])
    else:
      made.append(text.join(around[run.mark]))
  return made


def shortened(runs: list[TextRun], most: int) -> list[TextRun]:
  """The first `most` characters."""
  made = []
  for run in runs:
    if len(run.text) > most and not run.special:
      return [*made, TextRun(run.text[:most] + '…', run.mark)]
    made.append(run)
    most -= 0 if run.special else len(run.text)
  return made
