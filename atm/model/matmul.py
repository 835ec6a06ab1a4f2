"""Matrix products in the forms that XLA's CPU backend is fast in.

It has fast kernels (YNNPACK) for A B and A B' with float32 or bfloat16 operands
and float32 results. A' B goes another way, at 0.7 of their rate or as fast in
float32 and at less than half of it in bfloat16, and so do bfloat16 results. So
A' is written out first, and results are float32 before they are cast
(benchmarks/products.py).
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.layout import Layout, with_layout_constraint

from atm.parallel import sharding

PRODUCT = 'product'  # the name of results, for remat


def on_cpu() -> bool:
  """Whether the program is for one CPU device: GSPMD knows no layouts."""
  return sharding.current_target() == ('cpu', 1)


def on_tpu() -> bool:
  return sharding.current_target()[0] == 'tpu'


# Their products sum rows and columns of what they make in less than a pass over
# memory takes, by the compiler's cycles; those of v5p in no less.
SUM_FUSING_KINDS = 'TPU v5 lite', 'TPU v5e', 'TPU v6 lite', 'TPU v6e'


def fuses_sums() -> bool:
  """Whether the program is for one of SUMMING."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  return device is not None and device.device_kind in SUM_FUSING_KINDS


def affine(x: jax.Array, *weights: tuple, heads=None, axes: int = 1):
  """x W + b for each (W [A, B], b [B]) of weights; x [..., A].

  On the CPU two-dimensional: on three axes its backend transposes what the
  gradient of W reads. There, matrices that many rows read are made one.

  Args:
    x: [..., A].
    weights: matrices and biases.
    heads: H, to have each [..., H, B / H]. A TPU's product then writes the
      layout that attention reads; cut afterwards it would be copied twice.
    axes: how many of x's last axes are A together: 2 of [..., H, A / H], the
      layout that attention writes.

  Returns:
    A list of [..., B].
  """
  rows, inner = x.shape[:-axes], x.shape[-axes:]
  if on_cpu():
    out = _affine_each(x.reshape(-1, math.prod(inner)), weights)
    out = [y.reshape(*rows, *_split_heads(y.shape[-1:], heads)) for y in out]
  else:
    add = _add_bias if heads and on_tpu() else jnp.add
    out = [
      add(
        jnp.tensordot(
          x, w.reshape(*inner, *_split_heads(b.shape, heads)), axes
        ),
        b.reshape(_split_heads(b.shape, heads)),
      )
      for w, b in weights
    ]
  return [checkpoint_name(y, PRODUCT) for y in out]


@jax.custom_vjp
def _add_bias(y, b):
  """y + b, whose gradient by b is a product with ones.

  What a kernel gives back is summed over its rows in a pass of its own: as a
  product that takes a TPU a third of the time of XLA's reduction.
  """
  return y + b


def _add_bias_backward(b, slope):
  rows = tuple(range(slope.ndim - b.ndim))
  # One row of ones XLA would turn back into a sum.
  ones = jnp.ones((2, *slope.shape[: len(rows)]), slope.dtype)
  contracted = tuple(axis + 1 for axis in rows), rows
  total = jax.lax.dot_general(
    ones, slope, (contracted, ((), ())), preferred_element_type=jnp.float32
  )
  return slope, total[0].astype(b.dtype)


_add_bias.defvjp(lambda y, b: (y + b, b), _add_bias_backward)


def _split_heads(width: tuple[int], heads: int | None) -> tuple[int, ...]:
  return (heads, width[0] // heads) if heads else width


def _affine_each(flat, weights):
  """Products of x [N, A] with all matrices, as one where that pays."""
  if len(flat) < flat.shape[1]:
    return [_affine(flat, w, b) for w, b in weights]
  joined = (jnp.concatenate(parts, -1) for parts in zip(*weights))
  ends = np.cumsum([len(b) for _, b in weights])
  return jnp.split(_affine(flat, *joined), ends[:-1], axis=1)


def transpose(x: jax.Array) -> jax.Array:
  """[..., A, B] to [..., B, A], on the CPU written out."""
  if not on_cpu():
    return x.swapaxes(-1, -2)
  return _row_major(_row_major(x).swapaxes(-1, -2))


def _row_major(x):
  """x in rows: between a product and a transposition it keeps them apart."""
  return with_layout_constraint(x, Layout(tuple(range(x.ndim))))


def dot_float32(a: jax.Array, b: jax.Array, axes: tuple[int, int]) -> jax.Array:
  """float32 product of two matrices over axis axes[0] of a and axes[1] of b."""
  contracted = ((axes[0],), (axes[1],)), ((), ())
  return jax.lax.dot_general(
    a, b, contracted, preferred_element_type=jnp.float32
  )


def weight_gradient(x: jax.Array, slope: jax.Array) -> jax.Array:
  """float32 x' slope, [A, B], of x [N, A] and slope [N, B].

  The narrower of the two is transposed.
  """
  if x.shape[1] <= slope.shape[1]:
    return dot_float32(transpose(x), slope, (1, 0))
  return transpose(dot_float32(transpose(slope), x, (1, 0)))


@jax.custom_vjp
def _affine(x, w, b):
  return (dot_float32(x, w, (1, 0)) + b).astype(x.dtype)


def _affine_forward(x, w, b):
  return _affine(x, w, b), (x, w)


def _affine_backward(kept, slope):
  x, w = kept
  x_slope = dot_float32(slope, w, (1, 1)).astype(x.dtype)
  w_slope = weight_gradient(x, slope).astype(w.dtype)
  return x_slope, w_slope, slope.astype(jnp.float32).sum(0).astype(w.dtype)


_affine.defvjp(_affine_forward, _affine_backward)
