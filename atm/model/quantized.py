"""Matrices in int8: how they are held, made, looked up and multiplied.

Weights have a scale for each output channel, fixed when they are quantised.
Activations have one for each row, computed anew for each product (dynamic: no
calibration). Products are int8 x int8 -> int32; norms, softmax, biases and what
is between products stay in float.

qwix and AQT do not fit: both quantise operands in the layout that a product
has them in, and this module's products are as fast as they are by the layout,
see `matmul.int8_product`. qwix replaces `jax.lax.dot_general` while a module
runs, and knows a parameter by its identity, which casts and reshapes end; AQT
is put in place of a layer's product, but not of a table's rows.

Letters: N rows, A inputs and B outputs of a matrix, L layers.
"""

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

# Names of parameters that become `QuantizedMatrix`: kernels [..., A, B] of
# affine layers, and tables [B, A], whose rows are looked up or give logits.
KERNEL = 'kernel'
ROW_TABLES = 'encoder_embedding', 'decoder_embedding', 'lm_head'
GREATEST = 127  # -128 is not used: the range is symmetric


@flax.struct.dataclass
class QuantizedMatrix:
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

  def look_up(self, ids: jax.Array, dtype) -> jax.Array:
    """Returns rows [..., A] of a table [B, A] for ids [...]."""
    rows = self.values[ids].astype(jnp.float32) * self.scale[ids][..., None]
    return rows.astype(dtype)


def quantize_rows(x: jax.Array) -> QuantizedMatrix:
  """Quantises [..., A], each row by its greatest magnitude; zeros stay zeros.

  Rounds to the nearest, ties to even.
  """
  x = x.astype(jnp.float32)
  scale = jnp.abs(x).max(-1) / GREATEST
  # Of zeros, and of numbers so small that a scale is none: divided by 1.
  divisor = jnp.where(scale > 0, scale, 1)[..., None]
  return QuantizedMatrix(jnp.round(x / divisor).astype(jnp.int8), scale)


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
    x: it as it is in float: an array, or a shape with a NamedSharding.
  """
  spec = [*x.sharding.spec, *[None] * (x.ndim - len(x.sharding.spec))]
  if is_transposed(path):
    spec[-2:] = spec[:-3:-1]
  place = lambda axes: NamedSharding(x.sharding.mesh, PartitionSpec(*axes))
  return QuantizedMatrix(place(spec), place(spec[:-1]))
