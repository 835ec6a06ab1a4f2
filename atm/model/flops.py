"""Model FLOPs of a training step, by formula and counted in a jaxpr."""

import math

import jax

from atm.model import matmul


def train_flops(
  config,
  batch: int,
  S: int,
  T: int,
  frozen: bool = False,
  adapted: bool = False,
  prompt_loss: bool = False,
) -> float:
  """Returns the model FLOPs of a training step, forward and backward.

  Three times the forward pass, whose matrix products of M x N by N x P count
  2 M N P each. Everything else (norms, softmax, embeddings' look-up) is left
  out, and padding and masked attention are counted as if they were real, as is
  usual (PaLM, appendix B). With remat the hardware does more; that is not
  counted.

  Args:
    config: a ModelConfig.
    batch: B.
    S: encoder length.
    T: decoder length.
    frozen: the step keeps the encoder as it is: the encoder runs forward only;
      the cross-attention's keys and values have the gradient of their weights
      but none of the encoder's states; an LM head that is the encoder's
      embedding has only that of its inputs.
    adapted: the step trains low-rank adapters: matrices have no gradient, their
      products count twice, and the adapters' own are left out.
    prompt_loss: the step has logits of the prompt, too, see `AlexaTM.loss`.
  """
  D, V = config.d_model, config.vocab_size
  if not config.has_encoder:
    every = 2 if adapted else 3
    return _one_stack_flops(config, batch, S, T, every, prompt_loss)
  encoder = config.encoder_layers * (
    S * (4 * D * D + 2 * D * config.encoder_ff)
  )
  encoder_scores = config.encoder_layers * 2 * S * S * D
  decoder = config.decoder_layers * (
    T * (6 * D * D + 2 * D * config.decoder_ff)  # self, cross q and out
  )
  decoder_scores = config.decoder_layers * (2 * T * T * D + 2 * T * S * D)
  cross = config.decoder_layers * S * 2 * D * D  # cross k and v
  logits = T * D * V
  # Products of each kind for one of the forward pass.
  tied = config.ties in ('encoder_head', 'all')
  every = 2 if adapted else 3
  of_encoder, of_cross, of_logits = (
    (1, 2, 3 - tied) if frozen else (every, every, every)
  )
  products = (
    of_encoder * encoder + of_cross * cross + every * decoder
    + of_logits * logits + (1 if frozen else 3) * encoder_scores
    + 3 * decoder_scores
  )  # fmt: skip
  return 2.0 * batch * products


def _one_stack_flops(
  config, batch: int, S: int, T: int, every: int, prompt_loss: bool
) -> float:
  """Returns `train_flops` of one stack over S + T positions."""
  D, N = config.d_model, S + T
  products = config.decoder_layers * N * (4 * D * D + 2 * D * config.decoder_ff)
  products += (N if prompt_loss else T) * D * config.vocab_size
  scores = config.decoder_layers * 2 * N * N * D
  return 2.0 * batch * (every * products + 3 * scores)


def jaxpr_flops(jaxpr, kernels: bool = True) -> float:
  """Counts FLOPs of a jaxpr's matrix products on all devices, loops unrolled.

  2 M N P a product, as `train_flops` has it, but of all that is computed: what
  remat computes again counts again. Masked blocks of a Pallas kernel's grid
  count like the others. Sums that `matmul` computes as products do not count.
  A loop whose length the jaxpr does not say (`while`) counts once, and of a
  `cond` the branch that has most.

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
  if params.get('name') == matmul.sum_by_product.__name__:
    return 0.0
  inside = [jaxpr_flops(inner, kernels) for inner in inner_jaxprs(params)]
  if name == 'cond':
    return max(inside)
  return _repeats(name, params) * sum(inside)


def _repeats(name: str, params: dict) -> int:
  """Returns how often an inner jaxpr runs, on all devices together."""
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
  """Returns the jaxprs among an equation's parameters, closed ones opened."""
  inside = lambda x: hasattr(x, 'eqns') or hasattr(x, 'jaxpr')
  leaves = jax.tree.leaves(list(params.values()), is_leaf=inside)
  return [getattr(x, 'jaxpr', x) for x in leaves if inside(x)]
