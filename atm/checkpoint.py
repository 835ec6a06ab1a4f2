"""Checkpoints by Orbax: the state, the data position, the configuration.

MODEL_DIR/checkpoints/STEP/ holds `params` (so that inference reads no more),
`optimizer`, and `meta`, a JSON object that makes the checkpoint readable
without any gin: the model's configuration, the vocabulary's hash, the seed and
position of the data, and the whole gin text of the run.
"""

from __future__ import annotations

import os

import jax
import orbax.checkpoint as ocp

from atm.step import State

FOLDER = 'checkpoints'


class Checkpoints:
  """The checkpoints of a run.

  Writing is asynchronous: `save` returns when the arrays are copied off the
  devices; a later save or `close` waits for the one before.
  """

  def __init__(self, model_dir: str, keep: int | None = None):
    """Opens MODEL_DIR/checkpoints, keeping the newest `keep` (None: all)."""
    self.directory = os.path.join(os.path.abspath(model_dir), FOLDER)
    self.manager = ocp.CheckpointManager(
      self.directory,
      item_handlers={
        'params': ocp.StandardCheckpointHandler(),
        'optimizer': ocp.StandardCheckpointHandler(),
        'meta': ocp.JsonCheckpointHandler(),
      },
      options=ocp.CheckpointManagerOptions(
        max_to_keep=keep, cleanup_tmp_directories=True
      ),
    )

  def latest(self) -> int | None:
    """The newest step, or None."""
    return self.manager.latest_step()

  def steps(self) -> list[int]:
    """All steps, the newest last."""
    return sorted(self.manager.all_steps())

  def save(self, step: int, state: State, meta: dict) -> None:
    optimizer = {'step': state.step, 'state': state.opt_state}
    self.manager.save(
      step,
      args=ocp.args.Composite(
        params=ocp.args.StandardSave(state.params),
        optimizer=ocp.args.StandardSave(optimizer),
        meta=ocp.args.JsonSave(meta),
      ),
    )

  def restore(self, step: int, abstract: State) -> State:
    """The state at a step, with the shardings of `abstract`.

    Raises:
      ValueError: the checkpoint's shapes are not those of `abstract`.
    """
    optimizer = {'step': abstract.step, 'state': abstract.opt_state}
    self._check_shapes(step, abstract.params)
    items = self.manager.restore(
      step,
      args=ocp.args.Composite(
        params=ocp.args.StandardRestore(abstract.params),
        optimizer=ocp.args.StandardRestore(optimizer),
      ),
    )
    optimizer = items['optimizer']
    return State(optimizer['step'], items['params'], optimizer['state'])

  def restore_params(self, step: int, abstract_params):
    """The parameters at a step, with the shardings of `abstract_params`."""
    self._check_shapes(step, abstract_params)
    args = ocp.args.Composite(params=ocp.args.StandardRestore(abstract_params))
    return self.manager.restore(step, args=args)['params']

  def _check_shapes(self, step: int, abstract_params) -> None:
    saved = self.manager.item_metadata(step)['params']
    saved = getattr(saved, 'tree', saved)
    shapes = lambda tree: {
      jax.tree_util.keystr(path): tuple(x.shape)
      for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]
    }
    saved, wanted = shapes(saved), shapes(abstract_params)
    for name in sorted({*saved, *wanted}):
      if saved.get(name) != wanted.get(name):
        raise ValueError(
          f'the checkpoint of step {step} in {self.directory} is of another '
          f'model: {name} is {saved.get(name)} there and {wanted.get(name)} '
          'here. Use the configuration it was trained with (MODEL_DIR/'
          'config.gin), or another MODEL_DIR.'
        )

  def meta(self, step: int) -> dict:
    args = ocp.args.Composite(meta=ocp.args.JsonRestore())
    return self.manager.restore(step, args=args)['meta']

  def close(self) -> None:
    """Waits for the writes under way."""
    self.manager.wait_until_finished()
    self.manager.close()
