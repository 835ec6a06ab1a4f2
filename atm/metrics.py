"""Numbers about a run: FLOPs, utilisation, and where they are written."""

from __future__ import annotations

import functools
import json
import math
import os
import time

import jax
import jax.numpy as jnp

METRICS_FILE = 'metrics.jsonl'

# Peak dense bfloat16 FLOP/s of a device as JAX counts devices, by the vendors'
# data sheets. A CPU's peak is measured, see `peak_flops`.
PEAK_FLOPS = {
  'TPU v2': 22.5e12,
  'TPU v3': 61.5e12,
  'TPU v4': 275e12,
  'TPU v5 lite': 197e12,
  'TPU v5e': 197e12,
  'TPU v5': 459e12,
  'TPU v5p': 459e12,
  'TPU v6 lite': 918e12,
  'TPU v6e': 918e12,
  'NVIDIA A100': 312e12,
  'NVIDIA H100': 989e12,
}


def train_flops(
  config, batch: int, S: int, T: int, frozen: bool = False
) -> float:
  """Model FLOPs of a training step, forward and backward.

  Three times the forward pass, whose matrix products of M x N by N x P count
  2 M N P each. Everything else (norms, softmax, embeddings' look-up) is left
  out, and padding and masked attention are counted as if they were real, as is
  usual (PaLM, appendix B). With remat the hardware does more; that is not
  counted.

  Args:
    config: a model.Config.
    batch: B.
    S: encoder length.
    T: decoder length.
    frozen: the step keeps the encoder as it is: the encoder runs forward only;
      the cross-attention's keys and values have the gradient of their weights
      but none of the encoder's states; an LM head that is the encoder's
      embedding has only that of its inputs.
  """
  D, V = config.d_model, config.vocab_size
  encoder = config.encoder_layers * (
    S * (4 * D * D + 2 * D * config.encoder_ff) + 2 * S * S * D
  )
  decoder = config.decoder_layers * (
    T * (6 * D * D + 2 * D * config.decoder_ff)  # self, cross q and out
    + 2 * T * T * D
    + 2 * T * S * D
  )
  cross = config.decoder_layers * S * 2 * D * D  # cross k and v
  logits = T * D * V
  # Products of each kind for one of the forward pass.
  tied = config.ties in ('encoder_head', 'all')
  of_encoder, of_cross, of_logits = (1, 2, 3 - tied) if frozen else (3, 3, 3)
  products = (
    of_encoder * encoder + of_cross * cross + 3 * decoder + of_logits * logits
  )
  return 2.0 * batch * products


def matrix_flops(jaxpr, kernels: bool = True) -> float:
  """FLOPs of a jaxpr's matrix products over all devices, loops multiplied out.

  2 M N P a product, as `train_flops` has it, but of all that is computed: what
  remat computes again counts again. Masked blocks of a Pallas kernel's grid
  count like the others. A loop whose length the jaxpr does not say (`while`)
  counts once, and of a `cond` the branch that has most.

  Args:
    jaxpr: a traced function's, its shapes those of the whole arrays.
    kernels: count what is inside Pallas kernels.
  """
  return sum(_equation_flops(eqn, kernels) for eqn in jaxpr.eqns)


def _equation_flops(eqn, kernels: bool) -> float:
  name, params = eqn.primitive.name, eqn.params
  if name == 'dot_general':
    (contract, _), _ = params['dimension_numbers']
    left = eqn.invars[0].aval.shape
    inner = math.prod(left[i] for i in contract)
    return 2.0 * inner * math.prod(eqn.outvars[0].aval.shape)
  if name == 'pallas_call' and not kernels:
    return 0.0
  inside = [matrix_flops(inner, kernels) for inner in inner_jaxprs(params)]
  if name == 'cond':
    return max(inside)
  return _repeats(name, params) * sum(inside)


def _repeats(name: str, params: dict) -> int:
  """How often what an equation holds is computed, on all devices together."""
  if name == 'scan':
    return params['length']
  if name == 'pallas_call':
    return math.prod(params['grid_mapping'].grid)
  if name == 'shard_map':
    names = ('newly_manual_axes', 'manual_axes')  # by JAX's version
    axes = next(params[name] for name in names if name in params)
    return math.prod(params['mesh'].shape[axis] for axis in axes)
  return 1


def inner_jaxprs(params: dict) -> list:
  """The jaxprs among an equation's parameters, closed ones opened."""
  inside = lambda x: hasattr(x, 'eqns') or hasattr(x, 'jaxpr')
  found = jax.tree.leaves(list(params.values()), is_leaf=inside)
  return [getattr(x, 'jaxpr', x) for x in found if inside(x)]


@functools.cache
def peak_flops() -> float:
  """Peak FLOP/s of all devices together.

  From PEAK_FLOPS by device kind; on the CPU the best of five float32 products
  of two 1024 x 1024 matrices, measured once, for all simulated devices of a
  process together, times the processes. 0 for an unknown device: no utilisation
  is reported then.
  """
  device = jax.local_devices()[0]
  if device.platform != 'cpu':
    kind = max(
      (k for k in PEAK_FLOPS if device.device_kind.startswith(k)),
      key=len,
      default='',
    )
    return PEAK_FLOPS.get(kind, 0.0) * jax.device_count()
  a = jax.device_put(jnp.ones((1024, 1024), jnp.float32), device)
  product = jax.jit(lambda x: x @ x)
  product(a).block_until_ready()
  best = float('inf')
  for _ in range(5):
    start = time.perf_counter()
    product(a).block_until_ready()
    best = min(best, time.perf_counter() - start)
  return 2 * 1024**3 / best * jax.process_count()


class Silent:
  """A `Writer` that writes nothing: all hosts but the first."""

  def write(self, step: int, values: dict[str, float]) -> None:
    pass

  def close(self) -> None:
    pass


class Writer:
  """metrics.jsonl, one object a line, and a TensorBoard log beside it."""

  def __init__(self, directory: str, rewind_to: int):
    """Opens the log of a run; drops what it holds beyond step `rewind_to`."""
    self.path = os.path.join(directory, METRICS_FILE)
    rows = [r for r in read(directory) if r['step'] <= rewind_to]
    with open(self.path + '.tmp', 'w') as f:
      f.writelines(json.dumps(row) + '\n' for row in rows)
    os.replace(self.path + '.tmp', self.path)
    from clu.metric_writers.summary_writer import SummaryWriter  # TensorFlow

    self.tensorboard = SummaryWriter(os.path.join(directory, 'tensorboard'))

  def write(self, step: int, values: dict[str, float]) -> None:
    with open(self.path, 'a') as f:
      f.write(json.dumps({'step': step, **values}) + '\n')
    self.tensorboard.write_scalars(step, values)

  def close(self) -> None:
    self.tensorboard.flush()
    self.tensorboard.close()


def read(directory: str) -> list[dict]:
  """The rows of a run's metrics.jsonl; a torn last line is left out."""
  path = os.path.join(directory, METRICS_FILE)
  rows = []
  if os.path.exists(path):
    with open(path) as f:
      for line in f:
        try:
          rows.append(json.loads(line))
        except json.JSONDecodeError:
          break
  return rows


def was_evaluated(directory: str, step: int) -> bool:
  """Whether the held-out losses of a step are in a run's metrics.jsonl."""
  return any(
    row['step'] == step and any(key.startswith('eval/') for key in row)
    for row in read(directory)
  )


def clock_text(seconds: float) -> str:
  """m:ss, or h:mm:ss."""
  minutes, seconds = divmod(int(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f'{hours}:{minutes:02d}:{seconds:02d}'
  return f'{minutes}:{seconds:02d}'
