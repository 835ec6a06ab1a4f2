"""Checkpoints by Orbax: the state, the data position, the configuration.

MODEL_DIR/checkpoints/STEP/ holds `params` (so that inference reads no more),
`optimizer`, and `meta`, a JSON object that makes the checkpoint readable
without any gin: the model's configuration, the vocabulary's hash, the seed and
position of the data, and the whole gin text of the run.
"""

from __future__ import annotations

import os

import jax
import numpy as np
import orbax.checkpoint as ocp

from atm.step import State

FOLDER = 'checkpoints'


class Checkpoints:
  """The checkpoints of a run.

  Writing is asynchronous: `save` returns when the arrays are copied off the
  devices; a later save or `close` waits for the one before.
  """

  def __init__(
    self, model_dir: str, keep: int | None = None, read_only: bool = False
  ):
    """Opens MODEL_DIR/checkpoints, keeping the newest `keep` (None: all).

    With `read_only` nothing is written or cleaned up: another process may be
    training there.
    """
    self.directory = os.path.join(os.path.abspath(model_dir), FOLDER)
    self.manager = ocp.CheckpointManager(
      self.directory,
      item_handlers={
        'params': ocp.StandardCheckpointHandler(),
        'optimizer': ocp.StandardCheckpointHandler(),
        'meta': ocp.JsonCheckpointHandler(),
      },
      options=ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        cleanup_tmp_directories=not read_only,
        read_only=read_only,
        create=not read_only,
        save_interval_steps=0 if read_only else 1,
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

  def restore_params(self, step: int, abstract_params, as_saved=False):
    """The parameters at a step, with the shardings of `abstract_params`.

    Args:
      step: the step.
      abstract_params: shapes and shardings.
      as_saved: keep the dtypes of the checkpoint, else those given.
    """
    self._check_shapes(step, abstract_params)
    if as_saved:
      saved = self.dtypes(step)
      abstract_params = jax.tree_util.tree_map_with_path(
        lambda path, x: jax.ShapeDtypeStruct(
          x.shape, saved[tuple(k.key for k in path)], sharding=x.sharding
        ),
        abstract_params,
      )
    args = ocp.args.Composite(params=ocp.args.StandardRestore(abstract_params))
    return self.manager.restore(step, args=args)['params']

  def restore_some(self, step: int, abstract_params):
    """Some of the parameters: those that `abstract_params` holds."""
    path = os.path.join(self.directory, str(step), 'params')
    with ocp.PyTreeCheckpointer() as reader:
      return reader.restore(
        path,
        args=ocp.args.PyTreeRestore(
          abstract_params,
          restore_args=ocp.checkpoint_utils.construct_restore_args(
            abstract_params
          ),
          partial_restore=True,
        ),
      )

  def dtypes(self, step: int) -> dict[tuple[str, ...], np.dtype]:
    """Path of a parameter -> its dtype in the checkpoint."""
    return {
      tuple(key.key for key in path): np.dtype(x.dtype)
      for path, x in jax.tree_util.tree_flatten_with_path(self._saved(step))[0]
    }

  def has_optimizer(self, step: int) -> bool:
    """False for a checkpoint of imported weights."""
    return os.path.isdir(os.path.join(self.directory, str(step), 'optimizer'))

  def _saved(self, step: int):
    saved = self.manager.item_metadata(step)['params']
    return getattr(saved, 'tree', saved)

  def _check_shapes(self, step: int, abstract_params) -> None:
    shapes = lambda tree: {
      jax.tree_util.keystr(path): tuple(x.shape)
      for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]
    }
    saved, wanted = shapes(self._saved(step)), shapes(abstract_params)
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


def open_step(model_dir: str, at_step: int | None) -> tuple[Checkpoints, int]:
  """The checkpoints of a MODEL_DIR and the step wanted, or the newest.

  Raises:
    FileNotFoundError: there is no checkpoint, or not of that step.
  """
  if not os.path.isdir(os.path.join(model_dir, FOLDER)):
    raise FileNotFoundError(
      f'no {FOLDER}/ in MODEL_DIR = {model_dir!r}, nor a config.json of '
      'Hugging Face weights'
    )
  checkpoints = Checkpoints(model_dir, read_only=True)
  steps = checkpoints.steps()
  if not steps or at_step not in (None, *steps):
    raise FileNotFoundError(
      f'no checkpoint {"" if at_step is None else f"of step {at_step} "}in '
      f'{checkpoints.directory}; steps there: {steps or "none"}'
    )
  return checkpoints, steps[-1] if at_step is None else at_step


def latest_step(model_dir: str) -> int | None:
  """The newest step of a MODEL_DIR, or None.

  Raises:
    ValueError: it is not a path; as one, gs://... would be a folder here.
  """
  if '://' in model_dir:
    raise ValueError(
      f'MODEL_DIR = {model_dir!r}: expected a folder of a file system that all '
      'hosts share; a bucket can be mounted as one (docs/pods.md)'
    )
  if not os.path.isdir(os.path.join(model_dir, FOLDER)):
    return None
  return Checkpoints(model_dir, read_only=True).latest()
