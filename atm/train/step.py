"""The state of training and the pure functions over it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from atm.data import objectives
from atm.model import lora as lora_lib
from atm.model import loss as loss_lib
from atm.model import parameters
from atm.model.lora import LoraConfig
from atm.parallel.sharding import Rules, constrain
from atm.train import freezing, optimizer


@flax.struct.dataclass
class State:
  """Everything an update changes.

  Attributes:
    step: int32 scalar, steps done; those count whose update was skipped.
    params: what is trained, float32: the model's, or adapters of them.
    opt_state: optax's.
  """

  step: jax.Array
  params: Any
  opt_state: Any

  def to_trees(self) -> dict:
    """Returns the trees of a checkpoint, under the names of its items."""
    return {
      'params': self.params,
      'optimizer': {'step': self.step, 'state': self.opt_state},
    }

  @classmethod
  def from_trees(cls, trees: dict) -> State:
    """Makes a state of what `to_trees` returned."""
    optimizer = trees['optimizer']
    return cls(optimizer['step'], trees['params'], optimizer['state'])


def _init(model, tx, seed: int, lora: LoraConfig | None = None) -> State:
  params = parameters.init_params(model, seed)
  if lora is not None:
    params = lora_lib.init_adapters(params, lora, jax.random.key(seed))
  return State(jnp.zeros((), jnp.int32), params, tx.init(params))


def abstract_state(
  model, tx, mesh, rules: Rules, lora: LoraConfig | None = None
) -> State:
  """Returns a State of jax.ShapeDtypeStruct with shardings on the mesh."""
  boxed = jax.eval_shape(lambda: _init(model, tx, 0, lora))
  return parameters.with_shardings(boxed, mesh, rules, _axes_of(boxed.params))


def _axes_of(params) -> Callable:
  """Returns a function: the logical axes of an array in a box, of a State."""
  # What an optimizer keeps of a parameter is placed like it, Adafactor's means
  # of rows and columns like the axes that they have left.
  is_box = parameters.is_box
  flat = jax.tree_util.tree_flatten_with_path(params, is_box)[0]
  name = lambda path: tuple(
    key.key for key in path if isinstance(key, jax.tree_util.DictKey)
  )
  shapes = {name(path): nn.unbox(x).shape for path, x in flat}

  def axes(path, box):
    whole, left = shapes[name(path)], nn.unbox(box).shape
    if left == whole:
      return box.names
    kept = optimizer.factored_axes(path, whole, left)
    return [box.names[axis] for axis in kept]

  return axes


def init_state(
  model, tx, seed: int, abstract: State, lora: LoraConfig | None = None
) -> State:
  """Makes a fresh state, sharded from the start; the same on every mesh."""
  shardings = jax.tree.map(lambda x: x.sharding, abstract)
  make = lambda: nn.unbox(_init(model, tx, seed, lora))
  return jax.jit(make, out_shardings=shardings)()


def forward(
  model, params, batch, dropout_key=None, z_loss=0.0, label_smoothing=0.0,
  base=None, lora=None,
) -> dict:  # fmt: skip
  """Returns the sums [B] of `loss.cross_entropy` over each row of a batch.

  With `lora` the parameters are adapters of `base`.
  """
  rngs = None if dropout_key is None else {'dropout': dropout_key}
  train, variables = dropout_key is not None, {'params': params}
  if lora is not None:
    adapters = lora_lib.bind_adapters(params, lora)
    variables = {'params': base, lora_lib.COLLECTION: adapters}
  return model.apply(
    variables, batch, train, z_loss, label_smoothing, rngs=rngs,
    method=model.loss,
  )  # fmt: skip


def train_step(
  model,
  tx,
  state: State,
  batch: dict,
  base: dict | None = None,
  seed: int = 0,
  z_loss: float = 0.0,
  label_smoothing: float = 0.0,
  frozen: bool = False,
  micro_batches: int = 1,
  lora: LoraConfig | None = None,
  freeze: tuple[str, ...] = (),
  prompt_loss: bool = False,
) -> tuple[State, dict]:
  """Updates the state by the mean loss over the batch's targets.

  Where the loss or the norm of the gradients is not finite the update is
  skipped: parameters and optimizer state, its counts and schedule included,
  stay bit for bit. The step is counted all the same: it numbers the batches.

  Args:
    model, tx: an AlexaTM and an optax transformation (static).
    state: before the update.
    batch: arrays of `batches.Batches`.
    base: with `lora`, the model's parameters, which stay as they are.
    seed: dropout's key is this seed's, folded with the step.
    z_loss, label_smoothing: see `loss.cross_entropy` (static).
    frozen: keep the encoder, and what is tied to its embedding, bit for bit
      (static); `tx` must be of `make_optimizer(..., encoder_apart=True)`.
    micro_batches: N, how many parts of the batch are run one after another, to
      hold the activations of B / N rows (static), see `accumulate_gradients`.
    lora: of the adapters that `state` has in place of parameters (static).
    freeze: patterns of parameters that stay as they are, see `freezing`, as
      `tx` was made with (static).
    prompt_loss: see `weigh_prompts` (static).

  Returns:
    (the next state, metrics). Metrics are float32 scalars: sums named
    `sum/...` with their weights `weight/...`, to be divided by whoever logs
    them, and `grad_norm` (before clipping, of the gradients there are),
    `param_norm`, `learning_rate` (of the last update that was not skipped),
    and `skipped`, 1 or 0.

  Raises:
    ValueError: `frozen`, and the optimizer does not keep the encoder apart;
      the batch does not divide.
  """
  if frozen and not optimizer.is_split(state.opt_state):
    raise ValueError(
      'frozen = True: expected an optimizer that keeps the encoder apart, '
      'optimizer.make_optimizer(config, encoder_apart=True)'
    )
  kept, trained = freezing.split_frozen(state.params, freeze)
  # The encoder of a frozen step runs forward only, dropout included: without a
  # derivative by its parameters it has no backward pass. A matrix tied to its
  # embedding is frozen with it: with `ties` 'embeddings' the decoder's
  # embedding, with 'encoder_head' the LM head, with 'all' both.
  if frozen:
    encoder, trained = optimizer.split_encoder(trained)
    kept = freezing.merge_trees(kept, encoder)
  key = jax.random.fold_in(jax.random.key(seed), state.step)
  targets = batch['decoder_loss_weights'].sum(-1).sum()
  if prompt_loss:
    batch = weigh_prompts(batch)
    targets += batch['prompt_loss_weights'].sum()
  targets = jnp.maximum(targets, 1.0)

  def share_of_loss(trained, part, key):
    params = freezing.merge_trees(kept, trained)
    penalties = z_loss, label_smoothing
    sums = forward(model, params, part, key, *penalties, base, lora)
    return loss_lib.total_loss(sums).sum() / targets, sums

  gradient = jax.grad(share_of_loss, has_aux=True)
  if micro_batches == 1:
    grads, sums = gradient(trained, batch, key)
  else:
    grads, sums = accumulate_gradients(
      gradient, trained, batch, key, micro_batches
    )
  if freeze:
    none = jax.tree.map(jnp.zeros_like, grads)
    grads = freezing.keep_layers(grads, none, freeze)
  return apply_gradients(tx, state, trained, grads, sums, batch, freeze)


def weigh_prompts(batch: dict) -> dict:
  """Returns a batch with `prompt_loss_weights` [B, S], for `AlexaTM.loss`.

  1 on inputs of CLM rows that have a next one to predict in their segment: they
  are text. Those of other objectives are spoiled, or not to be written.
  """
  segments = batch['encoder_segment_ids']
  behind = jnp.pad(segments[:, 1:], ((0, 0), (0, 1)))
  is_text = batch['objective'] == objectives.OBJECTIVE_NAMES.index('clm')
  counts = (segments > 0) & (segments == behind) & is_text[:, None]
  return {**batch, 'prompt_loss_weights': counts.astype(jnp.float32)}


def apply_gradients(
  tx, state: State, trained, grads, sums: dict, batch: dict, freeze=()
):
  """Returns what `train_step` does, of its gradients and per-row sums."""
  loss = loss_lib.total_loss(sums).sum()
  norm = optax.global_norm(grads)
  finite = jnp.isfinite(loss) & jnp.isfinite(norm)
  updates, opt_state = tx.update(grads, state.opt_state, state.params)
  new = optax.apply_updates(trained, updates)
  new = freezing.keep_layers(new, trained, freeze)  # weight decay, too
  params = freezing.merge_trees(state.params, new)
  params, opt_state = jax.tree.map(
    lambda new, old: jnp.where(finite, new, old),
    (params, opt_state),
    (state.params, state.opt_state),
  )
  metrics = {
    **sum_metrics(sums, batch),
    'grad_norm': norm,
    'param_norm': optax.global_norm(params),
    'learning_rate': optimizer.get_learning_rate(opt_state),
    'skipped': 1.0 - finite,
  }
  return State(state.step + 1, params, opt_state), metrics


def accumulate_gradients(gradient, trained, batch: dict, key, number: int):
  """Scans N = `number` micro-batches; returns their gradients and row sums.

  Args:
    gradient: called with (trained, micro-batch, key); returns (gradients,
      per-row sums).
    trained: the parameters to differentiate by.
    batch: arrays [B, ...].
    key: of dropout; folded with the micro-batch's number.
    number: N; divides the rows of each device; ValueError: not even B.

  Returns:
    (gradients, added in float32; sums [B], rows in the batch's order).
  """
  B = len(batch['objective'])
  if B % number:
    raise ValueError(f'micro_batches = {number} does not divide {B} rows')

  # Micro-batch i has the rows i, i + N, i + 2 N, ...: of the same rows on every
  # mesh, and of every device an equal part of its own, so none moves.
  def dealt(x):
    x = x.reshape(B // number, number, *x.shape[1:]).swapaxes(0, 1)
    return constrain(x, None, 'batch')

  # The gradients are sums of shares of one loss, the mean over all targets of
  # the batch, so micro-batches weigh by their targets and N changes nothing but
  # the order of additions.
  def add(total, numbered):
    i, part = numbered
    part = {name: constrain(x, 'batch') for name, x in part.items()}
    grads, sums = gradient(trained, part, jax.random.fold_in(key, i))
    total = jax.tree.map(lambda t, g: t + g.astype(t.dtype), total, grads)
    return total, sums

  parts = {name: dealt(x) for name, x in batch.items()}
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), trained)
  total, sums = jax.lax.scan(add, zeros, (jnp.arange(number), parts))
  return total, {name: x.swapaxes(0, 1).reshape(B) for name, x in sums.items()}


def sum_metrics(sums: dict, batch: dict) -> dict:
  """Sums over rows: scalars `sum/...` and `weight/...`, by objective too."""
  out = {
    'sum/loss': sums['loss'].sum(),
    'sum/accuracy': sums['correct'].sum(),
    'sum/z_loss': sums['z_loss'].sum(),
    'tokens/target': sums['weight'].sum(),
    'tokens/input': (batch['encoder_segment_ids'] > 0).sum(dtype=jnp.float32),
  }
  if (weights := batch.get('prompt_loss_weights')) is not None:
    out['tokens/prompt_loss'] = weights.sum()
    out['tokens/target'] -= out['tokens/prompt_loss']
  if 'smoothing' in sums:
    out['sum/smoothing'] = sums['smoothing'].sum()
  for number, name in enumerate(objectives.OBJECTIVE_NAMES):
    mine = batch['objective'] == number
    out[f'sum/loss/{name}'] = jnp.where(mine, sums['loss'], 0).sum()
    out[f'weight/loss/{name}'] = jnp.where(mine, sums['weight'], 0).sum()
  return out


def eval_step(model, params, batch: dict, base=None, lora=None) -> dict:
  """Returns `forward` without dropout."""
  return forward(model, params, batch, base=base, lora=lora)
