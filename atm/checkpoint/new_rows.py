"""Starts a run from a trained model whose vocabulary has gained tokens.

New tokens stand behind the last id of the vocabulary they were added to. They
take the rows that the embedding has there already, which no token had, and the
embedding grows by what is missing. All other rows stay exactly what they were,
and so does every logit of theirs.

Letters: V rows of the new tables, D d_model.
"""

from collections.abc import Mapping

import jax
import numpy as np
from flax import traverse_util

from atm.checkpoint import hf_folder
from atm.checkpoint.pretrained import PretrainedModel
from atm.data.vocabulary import Vocabulary
from atm.model import parameters
from atm.model.config import ModelConfig
from atm.model.transformer import AlexaTM
from atm.parallel.sharding import Rules

# Parameters with a row or an entry for each id.
TABLES = ('encoder_embedding', 'decoder_embedding', 'lm_head', 'logits_bias')
MEAN = -1  # in place of a row: the mean of all rows of the old vocabulary
SUMMED_AT_ONCE = 1 << 14  # of a table, that are summed in float64


def choose_starts(
  old: Vocabulary,
  new: Vocabulary,
  languages: Mapping[str, str],
  old_rows: int,
  rows: int,
) -> np.ndarray:
  """Returns [V] int64: the old row that each new row begins as, or MEAN.

  A new language begins as the language that `languages` names for it; markers,
  and rows that no token has in either table, as the mean.

  Args:
    old, new: the vocabularies; `new` has the ids of `old` in front.
    languages: new language -> language of `old`, the model's own codes.
    old_rows, rows: of the old and the new tables.
  """
  starts = np.arange(rows)
  starts[old_rows:] = MEAN
  starts[old.size : new.size] = MEAN
  for code, begins_as in languages.items():
    starts[new.languages[code]] = old.languages[begins_as]
  return starts


def extend_table(
  table: np.ndarray, starts: np.ndarray, known: int
) -> np.ndarray:
  """Returns a table [V, D], or a bias [V], of `choose_starts`'s rows.

  Args:
    table: the old one.
    starts: see `choose_starts`.
    known: rows of the old vocabulary, of which MEAN is the mean.
  """
  total = np.zeros(table.shape[1:], np.float64)
  for start in range(0, known, SUMMED_AT_ONCE):
    part = table[start : min(known, start + SUMMED_AT_ONCE)]
    total += part.sum(0, dtype=np.float64)
  out = table[np.maximum(starts, 0)]
  out[starts == MEAN] = (total / known).astype(table.dtype)
  return out


def describe_tokens(tokens: list[str], old_rows: int, rows: int) -> str:
  """Returns a line of which tokens are new, and whose rows they take."""
  grown = f'; the embedding grows from {old_rows:,} to {rows:,} rows'
  return (
    f'new tokens: {" ".join(tokens) or "none"}'
    f'{grown if rows != old_rows else ", in spare rows of the embedding"}'
  )


def read_extended(
  source: PretrainedModel,
  config: ModelConfig,
  vocabulary: Vocabulary,
  languages: Mapping[str, str],
  mesh: jax.sharding.Mesh,
  rules: Rules = Rules(),
) -> dict:
  """Returns the parameters of `source`, with rows for another vocabulary.

  They are read one at a time, so that host memory stays near the largest.

  Args:
    source: the trained model.
    config: of the new one; differs in `vocab_size`, and not in parameters.
    vocabulary: the new one, which extends that of `source`.
    languages: see `choose_starts`.
    mesh, rules: where the parameters are to be.
  """
  old, read = source.vocabulary, source.parameter_reader()
  sizes = source.config.vocab_size, config.vocab_size
  starts = choose_starts(old, vocabulary, languages, *sizes)
  shapes = parameters.abstract_params(AlexaTM(config), mesh, rules)
  params = {}
  for path, like in traverse_util.flatten_dict(shapes).items():
    value = read(path)
    if path[0] in TABLES:
      value = extend_table(value, starts, min(old.size, len(value)))
    value = value.astype(like.dtype, copy=False)
    params[path] = hf_folder.put_sharded(value, like.sharding)
  return traverse_util.unflatten_dict(params)
