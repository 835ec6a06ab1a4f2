"""`atm inspect`: a look at the data, on the terminal and as a page.

On the terminal: the mixture's table and the beginnings of some rows. In
OUTPUT_DIR/index.html: all of them, and histograms.
"""

import os
from collections.abc import Callable
from functools import partial

import rich.console
import rich.text

from atm import fileio, messages
from atm.data import batches as batches_lib
from atm.data import (
  cache,
  inspection,
  mixture_stats,
  task_registry,
  vocabulary_training,
)
from atm.data.inspection import Inspection, TextRun
from atm.data.languages import name_language
from atm.data.task_registry import Lengths
from atm.data.vocabulary import Vocabulary, has_vocabulary, open_vocabulary
from atm.model.config import ModelConfig
from atm.pages import inspect_page

LONGEST_ON_TERMINAL = 240  # characters of a text


@messages.check_arguments(
  mixture=partial(messages.check_text, 'MIXTURE_OR_TASK_NAME', empty=False),
  output_dir=partial(messages.check_path, 'OUTPUT_DIR'),
  lengths=partial(
    task_registry.check_lengths, 'TASK_FEATURE_LENGTHS', optional=True
  ),
  cache_dir=partial(messages.check_path, 'CACHE_DIR', optional=True),
  vocabulary=partial(messages.check_path, 'VOCABULARY', optional=True),
  vocabulary_size=partial(
    messages.check_count, 'VOCABULARY_SIZE', optional=True
  ),
  examples=partial(messages.check_count, 'EXAMPLES'),
  seed=partial(messages.check_seed, 'SEED'),
  tokens=partial(
    messages.check_number, 'TRAIN_TOKENS', least=1, whole=False, optional=True
  ),
  batch_size=partial(messages.check_count, 'BATCH_SIZE', optional=True),
  train_steps=partial(messages.check_count, 'TRAIN_STEPS', optional=True),
)
def inspect(
  mixture: str,
  output_dir: str,
  lengths: dict[str, int] | None = None,
  cache_dir: str | None = None,
  vocabulary: str | None = None,
  vocabulary_size: int | None = None,
  examples: int = 2,
  seed: int = 0,
  tokens: float | None = None,
  batch_size: int | None = None,
  train_steps: int | None = None,
  train_vocabulary: Callable = vocabulary_training.train_vocabulary,
  configure_tasks: Callable = lambda **named: None,
  console: rich.console.Console | None = None,
  model_config: ModelConfig = ModelConfig(),
) -> Inspection:
  """Prints rows of a mixture and writes output_dir/index.html.

  Args:
    mixture: a seqio task or mixture.
    output_dir: gets the page.
    lengths: {'inputs': S, 'targets': T}, of rows that are built; None: the
      model's positions.
    cache_dir: made by `cache.build`; None builds output_dir/rows if need be.
    vocabulary: a SentencePiece file or folder; None takes the one beside the
      rows, or trains it.
    vocabulary_size: of one that is trained; None: as many pieces as the text
      supports, up to the model's `vocab_size`.
    examples: how many of each task are shown.
    seed: that of the run.
    tokens, batch_size, train_steps: the run whose epochs are counted, see
      `mixture_stats.plan_reading`.
    train_vocabulary: see `vocabulary_training.train_vocabulary`.
    configure_tasks: called first, then again with vocabulary=FILE.
    console: where to print.
    model_config: the run's model, of which sizes are taken.

  Raises:
    ValueError: a setting out of range, an unknown name, rows made otherwise.
    FileNotFoundError: `cache_dir` has no finished rows of the mixture.
  """
  console = console or rich.console.Console()
  sizes = Lengths.of(lengths) if lengths else Lengths.of_model(model_config)
  log = lambda text: console.print(rich.text.Text(text), soft_wrap=True)
  fileio.check_output_folder('OUTPUT_DIR', output_dir)
  configure_tasks()
  task_registry.find_task(mixture)
  if cache_dir is not None:
    vocab, sizes = cache.open_cache(cache_dir)
    vocab = open_vocabulary(vocabulary) if vocabulary else vocab
  else:
    cache_dir = os.path.join(output_dir, 'rows')
    train = lambda folder: train_vocabulary(
      mixture, folder, vocabulary_size, make_model=lambda: model_config
    )
    vocab = find_vocabulary(vocabulary, cache_dir, mixture, train, log)
    cache.build(
      mixture, vocab.path, sizes.as_setting(), cache_dir, ('train',), say=log,
      configure_tasks=configure_tasks,
    )  # fmt: skip
    vocab, _ = cache.open_cache(cache_dir)  # with the markers that rows have
  configure_tasks(vocabulary=vocab.path)
  look = inspect_rows(
    mixture, vocab, sizes, cache_dir, examples, seed,
    (tokens, batch_size, train_steps),
  )  # fmt: skip
  print_inspection(look, console)
  log(f'page: {inspect_page.write_inspect_page(look, output_dir)}')
  return look


def find_vocabulary(
  path: str | None, directory: str, mixture: str, train: Callable, log: Callable
) -> Vocabulary:
  """Returns the vocabulary at `path`, or trains one beside the rows if None."""
  own = os.path.join(directory, 'vocabulary')
  if path is None and has_vocabulary(own):
    log(f'the vocabulary is the one beside the rows: {own}')
  elif path is None:
    tasks = task_registry.list_tasks(mixture, 'train')
    if not any(map(task_registry.get_apply, tasks)):
      raise ValueError(
        f'VOCABULARY = None: {mixture!r} has inputs and targets, and no text '
        'to train one on: expected a SentencePiece file or folder'
      )
    train(own)
  return open_vocabulary(path or own)


def inspect_rows(
  mixture, vocab, lengths: Lengths, directory, examples: int, seed, run: tuple
) -> Inspection:
  """Reads what is shown of a mixture's rows in `directory`."""
  parts = batches_lib.load_parts(
    mixture, 'train', vocab, lengths, directory, passes=None, verify=None
  )
  reading = mixture_stats.plan_reading(parts, *run)
  batches = batches_lib.Batches(parts, vocab, lengths, 1, seed)
  counts = inspection.measure_objectives(batches, inspection.MEASURED_ROWS)
  notes = [
    *mixture_stats.describe_padding(parts, vocab, lengths),
    *(inspection.summarize_counts(k, found) for k, found in counts.items()),
    *mixture_stats.list_omissions(parts),
  ]
  return Inspection(
    mixture, vocab, lengths, directory, seed, reading.description, parts,
    mixture_stats.compute_lines(parts, reading.rows), notes,
    inspection.pick_examples(batches, vocab, examples), counts,
  )  # fmt: skip


# --- On the terminal


def print_inspection(look: Inspection, console: rich.console.Console) -> None:
  """Prints the mixture's table and the beginnings of the examples."""
  console.print(mixture_stats.build_mixture_table(look.lines, look.over))
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
        put(style_runs(shorten_runs(runs, LONGEST_ON_TERMINAL), color))
  for sign, meaning in inspect_page.list_signs(look):
    put(Text(f'\n{sign} {meaning}'))
  put('')


def style_runs(runs: list[TextRun], color: bool) -> rich.text.Text:
  """Returns runs in colour, or with marks where they begin and end."""
  styles = {
    inspection.READ: ('', '', ''),
    inspection.DROPPED: ('red strike', '[-', '-]'),
    inspection.WRITTEN: ('green', '{+', '+}'),
  }
  made = rich.text.Text()
  for run in runs:
    text = ''.join(c if c.isprintable() else '\ufffd' for c in run.text)
    style, *around = styles[run.mark]
    if color:
      made.append(text, 'reverse ' * run.special + style)
    else:
      made.append(text.join(around))
  return made


def shorten_runs(runs: list[TextRun], most: int) -> list[TextRun]:
  """Returns runs of the first `most` characters."""
  made = []
  for run in runs:
    if len(run.text) > most and not run.special:
      return [*made, TextRun(run.text[:most] + '…', run.mark)]
    made.append(run)
    most -= 0 if run.special else len(run.text)
  return made
