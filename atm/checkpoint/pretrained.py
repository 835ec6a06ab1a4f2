"""What a folder with a trained model holds: ours, or Hugging Face's."""

from __future__ import annotations

import contextlib
import dataclasses
import os

import jax

from atm.checkpoint import hf_folder, hf_keys, manager, recovery
from atm.checkpoint.checksums import Damaged
from atm.data.vocabulary import Vocabulary
from atm.model import parameters
from atm.model.config import Config
from atm.model.transformer import AlexaTM
from atm.parallel.sharding import Rules


@dataclasses.dataclass(frozen=True)
class Trained:
  """A trained model whose parameters are read when they are asked for.

  Attributes:
    directory: a MODEL_DIR, or a Hugging Face folder.
    config: the model's configuration.
    vocabulary: None where there is none beside it.
    step: updates it was trained for; 0 of a Hugging Face folder.
    meta: the checkpoint's, see `checkpoint`; of a Hugging Face folder
      `hf_config`, its config.json.
  """

  directory: str
  config: Config
  vocabulary: Vocabulary | None
  step: int
  meta: dict

  def params(self, mesh, rules: Rules = Rules(), as_saved: bool = True) -> dict:
    """The parameters, nested, sharded over a mesh.

    Args:
      mesh, rules: where they are to be.
      as_saved: in the dtypes of the folder, else in the model's.

    Raises:
      integrity.Damaged: not what was saved; names steps that are.
      layouts.WeightsError: a Hugging Face folder that is not sound.
    """
    abstract = parameters.abstract_params(AlexaTM(self.config), mesh, rules)
    if _is_hf(self.directory):
      kind = hf_keys.model_type(self.meta['hf_config'])
      folder = hf_folder.Folder(self.directory)
      reader = hf_folder.Reader(folder, hf_keys.LAYOUTS[kind], abstract)
      found = hf_folder.nested(dict(reader.arrays()))
      cast = lambda x, like: x.astype(like.dtype)
      return found if as_saved else jax.tree.map(cast, found, abstract)
    checkpoints, number = manager.open_step(self.directory, self.step)
    with recovery.naming_intact(checkpoints):
      params = checkpoints.restore_params(number, abstract, as_saved=as_saved)
    checkpoints.close()
    return params


def find(directory: str, at_step: int | None = None) -> Trained:
  """Describes the model in a folder; reads no parameters.

  Args:
    directory: holds checkpoints/ and vocabulary/, or config.json and weights.
    at_step: which checkpoint; None takes the newest.

  Raises:
    FileNotFoundError: there is no model, or no checkpoint of that step.
    integrity.Damaged: the checkpoint's description is.
    layouts.WeightsError: a config.json of another kind of model.
  """
  if _is_hf(directory):
    described = hf_folder.read_json(os.path.join(directory, 'config.json'))
    config, number = hf_keys.config_of(described), 0
    meta = {'hf_config': described}
    path = hf_folder.find_tokenizer(directory)
  else:
    checkpoints, number = manager.open_step(directory, at_step)
    with recovery.naming_intact(checkpoints):
      meta = checkpoints.meta(number)
    checkpoints.close()
    config = Config(**meta['model'])
    path = os.path.join(directory, 'vocabulary')
    path = path if os.path.isdir(path) else None
  words = Vocabulary(path) if path else None
  return Trained(directory, config, words, number, meta)


def config_of(directory: str) -> Config:
  """The configuration of a MODEL_DIR, of its newest step that tells it.

  Raises:
    FileNotFoundError: there is no checkpoint.
    integrity.Damaged: none tells it.
  """
  checkpoints, _ = manager.open_step(directory, None)
  with contextlib.closing(checkpoints):
    for number in reversed(checkpoints.steps()):
      try:
        return Config(**checkpoints.meta(number)['model'])
      except Damaged as e:
        error = e
    raise error


def _is_hf(directory: str) -> bool:
  return os.path.exists(os.path.join(directory, 'config.json'))
