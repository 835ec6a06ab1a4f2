"""Checkpoints by Orbax: the state, the data position, the configuration.

STEP/, in the folder that `places` knows, holds `params` (so that inference
reads no more), `optimizer`, and `meta`, a JSON object that makes the checkpoint
readable without any gin: the model's configuration, the vocabulary's hash, the
seed and position of the data, the whole gin text of the run, and a checksum of
every array. What is restored is compared with the checksums, so that a step
comes back as it was saved or is called damaged.
"""

from __future__ import annotations

import contextlib
import functools
import time
import warnings
from collections.abc import Callable

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from atm import messages
from atm.checkpoint import checksums, paths
from atm.checkpoint.checksums import Damaged
from atm.train.step import State

# What went wrong is not the checkpoint's fault if the error says one of these.
NOT_DAMAGE = ('RESOURCE_EXHAUSTED', 'PERMISSION_DENIED', 'Too many open files')
ON_ERROR = ('stop', 'go_on')


class SaveFailed(OSError):
  """A checkpoint could not be written."""


class Checkpoints:
  """The checkpoints of a run.

  Writing is asynchronous: `save` returns when the arrays are copied off the
  devices. Whether it was written is found out by `poll`, by the next `save` or
  by `wait`.

  Attributes:
    failed: how many saves failed.
    unsaved: the error of the last save, if that failed.
  """

  def __init__(
    self,
    model_dir: str,
    keep: int | None = None,
    read_only: bool = False,
    on_error: str = 'stop',
    say: Callable[[str], None] = warnings.warn,
  ):
    """Opens a run's checkpoints, keeping the newest `keep` (None: all).

    With `read_only` nothing is written or cleaned up: another process may be
    training there. `on_error` is one of ON_ERROR: a save that failed raises, or
    is said and counted.

    Raises:
      ValueError: see `check_keep`; nothing was opened.
    """
    check_keep(keep)
    self.directory = paths.checkpoints(model_dir)
    self.on_error, self.say = on_error, say
    self.failed, self.unsaved, self.pending = 0, None, None
    self._metas: dict[int, tuple] = {}
    self._open = functools.partial(_manager, self.directory, keep, read_only)
    self.manager = self._open()

  def latest(self) -> int | None:
    """The newest step, or None."""
    return self.manager.latest_step()

  def steps(self) -> list[int]:
    """All steps, the newest last."""
    return sorted(self.manager.all_steps())

  # --- Saving

  def save(self, step: int, state: State, meta: dict) -> None:
    """Begins to write a step, with the checksums of its arrays.

    Raises:
      SaveFailed: this save or the one before, unless `on_error` is 'go_on'.
    """
    self.wait()
    if step == self.latest():
      return
    self._metas.pop(step, None)
    trees = _items(state)
    sums = checksums.checksums(checksums.named(trees))
    args = ocp.args.Composite(
      meta=ocp.args.JsonSave(checksums.seal(meta, sums)),
      **{name: ocp.args.StandardSave(tree) for name, tree in trees.items()},
    )

    def begin():
      if not self.manager.save(step, args=args):
        raise ValueError(f'the newest is step {self.latest()}')

    if error := self._error_of(begin):
      self._failed(step, error)
    else:
      self.pending = step

  def poll(self) -> None:
    """Hears of a save that has ended; to be called between any two steps.

    One of several hosts may not act alone: they hear of it at the next `save`.
    """
    alone = jax.process_count() == 1
    if alone and self.pending and not self.manager.is_saving_in_progress():
      self.wait()

  def wait(self) -> None:
    """Waits for the write under way; see `save` for what is raised."""
    step, self.pending = self.pending, None
    if step is None:
      return
    if error := self._error_of(self.manager.wait_until_finished):
      self._failed(step, error)
    else:
      self.unsaved = None

  def _error_of(self, work: Callable[[], object]) -> Exception | None:
    """What it raises.

    A host that is to go on without a checkpoint must hear of another's error.
    One that is to stop raises its own at once: the others end with it, when JAX
    misses it, and need not wait until Orbax has given up waiting for it.
    """
    error = None
    try:
      work()
    except Exception as e:
      error = e
    if self.on_error == 'stop' or _all_hosts(error is None):
      return error
    return error or OSError('another host could not write its part')

  def must_be_saved(self) -> None:
    """Waits; raises SaveFailed if the last save failed, whatever `on_error`."""
    self.wait()
    if self.unsaved is not None:
      raise self.unsaved

  def _failed(self, step: int, error: Exception) -> None:
    """Forgets what was written of a step, so that it is not listed."""
    self.failed += 1
    if self.on_error == 'go_on' or jax.process_count() == 1:
      with contextlib.suppress(Exception):
        self.manager.close()
      _sweep(self.directory, f'{step}.orbax-checkpoint-tmp*')
      # Errors stick to the old one: it would fail the next save too.
      self.manager = self._open()
    listed = step in self.steps()  # as when an old step cannot be removed
    what = 'is saved, but' if listed else 'could not be saved:'
    failed = SaveFailed(
      f'the checkpoint of step {step:,} {what} {messages.one_line(error)}'
    )
    failed.__cause__ = error
    self.unsaved = None if listed else failed
    if self.on_error == 'stop':
      raise failed
    self.say(f'{failed}; training goes on, saves failed so far: {self.failed}')

  def close(self) -> None:
    """Waits for the writes under way."""
    try:
      self.wait()
    finally:
      self.manager.close()

  # --- Restoring

  def restore(self, step: int, abstract: State) -> State:
    """The state at a step, with the shardings of `abstract`.

    Raises:
      Damaged: it is not what was saved.
      ValueError: the checkpoint's shapes are not those of `abstract`.
    """
    items = self._restored(step, _items(abstract))
    optimizer = items['optimizer']
    return State(optimizer['step'], items['params'], optimizer['state'])

  def restore_params(self, step: int, abstract_params, as_saved=False):
    """The parameters at a step, with the shardings of `abstract_params`.

    Args:
      step: the step.
      abstract_params: shapes and shardings.
      as_saved: keep the dtypes of the checkpoint, else those given.

    Raises:
      Damaged, ValueError: see `restore`.
    """
    return self._restored(step, {'params': abstract_params}, as_saved)['params']

  def parameter(self, step: int, path: tuple[str, ...]) -> np.ndarray:
    """One parameter of a step, whole, as saved.

    Raises:
      Damaged: it is not.
    """
    name = '/'.join(('params', *path))
    dtype, _, shape = self._kinds(step)[name][:-1].partition('[')
    like = jax.ShapeDtypeStruct(
      tuple(int(n) for n in shape.split(',') if n),
      np.dtype(dtype),
      sharding=jax.sharding.SingleDeviceSharding(jax.local_devices()[0]),
    )
    for key in reversed(path):
      like = {key: like}
    args = ocp.args.PyTreeRestore(
      like,
      restore_args=ocp.checkpoint_utils.construct_restore_args(like),
      partial_restore=True,
    )
    folder = self.directory / str(step) / 'params'
    with ocp.PyTreeCheckpointer() as reader:
      read = functools.partial(reader.restore, folder, args)
      params = self._read(step, read)
    whole = np.asarray(jax.tree.leaves(params)[0])
    self._compare(step, {name: whole})
    return whole

  def _restored(self, step: int, wanted: dict, as_saved=False) -> dict:
    """The items like `wanted`, compared with their checksums."""
    kinds = self._kinds(step, wanted)
    self._check_shapes(step, wanted, kinds)

    def like(path, x):
      dtype = np.dtype(kinds[checksums.name(path)].partition('[')[0])
      return jax.ShapeDtypeStruct(x.shape, dtype, sharding=x.sharding)

    # As saved: a cast would change what the checksums are of.
    saved = jax.tree_util.tree_map_with_path(like, wanted)
    args = {name: ocp.args.StandardRestore(x) for name, x in saved.items()}
    args = ocp.args.Composite(**args)

    def read():
      found = self.manager.restore(step, args=args)
      return {name: found[name] for name in wanted}

    items = self._read(step, read)
    self._compare(step, checksums.named(items))
    if as_saved:
      return items
    cast = lambda x, y: x if x.dtype == y.dtype else x.astype(y.dtype)
    return jax.tree.map(cast, items, wanted)

  def _compare(self, step: int, arrays: dict) -> None:
    sums = self._meta(step)[1]
    if sums is None:
      self.say(
        f'step {step:,} in {self.directory} has no checksums: an older version '
        'wrote it, and nothing was verified'
      )
      return
    self._read(step, lambda: checksums.compare(arrays, sums))

  def _read(self, step: int, read: Callable):
    """read(); what it raises is damage, on all hosts if on one.

    Raises:
      Damaged: names the step.
    """
    error, value = None, None
    try:
      value = read()
    except (MemoryError, PermissionError):
      raise
    except Exception as e:
      if any(text in str(e) for text in NOT_DAMAGE):
        raise
      error = e
    if _all_hosts(error is None):
      return value
    why = messages.one_line(error) if error else 'another host found damage'
    raise Damaged(
      f'the checkpoint of step {step:,} in {self.directory} is damaged: {why}'
    ) from error

  # --- What a step is

  def meta(self, step: int) -> dict:
    """What `save` was given.

    Raises:
      Damaged: it is not.
    """
    return self._meta(step)[0]

  def _meta(self, step: int) -> tuple[dict, dict | None]:
    """(meta, checksums of the arrays or None)."""
    if step not in self._metas:
      args = ocp.args.Composite(meta=ocp.args.JsonRestore())
      self._metas[step] = self._read(
        step,
        lambda: checksums.unseal(self.manager.restore(step, args=args)['meta']),
      )
    return self._metas[step]

  def _kinds(self, step: int, items=('params',)) -> dict[str, str]:
    """`params/lm_head` -> `float32[32,64]`, as saved."""
    sums = self._meta(step)[1]
    if sums is not None:
      kinds = {name: text.split()[0] for name, text in sums.items()}
    else:
      kinds = self._read(step, lambda: self._kinds_of_orbax(step, items))
    return {n: kind for n, kind in kinds.items() if n.split('/')[0] in items}

  def _kinds_of_orbax(self, step: int, items) -> dict[str, str]:
    saved = self.manager.item_metadata(step)
    trees = {x: getattr(saved[x], 'tree', saved[x]) for x in items}
    return {n: checksums.kind(x) for n, x in checksums.named(trees).items()}

  def dtypes(self, step: int) -> dict[tuple[str, ...], np.dtype]:
    """Path of a parameter -> its dtype in the checkpoint."""
    return {
      tuple(name.split('/')[1:]): np.dtype(kind.partition('[')[0])
      for name, kind in self._kinds(step).items()
    }

  def has_optimizer(self, step: int) -> bool:
    """False for a checkpoint of imported weights."""
    sums = self._meta(step)[1]
    if sums is not None:
      return any(name.startswith('optimizer/') for name in sums)
    return (self.directory / str(step) / 'optimizer').is_dir()

  def _check_shapes(self, step: int, wanted: dict, saved: dict) -> None:
    shape = lambda kind: kind and f'[{kind.partition("[")[2]}'
    wanted = {k: checksums.kind(x) for k, x in checksums.named(wanted).items()}
    for name in sorted({*saved, *wanted}):
      there, here = shape(saved.get(name)), shape(wanted.get(name))
      if there != here:
        raise ValueError(
          f'the checkpoint of step {step} in {self.directory} is of another '
          f'model: {name} is {there} there and {here} here. Use the '
          'configuration it was trained with (MODEL_DIR/config.gin), or '
          'another MODEL_DIR.'
        )

  def set_aside(self, steps: list[int]) -> list[str]:
    """Renames damaged steps, so that they can be saved again; their names."""
    names = []
    for step in steps:
      name, number = f'{step}.damaged', 1
      while (self.directory / name).exists():
        number += 1
        name = f'{step}.damaged-{number}'
      if jax.process_index() == 0:
        (self.directory / str(step)).rename(self.directory / name)
      names.append(name)
    _all_hosts(True)  # none lists the steps before they are renamed
    self.manager.reload()
    return names


# --- Steps to choose from


def open_step(model_dir: str, at_step: int | None) -> tuple[Checkpoints, int]:
  """The checkpoints of a MODEL_DIR and the step wanted, or the newest.

  Raises:
    FileNotFoundError: there is no checkpoint, or not of that step.
  """
  if not paths.checkpoints(model_dir).is_dir():
    raise FileNotFoundError(
      f'no {paths.FOLDER}/ in MODEL_DIR = {model_dir!r}, nor a config.json of '
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
      'hosts share; CHECKPOINT_DIR may be a bucket (docs/pods.md)'
    )
  if not paths.checkpoints(model_dir).is_dir():
    return None
  return Checkpoints(model_dir, read_only=True).latest()


# --- Small things


def check_keep(keep) -> None:
  """Raises ValueError unless `keep` is None or a whole number above 0.

  Orbax would take 0 as well, and remove every checkpoint there is.
  """
  if keep is None:
    return
  if not isinstance(keep, int) or isinstance(keep, bool) or keep < 1:
    raise ValueError(
      f'KEEP = {keep!r}: expected a whole number of at least 1, or None for all'
    )


def _manager(directory: str, keep: int | None, read_only: bool):
  return ocp.CheckpointManager(
    directory,
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


def _items(state: State) -> dict:
  """A state as the items of a checkpoint."""
  optimizer = {'step': state.step, 'state': state.opt_state}
  return {'params': state.params, 'optimizer': optimizer}


def _all_hosts(ok: bool) -> bool:
  """Whether it is so on all hosts, which all must ask."""
  if jax.process_count() == 1:
    return ok
  return bool(multihost_utils.process_allgather(np.array(ok)).all())


def _sweep(folder: epath.Path, pattern: str) -> None:
  """Removes what a failed save left, until other writes of it have ended."""
  quiet = 0
  for _ in range(50):
    left = list(folder.glob(pattern))
    for path in left if jax.process_index() == 0 else ():
      with contextlib.suppress(OSError):
        path.rmtree(missing_ok=True)
    quiet = 0 if left else quiet + 1
    if quiet == 3:
      return
    time.sleep(0.1)
