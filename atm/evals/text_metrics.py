"""BLEU, spBLEU, chrF and ROUGE as additive counts and functions of their sums.

sacrebleu and rouge-score themselves count; the counts of any questions are
summed here, so a bootstrap is a matrix product. Both libraries are
the extra [eval], and are imported late.

A function of counts takes N answers, N truths (a reference or several), the
language they are in and the vocabulary, and gives float64 [N, M]. A total takes
sums [..., M] and gives scores [...], 0 to 100.
"""
# Languages matter twice. BLEU splits words by sacrebleu's default of the target
# language: 13a, and MeCab for Japanese. ROUGE of English has rouge-score's own
# tokenizer with the Porter stemmer, the habit for XSum. That tokenizer drops
# all that is not a-z and 0-9, so other languages have `rouge_words`, which
# drops only what is no letter, no mark and no number, as the multilingual fork
# of XL-Sum does; but without its stemmers and its word segmenters, so that
# figures depend on no further package. Japanese, written without spaces, is cut
# into single characters of its scripts. Which tokenizers the paper used is not
# stated.

import contextlib
import functools
import hashlib
import importlib
import importlib.metadata
import itertools
import os
import types
import unicodedata
from collections.abc import Sequence

import numpy as np

from atm import fileio, messages
from atm.evals.task import MissingData, Tokenizer

# Of flores200_sacrebleu_tokenizer_spm.model, which is NLLB's vocabulary, in the
# Git LFS pointers of facebook/nllb-200-distilled-600M and OpenNMT/nllb-200-onmt
# at Hugging Face. None was found published of Flores-101's.
FLORES200 = '14bb8dfb35c0ffdea7bc01e56cea38b9e3d5efcdcb9c251d6b40538e1aab555a'
MAX_NGRAM = 4  # of BLEU's n-grams
CHRF_BETA = 2
MAX_ROUNDS = 8  # of `written_text`; no text found needs a third


def import_library(name: str):
  """Imports an optional module; its absence says what to install."""
  try:
    return importlib.import_module(name)
  except ModuleNotFoundError as error:
    text = f'scoring texts needs {name.split(".")[0]}'
    missing = messages.missing_extra(text, 'eval')
    raise messages.MissingExtraError(missing) from error


def written_text(text: str, vocabulary: Tokenizer) -> str:
  """Returns a text as a tokenizer writes it: so a model can write it, too.

  Characters are normalised as in the vocabulary, white space as single spaces,
  and characters that it lacks are its sign for them.
  """
  # Until nothing changes: an answer was written once already, and a sign for
  # unknown characters, '⁇', is '??' where it is read.
  for _ in range(MAX_ROUNDS):
    before, text = text, vocabulary.decode(vocabulary.encode(text))
    if text == before:
      break
  return text


def reference_texts(truth: str | Sequence[str]) -> list[str]:
  """Returns the accepted texts of a truth; raises ValueError without any."""
  texts = [truth] if isinstance(truth, str) else list(truth)
  if not texts:
    raise ValueError('truth = []: expected a reference text, or several')
  return texts


# --- sacrebleu


def spbleu_file() -> tuple[str, str]:
  """Returns path and URL of spBLEU's SentencePiece model."""
  # The folder is sacrebleu's: $SACREBLEU/models, or ~/.sacrebleu/models.
  spm = import_library('sacrebleu.tokenizers.tokenizer_spm')
  url = spm.SPM_MODELS['flores101']['url']
  return os.path.join(spm.SACREBLEU_DIR, 'models', os.path.basename(url)), url


def _require_spbleu():
  """Returns sacrebleu's spBLEU; raises MissingData without its model."""
  metric = _spbleu(spbleu_file()[0])
  if isinstance(metric, MissingData):
    raise metric
  return metric


@functools.lru_cache(maxsize=1)
def _spbleu(path: str):
  """Returns spBLEU, its model downloaded to `path` if need be, or the error."""
  # The error is cached too: of 132 directions each would wait for the network.
  try:
    metric = import_library('sacrebleu').BLEU(tokenize='flores101', force=True)
    problem = _find_mismatch(path)
  except (OSError, RuntimeError):  # RuntimeError: a broken model
    problem = "spBLEU's SentencePiece model is neither there nor in reach"
    if os.path.exists(path):
      problem = f'{path} is no SentencePiece model'
  if not problem:
    return metric
  return MissingData(
    f'{problem}: download {spbleu_file()[1]} and put it at {path}, or set '
    f'SACREBLEU to a folder that has it as models/{os.path.basename(path)}'
  )


def _find_mismatch(path: str) -> str:
  """Tells how the file is not the one that was first used, or ''."""
  # No checksum of it is published that we know of. So that of the first use is
  # kept beside it, in sha256sum's format, and figures stay comparable on this
  # machine; who knows the right one writes it there.
  pin, found = f'{path}.sha256', sha256_of_file(path)
  if found == FLORES200:
    return f"{path} is Flores-200's model, not 101's"
  if not os.path.exists(pin):
    with contextlib.suppress(OSError):  # a shared folder may be read-only
      fileio.write_atomically(pin, f'{found}  {os.path.basename(path)}\n')
    return ''
  fileio.check_regular(pin)
  with open(pin, encoding='utf-8', errors='replace') as f:
    first = ' '.join(f.read().split()[:1]) or 'nothing'
  return '' if first == found else (
    f'{path} has the SHA-256 {found}, but {pin} says {first}'
  )  # fmt: skip


def sha256_of_file(path: str) -> str:
  """Returns the checksum of a file, hexadecimal."""
  fileio.check_regular(path)
  with open(path, 'rb') as f:
    return hashlib.file_digest(f, 'sha256').hexdigest()


@functools.lru_cache(maxsize=16)
def _bleu_of_language(language: str):
  sacrebleu = import_library('sacrebleu')
  try:
    return sacrebleu.BLEU(trg_lang=language, force=True)
  except (ImportError, RuntimeError) as error:
    raise ModuleNotFoundError(
      f'BLEU of language {language!r} splits words by another package: pip '
      f"install 'sacrebleu[{language}]', or take chrf or spbleu"
    ) from error


def _sacrebleu_counts(metric, answers, truths) -> np.ndarray:
  """Returns sacrebleu's statistics of each text, float64 [N, M]."""
  texts = [reference_texts(truth) for truth in truths]
  # sacrebleu takes the first references of all, the second of all, ...; a text
  # with fewer has None there.
  columns = [list(each) for each in itertools.zip_longest(*texts)]
  counts = metric._extract_corpus_statistics(list(answers), columns)
  return np.array(counts, np.float64)


def spbleu_counts(answers, truths, language: str, vocabulary):
  """Counts BLEU over the pieces of the SentencePiece model of Flores-101."""
  # sacrebleu downloads this model on first use, and it stays that one, see
  # `_find_mismatch`. results.json has its checksum, see `library_version`.
  return _sacrebleu_counts(_require_spbleu(), answers, truths)


def own_bleu_counts(
  answers, truths, language: str, vocabulary: Tokenizer | None
):
  """Counts BLEU over the pieces of the model's own vocabulary, see STAND_IN."""
  if vocabulary is None:
    raise ValueError('spbleu_own needs vocabulary: got None')
  pieces = lambda text: ' '.join(map(str, vocabulary.encode(text)))
  metric = import_library('sacrebleu').BLEU(tokenize='none', force=True)
  cut = [[pieces(text) for text in reference_texts(truth)] for truth in truths]
  return _sacrebleu_counts(metric, [pieces(answer) for answer in answers], cut)


def bleu_counts(answers, truths, language: str, vocabulary):
  """Counts BLEU with sacrebleu's tokenizer of the language."""
  return _sacrebleu_counts(_bleu_of_language(language), answers, truths)


def chrf_counts(answers, truths, language: str, vocabulary):
  """Counts chrF: character n-grams to 6, beta 2, as chrF2 of sacrebleu."""
  return _sacrebleu_counts(import_library('sacrebleu').CHRF(), answers, truths)


def bleu_total(sums: np.ndarray) -> np.ndarray:
  """Computes BLEU of summed counts: [..., 10] -> [...].

  Counts: lengths of answers and references, then right n-grams and all n-grams,
  n = 1 to 4.
  """
  # sacrebleu's `compute_bleu` with its default, exponential smoothing, over
  # leading axes.
  length, wanted = sums[..., 0], sums[..., 1]
  right, found = sums[..., 2 : 2 + MAX_NGRAM], sums[..., 2 + MAX_NGRAM :]
  none = right == 0
  # The k-th order without a hit counts as 1/2^k hits.
  smooth = np.where(none, 0.5 ** np.cumsum(none, axis=-1), right)
  with np.errstate(divide='ignore', invalid='ignore'):
    mean = np.log(100 * smooth / found).mean(-1)
    short = np.where(length < wanted, 1 - wanted / length, 0)
    score = np.exp(mean + short)
  scored = (right > 0).any(-1) & (found > 0).all(-1)
  return np.where(scored, score, 0.0)


def chrf_total(sums: np.ndarray) -> np.ndarray:
  """Computes chrF of summed counts: [..., 18] -> [...].

  Counts: n-grams of the answers, of the references and of both, n = 1 to 6.
  """
  # Orders that one side lacks do not count.
  answers, wanted, both = (sums[..., i::3] for i in range(3))
  present = (answers > 0) & (wanted > 0)
  orders = np.maximum(present.sum(-1), 1)
  precision, recall = (
    np.where(present, both / np.maximum(each, 1), 0).sum(-1) / orders
    for each in (answers, wanted)
  )
  weight = CHRF_BETA**2
  below = weight * precision + recall
  above = (1 + weight) * precision * recall
  return 100 * np.divide(above, below, np.zeros_like(above), where=below > 0)


# --- rouge-score


def rouge_words(text: str) -> list[str]:
  """Splits into lower-cased words of any script; see the head of this file."""
  spaced = []
  # Outputs of the vocabulary are NFKC-normalised, too.
  for c in unicodedata.normalize('NFKC', text).lower():
    in_word = unicodedata.category(c)[0] in 'LMN'  # letter, mark, number
    spaced.append((f' {c} ' if _unspaced(c) else c) if in_word else ' ')
  return ''.join(spaced).split()


def _unspaced(character: str) -> bool:
  """Tells whether a character is of a script that Japanese is written in."""
  name = unicodedata.name(character, '')
  return name.startswith(('CJK', 'HIRAGANA', 'KATAKANA'))


def rouge_counts(kind: str, answers, truths, language: str, vocabulary):
  """Counts (F-measure, 1) of 'rouge1', say; of several references the best."""
  english = language == 'en'
  # None is rouge-score's own; it calls `tokenize` of another.
  tokenizer = None if english else types.SimpleNamespace(tokenize=rouge_words)
  scorer = import_library('rouge_score.rouge_scorer').RougeScorer(
    [kind], use_stemmer=english, tokenizer=tokenizer
  )
  counts = np.ones((len(answers), 2))
  for i, (answer, truth) in enumerate(zip(answers, truths)):
    scores = scorer.score_multi(reference_texts(truth), answer)
    counts[i, 0] = 100 * scores[kind].fmeasure
  return counts


# --- What a figure depends on


def check_installed(name: str, language: str) -> None:
  """Raises MissingData or ModuleNotFoundError where a metric cannot count."""
  if name == 'spbleu':
    _require_spbleu()
  elif name == 'bleu':
    _bleu_of_language(language)
  elif name in ('chrf', 'spbleu_own'):
    import_library('sacrebleu')
  elif name.startswith('rouge'):
    import_library('rouge_score.rouge_scorer')


def library_version(name: str) -> str | None:
  """Returns the library version behind a metric; None for metrics of ours."""
  if name.startswith('rouge'):
    return f'rouge-score {importlib.metadata.version("rouge-score")}'
  if name not in ('spbleu', 'spbleu_own', 'bleu', 'chrf'):
    return None
  text = f'sacrebleu {import_library("sacrebleu").__version__}'
  path = spbleu_file()[0]
  if name == 'spbleu' and os.path.exists(path):
    text += f', {os.path.basename(path)} of SHA-256 {sha256_of_file(path)}'
  return text
