"""Matrices in int8: how they are held, made, looked up and multiplied.

Weights have a scale for each output channel, fixed when they are quantised.
Activations have one for each row, computed anew for each product (dynamic: no
calibration). Products are int8 x int8 -> int32; norms, softmax, biases and what
is between products stay in float.

qwix and AQT do not fit: on a CPU products are fast where the matrix is the left
operand, see `matmul.product_int8`, and tables are in int8, too. qwix's provider
for trained models takes such a matrix as the right operand alone, and like AQT
replaces products, not the lookup of a table's rows.

Letters: N rows, A inputs and B outputs of a matrix, L layers.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from atm.parallel import sharding, xla_options

# Names of parameters that become `QuantizedMatrix`: kernels [..., A, B] of
# affine layers, and tables [B, A], whose rows are looked up or give logits.
KERNEL = 'kernel'
ROW_TABLES = 'encoder_embedding', 'decoder_embedding', 'lm_head'
GREATEST = 127  # -128 is not used: the range is symmetric


class Matrix:
  """A matrix that stands in a tree of parameters, and is no array."""


@flax.struct.dataclass
class QuantizedMatrix(Matrix):
  """A matrix whose row i is scale[i] * values[i], a row for each output.

  It stands in a tree of parameters where the float array did.

  Attributes:
    values: int8 [..., B, A], each from -127 to 127; kernels are transposed.
    scale: float32 [..., B].
  """

  values: jax.Array
  scale: jax.Array

  @property
  def dtype(self):
    """The dtype that a row has once it is scaled."""
    return self.scale.dtype


def quantize_rows(x: jax.Array) -> QuantizedMatrix:
  """Quantises [..., A], each row by its greatest magnitude; zeros stay zeros.

  Rounds to the nearest, ties to even.
  """
  x = x.astype(jnp.float32)
  scale = jnp.abs(x).max(-1) / GREATEST
  # Of zeros, and of numbers so small that a scale is none: divided by 1.
  divisor = jnp.where(scale > 0, scale, 1)[..., None]
  return QuantizedMatrix(jnp.round(x / divisor).astype(jnp.int8), scale)


# --- What modules read


def read_parameter(module: nn.Module, name: str, *initializer):
  """Returns a module's parameter: an array, or the matrix it is held as.

  `initializer`: what `module.param` takes behind the name.
  """
  # linen compares shapes with those of the initialiser.
  held = module.get_variable('params', name)
  if isinstance(held, Matrix):
    return held
  return module.param(name, *initializer)


def cast(matrix, dtype):
  """Returns a matrix in a dtype, or as it is: in int8, or packed."""
  if isinstance(matrix, Matrix):
    return matrix
  return matrix.astype(dtype)


def look_up_rows(table, ids: jax.Array, dtype) -> jax.Array:
  """Returns rows [..., A] in `dtype` of a table [B, A], for ids [...]."""
  if not isinstance(table, QuantizedMatrix):
    return table[ids].astype(dtype)
  rows = table.values[ids].astype(jnp.float32) * table.scale[ids][..., None]
  return rows.astype(dtype)


def has_int8(*trees) -> bool:
  """Tells whether a `QuantizedMatrix` is in any of trees."""
  return _holds_int8(jax.tree.structure(trees))


# For each token of a stream it is asked anew: a structure is told fast.
@functools.lru_cache
def _holds_int8(structure) -> bool:
  is_matrix = lambda x: isinstance(x, QuantizedMatrix)
  tree = jax.tree.unflatten(structure, range(structure.num_leaves))
  return any(map(is_matrix, jax.tree.leaves(tree, is_leaf=is_matrix)))


def list_options(*trees) -> dict:
  """Returns compiler options of a program that reads trees, for its target."""
  if not has_int8(*trees):
    return {}
  return xla_options.list_int8_options(sharding.current_target()[0])


class JittedByWeights:
  """A jitted function, with options for int8 where an argument is in it.

  Takes what `jax.jit` takes, and is called, traced and lowered as its result.
  """

  def __init__(self, function: Callable, **options):
    functools.update_wrapper(self, function)
    self._jit = functools.partial(jax.jit, function, **options)
    self._plain = self._jit()

  @functools.cached_property
  def _with_options(self):
    options = xla_options.list_int8_options('cpu')
    return self._jit(compiler_options=options)

  def _select(self, args, named):
    if not list_options(args, named):
      return self._plain
    # Options are those of the outermost program.
    inside = any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(args))
    return self._plain if inside else self._with_options

  def __call__(self, *args, **named):
    return self._select(args, named)(*args, **named)

  def trace(self, *args, **named) -> jax.stages.Traced:
    """Traces the function, see `jax.stages.Wrapped`."""
    return self._select(args, named).trace(*args, **named)

  def lower(self, *args, **named) -> jax.stages.Lowered:
    """Lowers the function, see `jax.stages.Wrapped`."""
    return self._select(args, named).lower(*args, **named)

  def clear_cache(self) -> None:
    """Forgets what was traced and compiled, see `jax.stages.Wrapped`."""
    self._plain.clear_cache()
    self._with_options.clear_cache()

  def _cache_size(self) -> int:
    """Returns how many programs there are, as a jitted function does."""
    return self._plain._cache_size() + self._with_options._cache_size()


# --- How parameters become so


def is_quantized(path: tuple) -> bool:
  """Tells whether the parameter at a path of keys becomes int8."""
  name = getattr(path[-1], 'key', path[-1])
  return name == KERNEL or name in ROW_TABLES


def is_transposed(path: tuple) -> bool:
  """Tells whether the parameter at a path is transposed for it: a kernel."""
  return getattr(path[-1], 'key', path[-1]) == KERNEL


def quantize_parameter(path: tuple, x: jax.Array):
  """Returns the parameter at a path as it is held in int8, or as it is."""
  if not is_quantized(path):
    return x
  return quantize_rows(x.swapaxes(-1, -2) if is_transposed(path) else x)


def quantize_params(params: dict) -> dict:
  """Returns parameters with kernels and tables as `QuantizedMatrix`.

  Pure: traces under `jax.jit` and `jax.eval_shape`.
  """
  return jax.tree_util.tree_map_with_path(quantize_parameter, params)


def place_quantized(path: tuple, x: jax.Array) -> QuantizedMatrix:
  """Returns shardings of values and scale, of the parameter's own.

  Args:
    path: of a parameter that `is_quantized`.
    x: it as it is in float: an array, or a shape with a sharding.
  """
  if not isinstance(x.sharding, NamedSharding):  # of one device
    return QuantizedMatrix(x.sharding, x.sharding)
  spec = [*x.sharding.spec, *[None] * (x.ndim - len(x.sharding.spec))]
  if is_transposed(path):
    spec[-2:] = spec[:-3:-1]
  place = lambda axes: NamedSharding(x.sharding.mesh, PartitionSpec(*axes))
  return QuantizedMatrix(place(spec), place(spec[:-1]))


def abstract_quantized(params: dict) -> dict:
  """Returns what `quantize_params` makes, of shapes that have NamedShardings.

  Leaves are jax.ShapeDtypeStruct with shardings, see `place_quantized`.
  """
  put = lambda x, sharding: jax.ShapeDtypeStruct(
    x.shape, x.dtype, sharding=sharding
  )

  def leaf(path, x):
    if not is_quantized(path):
      return x
    made = jax.eval_shape(functools.partial(quantize_parameter, path), x)
    return jax.tree.map(put, made, place_quantized(path, x))

  return jax.tree_util.tree_map_with_path(leaf, params)
