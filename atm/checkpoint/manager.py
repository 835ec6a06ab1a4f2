"""Saves checkpoints asynchronously by Orbax, with checksums of their arrays."""

import contextlib
import os
import time
import warnings
from collections.abc import Callable, Mapping

import jax
import orbax.checkpoint as ocp
from etils import epath

from atm import messages, storage
from atm.checkpoint import best_step, checksums, reader
from atm.checkpoint.best_step import BestStep
from atm.checkpoint.checksums import DamageError
from atm.checkpoint.staged_steps import PARTS, StagedManager, unlist_step

ON_ERROR = ('stop', 'go_on')


class SaveError(OSError):
  """A checkpoint could not be written."""


class CheckpointManager(reader.CheckpointReader):
  """Saves and restores the checkpoints of a run.

  Writing is asynchronous: `save` returns when the arrays are copied off the
  devices. Errors are found by the next `check_for_errors`, `save` or
  `wait_until_finished`.

  Attributes:
    best: the best step, see `best_step`; is never removed.
    failures: how many saves failed.
    save_error: the error of the last save, if that failed.
  """

  def __init__(
    self,
    model_dir: str,
    keep: int | None = None,
    on_error: str = 'stop',
    log: Callable[[str], None] = warnings.warn,
  ):
    """Opens a run's checkpoints to add to them.

    Args:
      model_dir: the run.
      keep: how many of the newest steps to keep; None: all. An older one is
        removed when the newest was read back and has its checksums.
      on_error: one of ON_ERROR: raise where a save failed, or log and count it.
      log: called with a warning's text.

    Raises:
      ValueError: `keep` is neither None nor above 0; nothing was opened.
    """
    # Orbax would take 0 as well, and remove every checkpoint there is.
    self.keep = messages.check_number('KEEP', keep, least=1, optional=True)
    self.on_error = messages.check_choice('ON_ERROR', on_error, ON_ERROR)
    self.failures, self.save_error, self._pending = 0, None, None
    self._has_saved, self._best_pending = False, None
    self.model_dir = messages.check_path('MODEL_DIR', model_dir)
    self.best = best_step.read_best(self.model_dir)
    super().__init__(model_dir, log)

  def _open(self) -> ocp.CheckpointManager | StagedManager:
    return super()._open(read_only=False)

  def save(
    self, step: int, trees: dict, meta: dict, best: BestStep | None = None
  ) -> None:
    """Begins to write a step, with the checksums of its arrays.

    Args:
      step: the number; the newest is not written again.
      trees: the items: 'params', and 'optimizer' where training goes on.
      meta: a JSON object.
      best: recorded when the step is written, see `record_best`.

    Raises:
      SaveError: this save or the one before, unless `on_error` is 'go_on'.
    """
    step = messages.check_index('step', step)
    messages.check_instance('trees', trees, Mapping)
    messages.check_instance('meta', meta, Mapping)
    self.wait_until_finished()
    if step == self.latest_step():
      self.record_best(best)
      return
    self._metas.pop(step, None)
    sums = checksums.compute_checksums(checksums.flatten_named(trees))
    args = ocp.args.Composite(
      meta=ocp.args.JsonSave(checksums.seal_meta(meta, sums)),
      **{name: ocp.args.StandardSave(tree) for name, tree in trees.items()},
    )

    def begin():
      if not self.orbax.save(step, args=args):
        raise ValueError(f'the newest is step {self.latest_step()}')

    if self._succeeds(step, begin):
      self._pending, self._has_saved = step, True
      self._best_pending = best

  def check_for_errors(self) -> None:
    """Collects the result of a finished save. Call between any two steps."""
    # One of several hosts may not act alone: the next `save` collects it.
    if jax.process_count() == 1 and not self.orbax.is_saving_in_progress():
      self.wait_until_finished()

  def wait_until_finished(self) -> None:
    """Waits for the write under way; see `save` for what is raised."""
    step, self._pending = self._pending, None
    wait = self.orbax.wait_until_finished
    if step is not None and self._succeeds(step, wait):
      self.save_error = None
      self.record_best(self._best_pending)
      self._remove_older(step)

  def record_best(self, best: BestStep | None) -> None:
    """Writes which step is the best, unless None; all hosts call it."""
    if best in (None, self.best):
      return
    self.best = best
    if jax.process_index() == 0:
      best_step.write_best(self.model_dir, best)

  def raise_if_unsaved(self) -> None:
    """Raises SaveError if the last save failed, whatever `on_error`; waits."""
    self.wait_until_finished()
    if self.save_error is not None:
      raise self.save_error
    # The process before may have been killed between its last save and what
    # that makes superfluous.
    if not self._has_saved and (newest := self.latest_step()) is not None:
      self._remove_older(newest)

  def close(self) -> None:
    """Waits for the write under way."""
    try:
      self.wait_until_finished()
    finally:
      super().close()

  def __exit__(self, kind, *error) -> None:
    """Closes the checkpoints, but where one of several hosts fails."""
    # What a save ends with all do together, and the others are elsewhere.
    if kind is None or jax.process_count() == 1:
      self.close()

  def _succeeds(self, step: int, work: Callable[[], object]) -> bool:
    """Tells whether work() on a step succeeds; raises or logs its error."""
    error = None
    try:
      work()
    except Exception as e:
      error = storage.explain_orbax(e, os.fspath(self.directory))
    # A host that is to go on without a checkpoint must hear of another's error.
    # One that is to stop raises its own at once: the others end with it, when
    # JAX misses it, and need not wait until Orbax has given up waiting for it.
    go_on = self.on_error == 'go_on'
    if go_on and not reader.is_true_everywhere(error is None):
      error = error or OSError('another host could not write its part')
    if error is not None:
      self._handle_failure(step, error)
    return error is None

  def _remove_older(self, newest: int) -> None:
    """Removes steps beyond `keep`, if the newest is whole on disk."""
    # Orbax's own `max_to_keep` would not look at the newest, and would remove
    # any folder whose name is a number.
    steps = [n for n in self.all_steps() if self._is_checkpoint(n)]
    old = steps[: -self.keep] if self.keep else []
    old = [n for n in old if self.best is None or n != self.best.step]
    if old and self._succeeds(newest, lambda: self.verify(newest)):
      self._succeeds(newest, lambda: [self._delete(n) for n in old])

  def _delete(self, step: int) -> None:
    # Several hosts' Orbax would remove the object that lists a step any time.
    if storage.is_remote(self.directory) and jax.process_index() == 0:
      unlist_step(f'{self.directory}/{step}')
    self.orbax.delete(step)

  def _is_checkpoint(self, step: int) -> bool:
    """Tells whether the folder of a step holds nothing of a user's."""
    try:
      names = {*storage.list_names(f'{self.directory}/{step}')}
    except OSError:  # a file, say
      return False
    return names <= PARTS

  def _handle_failure(self, step: int, error: Exception) -> None:
    """Removes what was written of a step; raises or logs the error."""
    self.failures += 1
    if self.on_error == 'go_on' or jax.process_count() == 1:
      with contextlib.suppress(Exception):
        self.orbax.close()
      if not isinstance(self.orbax, StagedManager):  # which knows its own
        _remove_leftovers(self.directory, f'{step}.orbax-checkpoint-tmp*')
      # Errors stick to the old one: it would fail the next save too.
      self.orbax = self._open()
    # An old step that could not be removed fails a save that is complete.
    complete = step in self.all_steps()
    what = 'is saved, but' if complete else 'could not be saved:'
    if isinstance(error, DamageError):
      complete, what = False, 'is not what was saved, and no other was removed:'
    failure = SaveError(
      f'the checkpoint of step {step:,} {what} {messages.one_line(error)}'
    )
    failure.__cause__ = error
    self.save_error = None if complete else failure
    if self.on_error == 'stop':
      raise failure
    self.log(
      f'{failure}; training goes on, saves failed so far: {self.failures}'
    )


def _remove_leftovers(folder: epath.Path, pattern: str) -> None:
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
