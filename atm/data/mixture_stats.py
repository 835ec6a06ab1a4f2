"""Counts what a mixture is made of: sizes, weights, and epochs to come."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import rich.console
import rich.table

from atm import messages
from atm.data import batches, cache, counter_rng, packing
from atm.data.batches import MixturePart
from atm.data.task_registry import Lengths
from atm.data.vocabulary import Vocabulary

PADDING_ROWS = 256  # of a task, whose padding is measured
MOST_DIRECTIONS = 24  # of pairs that a run tells about


@dataclasses.dataclass
class MixtureLine:
  """One source, language and form of a mixture."""

  source: str
  language: str
  form: str
  sentences: int  # of its text; documents where nobody counted sentences
  tokens: int  # of its text, each counted once
  weight: float = 0.0  # share of the rows a run reads
  epochs: float = 0.0  # how often the run reads its text


@dataclasses.dataclass(frozen=True)
class Reading:
  """What a run reads of a mixture's parts.

  Attributes:
    rows: of each part, the rows that the run reads.
    description: the run, behind 'over'.
  """

  rows: Sequence[float]
  description: str


def plan_reading(
  parts: list[MixturePart],
  tokens: float | None = None,
  batch_size: int | None = None,
  train_steps: int | None = None,
) -> Reading:
  """Returns what a run reads, of so many tokens, or else steps.

  Args:
    parts: of a mixture's training split.
    tokens: that the run's rows hold; None: those of its steps.
    batch_size, train_steps: of the run; where one of them is None, too, the run
      has as many tokens as the text.
  """
  total = sum(part.rate for part in parts)
  weights = [part.rate / total for part in parts]
  # A part gets weight x N of N rows, and each has its own tokens a row.
  mean = sum(w * p.rows.tokens / len(p.rows) for w, p in zip(weights, parts))
  why = ''
  if tokens is None and batch_size is not None and train_steps is not None:
    rows = batch_size * train_steps
    why = f' ({train_steps:,} steps of {batch_size:,} rows)'
    tokens = rows * mean
  elif tokens is None:
    tokens = sum(line.tokens for line in compute_lines(parts, [0] * len(parts)))
    why = ", as many as the text has; TRAIN_TOKENS or a run's gin file set them"
  rows = [w * tokens / mean for w in weights]
  return Reading(rows, f'a run of {format_count(tokens)} tokens{why}')


def compute_lines(
  parts: list[MixturePart], rows: Sequence[float]
) -> list[MixtureLine]:
  """Computes the table of training parts of which a run reads so many rows."""
  total = sum(part.rate for part in parts)
  lines: dict[tuple, MixtureLine] = {}
  for part, read in zip(parts, rows):
    counts, weight = part.rows.counts, part.rate / total
    key = part.source, part.language, part.form
    sentences = counts.get('sentences') or counts.get('documents', 0)
    line = lines.setdefault(key, MixtureLine(*key, sentences, counts['tokens']))
    line.weight += weight
    line.epochs += read / len(part.rows) * count_passes(part)
  return list(lines.values())


def describe_parts(parts: list[MixturePart]) -> list[dict]:
  """Describes a mixture's training parts for a run's records, as JSON."""
  total = sum(part.rate for part in parts)
  return [
    {
      'task': part.name,
      'source': part.source,
      'language': part.language,
      'form': part.form,
      'objective': part.objective.name,
      'share': part.rate / total,
      'tokens': part.rows.counts['tokens'],
      'rows': len(part.rows),
      'passes': count_passes(part),
    }
    for part in parts
  ]


def count_passes(part: MixturePart) -> int:
  """Returns how often a part's rows hold its text."""
  return part.rows.made_from['passes'] if part.objective.joins else 1


def count_epochs(lines: list[MixtureLine]) -> tuple[int, float]:
  """Returns (tokens of the text, how often a run reads one in the mean)."""
  tokens = sum(line.tokens for line in lines)
  return tokens, sum(x.epochs * x.tokens for x in lines) / max(1, tokens)


def describe_directions(
  parts: list[MixturePart], most: int = MOST_DIRECTIONS
) -> list[str]:
  """Describes how many pairs each direction or set has, and their shares.

  Returns no lines where there are no pairs, or they are of one set and name no
  languages.
  """
  chosen = [
    p
    for p in parts
    if p.objective.name == 'pair' and (p.data_set or p.language != 'all')
  ]
  pairs = [part.rows.counts['examples'] for part in chosen]
  # A part is read by rows, each of several pairs.
  read = [part.rate * n / len(part.rows) for part, n in zip(chosen, pairs)]
  lines = [
    f'{_name_pairs(part)}: {n:,} to train on, '
    f'{share / sum(read):.2%} of the pairs that are read'
    for part, n, share in zip(chosen, pairs, read)
  ]
  rest = len(lines) - most
  more = [f'and {rest:,} more directions, see `atm mixture`'] * (rest > 0)
  return lines[:most] + more


def _name_pairs(part: MixturePart) -> str:
  """Returns what a line calls pairs: 'pairs en-de', 'flores en-de'."""
  every = part.language == 'all'
  return part.source if every else f'{part.source} {part.language}'


def format_count(count: float) -> str:
  """Formats a count: whole below a million, else as 1.25M, 3B or 1T."""
  for size, unit in ((1e12, 'T'), (1e9, 'B'), (1e6, 'M')):
    if count >= size:
      return f'{count / size:.3g}{unit}'
  return f'{count:,.0f}'


def format_epochs(epochs: float) -> str:
  """Formats epochs: whole ones from 100, else 3 digits."""
  return format_count(epochs) if epochs >= 100 else f'{epochs:.3g}'


def build_mixture_table(
  lines: list[MixtureLine], over: str
) -> rich.table.Table:
  """Builds the console table of the lines, with a sum for each source.

  Args:
    lines: see `compute_lines`.
    over: the run that epochs are of, see `Reading`.
  """
  table = rich.table.Table(title=f'epochs are over {over}')
  for field in dataclasses.fields(MixtureLine):
    right = field.type != 'str'
    table.add_column(field.name, justify='right' if right else 'left')
  for source in dict.fromkeys(line.source for line in lines):
    chosen = [line for line in lines if line.source == source]
    for line in chosen:
      table.add_row(
        line.source, line.language, line.form, f'{line.sentences:,}',
        f'{line.tokens:,}', f'{line.weight:.4%}', format_epochs(line.epochs),
      )  # fmt: skip
    table.add_section()
    weight = sum(line.weight for line in chosen)
    table.add_row(source, 'all', '', '', '', f'{weight:.4%}', '', style='bold')
    table.add_section()
  return table


def measure_padding(
  parts: list[MixturePart], vocabulary: Vocabulary, lengths: Lengths
) -> np.ndarray:
  """Measures the shares of encoder and decoder positions that are padding."""
  # Over up to PADDING_ROWS rows of each part, from anywhere in it.
  shares, ids = [], packing.SpecialIds.of(vocabulary)
  for i, part in enumerate(parts):
    n, key = min(PADDING_ROWS, len(part.rows)), counter_rng.make_key(part.id)
    row = counter_rng.permute(np.arange(n), len(part.rows), key)
    batch = batches.make_examples(
      parts, np.full(n, i), ids, lengths, 0, 0 * row, row
    )
    sides = (batch[f'{side}_segment_ids'] for side in ('encoder', 'decoder'))
    shares.append([(side == 0).mean() for side in sides])
  return np.average(shares, axis=0, weights=[part.rate for part in parts])


def describe_padding(
  parts: list[MixturePart], vocabulary: Vocabulary, lengths: Lengths
) -> list[str]:
  """Describes the padding of each objective's rows, all languages together."""
  lines = []
  for name in dict.fromkeys(part.objective.name for part in parts):
    chosen = [part for part in parts if part.objective.name == name]
    source, target = measure_padding(chosen, vocabulary, lengths)
    packed = 'several examples' if chosen[0].objective.packs else 'one example'
    lines.append(
      f'{name}: {packed} a row; padding is {source:.1%} of the encoder places, '
      f'{target:.1%} of the decoder places'
    )
  return lines


def list_omissions(parts: list[MixturePart]) -> list[str]:
  """Lists what was left out of the text, see `cache.describe_omissions`."""
  counted = ((p.source, p.language, p.rows.counts) for p in parts)
  return cache.describe_omissions(counted)


@messages.check_arguments(
  mixture=partial(messages.check_text, 'MIXTURE_OR_TASK_NAME', empty=False),
  directory=partial(messages.check_path, 'CACHE_DIR'),
  tokens=partial(
    messages.check_number, 'TRAIN_TOKENS', least=1, whole=False, optional=True
  ),
  batch_size=partial(messages.check_count, 'BATCH_SIZE', optional=True),
  train_steps=partial(messages.check_count, 'TRAIN_STEPS', optional=True),
)
def show_mixture(
  mixture: str,
  directory: str,
  tokens: float | None = None,
  batch_size: int | None = None,
  train_steps: int | None = None,
  configure_tasks: Callable = lambda **named: None,
  console: rich.console.Console | None = None,
) -> list[MixtureLine]:
  """Prints the table of a mixture whose rows are in `directory`.

  Args:
    mixture: a seqio task or mixture.
    directory: made by `cache.build`.
    tokens, batch_size, train_steps: the run whose epochs are counted, see
      `plan_reading`; the paper's has 1e12 tokens.
    configure_tasks: called before the mixture is looked up.
    console: where to print.

  Raises:
    ValueError: `tokens` is not above 0.
    FileNotFoundError: the mixture has no finished rows there.
  """
  vocabulary, lengths = cache.open_cache(directory)
  configure_tasks(vocabulary=vocabulary.path)
  parts = batches.load_parts(
    mixture, 'train', vocabulary, lengths, directory, passes=None, verify=None
  )
  console = console or rich.console.Console()
  reading = plan_reading(parts, tokens, batch_size, train_steps)
  lines = compute_lines(parts, reading.rows)
  console.print(build_mixture_table(lines, reading.description))
  notes = describe_padding(parts, vocabulary, lengths) + list_omissions(parts)
  for note in notes:
    console.print(note, highlight=False)
  return lines
