"""What a mixture is made of: counts, weights, and epochs to come."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import rich.console
import rich.table

from atm.data import batches, cache, counter_rng, packing
from atm.data.batches import MixturePart
from atm.data.registry import Lengths
from atm.data.vocabulary import Vocabulary

PADDING_ROWS = 256  # rows of a task whose padding is measured


@dataclasses.dataclass
class MixtureLine:
  """One source, language and form of a mixture.

  Attributes:
    sentences, tokens: of its text, each counted once; documents where nobody
      counted sentences.
    weight: its share of the rows a run reads.
    epochs: how often a run of so many tokens reads its text.
  """

  source: str
  language: str
  form: str
  sentences: int
  tokens: int
  weight: float
  epochs: float


def compute_lines(parts: list[MixturePart], tokens: float) -> list[MixtureLine]:
  """The table of a mixture's training parts, over a run of `tokens` tokens.

  The run reads N rows in all; a part gets N x weight of them, and its tokens a
  row are those of its own rows, so N follows from `tokens`.
  """
  total = sum(part.rate for part in parts)
  mean = lambda part: part.rows.tokens / len(part.rows)
  rows = tokens / sum(p.rate / total * mean(p) for p in parts)
  found: dict[tuple, MixtureLine] = {}
  for part in parts:
    counts, weight = part.rows.counts, part.rate / total
    key = part.source, part.language, part.form
    sentences = counts.get('sentences') or counts.get('documents', 0)
    line = found.setdefault(
      key, MixtureLine(*key, sentences, counts['tokens'], 0.0, 0.0)
    )
    line.weight += weight
    line.epochs += rows * weight / len(part.rows) * count_passes(part)
  return list(found.values())


def count_passes(part: MixturePart) -> int:
  """How often a part's rows hold its text."""
  return part.rows.made_from['passes'] if part.objective.joins else 1


def format_epochs(epochs: float) -> str:
  return f'{epochs:,.0f}' if epochs >= 100 else f'{epochs:.3g}'


def build_table(found: list[MixtureLine], tokens: float) -> rich.table.Table:
  """The lines, with a sum for each source."""
  made = rich.table.Table(title=f'epochs are over {tokens:,.0f} tokens')
  for name in ('source', 'language', 'form'):
    made.add_column(name)
  for name in ('sentences', 'tokens', 'weight', 'epochs'):
    made.add_column(name, justify='right')
  for source in dict.fromkeys(line.source for line in found):
    mine = [line for line in found if line.source == source]
    for line in mine:
      made.add_row(
        line.source, line.language, line.form, f'{line.sentences:,}',
        f'{line.tokens:,}', f'{line.weight:.4%}', format_epochs(line.epochs),
      )  # fmt: skip
    made.add_section()
    weight = sum(line.weight for line in mine)
    made.add_row(source, 'all', '', '', '', f'{weight:.4%}', '', style='bold')
    made.add_section()
  return made


def measure_padding(
  parts: list[MixturePart], words: Vocabulary, lengths: Lengths
):
  """Shares of encoder and decoder places that are padding, measured.

  Over up to SAMPLE rows of each part, from anywhere in it, weighed by rate.
  """
  shares, rates = [], []
  for i, part in enumerate(parts):
    n = min(PADDING_ROWS, len(part.rows))
    row = counter_rng.permute(
      np.arange(n), len(part.rows), counter_rng.make_key(part.id)
    )
    batch = batches.make_examples(
      parts,
      np.full(n, i),
      packing.SpecialIds.of(words),
      lengths,
      0,
      0 * row,
      row,
    )
    sides = (batch[f'{side}_segment_ids'] for side in ('encoder', 'decoder'))
    shares.append([(side == 0).mean() for side in sides])
    rates.append(part.rate)
  return np.average(shares, axis=0, weights=rates)


def describe_padding(
  parts: list[MixturePart], words: Vocabulary, lengths: Lengths
) -> list[str]:
  """The padding of each objective's rows, all languages together."""
  made = []
  for name in dict.fromkeys(part.objective.name for part in parts):
    mine = [part for part in parts if part.objective.name == name]
    source, target = measure_padding(mine, words, lengths)
    packed = 'several examples' if mine[0].objective.packs else 'one example'
    made.append(
      f'{name}: {packed} a row; padding is {source:.1%} of the encoder places, '
      f'{target:.1%} of the decoder places'
    )
  return made


def lost(parts: list[MixturePart]) -> list[str]:
  """What was left out of the text, see `cache.describe_omissions`."""
  return cache.describe_omissions(
    (p.source, p.language, p.rows.counts) for p in parts
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
    FileNotFoundError: the mixture has no finished rows there.
  """
  if tokens <= 0:
    raise ValueError(f'TRAIN_TOKENS = {tokens}: expected more than 0')
  words, lengths = cache.open_cache(directory)
  configure_tasks(vocabulary=words.path)
  parts = batches.load_parts(
    mixture, 'train', words, lengths, directory, passes=None, verify=None
  )
  console = console or rich.console.Console()
  found = compute_lines(parts, tokens)
  console.print(build_table(found, tokens))
  for line in describe_padding(parts, words, lengths):
    console.print(line, highlight=False)
  for line in lost(parts):
    console.print(line, highlight=False)
  return found
