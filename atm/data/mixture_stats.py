"""Counts what a mixture is made of: sizes, weights, and epochs to come."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
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


@dataclasses.dataclass
class MixtureLine:
  """One source, language and form of a mixture."""

  source: str
  language: str
  form: str
  sentences: int  # of its text; documents where nobody counted sentences
  tokens: int  # of its text, each counted once
  weight: float = 0.0  # share of the rows a run reads
  epochs: float = 0.0  # how often a run of so many tokens reads its text


def compute_lines(parts: list[MixturePart], tokens: float) -> list[MixtureLine]:
  """Computes the table of training parts, over a run of `tokens` tokens."""
  # The run reads N rows in all; a part gets N x weight of them, and its tokens
  # a row are those of its own rows, so N follows from `tokens`.
  total = sum(part.rate for part in parts)
  mean = lambda part: part.rows.tokens / len(part.rows)
  rows = tokens / sum(p.rate / total * mean(p) for p in parts)
  lines: dict[tuple, MixtureLine] = {}
  for part in parts:
    counts, weight = part.rows.counts, part.rate / total
    key = part.source, part.language, part.form
    sentences = counts.get('sentences') or counts.get('documents', 0)
    line = lines.setdefault(key, MixtureLine(*key, sentences, counts['tokens']))
    line.weight += weight
    # Rows of several passes hold the text as often.
    passes = part.rows.made_from['passes'] if part.objective.joins else 1
    line.epochs += rows * weight / len(part.rows) * passes
  return list(lines.values())


def format_epochs(epochs: float) -> str:
  """Formats epochs: whole ones from 100, else 3 digits."""
  return f'{epochs:,.0f}' if epochs >= 100 else f'{epochs:.3g}'


def build_mixture_table(
  lines: list[MixtureLine], tokens: float
) -> rich.table.Table:
  """Builds the console table of the lines, with a sum for each source."""
  table = rich.table.Table(title=f'epochs are over {tokens:,.0f} tokens')
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
  tokens=partial(messages.check_number, 'TRAIN_TOKENS', least=1, whole=False),
)
def show_mixture(
  mixture: str,
  directory: str,
  tokens: float = 1e12,
  configure_tasks: Callable = lambda **named: None,
  console: rich.console.Console | None = None,
) -> list[MixtureLine]:
  """Prints the table of a mixture whose rows are in `directory`.

  Args:
    mixture: a seqio task or mixture.
    directory: made by `cache.build`.
    tokens: of a run, over which epochs are counted; the paper's is 1e12.
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
  lines = compute_lines(parts, tokens)
  console.print(build_mixture_table(lines, tokens))
  notes = describe_padding(parts, vocabulary, lengths) + list_omissions(parts)
  for note in notes:
    console.print(note, highlight=False)
  return lines
