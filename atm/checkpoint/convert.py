"""`atm import` and `atm export`: Hugging Face folders <-> checkpoints."""

import contextlib
import dataclasses
import fcntl
import filecmp
import functools
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util

from atm import fileio, messages
from atm.checkpoint import (
  checksums,
  config_json,
  generation_config,
  hf_folder,
  hf_keys,
  pretrained,
  reader,
)
from atm.checkpoint.paths import CHECKPOINTS
from atm.checkpoint.torch_reader import Tensor
from atm.data import vocabulary
from atm.data.vocabulary_base import BaseVocabulary
from atm.messages import (
  check_arguments,
  check_index,
  check_number,
  check_path,
  clock_text,
)
from atm.model import embeddings, parameters
from atm.model.config import ModelConfig
from atm.model.transformer import AlexaTM
from atm.parallel import mesh as mesh_lib
from atm.parallel.sharding import Rules

GIB = 2**30
# What loads a folder, besides `atm.load`, by its model_type.
READERS = {'alexatm': 'the released AlexaTM code'} | {
  kind: f"transformers 5's {each.architecture}"
  for kind, each in config_json.BART_CLASSES.items()
}
STAGING_FILE = 'atm-writes-here'  # marks a folder that may be removed
TOGETHER = 2**24  # bytes; parameters below this are written several at a time


@check_arguments(
  source=partial(check_path, 'SOURCE'),
  model_dir=partial(check_path, 'MODEL_DIR'),
)
def import_weights(
  source: str,
  model_dir: str,
  make_mesh: Callable = mesh_lib.make_mesh,
  rules: Rules = Rules(),
  say: Callable[[str], None] = print,
) -> None:
  """Writes a Hugging Face folder's weights as a checkpoint of step 0.

  The parameters keep the folder's dtype (float32, bfloat16 or float16). Memory
  stays below twice the largest stacked parameter, for they are made, written
  and dropped one at a time, small ones a few. The checkpoint appears whole or
  not at all.

  Args:
    source: holds config.json, weights, and perhaps a SentencePiece model.
    model_dir: gets checkpoints/0, config.gin, hf_config.json,
      generation_config.json and vocabulary/.
    make_mesh: called without arguments; how the arrays are sharded on disk.
    rules: logical to mesh axes.
    say: prints a line.

  Raises:
    FileNotFoundError: there is no config.json or no weights.
    ValueError: model_dir has checkpoints already.
    hf_keys.WeightsError, torch_reader.TorchFileError: the weights are damaged
      or of another model.
  """
  path = os.path.join(source, 'config.json')
  if not os.path.exists(path):
    raise FileNotFoundError(f'SOURCE = {source!r}: no config.json there')
  final = os.path.join(model_dir, CHECKPOINTS)
  if os.path.isfile(final) or os.path.isdir(final) and os.listdir(final):
    raise ValueError(
      f'MODEL_DIR = {model_dir!r} has checkpoints already: use another'
    )
  hf_config, config = pretrained.read_hf_model(source)
  words = pretrained.read_tokenizer(source, hf_config, config)
  abstract = parameters.abstract_params(AlexaTM(config), make_mesh(), rules)
  weights = hf_folder.WeightReader(source, hf_config, abstract)
  if {*weights.dtypes.values()} != {np.dtype('float32')}:
    config = dataclasses.replace(config, dtype='bfloat16')
  say(describe_import(weights.sizes))

  with staging_folder(model_dir, '.importing') as folder:
    write_config_and_tokenizer(folder, source, config, hf_config, words)
    check_nothing_replaced(folder, model_dir)
    meta = {'model': dataclasses.asdict(config), 'hf_config': hf_config}
    if words is not None:
      meta['vocabulary'] = words.sha256
    sums = write_parameters(folder, weights, say)
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as writer:
      sealed = ocp.args.JsonSave(checksums.seal_meta(meta, sums))
      writer.save(os.path.join(folder, CHECKPOINTS, '0/meta'), sealed)
    move_into(folder, model_dir)
  say(f'wrote {final}/0')


@contextlib.contextmanager
def staging_folder(target: str, suffix: str) -> Iterator[str]:
  """Yields an empty folder beside `target`; removes what is left there.

  What a killed process left is removed, a folder of a user is not.

  Raises:
    ValueError: there is such a folder, or another process is at work in it.
  """
  directory = os.path.abspath(target) + suffix
  mark = os.path.join(directory, STAGING_FILE)
  if os.path.lexists(directory) and not os.path.exists(mark):
    raise ValueError(
      f'{directory} is in the way, and not known to be left of an earlier '
      'command: move or remove it'
    )
  os.makedirs(directory, exist_ok=True)
  left = f'nothing is in {target} yet; the same command begins anew'
  with open(mark, 'a') as lock, messages.note_work(lambda: left):
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
      raise ValueError(f'another process writes into {directory}') from e
    folder = os.path.join(directory, 'content')
    shutil.rmtree(folder, ignore_errors=True)
    os.mkdir(folder)
    try:
      yield folder
    finally:
      shutil.rmtree(directory, ignore_errors=True)


def check_nothing_replaced(folder: str, target: str) -> None:
  """Raises ValueError where `target` has another file of a name in `folder`."""
  for where, _, names in os.walk(folder):
    for name in names:
      path = os.path.join(where, name)
      there = os.path.join(target, os.path.relpath(path, folder))
      same = os.path.isfile(there) and filecmp.cmp(path, there, shallow=False)
      if os.path.lexists(there) and not same:
        raise ValueError(
          f'{there} is there already, and is not what would be written: use '
          'another MODEL_DIR, or move it away'
        )


def move_into(folder: str, target: str) -> None:
  """Moves the checkpoints, at last, and the files of a folder into another."""
  check_nothing_replaced(folder, target)
  for where, folders, names in os.walk(folder):
    if CHECKPOINTS in folders:
      folders.remove(CHECKPOINTS)
    into = os.path.join(target, os.path.relpath(where, folder))
    os.makedirs(into, exist_ok=True)
    for name in names:
      os.rename(os.path.join(where, name), os.path.join(into, name))
  # Replaces an empty folder only.
  os.rename(*(os.path.join(f, CHECKPOINTS) for f in (folder, target)))


def describe_import(sizes: Mapping[tuple, int]) -> str:
  """Formats what an import reads, writes and holds, by bytes of parameters."""
  total, largest = sum(sizes.values()), max(sizes.values())
  name = '/'.join(max(sizes, key=sizes.get))
  return (
    f'{len(sizes)} parameters, {total / GIB:.2f} GiB to read and to write; '
    f'largest: {name}, {largest / GIB:.2f} GiB; expect a peak of host memory '
    f'below {2 * largest / GIB + 1:.1f} GiB'
  )


def write_parameters(
  directory: str, weights: hf_folder.WeightReader, say
) -> dict:
  """Writes checkpoints/0/params in parts; returns the checksums."""
  from orbax.checkpoint.experimental import v1 as orbax

  sizes = weights.sizes
  total = sum(sizes.values())
  path = os.path.join(directory, 'parameters')
  start = logged = time.perf_counter()
  done, sums, group = 0, {}, {}
  for name, array in weights.arrays():
    alone = array.sharding.num_devices == 1
    whole = np.asarray(array) if alone else array  # on a CPU without a copy
    sums |= checksums.compute_checksums({'/'.join(('params', *name)): whole})
    group[name] = array
    del whole, array
    done += sizes[name]
    if done == total or sum(map(sizes.get, group)) >= TOGETHER:
      orbax.partial.save(path, traverse_util.unflatten_dict(group))
      group.clear()
    now = time.perf_counter()
    if now - logged > 2 or done == total:
      rate = done / (now - start)
      say(
        f'{done / GIB:.2f}/{total / GIB:.2f} GiB  {rate / 2**20:,.0f} MiB/s  '
        f'{clock_text((total - done) / rate)} left'
      )
      logged = now
  orbax.partial.finalize(path)
  place = os.path.join(directory, CHECKPOINTS, '0')
  os.makedirs(place)
  for old, new in ('state', 'params'), ('_CHECKPOINT_METADATA',) * 2:
    os.rename(os.path.join(path, old), os.path.join(place, new))
  shutil.rmtree(path)
  return sums


def write_config_and_tokenizer(
  directory: str,
  source: str,
  config: ModelConfig,
  hf_config: dict,
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
  gin = f'# The model imported from {source}.\n{gin}'
  fileio.write_atomically(os.path.join(directory, 'config.gin'), gin)
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
)
def export_weights(
  model_dir: str,
  output: str,
  at_step: int | None = None,
  shard_gib: float = 5.0,
  say: Callable[[str], None] = print,
) -> None:
  """Writes a checkpoint as a Hugging Face folder that PyTorch loads.

  A model with standard norms is written as a Blenderbot, which transformers 5
  loads; with uncentred norms, in the format of the released AlexaTM. An
  imported one is written as what it was.

  Args:
    model_dir: holds the checkpoint.
    output: the folder; must not exist. Written whole or not at all.
    at_step: which checkpoint; None takes the newest.
    shard_gib: greatest size of a file, in GiB.
    say: prints a line.

  Raises:
    ValueError: the output exists, or the model has no Hugging Face format.
    checksums.DamageError: a parameter differs from what was saved.
  """
  if os.path.lexists(output):
    raise ValueError(f'OUTPUT = {output!r} exists already')
  fileio.check_output_folder('OUTPUT', output)
  with reader.open_step(model_dir, at_step) as (checkpoints, step):
    meta = checkpoints.meta(step)
    config = pretrained.read_model_config(checkpoints, step)
    hf_config = meta.get('hf_config') or config_json.config_to_hf(config)
    hf_config = config_json.update_sizes(hf_config, config)
    tensors = plan_export(checkpoints, step, config, hf_config)
    words = pretrained.read_own_vocabulary(model_dir, config, meta)
    with staging_folder(output, '.exporting') as folder:
      fileio.write_json(os.path.join(folder, 'config.json'), hf_config)
      generation_config.write_generation_config(model_dir, folder)
      write_tokenizer(folder, words)
      hf_folder.write_shards(folder, tensors, int(shard_gib * GIB))
      os.rename(folder, output)
  reader_of = READERS[hf_keys.get_model_type(hf_config)]
  say(f'wrote step {step} of {model_dir} to {output}, for {reader_of}')


def write_tokenizer(folder: str, words: BaseVocabulary | None) -> None:
  """Writes the files of a vocabulary, if there is one, into a folder."""
  names = {vocabulary.MODEL_FILE: hf_folder.OWN_TOKENIZER}
  for name, content in ({} if words is None else words.export_files()).items():
    path = os.path.join(folder, names.get(name, name))
    fileio.write_atomically(path, content)


def plan_export(
  checkpoints: reader.CheckpointReader,
  step: int,
  config: ModelConfig,
  hf_config: dict,
) -> dict[str, Tensor]:
  """Returns the tensors of the Hugging Face format, read when they are due."""
  layout, kind = hf_keys.get_layout(hf_config), hf_config['model_type']
  abstract = traverse_util.flatten_dict(pretrained.shapes_on_one_device(config))
  dtypes = checkpoints.dtypes(step)
  tensors, cache = {}, {}

  def read(path, shape, i):
    if path not in cache:
      cache.clear()  # before the read: memory holds one parameter at a time
      cache[path] = checkpoints.read_parameter(step, path)
    value = cache[path][i] if hf_folder.is_stacked(path) else cache[path]
    return value.T if path[-1] == 'kernel' else value.reshape(shape)

  for path, like in abstract.items():
    shape = hf_folder.to_hf_shape(path, like.shape)
    for i, key in enumerate(layout.keys(path, like.shape)):
      read_key = functools.partial(read, path, shape, i)
      tensors[key] = Tensor(shape, dtypes[path], read_key)
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
