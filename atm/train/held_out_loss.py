"""Held-out loss by objective and language, and the unigram to beat."""

import collections
import functools
from collections.abc import Iterable, Iterator

import jax
import numpy as np

from atm.data import batches, packing
from atm.data.batches import MixturePart
from atm.data.task_registry import Lengths
from atm.data.vocabulary import Vocabulary
from atm.parallel import sharding
from atm.train.config import TrainConfig
from atm.train.inputs import Inputs
from atm.train.lora_base import LoraBase
from atm.train.step import eval_step


def _groups(parts: list[MixturePart]) -> list[tuple[str, ...]]:
  """Names the metrics that each part counts towards."""
  groups = []
  for part in parts:
    kinds = [part.language, part.data_set, part.objective.variant]
    if part.data_set and part.language == 'all':
      del kinds[0]  # all of the set, not of the run
    name = part.objective.name
    groups.append((name, *(f'{name}/{kind}' for kind in kinds if kind)))
  return groups


def evaluation_batches(
  parts: Iterable[MixturePart],
  vocabulary: Vocabulary,
  lengths: Lengths,
  batch_size: int,
  seed: int,
  rows_each: int,
  start_id: int | None = None,
) -> Iterator[tuple[np.ndarray, dict]]:
  """Yields the first rows of every part once, with the noise of epoch 0.

  Takes the model's `start_id`; None: the vocabulary's `<s>`.

  Yields:
    (owner, batch): `owner` [B] is an index into parts, or -1 for the rows that
    fill up the last batch, whose loss weights and segment ids are 0.
  """
  parts = list(parts)
  ids = packing.SpecialIds.of(vocabulary, start_id)
  made, owners = [], []
  for i, part in enumerate(parts):
    row = np.arange(min(rows_each, len(part.rows)))
    owners.append(np.full(len(row), i))
    made.append(
      batches.make_examples(parts, owners[i], ids, lengths, seed, 0 * row, row)
    )
  owner = np.concatenate(owners)
  whole = {k: np.concatenate([m[k] for m in made]) for k in made[0]}
  if not any(part.objective.packs for part in parts):
    del whole['encoder_positions'], whole['decoder_positions']
  fill = -len(owner) % batch_size
  owner = np.pad(owner, (0, fill), constant_values=-1)
  for name, value in whole.items():
    width = [(0, fill)] + [(0, 0)] * (value.ndim - 1)
    blank = ids.pad if name.endswith('_tokens') else 0
    whole[name] = np.pad(value, width, constant_values=blank)
  for start in range(0, len(owner), batch_size):
    part = slice(start, start + batch_size)
    yield owner[part], {name: value[part] for name, value in whole.items()}


# A second run of a process, as of a model that is tuned further, has it traced
# and compiled. The rules are those that `eval_step` reads of its surroundings.
@functools.lru_cache(maxsize=2)
def _jit_eval_step(model, mesh, rules: sharding.Rules, lora=None):
  """Returns jitted `eval_step`: (parameters, batch, base) -> sums."""
  # Sums of every row on every device: each process can read them all.
  everywhere = sharding.NamedSharding(mesh, sharding.PartitionSpec())
  step = functools.partial(eval_step, model, lora=lora)
  return jax.jit(step, out_shardings=everywhere)


class HeldOutLoss:
  """Teacher-forced loss over the first rows of a split's parts.

  The noise is that of epoch 0, so every evaluation of a run sees the same.
  """

  def __init__(
    self,
    config: TrainConfig,
    model,
    inputs: Inputs,
    mesh,
    base: LoraBase | None = None,
  ):
    self.parts, self.model, self.mesh = inputs.held_out, model, mesh
    self.rules, self.base = config.rules, base and base.params
    self.batches = list(
      evaluation_batches(
        self.parts, inputs.vocabulary, config.sizes, config.batch_size,
        config.seed, config.eval_rows, config.model_config.start_id,
      )
    )  # fmt: skip
    self.step = _jit_eval_step(model, mesh, config.rules, config.lora)

  def metric_names(self) -> set[str]:
    """Returns the names of what an evaluation returns."""
    names = {name for names in _groups(self.parts) for name in names}
    return {f'eval/{kind}/{x}' for kind in ('loss', 'accuracy') for x in names}

  def __call__(self, params) -> dict[str, float]:
    """Returns `eval/loss/OBJECTIVE[/LANG or /SET]`, `eval/accuracy/...`."""
    sums = collections.Counter()
    for owner, batch in self.batches:
      placed = sharding.shard_batch(batch, self.mesh, self.rules)
      found = self.step(params, placed, self.base)
      rows = {k: np.asarray(v) for k, v in found.items()}
      for i, names in enumerate(_groups(self.parts)):
        for kind, value in rows.items():
          for name in names:
            sums[f'{kind}/{name}'] += float(value[owner == i].sum())
    out = {}
    for name in sorted({n for names in _groups(self.parts) for n in names}):
      weight = max(1.0, sums[f'weight/{name}'])
      out[f'eval/loss/{name}'] = sums[f'loss/{name}'] / weight
      out[f'eval/accuracy/{name}'] = sums[f'correct/{name}'] / weight
    return out


def _written(part: MixturePart) -> np.ndarray:
  """Reads the ids that a part's decoder writes, of its first rows."""
  if part.objective.name != 'pair':
    return part.rows.head(10_000_000)
  rows = map(part.rows.row, range(min(len(part.rows), 10_000)))
  return np.concatenate([part.objective.targets(row) for row in rows])


def unigram_loss(
  train: list[MixturePart], held_out: HeldOutLoss
) -> dict[str, float]:
  """Returns the loss of unigram models on the same held-out targets.

  Counts, plus one, of the ids of the training rows (the first 10 million of a
  task; of pairs, the targets of 10,000 rows), the end of a row included.
  `eval/unigram/OBJECTIVE` is one model for all languages;
  `eval/unigram/OBJECTIVE/LANG` one for that language alone, a harder mark.
  """
  config = held_out.model.config
  counts: dict[str, np.ndarray] = {}
  for part, names in zip(train, _groups(train)):
    ids = _written(part)
    seen = np.bincount(ids, minlength=config.vocab_size).astype(np.float64)
    # A row's target ends in `</s>`; the rows of CLM hold it already.
    if part.objective.name == 'denoise':
      seen[config.end_id] += len(part.rows)
    for name in names:
      counts[name] = counts.get(name, 1.0) + seen
  sums: dict[str, list[float]] = {}
  for owner, batch in held_out.batches:
    weights = batch['decoder_loss_weights']
    for i, names in enumerate(_groups(held_out.parts)):
      mine = (owner == i)[:, None] & (weights > 0)
      ids = batch['decoder_target_tokens'][mine]
      for name in names:
        if name in counts:
          p = counts[name][ids] / counts[name].sum()
          total = sums.setdefault(name, [0.0, 0])
          total[0] -= np.log(p).sum()
          total[1] += len(ids)
  return {
    f'eval/unigram/{name}': float(loss / max(1, n))
    for name, (loss, n) in sorted(sums.items())
  }
