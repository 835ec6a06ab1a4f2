"""Matrix products in the forms that XLA's backends are fast in.

The CPU backend has fast kernels (YNNPACK) for A B and A B' with float32 or
bfloat16 operands and float32 results. A' B goes another way, at 0.7 of their
rate or as fast in float32 and at less than half of it in bfloat16, and so do
bfloat16 results. So A' is written out first, and results are float32 before
they are cast (benchmarks/products.py).
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.layout import Layout, with_layout_constraint

from atm.model import quantized, remat
from atm.parallel import sharding

# Rows up to which int8 weights are the left operand on one CPU.
FEW_INT8_ROWS = 64
# Rows up to which one CPU computes the logits as `rows_by_columns` does.
FEW_ROWS = 48
# TPUs whose products sum rows and columns of their results in less than a pass
# over memory takes, by the compiler's cycles; v5p's take no less.
SUM_FUSING_KINDS = 'TPU v5 lite', 'TPU v5e', 'TPU v6 lite', 'TPU v6e'


def on_one_cpu() -> bool:
  """Tells whether the program is for one CPU device."""
  # For several, GSPMD partitions it, and knows no layouts of custom calls.
  return sharding.current_target() == ('cpu', 1)


def on_tpu() -> bool:
  """Tells whether the program is for TPUs."""
  return sharding.current_target()[0] == 'tpu'


def fuses_sums() -> bool:
  """Tells whether the program is for one of SUM_FUSING_KINDS."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  return device is not None and device.device_kind in SUM_FUSING_KINDS


def affine(
  x: jax.Array, *weights: tuple, heads=None, axes: int = 1, changes=()
):
  """Computes x W + b for each (W [A, B], b [B]) of weights; x [..., A].

  Args:
    x: [..., A].
    weights: matrices and biases.
    heads: H, to have each [..., H, B / H]. A TPU's product then writes the
      layout that attention reads; split afterwards it would be copied twice.
    axes: how many of x's last axes are A together: 2 of [..., H, A / H], the
      layout that attention writes.
    changes: what is added to each result, or None.

  Returns:
    A list of [..., B].
  """
  rows, inner = x.shape[:-axes], x.shape[-axes:]
  if isinstance(weights[0][0], quantized.Matrix):
    flat = x.reshape(-1, math.prod(inner))
    out = [affine_matrix(flat, w, b).astype(x.dtype) for w, b in weights]
    out = [y.reshape(*rows, *_split_heads(y.shape[-1:], heads)) for y in out]
  elif on_one_cpu():
    # Two-dimensional: with three axes the backend transposes the operand that
    # the gradient of W reads.
    out = _affine_each(x.reshape(-1, math.prod(inner)), weights)
    out = [y.reshape(*rows, *_split_heads(y.shape[-1:], heads)) for y in out]
  else:
    add = _add_bias if heads and on_tpu() else jnp.add
    out = []
    for w, b in weights:
      shape = _split_heads(b.shape, heads)
      y = jnp.tensordot(x, w.reshape(*inner, *shape), axes)
      out.append(add(y, b.reshape(shape)))
  for i, change in enumerate(changes):
    out[i] = out[i] if change is None else out[i] + change
  return [checkpoint_name(y, remat.PRODUCT) for y in out]


def low_rank(x: jax.Array, a, b, heads=None, axes: int = 1) -> jax.Array:
  """Computes (x A) B of A [A, r] and B [r, B]; all else as of `affine`."""
  rows, inner = x.shape[:-axes], x.shape[-axes:]
  width = _split_heads(b.shape[1:], heads)
  if not on_one_cpu():
    y = jnp.tensordot(x, a.reshape(*inner, -1), axes)
    return jnp.tensordot(y, b.reshape(-1, *width), 1)
  y = x.reshape(-1, math.prod(inner))
  for w in (a, b):
    y = _affine(y, w, jnp.zeros(w.shape[1:], w.dtype))
  return y.reshape(*rows, *width)


@jax.custom_vjp
def _add_bias(y, b):
  """Computes y + b, whose gradient by b is a product with ones."""
  # A kernel's result is summed over its rows in a pass of its own: as a product
  # that takes a TPU a third of the time of XLA's reduction.
  return y + b


def _add_bias_backward(b, cotangent):
  rows = tuple(range(cotangent.ndim - b.ndim))
  # Two rows of ones: one row XLA would turn back into a sum.
  ones = jnp.ones((2, *cotangent.shape[: len(rows)]), cotangent.dtype)
  contracted = tuple(axis + 1 for axis in rows), rows
  total = jax.lax.dot_general(
    ones, cotangent, (contracted, ((), ())), preferred_element_type=jnp.float32
  )
  return cotangent, total[0].astype(b.dtype)


_add_bias.defvjp(lambda y, b: (y + b, b), _add_bias_backward)


def _split_heads(width: tuple[int], heads: int | None) -> tuple[int, ...]:
  return (heads, width[0] // heads) if heads else width


def _affine_each(flat, weights):
  """Returns x W + b of x [N, A] for each of weights."""
  # Few rows read the matrices as they are; for many, several are one product.
  if len(flat) < flat.shape[1]:
    return [_affine(flat, w, b) for w, b in weights]
  whole = (jnp.concatenate(parts, -1) for parts in zip(*weights))
  ends = np.cumsum([len(b) for _, b in weights])
  return jnp.split(_affine(flat, *whole), ends[:-1], axis=1)


def transpose(x: jax.Array) -> jax.Array:
  """Transposes [..., A, B] to [..., B, A]; on one CPU written out in memory."""
  if not on_one_cpu():
    return x.swapaxes(-1, -2)
  return _row_major(_row_major(x).swapaxes(-1, -2))


def _row_major(x):
  """Pins x's layout, so that XLA folds no transposition into a product."""
  return with_layout_constraint(x, Layout(tuple(range(x.ndim))))


def dot_float32(a: jax.Array, b: jax.Array, axes: tuple[int, int]) -> jax.Array:
  """Returns the product of two matrices over axes[0] of a and axes[1] of b."""
  contracted = ((axes[0],), (axes[1],)), ((), ())
  return jax.lax.dot_general(
    a, b, contracted, preferred_element_type=jnp.float32
  )


def rows_by_columns(x: jax.Array, w) -> jax.Array:
  """Returns float32 x w' of x [N, A] and w [B, A], fast where N is small."""
  if isinstance(w, quantized.QuantizedMatrix):
    return affine_int8(x, w, 0)
  if not on_one_cpu() or not 1 < len(x) <= FEW_ROWS:
    return dot_float32(x, w, (1, 1))
  # As x w' the backend writes w out anew for each product: up to five times the
  # time. The barrier keeps XLA from swapping the operands back.
  return jax.lax.optimization_barrier(dot_float32(w, x, (1, 1))).T


def affine_matrix(x: jax.Array, w: quantized.Matrix, b) -> jax.Array:
  """Returns float32 x W + b of x [N, A], W as it is held, and b [B]."""
  if isinstance(w, quantized.QuantizedMatrix):
    return affine_int8(x, w, b)
  return w.affine(x, b)


def affine_int8(x: jax.Array, w: quantized.QuantizedMatrix, b) -> jax.Array:
  """Returns float32 x w' + b of x [N, A] and w [B, A], multiplied in int8."""
  rows = quantized.quantize_rows(x)
  sums = product_int8(rows.values, w.values).astype(jnp.float32)
  return sums * rows.scale[:, None] * w.scale + b


def product_int8(x: jax.Array, w: jax.Array) -> jax.Array:
  """Returns int32 x w' of int8 x [N, A] and w [B, A]."""
  product = lambda a, b: jax.lax.dot_general(
    a, b, (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32
  )
  count = len(x)
  if not on_one_cpu() or count > FEW_INT8_ROWS:
    return product(x, w)
  if count == 1:
    # XLA multiplies one row in float or int32, and writes out w in it.
    x = jnp.pad(x, ((0, 1), (0, 0)))
  return jax.lax.optimization_barrier(product(w, x)).T[:count]


def weight_gradient(x: jax.Array, cotangent: jax.Array) -> jax.Array:
  """Returns float32 x' cotangent, [A, B], of x [N, A] and cotangent [N, B]."""
  # The narrower of the two is transposed: it is the smaller copy.
  if x.shape[1] <= cotangent.shape[1]:
    return dot_float32(transpose(x), cotangent, (1, 0))
  return transpose(dot_float32(transpose(cotangent), x, (1, 0)))


# XLA's CPU backend adds up long axes in several passes (tree reductions), which
# for many rows takes up to six times as long as a product with ones.


def sum_columns(x: jax.Array) -> jax.Array:
  """Returns sums over all but the last axis: [D] of x [..., D]."""
  if not _sums_by_products(x):
    return x.sum(range(x.ndim - 1))
  flat = x.reshape(-1, x.shape[-1])
  # Two rows of ones: one row XLA would turn back into a sum.
  return sum_by_product(jnp.ones((2, len(flat)), x.dtype), flat)[0]


def mean_rows(x: jax.Array, keepdims: bool = False) -> jax.Array:
  """Returns means over the last axis: [...] of x [..., D], or [..., 1]."""
  if not _sums_by_products(x):
    return x.mean(-1, keepdims=keepdims)
  D = x.shape[-1]
  means = sum_by_product(x.reshape(-1, D), jnp.full(D, 1 / D, x.dtype))
  return means.reshape(*x.shape[:-1], *(1,) * keepdims)


@jax.jit
def sum_by_product(a: jax.Array, b: jax.Array) -> jax.Array:
  """Returns a b, which is a sum: `flops.jaxpr_flops` counts none of it."""
  return a @ b


def _sums_by_products(x) -> bool:
  many = x.size >= x.shape[-1] ** 2
  return on_one_cpu() and many and x.dtype == jnp.float32


@jax.custom_vjp
def _affine(x, w, b):
  return (dot_float32(x, w, (1, 0)) + b).astype(x.dtype)


def _affine_backward(residuals, cotangent):
  x, w = residuals
  x_grad = dot_float32(cotangent, w, (1, 1)).astype(x.dtype)
  w_grad = weight_gradient(x, cotangent).astype(w.dtype)
  b_grad = sum_columns(cotangent.astype(jnp.float32)).astype(w.dtype)
  return x_grad, w_grad, b_grad


_affine.defvjp(lambda x, w, b: (_affine(x, w, b), (x, w)), _affine_backward)
