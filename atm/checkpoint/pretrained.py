"""Opens folders with a trained model: a MODEL_DIR, or Hugging Face's."""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import jax
import numpy as np
from flax import traverse_util

from atm import fileio, storage
from atm.checkpoint import (
  adapters,
  config_json,
  generation_config,
  hf_folder,
  peft_folder,
  reader,
)
from atm.checkpoint.checksums import DamageError
from atm.data.vocabulary import open_vocabulary
from atm.data.vocabulary_base import BaseVocabulary
from atm.messages import check_index, check_path, one_line, quote
from atm.model import parameters, quantized
from atm.model.attention import KERNELS
from atm.model.config import ModelConfig
from atm.model.transformer import AlexaTM
from atm.parallel import mesh as mesh_lib
from atm.parallel.sharding import Rules


@dataclasses.dataclass(frozen=True)
class PretrainedModel:
  """A trained model whose parameters are read when they are asked for.

  Attributes:
    directory: a MODEL_DIR, or a Hugging Face folder.
    config: the model's configuration.
    vocabulary: None where the folder has none.
    step: updates it was trained for; 0 of a Hugging Face folder.
    meta: the checkpoint's, see `reader`; of a Hugging Face folder `hf_config`,
      its config.json.
    generation_path, generation_config: the file with its settings of
      generation, and the content, {} where there is none.
    adapter, base: adapters that are merged into the parameters as these are
      read, and the model without them; None where there are none.
  """

  directory: str
  config: ModelConfig
  vocabulary: BaseVocabulary | None
  step: int
  meta: dict
  generation_path: str = ''
  generation_config: dict = dataclasses.field(default_factory=dict)
  adapter: adapters.SavedAdapters | None = None
  base: 'PretrainedModel | None' = None

  @property
  def is_hf(self) -> bool:
    """Tells whether the folder is Hugging Face's."""
    return _is_hf(self.directory)

  @property
  def weights(self) -> str | None:
    """'int8' of parameters that were quantised when they were written."""
    return self.meta.get('weights')

  def choose_weights(self, weights: str | None) -> str | None:
    """Returns WEIGHTS, or 'int8' where the parameters are in it already.

    Raises ValueError where they are, and other weights were asked for.
    """
    if self.weights is None:
      return weights
    if weights not in (None, self.weights):
      raise ValueError(
        f'WEIGHTS = {weights!r}, but {self.directory!r} has {self.weights!r} '
        'weights: leave out WEIGHTS, or name the model that they were made of'
      )
    return self.weights

  def read_params(
    self, mesh, rules: Rules = Rules(), as_saved: bool = True
  ) -> dict:
    """Returns the parameters, nested, sharded over a mesh.

    Those of int8 weights have `quantized.QuantizedMatrix` among them.

    Args:
      mesh, rules: where they are to be.
      as_saved: in the dtypes of the folder, else in the model's.

    Raises:
      ValueError: int8 weights are wanted in another dtype.
      checksums.DamageError: names the steps that are intact.
      hf_keys.WeightsError: a Hugging Face folder that is not sound.
    """
    if self.adapter is not None:
      self._check_mergeable()
      return self.adapter.merge(self.base.read_params(mesh, rules, as_saved))
    abstract = parameters.abstract_params(AlexaTM(self.config), mesh, rules)
    if _is_hf(self.directory):
      weights = self._open_hf(abstract)
      params = traverse_util.unflatten_dict(dict(weights.arrays()))
      cast = lambda x, like: x.astype(like.dtype)
      return params if as_saved else jax.tree.map(cast, params, abstract)
    if self.weights == 'int8' and as_saved:
      abstract = quantized.abstract_quantized(abstract)
    else:
      check_float(self.meta, repr(self.directory))
    with reader.open_step(self.directory, self.step) as (checkpoints, step):
      abstract = {'params': abstract}
      return checkpoints.restore(step, abstract, as_saved)['params']

  def parameter_reader(self) -> Callable[[tuple[str, ...]], np.ndarray]:
    """Returns a function: path of a parameter -> the whole array, as saved.

    Raises ValueError for int8 weights.
    """
    if self.adapter is not None:
      self._check_mergeable()
      read, add = self.base.parameter_reader(), self.adapter.merge_one
      return lambda path: add(path, read(path))
    check_float(self.meta, repr(self.directory))
    if _is_hf(self.directory):
      return self._open_hf(shapes_on_one_device(self.config)).read
    checkpoints = reader.CheckpointReader(self.directory)
    return functools.partial(checkpoints.read_parameter, self.step)

  @contextlib.contextmanager
  def open_parameters(self) -> Iterator['ParameterSource']:
    """Yields what reads one whole parameter at a time.

    Raises:
      ValueError: int8 weights.
      checksums.DamageError: raised by the block; names steps that are intact.
    """
    if self.adapter is not None:
      self._check_mergeable()
      with self.base.open_parameters() as (read, dtypes):
        add = self.adapter.merge_one
        yield ParameterSource(lambda path: add(path, read(path)), dtypes)
      return
    check_float(self.meta, repr(self.directory))
    if _is_hf(self.directory):
      weights = self._open_hf(shapes_on_one_device(self.config))
      yield ParameterSource(weights.read, weights.dtypes)
      return
    with reader.open_step(self.directory, self.step) as (checkpoints, step):
      read = functools.partial(checkpoints.read_parameter, step)
      yield ParameterSource(read, checkpoints.dtypes(step))

  def _check_mergeable(self) -> None:
    """Raises ValueError where the base has int8 weights."""
    if self.base.weights is not None:
      raise ValueError(
        f'{self.base.directory!r} has {self.base.weights!r} weights, into '
        f'which the adapters of {self.adapter.directory!r} cannot be merged: '
        'name the model that they were made of; WEIGHTS makes them int8 again'
      )

  def fingerprint(self) -> str | None:
    """Returns what tells the parameters from others, reading few of them.

    A SHA-256, in hex: of a checkpoint's checksums, or of pieces of a Hugging
    Face folder's files. None of a checkpoint without checksums.
    """
    if self.adapter is not None:
      both = self.base.fingerprint(), self.adapter.fingerprint()
      return fileio.hash_json(both) if both[0] else None
    if _is_hf(self.directory):
      return hf_folder.fingerprint_weights(self.directory)
    with reader.open_step(self.directory, self.step) as (checkpoints, step):
      sums = reader.list_checksums(checkpoints, step)
    return None if sums is None else fileio.hash_json(sums)

  def _open_hf(self, abstract: dict) -> hf_folder.WeightReader:
    hf_config = self.meta['hf_config']
    return hf_folder.WeightReader(self.directory, hf_config, abstract)


class ParameterSource(NamedTuple):
  """Access to a model's parameters, one after the other.

  Attributes:
    read: path of a parameter -> the whole array, as saved.
    dtypes: path -> dtype.
  """

  read: Callable[[tuple[str, ...]], np.ndarray]
  dtypes: Mapping[tuple[str, ...], np.dtype]


def open_pretrained(
  directory: str, at_step: int | None = None, adapter: str | None = None
) -> PretrainedModel:
  """Describes the model in a folder; reads adapters, but no parameters.

  Args:
    directory: holds checkpoints/ and vocabulary/, or config.json and weights.
      A LoRA run's is a model, too: its base with its adapters.
    at_step: which checkpoint; None takes the best, or the newest.
    adapter: adapters to put on it: the MODEL_DIR of a LoRA run, at its newest
      checkpoint, or a PEFT folder.

  Raises:
    FileNotFoundError: there is no model, or no checkpoint of that step.
    checksums.DamageError: the checkpoint's metadata are damaged.
    hf_keys.WeightsError: a config.json of another kind of model.
    ValueError: the vocabulary is damaged, or not the model's; or the adapters
      do not fit.
  """
  directory = check_path('directory', directory)
  at_step = check_index('at_step', at_step, optional=True)
  adapter = check_path('ADAPTER', adapter, optional=True)
  described = adapters.read_description(directory)
  if described is not None:
    model = _open_lora_run(directory, at_step, described[1])
  else:
    model = _open_whole(directory, at_step)
  if adapter is not None:
    model = dataclasses.replace(
      model, base=model, adapter=_read_adapter(model, adapter)
    )
    path, own = generation_config.read_generation_config(adapter)
    if own:  # as the adapters were tuned
      model = dataclasses.replace(
        model, generation_path=path, generation_config=own
      )
  return model


def _open_whole(directory: str, at_step: int | None) -> PretrainedModel:
  """Describes a model that is in one folder."""
  hf_config = None
  if _is_hf(directory):
    directory = storage.fetch(directory)  # safetensors open files by path
    hf_config, config = read_hf_model(directory)
    meta, step = {'hf_config': hf_config}, 0
    vocabulary = read_tokenizer(directory, hf_config, config)
  elif peft_folder.is_peft_folder(directory):
    raise FileNotFoundError(
      f'{directory!r} has the adapters of PEFT, and no model: name that as '
      'MODEL_DIR, and this folder as ADAPTER'
    )
  else:
    with reader.open_step(directory, at_step) as (checkpoints, step):
      meta = checkpoints.meta(step)
      config = read_model_config(checkpoints, step)
    vocabulary = read_own_vocabulary(directory, config, meta)
  generation = generation_config.read_generation_config(directory, hf_config)
  _adopt_target(vocabulary, config, generation[1])
  return PretrainedModel(directory, config, vocabulary, step, meta, *generation)


def _open_lora_run(
  directory: str, at_step: int | None, base: adapters.BaseModel
) -> PretrainedModel:
  """Describes the model that a LoRA run made of its base."""
  run = _open_whole(directory, at_step)
  try:
    model = open_pretrained(base.path, base.step)
  except FileNotFoundError as e:
    raise FileNotFoundError(
      f'{directory!r} has adapters for {base.path!r}, which is not there as '
      f'they need it ({one_line(e, 150)}): put it there, or name it as '
      'MODEL_DIR and this folder as ADAPTER'
    ) from e
  meta = {**run.meta}
  if 'hf_config' in model.meta:
    meta['hf_config'] = model.meta['hf_config']
  return dataclasses.replace(
    run, vocabulary=run.vocabulary or model.vocabulary, meta=meta, base=model,
    adapter=_read_adapter(model, directory, run.step),
  )  # fmt: skip


def _read_adapter(
  model: PretrainedModel, directory: str, at_step: int | None = None
) -> adapters.SavedAdapters:
  """Reads adapters for a model; raises ValueError where they do not fit."""
  shapes = traverse_util.flatten_dict(shapes_on_one_device(model.config))
  describe = functools.partial(
    config_json.choose_hf_config, model.config, model.meta
  )
  read = adapters.read_adapter(
    directory, model.config, describe, shapes, at_step
  )
  words = model.vocabulary
  if read.vocabulary and words and read.vocabulary != words.sha256:
    raise ValueError(
      f'{directory!r} was trained with another vocabulary than that of '
      f'{model.directory!r}: name the model that it was trained on, '
      f'{read.base.path!r}'
    )
  expected = read.base and read.base.fingerprint
  if expected and model.fingerprint() not in (None, expected):
    raise ValueError(
      f'{directory!r} was trained on other weights than those of '
      f'{model.directory!r}: name {read.base.path!r}, step {read.base.step:,}, '
      "or what `atm export` with FORMAT = 'peft' writes, which fits any model "
      'of these sizes'
    )
  return read


def read_hf_model(directory: str) -> tuple[dict, ModelConfig]:
  """Returns config.json of a Hugging Face folder, and the model's Config.

  Raises WeightsError for another kind of model.
  """
  hf_config = hf_folder.read_hf_config(directory)
  path = os.path.join(directory, 'config.json')
  config = config_json.config_from_hf(hf_config, path)
  computed = config.position_embedding == 'sinusoidal'
  if computed and hf_folder.has_own_positions(
    directory, hf_config, config.d_model
  ):
    config = dataclasses.replace(config, position_embedding='learned')
  return hf_config, config


def _adopt_target(
  vocabulary: BaseVocabulary | None, config: ModelConfig, generation: Mapping
) -> None:
  """Makes the language that a folder has outputs begin with the default one.

  It is the start token of mBART-25, and else `forced_bos_token_id`.
  """
  if vocabulary is None or not vocabulary.languages:
    return
  form, first = vocabulary.input_format, generation.get('forced_bos_token_id')
  first = config.start_id if form.name == 'mbart' else first
  codes = [code for code, i in form.languages.items() if i == first]
  if codes and form.target is None:
    vocabulary.input_format = dataclasses.replace(form, target=codes[0])


def read_tokenizer(
  directory: str, hf_config: dict, config: ModelConfig
) -> BaseVocabulary | None:
  """Returns the tokenizer of a Hugging Face folder, if it has one.

  Raises:
    ImportError: it needs an extra; names it.
    ValueError: it is damaged, or does not fit the model.
  """
  path = hf_folder.find_tokenizer(directory, hf_config)
  return None if path is None else _read_vocabulary(path, config)


def read_own_vocabulary(
  model_dir: str, config: ModelConfig, meta: dict
) -> BaseVocabulary | None:
  """Returns the vocabulary in a MODEL_DIR, if it has one.

  Raises ValueError if it is damaged, or not the one of a checkpoint's meta.
  """
  path = os.path.join(model_dir, 'vocabulary')
  if not storage.is_folder(path):
    return None
  return _read_vocabulary(path, config, meta.get('vocabulary'))


def _read_vocabulary(
  path: str, config: ModelConfig, sha256: str | None = None
) -> BaseVocabulary:
  words = open_vocabulary(path)
  if sha256 not in (None, words.sha256):
    raise ValueError(
      f'{words.path} is damaged, or not the vocabulary that the weights were '
      f'trained with: its SHA-256 is {words.sha256[:16]}..., expected '
      f'{str(sha256)[:16]}...'
    )
  if words.least_rows > config.vocab_size:
    raise ValueError(
      f'{words.path} has {words.least_rows:,} pieces, more than vocab_size = '
      f'{config.vocab_size:,} of the model'
    )
  return words


def read_config(model_dir: str) -> ModelConfig:
  """Returns a run's configuration, from its newest step with sound metadata.

  Raises:
    FileNotFoundError: there is no checkpoint.
    checksums.DamageError: the metadata of all steps are damaged.
  """
  with reader.open_step(model_dir, None) as (checkpoints, _):
    for step in reversed(checkpoints.all_steps()):
      try:
        return read_model_config(checkpoints, step)
      except DamageError as e:
        error = e
    raise error


def read_model_config(
  checkpoints: reader.CheckpointReader, step: int
) -> ModelConfig:
  """Returns the configuration in a step's metadata, or raises DamageError.

  A kernel belongs to devices that may not be here: it becomes 'auto', which
  chooses it where it runs.
  """
  meta = checkpoints.meta(step)
  try:
    config = ModelConfig(**fileio.get_key(meta, 'model', dict, 'meta'))
    if config.attention in KERNELS:
      return dataclasses.replace(config, attention='auto')
    return config
  except (TypeError, ValueError) as e:  # a TypeError of a later version's field
    raise DamageError(
      f'the checkpoint of step {step:,} in {checkpoints.directory} has another '
      f'model than this version knows: {one_line(e, 200)}'
    ) from e


def shapes_on_one_device(config: ModelConfig) -> dict:
  """Returns a model's parameters, nested, as jax.ShapeDtypeStruct."""
  mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
  return parameters.abstract_params(AlexaTM(config), mesh, Rules())


def check_float(meta: dict, name: str) -> None:
  """Raises ValueError where a checkpoint's metadata tell of int8 weights.

  Args:
    meta: see `PretrainedModel.meta`.
    name: the folder as a user named it: "INIT_FROM = 'runs/x'".
  """
  if meta.get('weights') is not None:
    raise ValueError(
      f'{name} has {quote(meta["weights"])} weights, which can be neither '
      'trained nor exported: infer, chat, score, eval, lm_eval and serve read '
      'them. Name the model that they were made of'
    )


def _is_hf(directory: str) -> bool:
  return storage.exists(os.path.join(directory, 'config.json'))
