"""`atm import` and `atm export`: Hugging Face folders <-> checkpoints."""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
from flax import traverse_util

from atm import fileio, storage
from atm.checkpoint import (
  config_json,
  generation_config,
  hf_folder,
  hf_keys,
  peft_folder,
  pretrained,
)
from atm.checkpoint.parameter_writer import (
  GIB,
  split_arrays,
  write_checkpoint,
)
from atm.checkpoint.paths import CHECKPOINTS
from atm.checkpoint.pretrained import ParameterSource, PretrainedModel
from atm.checkpoint.staging import (
  check_nothing_replaced,
  move_into,
  send_into,
  staging_folder,
)
from atm.checkpoint.torch_reader import Tensor
from atm.data import vocabulary
from atm.data.vocabulary_base import BaseVocabulary
from atm.messages import (
  check_arguments,
  check_choice,
  check_index,
  check_number,
  check_path,
)
from atm.model import embeddings, parameters
from atm.model.config import ModelConfig
from atm.model.transformer import AlexaTM
from atm.parallel import mesh as mesh_lib
from atm.parallel.sharding import Rules

# What loads a folder, besides `atm.load`, by its model_type.
READERS = {'alexatm': 'the released AlexaTM code'} | {
  kind: f"transformers 5's {each.architecture}"
  for kind, each in config_json.BART_CLASSES.items()
}


@check_arguments(
  source=partial(check_path, 'SOURCE'),
  model_dir=partial(check_path, 'MODEL_DIR'),
  weights=partial(check_choice, 'WEIGHTS', known=('int8',), optional=True),
)
def import_weights(
  source: str,
  model_dir: str,
  make_mesh: Callable = mesh_lib.make_mesh,
  rules: Rules = Rules(),
  weights: str | None = None,
  say: Callable[[str], None] = print,
) -> None:
  """Writes a Hugging Face folder's weights as a checkpoint of step 0.

  The parameters keep the folder's dtype (float32, bfloat16 or float16), or
  matrices become int8. Memory stays below twice the largest stacked parameter,
  for they are made, written and dropped one at a time, small ones a few. The
  checkpoint appears whole or not at all.

  Args:
    source: holds config.json, weights, and perhaps a SentencePiece model.
    model_dir: gets checkpoints/0, config.gin, hf_config.json,
      generation_config.json and vocabulary/.
    make_mesh: called without arguments; how the arrays are sharded on disk.
    rules: logical to mesh axes.
    weights: 'int8' writes int8 weights, for inference alone; None: as they are.
    say: prints a line.

  Raises:
    FileNotFoundError: there is no config.json or no weights.
    ValueError: model_dir has checkpoints already.
    hf_keys.WeightsError, torch_reader.TorchFileError: the weights are damaged
      or of another model.
  """
  if not storage.exists(os.path.join(source, 'config.json')):
    raise FileNotFoundError(f'SOURCE = {source!r}: no config.json there')
  source = storage.fetch(source)  # libraries open its files by path
  final = os.path.join(model_dir, CHECKPOINTS)
  if storage.is_file(final) or (
    storage.is_folder(final) and storage.list_names(final)
  ):
    raise ValueError(
      f'MODEL_DIR = {model_dir!r} has checkpoints already: use another'
    )
  hf_config, config = pretrained.read_hf_model(source)
  words = pretrained.read_tokenizer(source, hf_config, config)
  abstract = parameters.abstract_params(AlexaTM(config), make_mesh(), rules)
  opened = hf_folder.WeightReader(source, hf_config, abstract)
  if {*opened.dtypes.values()} != {np.dtype('float32')}:
    config = dataclasses.replace(config, dtype='bfloat16')
  say(describe_import(opened.sizes))

  with staging_folder(model_dir, '.importing') as folder:
    write_config_and_tokenizer(folder, source, config, hf_config, words)
    check_nothing_replaced(folder, model_dir)
    write_checkpoint(
      folder, 0, split_arrays(opened.arrays(), weights), opened.sizes,
      describe_model(config, hf_config, words, weights), say,
    )  # fmt: skip
    move_into(folder, model_dir)
  say(f'wrote {final}/0')


def describe_model(
  config: ModelConfig,
  hf_config: dict | None,
  words: BaseVocabulary | None,
  weights: str | None,
) -> dict:
  """Returns the metadata of a checkpoint that is written of another model."""
  meta = {'model': dataclasses.asdict(config)}
  if hf_config is not None:
    meta['hf_config'] = hf_config
  if words is not None:
    meta['vocabulary'] = words.sha256
  if weights is not None:
    meta['weights'] = weights
  return meta


def describe_import(sizes: Mapping[tuple, int]) -> str:
  """Formats what an import reads, writes and holds, by bytes of parameters."""
  total, largest = sum(sizes.values()), max(sizes.values())
  name = '/'.join(max(sizes, key=sizes.get))
  return (
    f'{len(sizes)} parameters, {total / GIB:.2f} GiB to read and to write; '
    f'largest: {name}, {largest / GIB:.2f} GiB; expect a peak of host memory '
    f'below {2 * largest / GIB + 1:.1f} GiB'
  )


def write_config_and_tokenizer(
  directory: str,
  source: str,
  config: ModelConfig,
  hf_config: dict | None,
  words: BaseVocabulary | None,
) -> None:
  """Writes what of a folder stands beside its weights, but checkpoints/.

  They are config.gin and hf_config.json, and where the folder has settings of
  generation or a tokenizer, generation_config.json and vocabulary/.
  """
  gin = ''.join(
    f'model.Config.{name} = {value!r}\n'
    for name, value in dataclasses.asdict(config).items()
  )
  gin = f'# The model of {source}.\n{gin}'
  fileio.write_atomically(os.path.join(directory, 'config.gin'), gin)
  if hf_config is not None:
    fileio.write_json(os.path.join(directory, 'hf_config.json'), hf_config)
  generation_config.write_generation_config(source, directory, hf_config)
  if words is not None:
    vocabulary.copy_vocabulary(words, os.path.join(directory, 'vocabulary'))


# --- Export


@check_arguments(
  model_dir=partial(check_path, 'MODEL_DIR'),
  output=partial(check_path, 'OUTPUT'),
  at_step=partial(check_index, 'STEP', optional=True),
  shard_gib=partial(check_number, 'SHARD_GIB', above=0, whole=False),
  weights=partial(check_choice, 'WEIGHTS', known=('int8',), optional=True),
  adapter=partial(check_path, 'ADAPTER', optional=True),
  form=partial(check_choice, 'FORMAT', known=('peft',), optional=True),
)
def export_weights(
  model_dir: str,
  output: str,
  at_step: int | None = None,
  shard_gib: float = 5.0,
  weights: str | None = None,
  adapter: str | None = None,
  form: str | None = None,
  say: Callable[[str], None] = print,
) -> None:
  """Writes a model as a Hugging Face folder that PyTorch loads.

  A model with standard norms is written as a Blenderbot, which transformers 5
  loads; with uncentred norms, in the format of the released AlexaTM. An
  imported one is written as what it was. With int8 weights, which no such
  folder has, a MODEL_DIR is written instead. Adapters are merged, or written
  alone.

  Args:
    model_dir: holds the checkpoint; or a Hugging Face folder.
    output: the folder; must not exist. Written whole or not at all.
    at_step: which checkpoint; None takes the best, or the newest.
    shard_gib: greatest size of a file, in GiB; of a Hugging Face folder.
    weights: 'int8' writes a MODEL_DIR, see `import_weights`.
    adapter: a LoRA run's folder, or one of PEFT, to put on the model.
    form: 'peft' writes the adapters alone, as a folder that PEFT loads.
    say: prints a line.

  Raises:
    ValueError: the output exists, or the model has no Hugging Face format, or
      its weights are int8 already, or adapters are wanted and there are none.
    checksums.DamageError: a parameter differs from what was saved.
  """
  there = storage.exists if storage.is_remote(output) else os.path.lexists
  if there(output):
    raise ValueError(f'OUTPUT = {output!r} exists already')
  fileio.check_output_folder('OUTPUT', output)
  source = pretrained.open_pretrained(model_dir, at_step, adapter)
  if source.adapter is None:
    pretrained.check_float(source.meta, f'MODEL_DIR = {model_dir!r}')
  hf_config = None
  if weights is None:
    hf_config = config_json.choose_hf_config(source.config, source.meta)
  write = write_adapter if form == 'peft' else write_model
  with staging_folder(output, '.exporting') as folder:
    use = write(folder, source, hf_config, int(shard_gib * GIB), say)
    if storage.is_remote(output):
      send_into(folder, output)
    else:
      os.rename(folder, output)
  name = model_dir if adapter is None else f'{model_dir} with {adapter}'
  say(f'wrote step {source.step} of {name} to {output}, for {use}')


def write_adapter(
  folder: str, source: PretrainedModel, hf_config: dict | None, *_
) -> str:
  """Writes a model's adapters as a PEFT folder; returns what loads it.

  Raises ValueError where it has none, or those of two runs.
  """
  adapter, base = source.adapter, source.base
  if adapter is None or base.adapter is not None:
    what = 'no adapters' if adapter is None else 'adapters of two runs'
    raise ValueError(
      f"FORMAT = 'peft', but {source.directory!r} has {what}: leave out FORMAT "
      'to export it whole'
      + (', or name a LoRA run as MODEL_DIR' if adapter is None else '')
    )
  shapes = traverse_util.flatten_dict(
    pretrained.shapes_on_one_device(source.config)
  )
  peft_folder.write_peft_folder(
    folder, adapter.config, adapter.arrays,
    peft_folder.list_modules(source.config, hf_config, shapes),
    adapter.base.path if adapter.base else base.directory,
  )  # fmt: skip
  return f'PEFT, on {READERS[hf_keys.get_model_type(hf_config)]}'


def write_model(
  folder: str,
  source: PretrainedModel,
  hf_config: dict | None,
  shard_bytes: int,
  say: Callable[[str], None],
) -> str:
  """Writes a whole model, of Hugging Face's form; returns what loads it.

  Without hf_config it is a MODEL_DIR with int8 weights.
  """
  with source.open_parameters() as opened:
    if hf_config is None:
      write_run(folder, source, opened, say)
      return 'a MODEL_DIR with int8 weights'
    tensors = plan_export(opened, source.config, hf_config)
    fileio.write_json(os.path.join(folder, 'config.json'), hf_config)
    own = source.meta.get('hf_config') if source.is_hf else None
    generation_config.write_generation_config(source.directory, folder, own)
    write_tokenizer(folder, source.vocabulary)
    hf_folder.write_shards(folder, tensors, shard_bytes)
  return READERS[hf_keys.get_model_type(hf_config)]


def write_run(
  folder: str,
  source: PretrainedModel,
  opened: ParameterSource,
  say: Callable[[str], None],
) -> None:
  """Writes a step as a MODEL_DIR with int8 weights, a parameter at a time."""
  config, words = source.config, source.vocabulary
  hf_config = source.meta.get('hf_config')
  write_config_and_tokenizer(folder, source.directory, config, hf_config, words)
  abstract = traverse_util.flatten_dict(pretrained.shapes_on_one_device(config))
  sizes = {k: x.size * opened.dtypes[k].itemsize for k, x in abstract.items()}
  put = hf_folder.put_sharded
  arrays = (
    (path, put(opened.read(path), like.sharding))
    for path, like in abstract.items()
  )
  write_checkpoint(
    folder, source.step, split_arrays(arrays, 'int8'), sizes,
    describe_model(config, hf_config, words, 'int8'), say,
  )  # fmt: skip


def write_tokenizer(folder: str, words: BaseVocabulary | None) -> None:
  """Writes the files of a vocabulary, if there is one, into a folder."""
  names = {vocabulary.MODEL_FILE: hf_folder.OWN_TOKENIZER}
  for name, content in ({} if words is None else words.export_files()).items():
    path = os.path.join(folder, names.get(name, name))
    fileio.write_atomically(path, content)


def plan_export(
  opened: ParameterSource,
  config: ModelConfig,
  hf_config: dict,
) -> dict[str, Tensor]:
  """Returns the tensors of the Hugging Face format, read when they are due."""
  layout, kind = hf_keys.get_layout(hf_config), hf_config['model_type']
  abstract = traverse_util.flatten_dict(pretrained.shapes_on_one_device(config))
  tensors, cache = {}, {}

  def read(path, shape, i):
    if path not in cache:
      cache.clear()  # before the read: memory holds one parameter at a time
      cache[path] = opened.read(path)
    value = cache[path][i] if hf_folder.is_stacked(path) else cache[path]
    return value.T if path[-1] == 'kernel' else value.reshape(shape)

  for path, like in abstract.items():
    shape = hf_folder.to_hf_shape(path, like.shape)
    for i, key in enumerate(layout.keys(path, like.shape)):
      read_key = functools.partial(read, path, shape, i)
      tensors[key] = Tensor(shape, opened.dtypes[path], read_key)
  make_copies = make_buffers if kind == 'alexatm' else make_tied_copies
  return {**make_copies(config, tensors, layout), **tensors}


def make_tied_copies(
  config: ModelConfig, tensors: Mapping, layout: hf_keys.Layout
) -> dict[str, Tensor]:
  """Returns what the BART family's classes have besides our parameters."""
  embedding = tensors[layout.tables['encoder_embedding']]
  constant = lambda x: Tensor(x.shape, x.dtype, lambda: x)
  copies = {'model.shared.weight': embedding}
  for name in layout.zeros:  # a bias of logits, which is one row
    zeros = np.zeros((1, config.vocab_size), embedding.dtype)
    copies[layout.tables[name]] = constant(zeros)
  for key in layout.stored_sinusoids:
    rows = np.arange(config.positions)
    table = embeddings.sinusoids(rows, config.d_model, fairseq=False)
    copies[key] = constant(np.asarray(table, embedding.dtype))
  for name, aliases in layout.aliases.items():
    if config.ties == 'embeddings':  # of a foreign one, too
      aliases = [key for key in aliases if key != 'lm_head.weight']
    if config.ties != 'all':  # else transformers ties them
      copies |= dict.fromkeys(aliases, tensors[layout.tables[name]])
  return copies


def make_buffers(
  config: ModelConfig, tensors: Mapping, layout: hf_keys.Layout
) -> dict[str, Tensor]:
  """Returns copies and constants that the released format may hold besides."""
  # PyTorch's `load_state_dict` wants every key, also of tied matrices and of
  # parameters that this model has not, which are zeros.
  embedding = tensors[layout.tables['encoder_embedding']]
  decoder_embedding = layout.tables['decoder_embedding']
  decoder = tensors.get(decoder_embedding, embedding)
  constant = lambda x: Tensor(x.shape, x.dtype, lambda: x)
  zeros = lambda width: constant(np.zeros((1, width), embedding.dtype))
  return {
    'model.shared.weight': embedding,
    'lm_head.weight': decoder if config.ties == 'decoder_head' else embedding,
    decoder_embedding: embedding,
    'model.encoder.position_ids': constant(np.arange(config.positions)[None]),
    layout.tables['logits_bias']: zeros(config.vocab_size),
    layout.tables['encoder_types']: zeros(config.d_model),
  }
