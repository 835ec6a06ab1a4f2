"""Reads checkpoints: steps, metadata, and arrays verified by their checksums.

STEP/, in the folder that `paths` knows, holds `params` (so that inference reads
no more), `optimizer`, and `meta`, a JSON object that makes the checkpoint
readable without any gin: the model's configuration, the vocabulary's hash, the
seed and position of the data, the whole gin text of the run, and a checksum of
every array. A step comes back as it was saved, or `DamageError` is raised.
"""

import contextlib
import glob
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util
from jax.experimental import multihost_utils

from atm import fileio, messages, storage
from atm.checkpoint import best_step, checksums, paths
from atm.checkpoint.checksums import DamageError
from atm.checkpoint.staged_steps import StagedManager

VERIFIED_AT_ONCE = 2**28  # bytes of arrays
# What went wrong is not the checkpoint's fault if the error says one of these.
NOT_DAMAGE = ('RESOURCE_EXHAUSTED', 'PERMISSION_DENIED', 'Too many open files')
# Orbax's description of a step.
STEP_FILE = '_CHECKPOINT_METADATA'


class CheckpointReader:
  """Read access to the checkpoints of a run, which may be training.

  Attributes:
    directory: the folder of the steps.
    log: called with a warning's text.
    orbax: Orbax's manager of that folder, or a `StagedManager`.
  """

  def __init__(
    self, model_dir: str, log: Callable[[str], None] = warnings.warn
  ):
    """Opens the checkpoints of a MODEL_DIR; writes and cleans up nothing."""
    model_dir = messages.check_path('MODEL_DIR', model_dir)
    self.log = messages.check_callable('log', log)
    self.directory = paths.find_checkpoint_dir(model_dir)
    self._metas: dict[int, tuple] = {}
    self.orbax = self._open()

  def _open(self, read_only: bool = True):
    return _open_orbax(self.directory, read_only)

  def close(self) -> None:
    """Releases Orbax's threads."""
    self.orbax.close()

  def latest_step(self) -> int | None:
    """Returns the newest step, or None."""
    return self.orbax.latest_step()

  def all_steps(self) -> list[int]:
    """Returns all steps, the newest last."""
    return sorted(self.orbax.all_steps())

  def intact_steps(self) -> list[int]:
    """Returns the steps whose parameters are intact; reads all of them."""
    intact = []
    for step in self.all_steps():
      with contextlib.suppress(DamageError):
        for path in self.dtypes(step):  # one at a time, to save memory
          self.read_parameter(step, path)
        intact.append(step)
    return intact

  # --- Descriptions

  def meta(self, step: int) -> dict:
    """Returns a step's metadata as saved, or raises DamageError."""
    return self._unsealed(step)[0]

  def dtypes(self, step: int) -> dict[tuple[str, ...], np.dtype]:
    """Returns path of a parameter -> its dtype in the checkpoint."""
    return {
      tuple(name.split('/')[1:]): like.dtype
      for name, like in self._saved(step, ['params']).items()
    }

  def has_optimizer(self, step: int) -> bool:
    """Returns False for a checkpoint of imported weights."""
    sums = self._unsealed(step)[1]
    if sums is not None:
      return any(name.startswith('optimizer/') for name in sums)
    return storage.is_folder(f'{self.directory}/{step}/optimizer')

  def _unsealed(self, step: int) -> tuple[dict, dict | None]:
    """Returns (metadata, checksums of the arrays or None)."""
    # Orbax would take None for the newest.
    step = messages.check_index('step', step)
    if step not in self._metas:
      args = ocp.args.Composite(meta=ocp.args.JsonRestore())

      def unseal():
        check_step_files(_open_folder(self, step, 'meta'))
        return checksums.unseal_meta(
          self.orbax.restore(step, args=args)['meta']
        )

      self._metas[step] = self._read(step, unseal)
    return self._metas[step]

  def _saved(self, step: int, items) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns `params/lm_head` -> shape and dtype, of the items' arrays."""
    sums = self._unsealed(step)[1]
    if sums is not None:
      return {
        name: checksums.parse_array_type(text.split()[0])
        for name, text in sums.items()
        if name.split('/')[0] in items
      }

    def describe():
      saved = self.orbax.item_metadata(step)
      trees = {x: getattr(saved[x], 'tree', saved[x]) for x in items}
      return {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype)
        for name, x in checksums.flatten_named(trees).items()
      }

    return self._read(step, describe)

  # --- Arrays

  def restore(self, step: int, abstract: dict, as_saved=False) -> dict:
    """Returns the trees of a step, with the shardings of `abstract`.

    Args:
      step: the step.
      abstract: name of an item, such as 'params' -> a tree of
        jax.ShapeDtypeStruct with shardings. Other items are not read.
      as_saved: keep the dtypes of the checkpoint, else those of `abstract`.

    Raises:
      DamageError: an array differs from what was saved.
      ValueError: the checkpoint has other names or shapes.
    """
    step = messages.check_index('step', step)
    saved = self._saved(step, abstract)
    self._check_shapes(step, checksums.flatten_named(abstract), saved)
    # As saved: a cast would change what the checksums are of.
    likes = jax.tree_util.tree_map_with_path(
      lambda path, x: x.update(dtype=saved[checksums.format_path(path)].dtype),
      abstract,
    )
    args = {name: ocp.args.StandardRestore(x) for name, x in likes.items()}
    args = ocp.args.Composite(**args)
    restored = self._read(step, lambda: self.orbax.restore(step, args=args))
    trees = {name: restored[name] for name in abstract}
    self._verify(step, checksums.flatten_named(trees))
    if as_saved:
      return trees
    cast = lambda x, y: x if x.dtype == y.dtype else x.astype(y.dtype)
    return jax.tree.map(cast, trees, abstract)

  def read_parameter(self, step: int, path: tuple[str, ...]) -> np.ndarray:
    """Returns one whole parameter of a step, or raises DamageError."""
    step = messages.check_index('step', step)
    path = messages.check_texts('path', path)
    name, saved = '/'.join(('params', *path)), self._saved(step, ['params'])
    messages.check_choice('a parameter', name, saved)
    like = saved[name].update(
      sharding=jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    )
    like = traverse_util.unflatten_dict({path: like})
    args = ocp.args.PyTreeRestore(
      like,
      restore_args=ocp.checkpoint_utils.construct_restore_args(like),
      partial_restore=True,
    )

    def read():
      folder = _open_folder(self, step, 'params') / 'params'
      with ocp.PyTreeCheckpointer() as orbax:
        return orbax.restore(folder, args)

    params = self._read(step, read)
    whole = np.asarray(jax.tree.leaves(params)[0])
    self._verify(step, {name: whole})
    return whole

  def verify(self, step: int) -> None:
    """Reads all arrays of a step; raises DamageError if one has changed.

    Host memory holds a few at a time. Hosts share them out, and all must call.
    """
    sums = self._unsealed(step)[1]
    if sums is None:
      raise DamageError(f'step {step:,} in {self.directory} has no checksums')
    groups = _group_by_size(
      {k: checksums.parse_array_type(v.split()[0]) for k, v in sums.items()}
    )
    # Reading is collective: all hosts read as often, the last rounds again.
    for at in range(0, len(groups), jax.process_count()):
      group = groups[(at + jax.process_index()) % len(groups)]
      self._verify(step, self._read_group(step, *group))

  def _read_group(self, step: int, item: str, names: set[str]) -> dict:
    """Returns some arrays of an item as saved, on the host, by their names."""

    def read():
      folder = _open_folder(self, step, item) / item
      with ocp.PyTreeCheckpointer() as orbax:
        # Not the manager's: on gs:// it takes what it has saved for unfinished.
        tree = orbax.metadata(folder).item_metadata
        template = jax.tree_util.tree_map_with_path(
          lambda path, x: (
            0 if f'{item}/{checksums.format_path(path)}' in names
            else ocp.PLACEHOLDER
          ),
          getattr(tree, 'tree', tree),
        )  # fmt: skip
        whole = ocp.RestoreArgs(restore_type=np.ndarray)
        args = ocp.args.PyTreeRestore(
          template, restore_args=jax.tree.map(lambda x: whole, template)
        )
        restored = orbax.restore(folder, args)
      arrays = {
        f'{item}/{name}': np.asarray(x)
        for name, x in checksums.flatten_named(restored).items()
        if x is not ocp.PLACEHOLDER
      }
      if missing := names - arrays.keys():
        raise ValueError(f'{min(missing)} is missing')
      return arrays

    return self._read(step, read)

  def _check_shapes(self, step: int, wanted: dict, saved: dict) -> None:
    """Raises ValueError, naming an array, where names or shapes differ."""
    shape = lambda x: 'missing' if x is None else list(x.shape)
    for name in sorted({*saved, *wanted}):
      there, here = shape(saved.get(name)), shape(wanted.get(name))
      if there != here:
        raise ValueError(
          f'the checkpoint of step {step} in {self.directory} is of another '
          f'model: {name} is {there} there and {here} here. Use the '
          'configuration it was trained with (MODEL_DIR/config.gin), or '
          'another MODEL_DIR.'
        )

  def _verify(self, step: int, arrays: Mapping) -> None:
    """Raises DamageError where arrays differ from their checksums."""
    sums = self._unsealed(step)[1]
    if sums is None:
      self.log(
        f'step {step:,} in {self.directory} has no checksums: an older version '
        'wrote it, and nothing was verified'
      )
      return
    self._read(step, lambda: checksums.verify_checksums(arrays, sums))

  def _read(self, step: int, read: Callable):
    """Returns read(), or raises DamageError if it fails on any host."""
    error, value = None, None
    try:
      value = read()
    except (MemoryError, PermissionError, storage.StorageError):
      raise
    except Exception as e:
      if any(text in str(e) for text in NOT_DAMAGE):
        raise
      error = storage.explain_orbax(e, os.fspath(self.directory))
      if isinstance(error, storage.StorageError):
        raise error from e
    if is_true_everywhere(error is None):
      return value
    why = messages.one_line(error) if error else 'another host found damage'
    raise DamageError(
      f'the checkpoint of step {step:,} in {self.directory} is damaged: {why}'
    ) from error


def _group_by_size(arrays: Mapping) -> list[tuple[str, set[str]]]:
  """Returns (item, names of some of its arrays), VERIFIED_AT_ONCE or one."""
  groups, size = [], 0
  for name, like in sorted(arrays.items()):
    item = name.split('/')[0]
    bytes_ = math.prod(like.shape) * like.dtype.itemsize
    if not groups or groups[-1][0] != item or size + bytes_ > VERIFIED_AT_ONCE:
      groups.append((item, set()))
      size = 0
    groups[-1][1].add(name)
    size += bytes_
  return groups


# --- Opening


def _keep_record(record: logging.LogRecord) -> bool:
  """Drops Orbax's warning that a folder is opened for reading only."""
  return not str(record.msg).startswith('Given directory is read only')


def _open_orbax(directory: epath.Path, read_only: bool):
  """Opens Orbax's manager of a folder, which removes no step."""
  path = os.fspath(directory)
  if storage.is_remote(path):
    scheme = storage.get_scheme(path)
    if jax.process_count() == 1:
      # It is ours, so it may be cleaned up and made.
      return StagedManager(path, lambda x: _open_orbax(x, False), read_only)
    storage.prepare_orbax(scheme)
  logging.getLogger('absl').addFilter(_keep_record)  # added once only
  # It reads a file of every step at once.
  paths_read = glob.glob(
    os.path.join(glob.escape(os.fspath(directory)), '*', STEP_FILE)
  )
  for path in paths_read:
    with contextlib.suppress(FileNotFoundError):  # a save has just ended
      fileio.check_regular(path)
  try:
    return ocp.CheckpointManager(
      directory,
      item_handlers={
        'params': ocp.StandardCheckpointHandler(),
        'optimizer': ocp.StandardCheckpointHandler(),
        'meta': ocp.JsonCheckpointHandler(),
      },
      options=ocp.CheckpointManagerOptions(
        max_to_keep=None,
        cleanup_tmp_directories=not read_only,
        read_only=read_only,
        create=not read_only,
        # Else all hosts meet here, and one that fails reads, too.
        save_root_metadata=not read_only,
        save_interval_steps=0 if read_only else 1,
      ),
    )
  except (ValueError, TypeError, RecursionError):
    for path in paths_read:
      fileio.read_json(path)  # says which it is
    raise


def _open_folder(
  checkpoints: CheckpointReader, step: int, *items: str
) -> epath.Path:
  """Returns the folder of a step, from which Orbax can read the items."""
  if isinstance(checkpoints.orbax, StagedManager):
    return checkpoints.orbax.fetch(step, items)
  return checkpoints.directory / str(step)


def check_step_files(folder: epath.Path) -> None:
  """Raises ValueError or OSError where a step has a pipe or a device."""
  # Orbax would wait for ever. Object stores have files alone.
  for where, _, names in os.walk(folder):
    for name in names:
      fileio.check_regular(os.path.join(where, name))


def list_checksums(
  checkpoints: CheckpointReader, step: int
) -> dict[str, str] | None:
  """Returns `params/...` -> checksum; None of a step of before there were."""
  sums = checkpoints._unsealed(step)[1]
  if sums is None:
    return None
  return {k: x for k, x in sums.items() if k.startswith('params/')}


@contextlib.contextmanager
def open_step(
  model_dir: str, at_step: int | None
) -> Iterator[tuple[CheckpointReader, int]]:
  """Yields the checkpoints of a MODEL_DIR and the step wanted.

  None takes the best, see `best_step`, or the newest of a run without one.

  Raises:
    FileNotFoundError: there is no checkpoint, or not of that step.
    DamageError: raised by the block; here the intact steps are added.
  """
  model_dir = messages.check_path('MODEL_DIR', model_dir)
  at_step = messages.check_index('at_step', at_step, optional=True)
  if not storage.is_folder(os.fspath(paths.find_checkpoint_dir(model_dir))):
    raise FileNotFoundError(
      f'no {paths.CHECKPOINTS}/ in MODEL_DIR = {model_dir!r}, nor a '
      'config.json of Hugging Face weights'
    )
  with contextlib.closing(CheckpointReader(model_dir)) as checkpoints:
    steps = checkpoints.all_steps()
    best = best_step.read_best(model_dir) if at_step is None else None
    if best is not None:
      at_step = best.step
    if not steps or at_step not in (None, *steps):
      raise FileNotFoundError(
        f'no checkpoint {"" if at_step is None else f"of step {at_step} "}in '
        f'{checkpoints.directory}; steps there: {steps or "none"}'
        + (
          f'. {model_dir}/{best_step.BEST_FILE} names it as the best: name '
          'another STEP, or remove that file'
          if best
          else ''
        )
      )
    try:
      yield checkpoints, steps[-1] if at_step is None else at_step
    except DamageError as e:
      intact = checkpoints.intact_steps() or 'none'
      raise DamageError(f'{e}. Steps that are intact: {intact}') from e


def latest_step(model_dir: str) -> int | None:
  """Returns the newest step of a MODEL_DIR, or None.

  Raises ValueError for a path of another scheme than gs:// and s3://.
  """
  if not storage.is_folder(os.fspath(paths.find_checkpoint_dir(model_dir))):
    return None
  with contextlib.closing(CheckpointReader(model_dir)) as checkpoints:
    return checkpoints.latest_step()


def is_true_everywhere(condition: bool) -> bool:
  """Tells whether a condition holds on all hosts, which all must ask."""
  if jax.process_count() == 1:
    return condition
  return bool(multihost_utils.process_allgather(np.array(condition)).all())
