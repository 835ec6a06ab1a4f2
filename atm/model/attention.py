"""Scaled dot-product attention behind one function, however it is computed.

B batch, T queries, S keys, H heads, K head dimension.

| implementation | what | where |
| --- | --- | --- |
| einsum | whole [B, H, T, S] weights, differentiated by JAX | anywhere |
| rows | some rows at a time, their weights made again in the backward | CPU |
| splash | Pallas kernel with segment ids | TPU; not run on one by us |
| cudnn | jax.nn.dot_product_attention | GPU; cuDNN not run by us |

All give the same within rounding, but on queries that may look nowhere: those
are padding, and what they give is nobody's input.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from atm.model.matmul import on_tpu, transpose
from atm.parallel import sharding

MASKED = -1e9  # finite: a row that may look nowhere gives no NaN
IMPLEMENTATIONS = ('auto', 'einsum', 'rows', 'splash', 'cudnn')
# Names of what its backward pass reads, for remat: heads are products' results.
HEADS, ATTENTION = 'heads', 'attention'
BLOCK = 128  # splash: lengths and head dimension become multiples of this
ROWS_BYTES = 16 * 2**20  # rows: scores made at a time; fit a CPU's last cache


@flax.struct.dataclass
class AttentionMask:
  """Who may look at whom.

  Attributes:
    query_segments: [B, T] integers; a query sees keys of its own segment.
    key_segments: [B, S] integers.
    causal: a query sees no key that stands behind it.
  """

  query_segments: jax.Array
  key_segments: jax.Array
  causal: bool = flax.struct.field(pytree_node=False, default=False)

  def mask(self) -> jax.Array:
    """[B, 1, T, S] bool."""
    see = self.query_segments[:, :, None] == self.key_segments[:, None, :]
    if self.causal:
      last = jnp.arange(self.query_segments.shape[1])[:, None]
      see &= last >= jnp.arange(self.key_segments.shape[1])
    return see[:, None]


def dot_product_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  sight: AttentionMask,
  dropout=None,
  scores_float32: bool = True,
  implementation: str = 'auto',
) -> jax.Array:
  """softmax(q k' / sqrt(K)) v.

  Args:
    query: [B, T, H, K].
    key: [B, S, H, K].
    value: [B, S, H, K].
    sight: who may look at whom.
    dropout: applied to the weights [B, H, T, S]; None does nothing.
    scores_float32: compute scores and softmax in float32, else in the dtype of
      `query`.
    implementation: one of IMPLEMENTATIONS, 'auto' is `choose_implementation`'s.

  Returns:
    [B, T, H, K] in the dtype of `query`.
  """
  query, key, value = (checkpoint_name(x, HEADS) for x in (query, key, value))
  low = not scores_float32 and query.dtype != jnp.float32
  if dropout is not None or low:
    implementation = 'einsum'
  if implementation == 'auto':
    implementation = choose_implementation(query, key)
  if implementation == 'einsum':
    return einsum_attention(query, key, value, sight, dropout, scores_float32)
  compute = {
    'rows': rowwise_attention,
    'splash': splash_attention,
    'cudnn': cudnn_attention,
  }[implementation]
  return run_on_shards(compute, query, key, value, sight)


def choose_implementation(query, key) -> str:
  """What 'auto' stands for: splash on TPU, cudnn on GPU, rows on a CPU.

  cudnn takes half precision only: einsum in float32. Simulated CPU devices have
  einsum, too. Dropout on attention weights and scores in half precision are
  einsum's, whatever was asked for.
  """
  platform, devices = sharding.current_target()
  if platform == 'tpu':
    return 'splash'
  if platform == 'gpu':
    half = query.dtype in (jnp.bfloat16, jnp.float16)
    return 'cudnn' if half else 'einsum'
  return 'einsum' if devices > 1 else 'rows'


def run_on_shards(
  compute, query, key, value, sight: AttentionMask
) -> jax.Array:
  """`compute` on the rows and heads that each device of the mesh has."""
  rules = sharding.current_rules()
  if rules is None or sharding.current_target()[1] == 1:
    return compute(query, key, value, sight)
  x, ids = rules.spec('batch', None, 'heads', None), rules.spec('batch', None)
  return jax.shard_map(
    compute, in_specs=(x, x, x, ids), out_specs=x, check_vma=False
  )(query, key, value, sight)


def attend_to_cache(
  query, keys, values, mask, scores_float32=True
) -> jax.Array:
  """Attention of few queries to the keys and values of a cache.

  The rows that share an input's keys are queries of one product.

  Args:
    query: [R, n, H, K].
    keys: [B, H, K, S]; R a multiple of B.
    values: [B, H, S, K].
    mask: [B, n or 1, S] bool; where R is not B, 1.
    scores_float32: see `dot_product_attention`.

  Returns:
    [R, n, H, K].
  """
  R, n, H, K = query.shape
  query = query.reshape(len(keys), -1, H, K)
  t = query.shape[1]
  if t == 1 and on_tpu():
    # One row XLA multiplies by the vector unit, in thrice the cycles.
    query = jnp.pad(query, ((0, 0), (0, 1), (0, 0), (0, 0)))
  scores = jnp.einsum(
    'bthk,bhks->bhts',
    query,
    keys,
    preferred_element_type=jnp.float32 if scores_float32 else query.dtype,
  )
  scores = jnp.where(mask[:, None], scores * K**-0.5, MASKED)
  weights = jax.nn.softmax(scores).astype(query.dtype)
  # As an einsum to [b, t, h, k] the CPU's operands are swapped, which takes it
  # up to 13 times as long where several queries share their keys.
  out = (weights @ values)[:, :, :t]
  return out.swapaxes(1, 2).reshape(R, n, H, K)


def einsum_attention(
  query, key, value, sight, dropout=None, scores_float32=True
):
  """All weights at once."""
  scale = query.shape[-1] ** -0.5
  scores = jnp.einsum(
    'bthk,bshk->bhts',
    query,
    key,
    preferred_element_type=jnp.float32 if scores_float32 else query.dtype,
  )
  scores = jnp.where(sight.mask(), scores * scale, MASKED)
  weights = jax.nn.softmax(scores).astype(query.dtype)
  if dropout is not None:
    weights = dropout(weights)
  out = jnp.einsum('bhts,bshk->bthk', weights, value)
  return checkpoint_name(out, ATTENTION)


# --- A few rows at a time, for the CPU


def rowwise_attention(query, key, value, sight: AttentionMask) -> jax.Array:
  """Attention that never holds [B, H, T, S], nor keeps it for the backward.

  Each turn of a loop makes the scores of so many rows as fit ROWS_BYTES, so
  they stay in the cache; the backward pass makes them again from the greatest
  score and the sum of each query (FlashAttention's way). The backward makes
  them keys by queries, [b, H, S, T], which leaves one product of the seven that
  needs a transposed operand, see products.py. All is computed in float32.
  """
  return _rowwise(query, key, value, sight)


@jax.custom_vjp
def _rowwise(query, key, value, sight):
  return _rowwise_forward(query, key, value, sight)[0]


def _rowwise_forward(query, key, value, sight):
  out, top, total = _map_rows(_forward_rows, (query, key, value, sight))
  out, top, total = (checkpoint_name(x, ATTENTION) for x in (out, top, total))
  return out, (query, key, value, sight, out, top, total)


def _rowwise_backward(kept, slope):
  return *_map_rows(_backward_rows, (*kept, slope)), None


_rowwise.defvjp(_rowwise_forward, _rowwise_backward)


def _map_rows(compute, inputs):
  """compute(*inputs), all [B, ...], some rows at a time."""
  query, key = inputs[:2]
  B, T, H, _ = query.shape
  each = max(1, ROWS_BYTES // (4 * H * T * key.shape[1]))
  each = max(n for n in range(1, min(each, B) + 1) if B % n == 0)
  if each == B:
    return compute(*inputs)
  cut = lambda x: x.reshape(B // each, each, *x.shape[1:])
  join = lambda x: x.reshape(B, *x.shape[2:])
  out = jax.lax.map(lambda part: compute(*part), jax.tree.map(cut, inputs))
  return jax.tree.map(join, out)


def _heads_first(*arrays):
  """[b, T, H, K] -> float32 [b, H, T, K]."""
  return (x.astype(jnp.float32).transpose(0, 2, 1, 3) for x in arrays)


def _forward_rows(query, key, value, sight):
  """(out [b, T, H, K], top and total [b, H, T, 1]) of a few rows."""
  dtype = query.dtype
  query, key, value = _heads_first(query, key, value)
  query *= query.shape[-1] ** -0.5
  scores = jnp.einsum('bhtk,bhsk->bhts', query, key)
  scores = jnp.where(sight.mask(), scores, MASKED)
  top = scores.max(-1, keepdims=True)
  powers = jnp.exp(scores - top)
  total = powers.sum(-1, keepdims=True)
  out = jnp.einsum('bhts,bhsk->bhtk', powers, value) / total
  return out.transpose(0, 2, 1, 3).astype(dtype), top, total


def _backward_rows(query, key, value, sight, out, top, total, slope):
  """Gradients of query, key and value of a few rows."""
  dtype, scale = query.dtype, query.shape[-1] ** -0.5
  query, key, value, out, slope = _heads_first(query, key, value, out, slope)
  query, slope = query * scale, slope / total
  mean, top = (slope * out).sum(-1)[..., None, :], top.swapaxes(-1, -2)
  scores = jnp.einsum('bhsk,bhtk->bhst', key, query)
  scores = jnp.where(sight.mask().swapaxes(-1, -2), scores, MASKED)
  powers = jnp.exp(scores - top)
  value_slope = jnp.einsum('bhst,bhtk->bhsk', powers, slope)
  score_slope = powers * (jnp.einsum('bhsk,bhtk->bhst', value, slope) - mean)
  key_slope = jnp.einsum('bhst,bhtk->bhsk', score_slope, query)
  # As written: an einsum to [b, h, T, K] would swap the operands.
  query_slope = transpose(key * scale) @ score_slope  # [b, H, K, T]
  slopes = query_slope.swapaxes(-1, -2), key_slope, value_slope
  return tuple(x.transpose(0, 2, 1, 3).astype(dtype) for x in slopes)


# --- Kernels of accelerators


def splash_attention(
  query, key, value, sight: AttentionMask, interpret=False
) -> jax.Array:
  """JAX's Pallas kernel for TPUs; not run on TPU hardware by us.

  Lengths and head dimension are padded to multiples of BLOCK, with a segment
  of their own. What its backward pass reads is named SAVED.
  """
  from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel,
    splash_attention_mask,
  )

  T, H, K = query.shape[1:]
  of_queries, of_keys = (
    _pad_to_block(x, fill=-1)
    for x in (sight.query_segments, sight.key_segments)
  )
  query, key, value = (
    _pad_to_block(_pad_to_block(x), axis=3).swapaxes(1, 2)
    for x in (query * K**-0.5, key, value)
  )
  shape = query.shape[2], key.shape[2]
  whole = splash_attention_mask.FullMask(shape)
  if sight.causal:
    whole = splash_attention_mask.CausalMask(shape)
  kernel = splash_attention_kernel.make_splash_mha_single_device(
    splash_attention_mask.MultiHeadMask([whole] * H),
    block_sizes=_splash_blocks(*shape),
    residual_checkpoint_name=ATTENTION,
    interpret=interpret,
  )
  segments = splash_attention_kernel.SegmentIds(of_queries, of_keys)
  out = jax.vmap(kernel)(query, key, value, segments)
  return out.swapaxes(1, 2)[:, :T, :, :K].astype(query.dtype)


def _pad_to_block(x, axis: int = 1, fill: int = 0):
  """x with `axis` filled up to a multiple of BLOCK."""
  widths = [(0, 0)] * x.ndim
  widths[axis] = (0, -x.shape[axis] % BLOCK)
  return jnp.pad(x, widths, constant_values=fill)


def _splash_blocks(T: int, S: int):
  """Blocks that divide T and S; the backward's two kernels in one.

  Few large blocks, and one kernel for all gradients, take three fifths of the
  instructions that 512 x 512 and two kernels take, by the compiler's schedules
  for v4, v5e, v5p and v6e; see docs/pods.md.
  """
  from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel,
  )

  largest = lambda n, limit: max(
    b for b in range(BLOCK, limit + 1, BLOCK) if n % b == 0
  )
  q, kv = largest(T, 1024), largest(S, 1024)
  compute = largest(kv, 512)
  return splash_attention_kernel.BlockSizes(
    block_q=q, block_kv=kv, block_kv_compute=compute,
    block_q_dkv=q, block_kv_dkv=kv, block_kv_dkv_compute=compute,
    use_fused_bwd_kernel=True,
  )  # fmt: skip


def cudnn_attention(
  query, key, value, sight: AttentionMask, kernel='cudnn'
) -> jax.Array:
  """jax.nn's attention by cuDNN; the kernel itself not run by us.

  It takes the mask as [B, 1, T, S]. `kernel` 'xla' is for tests on a CPU.
  """
  out = jax.nn.dot_product_attention(
    query, key, value, mask=sight.mask(), implementation=kernel
  )
  return checkpoint_name(out, ATTENTION)
