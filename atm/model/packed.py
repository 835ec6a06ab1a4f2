"""Matrices packed for the products of decoding on one CPU, see `kernels`.

Letters: A inputs and B outputs of a matrix.
"""

import flax.struct
import jax
import jax.numpy as jnp

from atm.model import kernels, quantized
from atm.model.kernels import PANEL


@flax.struct.dataclass
class PackedMatrix(quantized.Matrix):
  """A float32 matrix [A, B] in panels of columns.

  Attributes:
    panels: [ceil(B / PANEL), A, PANEL], with zeros behind the last column.
    outputs: B.
  """

  panels: jax.Array
  outputs: int = flax.struct.field(pytree_node=False)

  @property
  def dtype(self):
    """The dtype of its numbers."""
    return self.panels.dtype

  def affine(self, x: jax.Array, b: jax.Array) -> jax.Array:
    """Returns x W + b of float32 x [N, A] and b [B]."""
    return kernels.multiply(x, self.panels, b)


@flax.struct.dataclass
class PackedInt8(quantized.Matrix):
  """A `QuantizedMatrix` [B, A] in panels of outputs.

  Attributes:
    panels: int8 [ceil(B / PANEL), ceil(A / 4), PANEL, 4], zeros behind both.
    scale: float32 [B].
    totals: int32 [B], each row's sum.
  """

  panels: jax.Array
  scale: jax.Array
  totals: jax.Array

  @property
  def outputs(self) -> int:
    """B."""
    return len(self.scale)

  @property
  def dtype(self):
    """The dtype that a row has once it is scaled."""
    return self.scale.dtype

  def affine(self, x: jax.Array, b: jax.Array) -> jax.Array:
    """Returns x W' + b of float32 x [N, A] and b [B], multiplied in int8."""
    return kernels.multiply_int8(x, self.panels, self.scale, self.totals, b)


def pack_matrix(w: jax.Array) -> PackedMatrix:
  """Packs a matrix [A, B]. Pure: traces under `jax.jit`."""
  A, B = w.shape
  count = -(-B // PANEL)
  w = jnp.pad(w, ((0, 0), (0, count * PANEL - B)))
  return PackedMatrix(w.reshape(A, count, PANEL).swapaxes(0, 1), B)


def pack_int8(w: quantized.QuantizedMatrix) -> PackedInt8:
  """Packs a matrix in int8. Pure: traces under `jax.jit`."""
  B, A = w.values.shape
  panels, fours = -(-B // PANEL), -(-A // 4)
  padded = jnp.pad(w.values, ((0, panels * PANEL - B), (0, fours * 4 - A)))
  padded = padded.reshape(panels, PANEL, fours, 4).swapaxes(1, 2)
  return PackedInt8(padded, w.scale, w.values.sum(-1, dtype=jnp.int32))


def pack_kernels(params: dict) -> dict:
  """Returns parameters of layers with each kernel, [A, B] or int8, packed."""

  def leaf(path, x):
    if isinstance(x, quantized.QuantizedMatrix):
      return pack_int8(x)
    name = getattr(path[-1], 'key', path[-1])
    return pack_matrix(x) if name == quantized.KERNEL else x

  is_matrix = lambda x: isinstance(x, quantized.Matrix)
  return jax.tree_util.tree_map_with_path(leaf, params, is_leaf=is_matrix)


def pack_head(head) -> PackedMatrix | PackedInt8:
  """Packs an LM head [V, D], whose rows are outputs."""
  if isinstance(head, quantized.QuantizedMatrix):
    return pack_int8(head)
  return pack_matrix(head.T)


def can_pack(w) -> bool:
  """Tells whether there are products for a matrix: float32 or int8."""
  values = w.values if isinstance(w, quantized.QuantizedMatrix) else w
  # Plans have shapes in place of arrays.
  is_array = isinstance(values, jax.Array)
  kinds = jnp.float32, jnp.int8
  return is_array and values.dtype in kinds and kernels.are_available()
