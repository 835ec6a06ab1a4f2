"""What is said and kept of the steps between two log lines."""

from __future__ import annotations

import collections
import contextlib
import os
import time
from collections.abc import Callable

import jax

from atm import metrics, objectives


class Log:
  """Sums metrics between log lines, with rates and time left.

  Keeps at most one step unread: adding a step's metrics waits for the step
  before it.
  """

  def __init__(
    self,
    say: Callable[[str], None],
    last: int,
    batch_size: int,
    lengths,
    flops: Callable[[int, int], float],
  ):
    """Takes the run's last step and its `flops_between`."""
    self.say, self.last, self.flops = say, last, flops
    self.places = {
      'input': batch_size * lengths.inputs,
      'target': batch_size * lengths.targets,
    }
    self.unread, self.latest = None, {}
    self.sums, self.steps = collections.Counter(), 0
    self.earlier = (0, 0.0)  # steps and tokens that this process did not do

  def begin(self, done: int) -> None:
    """Starts the clock, `done` steps into the run."""
    self.first, self.clock, self.spent = done, time.perf_counter(), 0.0

  @contextlib.contextmanager
  def pause(self):
    """Leaves what happens inside out of the rates."""
    start = time.perf_counter()
    yield
    self.clock += time.perf_counter() - start

  def add(self, values: dict) -> None:
    """Takes a dispatched step's metrics; waits for the step before it."""
    self._read()
    self.unread = values

  def _read(self) -> None:
    if self.unread is None:
      return
    self.latest = {k: float(v) for k, v in jax.device_get(self.unread).items()}
    self.sums.update(self.latest)
    self.steps += 1
    self.unread = None

  def partial(self) -> dict:
    """What a checkpoint keeps, so that a resumed log goes on exactly."""
    self._read()
    return {'sums': dict(self.sums), 'steps': self.steps}

  def restore(self, partial: dict) -> None:
    self.sums = collections.Counter(partial['sums'])
    self.steps = partial['steps']
    self.earlier = (self.steps, self._tokens())

  def _tokens(self) -> float:
    return self.sums['tokens/input'] + self.sums['tokens/target']

  def emit(self, done: int) -> dict[str, float]:
    """Prints a line, returns the row for metrics.jsonl, and starts anew."""
    self._read()
    seconds = time.perf_counter() - self.clock
    self.clock += seconds
    self.spent += seconds
    row = self._row(done, seconds)
    speed = self.flops(self.first, done) / self.spent
    left = self.flops(done, self.last) / speed
    by_name = ', '.join(
      f'{k[5:]} {v:.3f}' for k, v in row.items() if k.startswith('loss/')
    )
    self.say(
      f'step {done:,}/{self.last:,}  loss {row["loss"]:.3f} ({by_name})  '
      f'{row["tokens_per_second"]:,.0f} tokens/s  '
      + (f'mfu {row["mfu"]:.0%}  ' if 'mfu' in row else '')
      + f'{metrics.clock_text(left)} left'
    )
    self.sums, self.steps, self.earlier = collections.Counter(), 0, (0, 0.0)
    return row

  def _row(self, done: int, seconds: float) -> dict[str, float]:
    s, targets = self.sums, max(1.0, self.sums['tokens/target'])
    row = {
      'loss': s['sum/loss'] / targets,
      'accuracy': s['sum/accuracy'] / targets,
      'z_loss': s['sum/z_loss'] / targets,
    }
    for name in objectives.NAMES:
      if s[f'weight/loss/{name}']:
        total = s[f'sum/loss/{name}']
        row[f'loss/{name}'] = total / s[f'weight/loss/{name}']
    for name in ('grad_norm', 'param_norm', 'learning_rate'):
      row[name] = self.latest[name]
    for side, places in self.places.items():
      row[f'tokens/{side}'] = s[f'tokens/{side}']
      row[f'padding/{side}'] = 1 - s[f'tokens/{side}'] / (places * self.steps)
    steps, tokens = self.steps - self.earlier[0], self._tokens()
    row['tokens_per_second'] = (tokens - self.earlier[1]) / seconds
    row['seconds_per_step'] = seconds / steps
    if peak := metrics.peak_flops():
      row['mfu'] = self.flops(done - steps, done) / seconds / peak
    return row


class Profile:
  """Records some steps with JAX's profiler, into MODEL_DIR/profile."""

  def __init__(
    self,
    model_dir: str,
    steps: tuple[int, int] | None,
    say: Callable[[str], None],
  ):
    """Takes (first, last) steps, or None."""
    self.folder, self.say = os.path.join(model_dir, 'profile'), say
    self.first, self.last = steps or (0, 0)
    self.running = False

  def __enter__(self):
    return self

  def __exit__(self, *error):
    if self.running:
      jax.profiler.stop_trace()

  def before(self, done: int) -> None:
    """To be called before step `done` is dispatched."""
    if done == self.first:
      jax.profiler.start_trace(self.folder)
      self.running = True

  def after(self, done: int, values) -> None:
    """To be called with what the step made."""
    if self.running and done >= self.last:
      jax.block_until_ready(values)
      jax.profiler.stop_trace()
      self.running = False
      self.say(
        f'profile of steps {self.first:,} to {done:,}: {self.folder} '
        '(TensorBoard; Perfetto opens its trace.json.gz)'
      )
