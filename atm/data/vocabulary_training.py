"""Trains a SentencePiece vocabulary and reports its coverage."""

from __future__ import annotations

import collections
import dataclasses
import io
import itertools
import json
import os
from collections.abc import Callable, Iterable

import sentencepiece

from atm.data import registry
from atm.data import vocabulary as vocabulary_lib
from atm.data.vocabulary import Vocabulary


def mix_forms(
  texts: Iterable[str], spoken, spoken_share: float
) -> Iterable[str]:
  """Each text once, an exact share of them in spoken form, evenly spread.

  The paper trains its tokenizer on spoken : written = 7 : 3 (section 2.1).
  """
  owed = 0.0
  for text in texts:
    owed += spoken_share
    if owed >= 0.5:
      owed -= 1.0
      text = spoken(text)
    if text:
      yield text


def train_sentencepiece(
  texts: Iterable[str],
  directory: str,
  size: int,
  tags: int = 0,
  byte_fallback: bool = False,
  character_coverage: float = 0.9999,
) -> vocabulary_lib.Vocabulary:
  """Trains a SentencePiece unigram model into `directory`.

  Args:
    texts: one text an item; read once, in order. The result depends on
      nothing else.
    directory: gets `sentencepiece.model`; written whole or not at all.
    size: number of pieces, the special ones and tags included.
    tags: how many reserved entries `[TAG_0]`, ... (the paper: about 1000).
    byte_fallback: spell unknown characters in 256 byte pieces.
    character_coverage: share of characters that get a piece of their own.

  Raises:
    ValueError: the size does not suit the text; says what SentencePiece said.
  """
  out = io.BytesIO()
  reserved = [f'[TAG_{i}]' for i in range(tags)]
  try:
    sentencepiece.SentencePieceTrainer.Train(
      sentence_iterator=iter(texts),
      model_writer=out,
      model_type='unigram',
      vocab_size=size,
      character_coverage=character_coverage,
      byte_fallback=byte_fallback,
      control_symbols=[
        vocabulary_lib.MASK_TOKEN,
        vocabulary_lib.CLM_TOKEN,
        vocabulary_lib.DOC_TOKEN,
        *reserved,
      ],
      pad_id=0,
      bos_id=1,
      eos_id=2,
      unk_id=3,
      pad_piece=vocabulary_lib.PAD_TOKEN,
      bos_piece=vocabulary_lib.BOS_TOKEN,
      eos_piece=vocabulary_lib.EOS_TOKEN,
      unk_piece=vocabulary_lib.UNK_TOKEN,
      max_sentence_length=65536,
      num_threads=8,
      minloglevel=2,
    )
  except RuntimeError as e:
    raise ValueError(
      f'a vocabulary of {size} pieces cannot be trained on this text: {e}'
    ) from e
  return vocabulary_lib.write_vocabulary(out.getvalue(), directory)


@dataclasses.dataclass
class Coverage:
  """How a vocabulary meets the text of one language."""

  texts: int = 0
  words: int = 0
  characters: int = 0
  pieces: int = 0
  unknown: int = 0

  def row(self) -> dict[str, float]:
    return {
      'texts': self.texts,
      'pieces_per_word': self.pieces / max(1, self.words),
      'characters_per_piece': self.characters / max(1, self.pieces),
      'unknown_rate': self.unknown / max(1, self.pieces),
    }


def measure_coverage(
  vocabulary: vocabulary_lib.Vocabulary, texts: Iterable[tuple[str, str]]
) -> dict[str, dict[str, float]]:
  """language -> texts, pieces a word, characters a piece, share unknown.

  Args:
    vocabulary: the vocabulary.
    texts: pairs (language, text). A word is what stands between spaces, which
      says little for Japanese; compare characters a piece there.
  """
  seen = collections.defaultdict(Coverage)
  for language, text in texts:
    ids = vocabulary.encode(text)
    row = seen[language]
    row.texts += 1
    row.words += len(text.split())
    row.characters += len(text)
    row.pieces += len(ids)
    row.unknown += ids.count(vocabulary.unk_id)
  return {language: row.row() for language, row in sorted(seen.items())}


def write_report(vocabulary: vocabulary_lib.Vocabulary, rows: dict) -> str:
  """Writes report.json beside the model; returns it as a table to print."""
  path = os.path.join(os.path.dirname(vocabulary.path), REPORT_FILE)
  with open(path, 'w') as f:
    json.dump(
      {
        'size': vocabulary.size,
        'sha256': vocabulary.sha256,
        'languages': rows,
      },
      f,
      indent=1,
    )
  head = ('language', 'texts', 'pieces/word', 'chars/piece', 'unknown')
  lines = ['{:<9}{:>9}{:>13}{:>13}{:>10}'.format(*head)]
  for language, row in rows.items():
    lines.append(
      f'{language:<9}{row["texts"]:>9,}{row["pieces_per_word"]:>13.2f}'
      f'{row["characters_per_piece"]:>13.2f}{row["unknown_rate"]:>10.4%}'
    )
  return '\n'.join(
    itertools.chain(
      [f'vocabulary of {vocabulary.size:,} pieces: {vocabulary.path}'], lines
    )
  )


def train_vocabulary(
  mixture: str,
  directory: str,
  size: int,
  train: Callable = train_sentencepiece,
  spoken: Callable[[str], str] = str,
  spoken_share: float = 0.0,
  configure_tasks: Callable = lambda: None,
  say: Callable[[str], None] = print,
) -> Vocabulary:
  """Trains a vocabulary on a seqio task's text, with a report beside it.

  Args:
    mixture: a seqio task or mixture.
    directory: gets the model and report.json.
    size: number of pieces.
    train: called with (texts, directory, size), see `train_sentencepiece`.
    spoken: gives a text's spoken form.
    spoken_share: share of texts in spoken form; the paper's is 0.7.
    configure_tasks: called before the mixture is looked up.
    say: prints a line.
  """
  if not 0 <= spoken_share <= 1:
    raise ValueError(f'SPOKEN_SHARE = {spoken_share}: expected 0 to 1')
  configure_tasks()
  say(f'training a vocabulary of {size:,} pieces on the text of {mixture}')
  written = (text for _, text in registry.read_texts(mixture))
  in_forms = mix_forms(written, spoken, spoken_share)
  made = train(in_forms, directory, size)
  rows = measure_coverage(made, registry.read_texts(mixture))
  say(write_report(made, rows))
  return made


REPORT_FILE = 'report.json'
