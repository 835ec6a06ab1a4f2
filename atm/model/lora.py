"""Low-rank adapters (LoRA, Hu et al., 2021) of a model's matrices.

Adapters are a tree nested as the parameters, which holds the adapted matrices
alone, each as {'a': A, 'b': B}: W becomes W + scale A B. Kernels [..., I, O]
have A [..., I, r] and B [..., r, O], where stacked layers keep their first
axis; tables [V, D] have A [V, r] and B [r, D].
"""

import dataclasses
import functools
import math
import re
import zlib
from collections.abc import Callable
from functools import partial
from typing import ClassVar

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from flax import traverse_util

from atm.messages import (
  check_arguments,
  check_count,
  check_fields,
  check_flag,
  check_number,
  check_texts,
  did_you_mean,
  quote,
)
from atm.model import matmul, quantized

# The collection that layers read adapters from, see `bind_adapters`.
COLLECTION = 'lora'


def check_targets(name: str, values) -> tuple[str, ...]:
  """Returns patterns; raises ValueError unless each is a regular expression."""
  patterns = tuple(check_texts(name, values))
  if not patterns:
    raise ValueError(
      f"{name} = (): expected patterns of parameters, such as ('kernel',)"
    )
  for pattern in patterns:
    try:
      re.compile(pattern)
    except re.error as e:
      raise ValueError(
        f'{name}: {quote(pattern)} is no regular expression: {e}'
      ) from e
  return patterns


_check_rank = partial(check_count, 'LORA_RANK', optional=True)


@dataclasses.dataclass(frozen=True)
class LoraConfig:
  """What decides which matrices are adapted, and how.

  Attributes:
    rank: r, the columns of A and rows of B.
    alpha: see `scale`.
    dropout: of the input of A, while training; tables have none.
    targets: regular expressions, each searched in the paths of matrices
      ('decoder/layers/self_attention/query/kernel', 'lm_head').
    rslora: rank-stabilised, see `scale` (Kalajdzievski, 2023).

  Raises:
    ValueError: a value out of its range.
  """

  rank: int
  alpha: float = 32.0
  dropout: float = 0.0
  targets: tuple[str, ...] = ('kernel',)
  rslora: bool = False

  checks: ClassVar[dict[str, Callable]] = {
    'rank': partial(check_count, 'LORA_RANK'),
    'alpha': partial(check_number, 'LORA_ALPHA', above=0, whole=False),
    'dropout': partial(
      check_number, 'LORA_DROPOUT', least=0, below=1, whole=False
    ),
    'targets': partial(check_targets, 'LORA_TARGETS'),
    'rslora': partial(check_flag, 'LORA_RSLORA'),
  }

  def __post_init__(self):
    check_fields(self)

  @property
  def scale(self) -> float:
    """The factor of A B: alpha / r, or alpha / sqrt(r) with `rslora`."""
    return self.alpha / (self.rank**0.5 if self.rslora else self.rank)


@check_arguments(**{**LoraConfig.checks, 'rank': _check_rank})
def make_lora_config(
  rank: int | None = None,
  alpha: float = 32.0,
  dropout: float = 0.0,
  targets: tuple[str, ...] = ('kernel',),
  rslora: bool = False,
) -> LoraConfig | None:
  """Makes a `LoraConfig`; None without a rank: all parameters are trained."""
  if rank is None:
    return None
  return LoraConfig(rank, alpha, dropout, targets, rslora)


def join_path(path: tuple) -> str:
  """Returns the path of a parameter as patterns see it: 'decoder/norm/bias'."""
  return '/'.join(str(getattr(key, 'key', key)) for key in path)


def is_table(path: str) -> bool:
  """Tells whether a path is of a table [V, D], A of which begins as zeros."""
  return path.rpartition('/')[2] in quantized.ROW_TABLES


def list_adapted(params: dict, config: LoraConfig) -> list[tuple[str, ...]]:
  """Lists the paths of the parameters that are adapted, in the tree's order.

  Args:
    params: nested; arrays, shapes, or either in `nn.Partitioned` boxes.
    config: tells which: kernels and tables that a pattern is found in.

  Raises:
    ValueError: a pattern is found in no kernel or table.
  """
  flat = traverse_util.flatten_dict(params)
  paths = {p: join_path(p) for p in flat if quantized.is_quantized(p)}
  for pattern in config.targets:
    if not any(re.search(pattern, path) for path in paths.values()):
      raise ValueError(
        f'LORA_TARGETS: {quote(pattern)} is found in no path of a matrix.'
        + did_you_mean(pattern, paths.values(), every=True)
      )
  found = lambda path: any(re.search(p, path) for p in config.targets)
  return [key for key, path in paths.items() if found(path)]


def init_adapters(params: dict, config: LoraConfig, key: jax.Array) -> dict:
  """Initialises adapters, float32, that change nothing yet: A B is 0.

  B is 0 and A uniform in +-1 / sqrt(I), as PEFT has them; of tables A is 0 and
  B uniform in +-1 / sqrt(D) (the LM head) or N(0, 1) (embeddings).

  Args:
    params: as for `list_adapted`. Where they are in boxes so are the adapters,
      with the logical axes of I and O.
    config: the adapters'.
    key: of JAX's random numbers; a matrix has the same draws whatever else is
      adapted.
  """
  flat = traverse_util.flatten_dict(params)
  make = lambda path: _init_adapter(path, flat[path], config.rank, key)
  return traverse_util.unflatten_dict(
    {path: make(path) for path in list_adapted(params, config)}
  )


def _init_adapter(path: tuple, matrix, rank: int, key: jax.Array) -> dict:
  *stacked, rows, columns = nn.meta.unbox(matrix).shape
  shapes = {'a': (*stacked, rows, rank), 'b': (*stacked, rank, columns)}
  name = join_path(path)
  key = jax.random.fold_in(key, zlib.crc32(name.encode()) >> 1)
  drawn, inner = ('b', columns) if is_table(name) else ('a', rows)
  if is_table(name) and path[-1] != 'lm_head':
    draw = jax.random.normal(key, shapes[drawn])
  else:
    limit = 1 / math.sqrt(inner)
    draw = jax.random.uniform(key, shapes[drawn], minval=-limit, maxval=limit)
  out = {k: draw if k == drawn else jnp.zeros(v) for k, v in shapes.items()}
  if not isinstance(matrix, nn.Partitioned):
    return out
  *first, row, column = matrix.names
  names = {'a': (*first, row, None), 'b': (*first, None, column)}
  return {k: nn.Partitioned(v, names[k]) for k, v in out.items()}


def is_adapter(node) -> bool:
  """Tells whether a node of a tree of adapters is one: {'a': A, 'b': B}."""
  return isinstance(node, dict) and node.keys() == {'a', 'b'}


def flatten_adapters(adapters: dict) -> dict[tuple[str, ...], dict]:
  """Returns path of a parameter -> {'a': A, 'b': B}."""
  return traverse_util.flatten_dict(
    adapters, is_leaf=lambda _, node: is_adapter(node)
  )


def merge(params: dict, adapters: dict, config: LoraConfig) -> dict:
  """Returns parameters with W + scale A B, computed in float32, for each W.

  All else of `params`, and the dtype of W, stay as they are.

  Raises:
    ValueError: an adapter's parameter is not there, or has another shape.
  """
  flat = traverse_util.flatten_dict(params)
  for path, adapter in flatten_adapters(adapters).items():
    flat[path] = merge_matrix(path, flat.get(path), adapter, config.scale)
  return traverse_util.unflatten_dict(flat)


def merge_matrix(path: tuple, matrix, adapter: dict, scale: float):
  """Returns W + scale A B of the parameter at a path, see `merge`."""
  if isinstance(matrix, HeldInt8):
    matrix = matrix.dequantize(jnp.float32).swapaxes(-1, -2)
  a, b = (adapter[name].astype(jnp.float32) for name in ('a', 'b'))
  shape = (*a.shape[:-1], b.shape[-1])
  if matrix is None or isinstance(matrix, quantized.Matrix):
    what = 'is not there' if matrix is None else 'is in int8'
    raise ValueError(f'{join_path(path)}, which an adapter changes, {what}')
  if matrix.shape != shape:
    raise ValueError(
      f'{join_path(path)} is {list(matrix.shape)}, but its adapter is for '
      f'{list(shape)}'
    )
  change = jnp.matmul(a, b, precision='highest')
  return (matrix.astype(jnp.float32) + scale * change).astype(matrix.dtype)


# --- What layers read


@flax.struct.dataclass
class HeldInt8(quantized.Matrix):
  """A kernel of a base that is held in int8 and multiplied in float.

  Products of `quantized.QuantizedMatrix` round their inputs, so that nothing
  before them would have a gradient.

  Attributes:
    values, scale: see `quantized.QuantizedMatrix`.
  """

  values: jax.Array
  scale: jax.Array

  def dequantize(self, dtype) -> jax.Array:
    """Returns the matrix, transposed as it is held: [..., B, A]."""
    return self.values.astype(dtype) * self.scale[..., None].astype(dtype)

  def affine(self, x: jax.Array, b: jax.Array) -> jax.Array:
    """Returns float32 x W + b of x [N, A], and b [B]."""
    return _multiply_held(x, self) + b


@jax.custom_vjp
def _multiply_held(x, w):
  return matmul.dot_float32(x, w.dequantize(x.dtype), (1, 1))


def _multiply_held_backward(residuals, cotangent):
  # From int8 again: JAX would keep every layer's matrix in float.
  x, w = residuals
  weights = w.dequantize(x.dtype)
  cotangent = cotangent.astype(x.dtype)
  return matmul.dot_float32(cotangent, weights, (1, 0)).astype(x.dtype), None


_multiply_held.defvjp(
  lambda x, w: (_multiply_held(x, w), (x, w)), _multiply_held_backward
)


@flax.struct.dataclass
class Adapter:
  """An adapter as the layer of its matrix reads it.

  Attributes:
    a, b: [I, r] and [r, O].
    scale: of A B.
    dropout: of the input.
  """

  a: jax.Array
  b: jax.Array
  scale: float = flax.struct.field(pytree_node=False)
  dropout: float = flax.struct.field(pytree_node=False)


def bind_adapters(adapters: dict, config: LoraConfig) -> dict:
  """Returns the collection `COLLECTION` for `model.apply`: `Adapter`s."""
  bind = functools.partial(Adapter, scale=config.scale, dropout=config.dropout)
  return traverse_util.unflatten_dict(
    {path: bind(**x) for path, x in flatten_adapters(adapters).items()}
  )


def find_adapter(module: nn.Module, name: str) -> Adapter | None:
  """Returns the adapter of a module's matrix, or None."""
  return module.get_variable(COLLECTION, name)


def compute_change(
  module: nn.Module, name: str, x: jax.Array, heads=None, axes: int = 1
) -> jax.Array | None:
  """Returns scale (dropout(x) A) B of a module's kernel, or None.

  Args:
    module: the layer. There is dropout where it has an rng of that name.
    name: of the kernel.
    x, heads, axes: see `matmul.affine`.
  """
  adapter = find_adapter(module, name)
  if adapter is None:
    return None
  if adapter.dropout and module.has_rng('dropout'):
    keep = 1 - adapter.dropout
    kept = jax.random.bernoulli(module.make_rng('dropout'), keep, x.shape)
    x = jnp.where(kept, x / keep, 0).astype(x.dtype)
  a = (adapter.scale * adapter.a).astype(x.dtype)
  return matmul.low_rank(x, a, adapter.b.astype(x.dtype), heads, axes)


def look_up_change(
  module: nn.Module, name: str, ids: jax.Array, dtype
) -> jax.Array | None:
  """Returns rows [..., D] of scale A B for ids [...] of a table, or None."""
  adapter = find_adapter(module, name)
  if adapter is None:
    return None
  rows = (adapter.scale * adapter.a[ids]).astype(dtype)
  return rows @ adapter.b.astype(dtype)


def adapt_table(module: nn.Module, name: str, table):
  """Returns a module's table [V, D] with scale A B, or as it is."""
  adapter = find_adapter(module, name)
  if adapter is None:
    return table
  halves = {'a': adapter.a, 'b': adapter.b}
  return merge_matrix((name,), table, halves, adapter.scale)
