"""The parameters that a LoRA run adapts: read once, not trained, not saved."""

import dataclasses
import functools

import jax
from flax import traverse_util

from atm.checkpoint import adapters, pretrained
from atm.checkpoint.adapters import BaseModel
from atm.checkpoint.pretrained import PretrainedModel
from atm.messages import one_line, quote
from atm.model import lora, parameters, quantized
from atm.model.lora import LoraConfig
from atm.parallel import distributed
from atm.parallel.sharding import Rules

BASE_DTYPES = ('float32', 'bfloat16', 'int8')


@dataclasses.dataclass(frozen=True)
class LoraBase:
  """A LoRA run's base.

  Attributes:
    config: of the adapters.
    source: the model that was read.
    params: its parameters, placed on the run's mesh.
  """

  config: LoraConfig
  source: PretrainedModel
  params: dict

  def merge(self, params: dict) -> dict:
    """Returns the base with adapters in it: a second copy of it, for a time."""
    return _jit_merge(self.config)(self.params, params)

  def write_description(self, model_dir: str, init_from: str) -> None:
    """Writes adapter.json of a fresh run; of several hosts the first does."""
    if not distributed.is_main_process():
      return
    source = self.source
    base = BaseModel(init_from, source.step, source.fingerprint())
    adapters.write_description(model_dir, self.config, base)


@functools.lru_cache(maxsize=2)
def _jit_merge(config: LoraConfig):
  return jax.jit(functools.partial(lora.merge, config=config))


def find_base(
  model_dir: str, init_from: str, has_begun: bool
) -> PretrainedModel:
  """Opens the base of a run: INIT_FROM, at the step that the run began with.

  Raises:
    ValueError: INIT_FROM is another model than the one that a run which
      `has_begun` adapts, or that is not there any more.
    FileNotFoundError: a fresh run's is not there.
  """
  described = adapters.read_description(model_dir) if has_begun else None
  if described is None:
    return pretrained.open_pretrained(init_from)
  then = described[1]
  try:
    source = pretrained.open_pretrained(init_from, then.step or None)
  except FileNotFoundError as e:
    raise ValueError(
      f'INIT_FROM = {quote(init_from)}, whose adapters MODEL_DIR = '
      f'{quote(model_dir)} has, is not there any more, or not its step '
      f'{then.step:,}: {one_line(e, 120)}'
    ) from e
  if then.fingerprint not in (None, source.fingerprint()):
    raise ValueError(
      f'INIT_FROM = {quote(init_from)} has other weights than '
      f'{quote(then.path)}, whose adapters MODEL_DIR = {quote(model_dir)} has: '
      'use the model that the run began with, or another MODEL_DIR'
    )
  return source


def hold(path: tuple, x: jax.Array, dtype: str):
  """Returns the parameter at a path as a base holds it: matrices in `dtype`.

  With 'int8' tables are in bfloat16.
  """
  if not quantized.is_quantized(path):  # vectors take next to nothing
    return x.astype('float32')
  if dtype != 'int8':
    return x.astype(dtype)
  if not quantized.is_transposed(path):
    return x.astype('bfloat16')
  held = quantized.quantize_parameter(path, x)
  return lora.HeldInt8(held.values, held.scale)


def abstract_base(model, mesh, rules: Rules, dtype: str) -> dict:
  """Returns a base's jax.ShapeDtypeStruct with shardings on a mesh."""

  def describe(path, x):
    held = jax.eval_shape(functools.partial(hold, path, dtype=dtype), x)
    if isinstance(held, lora.HeldInt8):
      placed = quantized.place_quantized(path, x)
      return lora.HeldInt8(
        held.values.update(sharding=placed.values),
        held.scale.update(sharding=placed.scale),
      )
    return held.update(sharding=x.sharding)

  params = parameters.abstract_params(model, mesh, rules)
  flat = traverse_util.flatten_dict(params)
  return traverse_util.unflatten_dict(
    {path: describe(path, x) for path, x in flat.items()}
  )


def read_base(
  config: LoraConfig, source: PretrainedModel, mesh, rules: Rules, dtype: str
) -> LoraBase:
  """Reads a base; its matrices are held in `dtype`, one of BASE_DTYPES."""
  flat = traverse_util.flatten_dict(source.read_params(mesh, rules))
  for path in list(flat):
    # One at a time: what was read is freed as what is kept is made.
    flat[path] = hold(path, flat.pop(path), dtype)
  return LoraBase(config, source, traverse_util.unflatten_dict(flat))
