"""Trains a SentencePiece vocabulary and reports its coverage."""

import collections
import io
import os
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import sentencepiece

from atm import fileio, messages, storage
from atm.data import task_registry
from atm.data import vocabulary as vocabulary_lib
from atm.data.vocabulary import Vocabulary
from atm.messages import (
  MOST_INT32,
  check_arguments,
  check_count,
  check_number,
  check_path,
  check_text,
)

REPORT_FILE = 'report.json'
MOST_PIECES = 153_600  # of the paper's model


class TooFewPiecesError(ValueError):
  """Text that has fewer pieces than were asked for: at most `largest`."""

  def __init__(self, size: int, largest: int):
    super().__init__(
      f'VOCABULARY_SIZE = {size}: this text supports at most {largest}; use '
      f'VOCABULARY_SIZE = {largest}, or None for as many as there are'
    )
    self.largest = largest


def mix_forms(
  texts: Iterable[str], spoken: Callable[[str], str], spoken_share: float
) -> Iterable[str]:
  """Yields each text once, an exact share of them in spoken form."""
  # The paper trains its tokenizer on spoken : written = 7 : 3 (section 2.1).
  owed = 0.0  # texts, so that spoken ones are spread evenly
  for text in texts:
    owed += spoken_share
    if owed >= 0.5:
      owed -= 1.0
      text = spoken(text)
    if text:
      yield text


@check_arguments(
  directory=partial(check_path, 'VOCABULARY_DIR'),
  size=partial(check_count, 'VOCABULARY_SIZE'),
  tags=partial(check_number, 'TAGS', least=0, most=MOST_INT32),
  character_coverage=partial(
    check_number, 'vocabulary.train.character_coverage', above=0, most=1,
    whole=False,
  ),
)  # fmt: skip
def train_sentencepiece(
  texts: Iterable[str],
  directory: str,
  size: int,
  tags: int = 0,
  byte_fallback: bool = False,
  character_coverage: float = 0.9999,
) -> Vocabulary:
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
    TooFewPiecesError: the text has fewer pieces; names how many.
    ValueError: the size does not suit the text; says what SentencePiece said.
  """
  out, errors, v = io.BytesIO(), [], vocabulary_lib
  reserved = [f'[TAG_{i}]' for i in range(tags)]
  special = {}
  for number, name in enumerate(('pad', 'bos', 'eos', 'unk')):
    special[f'{name}_id'] = number
    special[f'{name}_piece'] = v.SPECIAL_TOKENS[number]
  try:
    sentencepiece.SentencePieceTrainer.Train(
      sentence_iterator=_remember_error(texts, errors),
      model_writer=out,
      model_type='unigram',
      vocab_size=size,
      character_coverage=character_coverage,
      byte_fallback=byte_fallback,
      control_symbols=[v.MASK_TOKEN, v.CLM_TOKEN, v.DOC_TOKEN, *reserved],
      max_sentence_length=65536,
      num_threads=8,
      minloglevel=2,
      **special,
    )
  except RuntimeError as e:
    if errors:  # of the text, or a signal
      raise errors[0] from None
    raise _explain_size(size, str(e)) from e
  return v.write_vocabulary(out.getvalue(), directory)


def _explain_size(size: int, message: str) -> ValueError:
  """Returns the error of a size that SentencePiece refused with a message."""
  if found := re.search(r'size too high .* value <= (\d+)', message):
    return TooFewPiecesError(size, int(found[1]))
  if found := re.search(r'smaller than required_chars. \d+ vs (\d+)', message):
    return ValueError(
      f'VOCABULARY_SIZE = {size}: the characters of this text alone need '
      f'{found[1]} pieces: expected at least so many, also of '
      'model.Config.vocab_size'
    )
  return ValueError(
    f'a vocabulary of {size} pieces cannot be trained on this text: {message}'
  )


def _remember_error(texts: Iterable[str], errors: list) -> Iterator[str]:
  """Yields texts; adds the error that ends them to `errors`."""
  # SentencePiece makes a RuntimeError of it.
  try:
    yield from texts
  except BaseException as e:
    errors.append(e)
    raise


def measure_coverage(
  vocabulary: Vocabulary, texts: Iterable[tuple[str, str]]
) -> dict[str, dict[str, float]]:
  """Returns how a vocabulary meets (language, text) pairs, by language."""
  # A word is what stands between spaces, which says little for Japanese;
  # compare characters a piece there.
  sums = collections.defaultdict(collections.Counter)
  for language, text in texts:
    ids = vocabulary.encode(text)
    sums[language].update(
      texts=1, words=len(text.split()), characters=len(text), pieces=len(ids),
      unknown=ids.count(vocabulary.unk_id),
    )  # fmt: skip
  return {
    language: {
      'texts': n['texts'],
      'pieces_per_word': n['pieces'] / max(1, n['words']),
      'characters_per_piece': n['characters'] / max(1, n['pieces']),
      'unknown_rate': n['unknown'] / max(1, n['pieces']),
    }
    for language, n in sorted(sums.items())
  }


def write_report(vocabulary: Vocabulary, rows: dict) -> str:
  """Writes report.json beside the model; returns it as a table to print."""
  path = os.path.join(os.path.dirname(vocabulary.path), REPORT_FILE)
  facts = {'size': vocabulary.size, 'sha256': vocabulary.sha256}
  fileio.write_json(path, facts | {'languages': rows})
  line = '{:<9}{:>9}{:>13}{:>13}{:>10}'.format
  return '\n'.join([
    f'vocabulary of {vocabulary.size:,} pieces: {vocabulary.path}',
    line('language', 'texts', 'pieces/word', 'chars/piece', 'unknown'),
    *(
      line(
        language, f'{row["texts"]:,}', f'{row["pieces_per_word"]:.2f}',
        f'{row["characters_per_piece"]:.2f}', f'{row["unknown_rate"]:.4%}',
      )
      for language, row in rows.items()
    ),
  ])  # fmt: skip


def _check_no_other(directory: str, size: int | None) -> None:
  """Raises ValueError, before hours of work, where a vocabulary is another."""
  path = os.path.join(directory, vocabulary_lib.MODEL_FILE)
  if size is None or not storage.exists(path):
    return
  if (there := Vocabulary(path).size) != size:
    raise ValueError(
      f'{path} is another vocabulary, of {there:,} pieces: use another folder, '
      'or move it away'
    )


@check_arguments(
  mixture=partial(check_text, 'MIXTURE_OR_TASK_NAME', empty=False),
  directory=partial(check_path, 'VOCABULARY_DIR'),
  size=partial(check_count, 'VOCABULARY_SIZE', optional=True),
  spoken_share=partial(
    check_number, 'SPOKEN_SHARE', least=0, most=1, whole=False
  ),
)
def train_vocabulary(
  mixture: str,
  directory: str,
  size: int | None = None,
  train: Callable = train_sentencepiece,
  spoken: Callable[[str], str] = str,
  spoken_share: float = 0.0,
  configure_tasks: Callable = lambda: None,
  say: Callable[[str], None] = print,
  make_model: Callable | None = None,
) -> Vocabulary:
  """Trains a vocabulary on a seqio task's text, with a report beside it.

  Args:
    mixture: a seqio task or mixture.
    directory: gets the model and report.json.
    size: number of pieces; None: as many as the text supports, up to the
      `vocab_size` of `make_model`'s model, or MOST_PIECES.
    train: called with (texts, directory, size), see `train_sentencepiece`.
    spoken: gives a text's spoken form.
    spoken_share: share of texts in spoken form; the paper's is 0.7.
    configure_tasks: called before the mixture is looked up.
    say: prints a line.
    make_model: returns a `ModelConfig`, where `size` is None.

  Raises:
    TooFewPiecesError: the text does not support `size` pieces.
  """
  fileio.check_output_folder('VOCABULARY_DIR', directory)
  _check_no_other(directory, size)
  configure_tasks()
  most = make_model().vocab_size if make_model else MOST_PIECES
  number = f'{size:,} pieces' if size else f'at most {most:,} pieces'
  say(f'training a vocabulary of {number} on the text of {mixture}')

  def train_size(pieces: int) -> Vocabulary:
    written = (text for _, text in task_registry.read_texts(mixture))
    return train(mix_forms(written, spoken, spoken_share), directory, pieces)

  left = f'nothing of it is in {directory}; the same command begins anew'
  with messages.note_work(
    lambda: f'the vocabulary was not trained yet: {left}'
  ):
    vocabulary = _train_largest(train_size, most, say, size)
  left = f'{vocabulary.path} is whole, {REPORT_FILE} beside it is missing'
  with messages.note_work(lambda: f'{left}; the same command writes it'):
    rows = measure_coverage(vocabulary, task_registry.read_texts(mixture))
  say(write_report(vocabulary, rows))
  return vocabulary


def _train_largest(
  train_size: Callable[[int], Vocabulary], most: int, say, size: int | None
) -> Vocabulary:
  """Trains `size` pieces; None: `most`, or as many as the text supports."""
  wanted = size or most
  while True:
    try:
      return train_size(wanted)
    except TooFewPiecesError as e:
      if size or e.largest >= wanted:
        raise
      wanted = e.largest
      say(f'the text supports {wanted:,} of {most:,} pieces: trained so many')
