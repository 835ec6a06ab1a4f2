"""Scaled dot-product attention behind one function, however it is computed.

B batch, T queries, S keys, H heads, K head dimension.

| implementation | what | where |
| --- | --- | --- |
| einsum | whole [B, H, T, S] weights, differentiated by JAX | anywhere |
| rows | some batch rows at a time; the backward computes weights again | CPU |
| splash | Pallas kernel with segment ids | TPU; not run on one by us |
| cudnn | jax.nn.dot_product_attention | GPU; cuDNN not run by us |

All agree within rounding, except on queries that may attend to nothing: those
are padding, and nothing reads their result.
"""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from atm.model import cache_blocks, kernels, matmul, remat
from atm.model.matmul import on_tpu, transpose
from atm.parallel import sharding

MASKED = -1e9  # finite: -inf would make NaN of a query that sees no key
IMPLEMENTATIONS = ('auto', 'einsum', 'rows', 'splash', 'cudnn')
KERNELS = {'splash': 'tpu', 'cudnn': 'gpu'}  # name -> the platform that has it
BLOCK = 128  # splash: lengths and head dimension become multiples of this
FEW_QUERIES = 8  # of a row: more share what a product of XLA has read
ROWS_BYTES = 16 * 2**20  # rows: scores made at a time; fit a CPU's last cache


@flax.struct.dataclass
class AttentionMask:
  """Attention mask: which queries may attend to which keys.

  Attributes:
    query_segments: [B, T] integers; a query sees keys of its own segment.
    key_segments: [B, S] integers.
    causal: a query sees no key at a later position.
    prefix: of a causal mask, how many positions at the start also attend to
      later ones among themselves (prefix LM).
  """

  # Segment ids, of which splash makes its own mask, block by block.
  query_segments: jax.Array
  key_segments: jax.Array
  causal: bool = flax.struct.field(pytree_node=False, default=False)
  prefix: int = flax.struct.field(pytree_node=False, default=0)

  def mask(self) -> jax.Array:
    """Returns the mask as bool [B, 1, T, S]; True: may attend."""
    visible = self.query_segments[:, :, None] == self.key_segments[:, None, :]
    if self.causal:
      last = jnp.arange(self.query_segments.shape[1])[:, None]
      if self.prefix:
        last = jnp.maximum(last, self.prefix - 1)
      visible &= last >= jnp.arange(self.key_segments.shape[1])
    return visible[:, None]


def dot_product_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  mask: AttentionMask,
  dropout=None,
  scores_float32: bool = True,
  implementation: str = 'auto',
) -> jax.Array:
  """Computes softmax(q k' / sqrt(K)) v (Vaswani et al., 2017).

  Args:
    query: [B, T, H, K].
    key: [B, S, H, K].
    value: [B, S, H, K].
    mask: which queries may attend to which keys.
    dropout: applied to the weights [B, H, T, S]; None does nothing.
    scores_float32: compute scores and softmax in float32, else in the dtype of
      `query`.
    implementation: one of IMPLEMENTATIONS; 'auto': `choose_implementation`.

  Returns:
    [B, T, H, K] in the dtype of `query`.
  """
  query, key, value = (
    checkpoint_name(x, remat.HEADS) for x in (query, key, value)
  )
  low = not scores_float32 and query.dtype != jnp.float32
  if dropout is not None or low:
    implementation = 'einsum'  # the kernels know neither
  if implementation == 'auto':
    implementation = choose_implementation(query)
  if implementation == 'einsum':
    return einsum_attention(query, key, value, mask, dropout, scores_float32)
  compute = {
    'rows': rowwise_attention,
    'splash': splash_attention,
    'cudnn': cudnn_attention,
  }[implementation]
  return run_on_shards(compute, query, key, value, mask)


def choose_implementation(query) -> str:
  """Returns 'splash' on TPU, 'cudnn' on GPU, 'rows' on one CPU, or 'einsum'."""
  platform, devices = sharding.current_target()
  if platform == 'tpu':
    return 'splash'
  if platform == 'gpu':
    # cuDNN takes half precision only.
    half = query.dtype in (jnp.bfloat16, jnp.float16)
    return 'cudnn' if half else 'einsum'
  return 'einsum' if devices > 1 else 'rows'


def run_on_shards(compute, query, key, value, mask: AttentionMask) -> jax.Array:
  """Runs `compute` on the batch rows and heads that each device holds."""
  # GSPMD cannot partition a kernel, nor a loop over batch rows.
  rules = sharding.current_rules()
  if rules is None or sharding.current_target()[1] == 1:
    return compute(query, key, value, mask)
  x, ids = rules.spec('batch', None, 'heads', None), rules.spec('batch', None)
  return jax.shard_map(
    compute, in_specs=(x, x, x, ids), out_specs=x, check_vma=False
  )(query, key, value, mask)


def attend_to_cache(query, keys, values, mask, scores_float32=True):
  """Computes attention of few queries to the keys and values of a cache.

  The batch rows that share an input's keys are queries of one product.

  Args:
    query: [R, n, H, K].
    keys: [B, H, K, S]; R a multiple of B. Or in blocks, see `cache_blocks`,
      and R is B.
    values: [B, H, S, K], or in blocks.
    mask: [B, n or 1, S] bool; where R is not B, 1.
    scores_float32: see `dot_product_attention`.

  Returns:
    [R, n, H, K].
  """
  R, n, H, K = query.shape
  if _has_kernel(query):
    return kernels.attend(query, mask, *cache_blocks.list_arrays(keys, values))
  if isinstance(keys, tuple):
    out = cache_blocks.attend_to_blocks(
      query, keys, values, mask,
      lambda query, keys: _scores(
        'bthk,bhks->bhts', query, keys, scores_float32
      ),
      lambda mask, scores: _softmax(mask, scores * K**-0.5, query.dtype),
    )  # fmt: skip
    return out.swapaxes(1, 2)
  query = query.reshape(len(keys), -1, H, K)
  t = query.shape[1]
  if t == 1 and on_tpu():
    # XLA multiplies one row in the vector unit, which takes thrice the cycles
    # of the matrix unit with a second row of zeros.
    query = jnp.pad(query, ((0, 0), (0, 1), (0, 0), (0, 0)))
  scores = _scores('bthk,bhks->bhts', query, keys, scores_float32)
  weights = _softmax(mask[:, None], scores * K**-0.5, query.dtype)
  # As an einsum to [b, t, h, k] the CPU's operands are swapped, which takes it
  # up to 13 times as long where several queries share their keys.
  out = (weights @ values)[:, :, :t]
  return out.swapaxes(1, 2).reshape(R, n, H, K)


def attend_to_prompt_and_cache(query, prompt, written, scores_float32=True):
  """Computes attention to a prompt and to a cache, under one softmax.

  Args:
    query: [R, n, H, K].
    prompt: keys [B, H, K, S], values [B, H, S, K] and mask [B, 1, S] of what
      the R / B adjacent rows of an input share.
    written: keys [R, H, K, T], values [R, H, T, K] and mask [R, n, T].
    scores_float32: see `dot_product_attention`.

  Returns:
    [R, n, H, K].
  """
  (keys, values, mask), (own_keys, own_values, own_mask) = prompt, written
  (R, n, H, K), B, S = query.shape, len(keys), keys.shape[3]
  visible = jnp.concatenate(
    [jnp.broadcast_to(_repeat(mask, R // B), (R, n, S)), own_mask], -1
  )
  if R == B and _has_kernel(query):
    caches = keys, own_keys, values, own_values
    return kernels.attend(query, visible, *caches)
  # The rows of an input are queries of one product with its prompt.
  grouped = lambda x: x.reshape(B, R // B, H, n, -1).swapaxes(1, 2)
  ungrouped = lambda x: x.reshape(B, H, R // B, n, -1).swapaxes(1, 2)
  query = query.swapaxes(1, 2)
  score = lambda query, keys: _scores(
    'bhtk,bhks->bhts', query, keys, scores_float32
  )
  of_prompt = score(grouped(query).reshape(B, H, -1, K), keys)
  scores = jnp.concatenate(
    [ungrouped(of_prompt).reshape(R, H, n, S), score(query, own_keys)], -1
  )
  weights = _softmax(visible[:, None], scores * K**-0.5, query.dtype)
  out = grouped(weights[..., :S]).reshape(B, H, -1, S) @ values
  out = ungrouped(out).reshape(R, H, n, K) + weights[..., S:] @ own_values
  return out.swapaxes(1, 2)


def _repeat(x, times: int):
  return x if times == 1 else jnp.repeat(x, times, axis=0)


def _has_kernel(query) -> bool:
  """Tells whether `kernels.attend` is there, and the faster for queries."""
  few = query.dtype == jnp.float32 and query.shape[1] <= FEW_QUERIES
  return few and matmul.on_one_cpu() and kernels.are_available()


def einsum_attention(
  query, key, value, mask: AttentionMask, dropout=None, scores_float32=True
):
  """Computes attention with all weights [B, H, T, S] in memory at once."""
  scores = _scores('bthk,bshk->bhts', query, key, scores_float32)
  scale = query.shape[-1] ** -0.5
  weights = _softmax(mask.mask(), scores * scale, query.dtype)
  if dropout is not None:
    weights = dropout(weights)
  out = jnp.einsum('bhts,bshk->bthk', weights, value)
  return checkpoint_name(out, remat.ATTENTION)


def _scores(axes: str, query, key, scores_float32: bool):
  dtype = jnp.float32 if scores_float32 else query.dtype
  return jnp.einsum(axes, query, key, preferred_element_type=dtype)


def _softmax(mask, scores, dtype):
  return jax.nn.softmax(jnp.where(mask, scores, MASKED)).astype(dtype)


# --- A few batch rows at a time, for the CPU


@jax.custom_vjp
def rowwise_attention(query, key, value, mask: AttentionMask) -> jax.Array:
  """Computes attention in float32, never holding [B, H, T, S]."""
  # Each turn of a loop makes the scores of as many batch rows as fit
  # ROWS_BYTES, so they stay in the CPU's cache. As FlashAttention does (Dao et
  # al., 2022), the backward pass makes them again, from the greatest score and
  # the sum of each query.
  return _rowwise_forward(query, key, value, mask)[0]


def _rowwise_forward(query, key, value, mask):
  outputs = _map_rows(_forward_rows, (query, key, value, mask))
  outputs = [checkpoint_name(x, remat.ATTENTION) for x in outputs]
  return outputs[0], (query, key, value, mask, *outputs)


def _rowwise_backward(residuals, cotangent):
  return *_map_rows(_backward_rows, (*residuals, cotangent)), None


rowwise_attention.defvjp(_rowwise_forward, _rowwise_backward)


def _map_rows(compute, inputs):
  """Maps `compute` over blocks of batch rows of `inputs`, all [B, ...]."""
  query, key = inputs[:2]
  B, T, H, _ = query.shape
  block = max(1, ROWS_BYTES // (4 * H * T * key.shape[1]))
  # lax.map takes blocks of one size: the greatest divisor of B that fits.
  block = max(n for n in range(1, min(block, B) + 1) if B % n == 0)
  if block == B:
    return compute(*inputs)
  split = lambda x: x.reshape(B // block, block, *x.shape[1:])
  merge = lambda x: x.reshape(B, *x.shape[2:])
  out = jax.lax.map(lambda part: compute(*part), jax.tree.map(split, inputs))
  return jax.tree.map(merge, out)


def _heads_first(*arrays):
  """Yields [b, T, H, K] arrays as float32 [b, H, T, K]."""
  return (x.astype(jnp.float32).transpose(0, 2, 1, 3) for x in arrays)


def _forward_rows(query, key, value, mask):
  """Returns attention [b, T, H, K], greatest score and sum [b, H, T, 1]."""
  dtype = query.dtype
  query, key, value = _heads_first(query, key, value)
  query *= query.shape[-1] ** -0.5
  scores = jnp.einsum('bhtk,bhsk->bhts', query, key)
  scores = jnp.where(mask.mask(), scores, MASKED)
  top = _max_rows(scores)
  powers = jnp.exp(scores - top)
  # Their sum; rows are added up fastest by `mean_rows`.
  total = matmul.mean_rows(powers, keepdims=True) * powers.shape[-1]
  out = jnp.einsum('bhts,bhsk->bhtk', powers, value) / total
  return out.transpose(0, 2, 1, 3).astype(dtype), top, total


def _max_rows(x):
  """Returns the greatest of each row: [..., 1] of x [..., S]."""
  # By columns of 16 first, which vectors compare; XLA's CPU backend takes a row
  # number by number. The barrier keeps it from joining the two.
  S = x.shape[-1]
  parts = next((n for n in (32, 16, 8) if S % (16 * n) == 0), None)
  if parts:
    x = x.reshape(*x.shape[:-1], -1, parts, 16).max(-2)
    x = jax.lax.optimization_barrier(x.reshape(*x.shape[:-2], -1))
  return x.max(-1, keepdims=True)


def _backward_rows(query, key, value, mask, out, top, total, cotangent):
  """Returns the gradients of query, key and value, each [b, ..., H, K]."""
  dtype, scale = query.dtype, query.shape[-1] ** -0.5
  query, key, value, out, cotangent = _heads_first(
    query, key, value, out, cotangent
  )
  query, cotangent = query * scale, cotangent / total
  mean, top = (cotangent * out).sum(-1)[..., None, :], top.swapaxes(-1, -2)
  # Scores are keys by queries, [b, H, S, T]: that leaves one product of seven
  # that needs a transposed operand, which a CPU is slow in (matmul.py).
  scores = jnp.einsum('bhsk,bhtk->bhst', key, query)
  scores = jnp.where(mask.mask().swapaxes(-1, -2), scores, MASKED)
  powers = jnp.exp(scores - top)
  value_grad = jnp.einsum('bhst,bhtk->bhsk', powers, cotangent)
  # Softmax's: weights times (their cotangent less the weighted mean of all).
  score_grad = powers * (jnp.einsum('bhsk,bhtk->bhst', value, cotangent) - mean)
  key_grad = jnp.einsum('bhst,bhtk->bhsk', score_grad, query)
  # As written: XLA would swap the operands of an einsum to [b, h, T, K].
  query_grad = transpose(key * scale) @ score_grad  # [b, H, K, T]
  grads = query_grad.swapaxes(-1, -2), key_grad, value_grad
  return tuple(x.transpose(0, 2, 1, 3).astype(dtype) for x in grads)


# --- Kernels of accelerators


def splash_attention(
  query, key, value, mask: AttentionMask, interpret=False
) -> jax.Array:
  """Runs JAX's Pallas kernel for TPUs; `interpret`: on a CPU, for tests."""
  # Not run on TPU hardware by us. Imported here: only TPUs need it.
  from jax.experimental.pallas.ops.tpu import splash_attention as splash

  T, H, K = query.shape[1:]
  # What pads lengths to multiples of BLOCK is a segment of its own.
  segments = splash.SegmentIds(
    _pad_to_block(mask.query_segments, fill=-1),
    _pad_to_block(mask.key_segments, fill=-1),
  )
  query, key, value = (
    _pad_to_block(_pad_to_block(x), axis=3).swapaxes(1, 2)
    for x in (query * K**-0.5, key, value)
  )
  shape = query.shape[2], key.shape[2]
  head_mask = (splash.CausalMask if mask.causal else splash.FullMask)(shape)
  if mask.prefix:
    prefix = np.arange(max(shape)) < mask.prefix
    prefix = prefix[: shape[0], None] & prefix[: shape[1]]
    head_mask = head_mask | splash.NumpyMask(prefix)
  kernel = splash.make_splash_mha_single_device(
    splash.MultiHeadMask([head_mask] * H),
    block_sizes=splash.BlockSizes(**_splash_blocks(*shape)),
    residual_checkpoint_name=remat.ATTENTION,
    interpret=interpret,
  )
  out = jax.vmap(kernel)(query, key, value, segments)
  return out.swapaxes(1, 2)[:, :T, :, :K].astype(query.dtype)


def _pad_to_block(x, axis: int = 1, fill: int = 0):
  widths = [(0, 0)] * x.ndim
  widths[axis] = (0, -x.shape[axis] % BLOCK)
  return jnp.pad(x, widths, constant_values=fill)


def _splash_blocks(T: int, S: int) -> dict:
  """Returns the fields of splash's BlockSizes: blocks that divide T and S."""
  # Few large blocks, and one kernel for all gradients, take three fifths of
  # the instructions that 512 x 512 and two kernels take, by the compiler's
  # schedules for v4, v5e, v5p and v6e; see docs/pods-measured.md.
  largest = lambda n, limit: max(
    b for b in range(BLOCK, limit + 1, BLOCK) if n % b == 0
  )
  q, kv = largest(T, 1024), largest(S, 1024)
  compute = largest(kv, 512)
  return dict(
    block_q=q, block_kv=kv, block_kv_compute=compute,
    block_q_dkv=q, block_kv_dkv=kv, block_kv_dkv_compute=compute,
    use_fused_bwd_kernel=True,
  )  # fmt: skip


def cudnn_attention(
  query, key, value, mask: AttentionMask, kernel='cudnn'
) -> jax.Array:
  """Runs jax.nn's attention by cuDNN; `kernel` 'xla': on a CPU, for tests."""
  # The kernel itself was not run by us; it takes the mask as [B, 1, T, S].
  out = jax.nn.dot_product_attention(
    query, key, value, mask=mask.mask(), implementation=kernel
  )
  return checkpoint_name(out, remat.ATTENTION)
