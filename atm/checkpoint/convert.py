"""`atm import` and `atm export`: Hugging Face folders <-> checkpoints."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping

import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util

from atm.checkpoint import (
  checksums,
  hf_folder,
  hf_keys,
  paths,
  pretrained,
  reader,
)
from atm.data import vocabulary
from atm.messages import clock_text
from atm.model import parameters
from atm.model.config import Config
from atm.model.transformer import AlexaTM
from atm.parallel import mesh as mesh_lib
from atm.parallel.sharding import Rules

GIB = 2**30
TOGETHER = 2**24  # bytes; parameters below this are written several at a time


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
    model_dir: gets checkpoints/0, config.gin, hf_config.json and vocabulary/.
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
  final = os.path.join(model_dir, paths.CHECKPOINTS)
  if os.path.isfile(final) or os.path.isdir(final) and os.listdir(final):
    raise ValueError(
      f'MODEL_DIR = {model_dir!r} has checkpoints already: use another'
    )
  described = hf_folder.read_json(path)
  config = hf_keys.config_from_hf(described)
  mesh = make_mesh()
  abstract = parameters.abstract_params(AlexaTM(config), mesh, rules)
  layout = hf_keys.LAYOUTS[hf_keys.model_type(described)]
  weights = hf_folder.WeightReader(
    hf_folder.WeightFolder(source), layout, abstract
  )
  sizes = weights.bytes()
  if any(weights.dtype(path) != np.float32 for path in sizes):
    config = dataclasses.replace(config, dtype='bfloat16')
  say(forecast(config, sizes))

  partial = os.path.abspath(model_dir) + '.importing'
  shutil.rmtree(partial, ignore_errors=True)
  os.makedirs(partial)
  with removed_on_error(partial):
    meta = {'model': dataclasses.asdict(config), 'hf_config': described}
    sums = write_parameters(partial, weights, say)
    write_meta(partial, checksums.seal_meta(meta, sums))
    write_beside(partial, source, config, described)
    os.makedirs(model_dir, exist_ok=True)
    for name in os.listdir(partial):
      target = os.path.join(model_dir, name)
      if os.path.isdir(target):
        shutil.rmtree(target)
      os.rename(os.path.join(partial, name), target)
    os.rmdir(partial)
  say(f'wrote {final}/0')


@contextlib.contextmanager
def removed_on_error(directory: str):
  try:
    yield
  except BaseException:
    shutil.rmtree(directory, ignore_errors=True)
    raise


def forecast(config: Config, sizes: Mapping[tuple, int]) -> str:
  """What the import will read, write and hold."""
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
  """Writes checkpoints/0/params bit by bit, with Orbax's partial save.

  Returns:
    their checksums.
  """
  from orbax.checkpoint.experimental import v1 as orbax

  sizes, total = weights.bytes(), sum(weights.bytes().values())
  path = os.path.join(directory, 'parameters')
  start = said = time.perf_counter()
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
    if now - said > 2 or done == total:
      rate = done / (now - start)
      say(
        f'{done / GIB:.2f}/{total / GIB:.2f} GiB  {rate / 2**20:,.0f} MiB/s  '
        f'{clock_text((total - done) / rate)} left'
      )
      said = now
  orbax.partial.finalize(path)
  place = os.path.join(directory, paths.CHECKPOINTS, '0')
  os.makedirs(place)
  os.rename(os.path.join(path, 'state'), os.path.join(place, 'params'))
  described = '_CHECKPOINT_METADATA'
  os.rename(os.path.join(path, described), os.path.join(place, described))
  shutil.rmtree(path)
  return sums


def write_meta(directory: str, meta: dict) -> None:
  """Writes checkpoints/0/meta."""
  path = os.path.join(directory, paths.CHECKPOINTS, '0', 'meta')
  with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as writer:
    writer.save(path, ocp.args.JsonSave(meta))


def write_beside(directory, source: str, config: Config, described: dict):
  """config.gin, hf_config.json and the tokenizer."""
  with open(os.path.join(directory, 'config.gin'), 'w') as f:
    f.write(gin_text(config, source))
  with open(os.path.join(directory, 'hf_config.json'), 'w') as f:
    json.dump(described, f, indent=1)
  tokenizer = hf_folder.find_tokenizer(source)
  if tokenizer:
    folder = os.path.join(directory, 'vocabulary')
    os.makedirs(folder)
    shutil.copyfile(tokenizer, os.path.join(folder, vocabulary.MODEL_FILE))


def gin_text(config: Config, source: str) -> str:
  """A gin file of every field of a Config."""
  lines = [f'# The model imported from {source}.']
  for name, value in dataclasses.asdict(config).items():
    lines.append(f'model.Config.{name} = {value!r}')
  return '\n'.join(lines) + '\n'


# --- Export


def export_weights(
  model_dir: str,
  output: str,
  at_step: int | None = None,
  shard_gib: float = 5.0,
  say: Callable[[str], None] = print,
) -> None:
  """Writes a checkpoint as a Hugging Face folder that PyTorch loads.

  A model with uncentred norms is written in the format of the released
  AlexaTM, one imported from Blenderbot in that; a standard norm is nothing the
  released code has.

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
  if os.path.exists(output):
    raise ValueError(f'OUTPUT = {output!r} exists already')
  if shard_gib <= 0:
    raise ValueError(f'SHARD_GIB = {shard_gib}: expected more than 0')
  with reader.open_step(model_dir, at_step) as (checkpoints, number):
    meta = checkpoints.meta(number)
    config = Config(**meta['model'])
    kind, described = describe(config, meta.get('hf_config'))
    tensors, read = plan_export(checkpoints, number, config, kind)
    partial = os.path.abspath(output) + '.exporting'
    shutil.rmtree(partial, ignore_errors=True)
    os.makedirs(partial)
    with removed_on_error(partial):
      with open(os.path.join(partial, 'config.json'), 'w') as f:
        json.dump(described, f, indent=1)
      words = os.path.join(model_dir, 'vocabulary', vocabulary.MODEL_FILE)
      if os.path.exists(words):
        shutil.copyfile(words, os.path.join(partial, '20b_tokenizer.model'))
      hf_folder.write_shards(partial, tensors, read, int(shard_gib * GIB))
      os.rename(partial, output)
  say(f'wrote step {number} of {model_dir} to {output} ({kind})')


def plan_export(
  checkpoints: reader.CheckpointReader, number: int, config: Config, kind: str
) -> tuple[dict, Callable[[str], np.ndarray]]:
  """(their key -> (shape, dtype), a function that reads one)."""
  layout = hf_keys.LAYOUTS[kind]
  abstract = traverse_util.flatten_dict(pretrained.shapes_on_one_device(config))
  saved = checkpoints.dtypes(number)
  tensors, origin = {}, {}
  for path, like in abstract.items():
    keys = layout.keys(path, like.shape)
    for i, key in enumerate(keys):
      shape = hf_folder.hf_shape(path, like.shape, len(keys))
      tensors[key] = (shape, saved[path])
      origin[key] = (path, i)
  if kind == 'alexatm':
    tensors |= buffers(config, tensors, layout)
  held: dict = {}

  def read(key: str) -> np.ndarray:
    if key not in origin:
      return buffer(key, config, read)
    path, i = origin[key]
    if path not in held:  # one parameter at a time
      held.clear()
      held[path] = checkpoints.read_parameter(number, path)
    stacked = len(path) > 2 and path[1] == 'layers'
    value = held[path][i] if stacked else held[path]
    return value.T if path[-1] == 'kernel' else value.reshape(tensors[key][0])

  return tensors, read


def describe(config: Config, described: dict | None) -> tuple[str, dict]:
  """(layout, config.json) of a model; raises ValueError where there is none."""
  if described is not None:
    return hf_keys.model_type(described), described
  if config.norm != 'uncentred' or config.embed_scale:
    raise ValueError(
      f'Config.norm = {config.norm!r}, Config.embed_scale = '
      f'{config.embed_scale}: the released PyTorch code has the uncentred norm '
      "and no scale. Train with model.Config.norm = 'uncentred' to export"
    )
  return 'alexatm', hf_keys.config_to_hf(config)


def buffers(config: Config, tensors: Mapping, layout: hf_keys.Layout) -> dict:
  """Keys of the released format that hold copies or constants."""
  extra = {'model.encoder.position_ids': ((1, config.positions), np.int64)}
  shape, dtype = tensors[layout.tables['encoder_embedding']]
  for key in ('model.shared.weight', 'lm_head.weight',
              'model.decoder.embed_tokens.weight'):  # fmt: skip
    if key not in tensors:
      extra[key] = (shape, dtype)
  bias = layout.tables['logits_bias']
  if bias not in tensors:
    extra[bias] = ((1, config.vocab_size), dtype)
  types = layout.tables['encoder_types']
  if types not in tensors:
    extra[types] = ((1, config.d_model), dtype)
  return extra


def buffer(key: str, config: Config, read) -> np.ndarray:
  """The content of one of `buffers`."""
  encoder = 'model.encoder.token_embeddings.weight'
  if key == 'model.encoder.position_ids':
    return np.arange(config.positions, dtype=np.int64)[None]
  if key == 'lm_head.weight' and config.ties == 'decoder_head':
    return read('model.decoder.embed_tokens.weight')
  if key.endswith(('shared.weight', 'lm_head.weight', 'embed_tokens.weight')):
    return read(encoder)
  dtype = read(encoder).dtype
  width = config.vocab_size if 'bias' in key else config.d_model
  return np.zeros((1, width), dtype)
