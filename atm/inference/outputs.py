"""Brings a program's arrays to the host, as one `Generation` per output."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils

from atm.data.vocabulary import Vocabulary
from atm.inference import stop_strings


@dataclasses.dataclass
class Generation:
  """One output of `Model.complete`.

  Attributes:
    text: prefix and ids decoded, up to a stop string in what the ids add to the
      prefix; None where the model has no tokenizer.
    ids: the tokens written, without prefix, start and end; those of a stop
      string are among them.
    log_probabilities: of each of `ids` and, where there is one, of the end
      token, by the model before penalties and temperature.
    score: of beam search, else the sum of the log-probabilities.
    truncated: tokens that were cut off the input, see `Model.complete`.
  """

  text: str | None
  ids: list[int]
  log_probabilities: list[float]
  score: float
  truncated: int = 0


def fetch_array(x) -> np.ndarray:
  """Returns an array of any mesh, whole on every host."""
  if jax.process_count() > 1:
    x = multihost_utils.process_allgather(x, tiled=True)
  return np.asarray(x)


def collect(
  outputs,
  prefixes: Sequence[Sequence[int]],
  vocabulary: Vocabulary | None,
  stop: Sequence[str],
) -> list[list[Generation]]:
  """Returns the generations of each input, the best first, cut at `stop`.

  A stop string is looked for behind the prefix, which may hold one.
  `outputs` are those of `generate.generate` or `beam_search.beam_search`, and
  `prefixes` the decoder's first ids of each input, start token included.
  """
  ids, logs, lengths, counts, *scores = map(fetch_array, outputs)

  def generation(i: int, j: int) -> Generation:
    row = ids[i, j, : lengths[i, j]].tolist()
    log_probabilities = logs[i, j, : counts[i, j]]
    score = scores[0][i, j] if scores else log_probabilities.sum()
    text = spell_output(prefixes[i], row, vocabulary, stop)
    return Generation(text, row, log_probabilities.tolist(), float(score))

  return [
    [generation(i, j) for j in range(lengths.shape[1])]
    for i in range(len(prefixes))
  ]


def spell_output(
  prefix: Sequence[int],
  ids: list[int],
  vocabulary: Vocabulary | None,
  stop: Sequence[str],
) -> str | None:
  """Returns `Generation.text` of ids behind a prefix with its start token."""
  if vocabulary is None:
    return None
  before, text = vocabulary.decode_parts(prefix[1:], ids)
  return before + stop_strings.cut_at_stop(text, stop)
