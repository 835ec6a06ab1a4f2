"""Records a range of steps with JAX's profiler."""

import contextlib
import os

import jax


class Profiler(contextlib.AbstractContextManager):
  """Records steps (first, last), or none, into MODEL_DIR/profile."""

  def __init__(self, model_dir: str, steps: tuple[int, int] | None, say):
    self.folder, self.say = os.path.join(model_dir, 'profile'), say
    self.first, self.last = steps or (0, 0)
    self.running = False

  def __exit__(self, *error):
    if self.running:
      jax.profiler.stop_trace()

  def before(self, done: int) -> None:
    """Starts before step `done` is dispatched, if that is the first."""
    if done == self.first:
      jax.profiler.start_trace(self.folder)
      self.running = True

  def after(self, done: int, values) -> None:
    """Stops after the last step; `values` is what the step made."""
    if self.running and done >= self.last:
      jax.block_until_ready(values)
      jax.profiler.stop_trace()
      self.running = False
      self.say(
        f'profile of steps {self.first:,} to {done:,}: {self.folder} '
        '(TensorBoard; Perfetto opens its trace.json.gz)'
      )
