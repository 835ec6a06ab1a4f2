"""Metrics between two log lines: their sums, the line and its row."""

import collections
import contextlib
import math
import time

import jax

from atm import messages
from atm.data import objectives
from atm.model import flops
from atm.parallel import peak_flops
from atm.train.config import TrainConfig

LATEST = ('grad_norm', 'param_norm', 'learning_rate')  # of the last update
# What a checkpoint keeps besides the sums, for a resumed log to go on exactly.
SAVED = ('steps', 'latest', 'in_a_row', 'since')


class MetricLogger:
  """Sums metrics between log lines, with rates and time left.

  Keeps at most one step unread: adding a step's metrics waits for the step
  before it.
  """

  def __init__(self, config: TrainConfig):
    self.say, self.last = config.say, config.train_steps
    self.positions = {
      'input': config.batch_size * config.sizes.inputs,
      'target': config.batch_size * config.sizes.targets,
    }
    sizes = config.model_config, config.batch_size, *config.sizes.both
    self.frozen_steps = config.freeze_encoder_steps
    self.flops_frozen = flops.train_flops(*sizes, frozen=True)
    adapted = config.lora is not None
    self.flops_full = flops.train_flops(
      *sizes, adapted=adapted, prompt_loss=config.prompt_loss
    )
    self.unread, self.latest = None, {}
    self.abort_after = config.abort_after_nonfinite
    self.in_a_row, self.since = 0, 0
    self.sums, self.steps = collections.Counter(), 0
    self.earlier = (0, 0.0)  # steps and tokens that this process did not do

  def flops_between(self, first: int, last: int) -> float:
    """Returns the model FLOPs from after step `first` to step `last`."""
    frozen = max(0, min(last, self.frozen_steps) - first)
    full = last - first - frozen
    return frozen * self.flops_frozen + full * self.flops_full

  def begin(self, done: int) -> None:
    """Starts the clock, `done` steps into the run."""
    self.first, self.clock, self.spent = done, time.perf_counter(), 0.0

  @contextlib.contextmanager
  def pause(self):
    """Leaves what happens inside out of the rates."""
    start = time.perf_counter()
    yield
    self.clock += time.perf_counter() - start

  def add(self, done: int, values: dict) -> None:
    """Takes the metrics of a dispatched step; waits for the step before it."""
    self._read()
    self.unread = done, values

  def is_computing(self) -> bool:
    """Tells whether the devices still compute the step dispatched last."""
    return bool(self.unread) and not self.unread[1]['skipped'].is_ready()

  def leap(self) -> None:
    """Takes note of a step that is not trained on, for the time left."""
    self._read()
    self.first += 1

  def _read(self) -> None:
    if self.unread is None:
      return
    (done, values), self.unread = self.unread, None
    values = {k: float(v) for k, v in jax.device_get(values).items()}
    if values['skipped']:
      self._skip(done, values)
      return
    self.in_a_row = 0
    self.latest = {name: values[name] for name in LATEST}
    self.sums.update(values)
    self.steps += 1

  def _skip(self, done: int, values: dict) -> None:
    """Counts a step whose update was skipped; raises at too many in a row."""
    self.sums['skipped'] += 1
    self.in_a_row += 1
    if self.in_a_row == 1:
      self.since = done
      self.say(f'step {done:,}: {_not_finite(values)}: update skipped')
    if self.in_a_row >= self.abort_after:
      raise FloatingPointError(
        f'steps {self.since} to {done}: no finite loss and gradient '
        f'{self.in_a_row} times in a row (ABORT_AFTER_NONFINITE = '
        f'{self.abort_after}; at last {_not_finite(values)}); these updates '
        'were skipped. To go on: take the checkpoints from where the trouble '
        f'began, step {self.since} or earlier, out of MODEL_DIR/checkpoints, '
        f'add ({self.since}, {done}), or a longer range, to SKIP_STEPS, and '
        'run again; or lower LEARNING_RATE'
      )

  def partial(self) -> dict:
    """Returns what a checkpoint keeps, for `restore`."""
    self._read()
    saved = {name: getattr(self, name) for name in SAVED}
    return {'sums': dict(self.sums), **saved}

  def restore(self, partial: dict) -> None:
    self.sums = collections.Counter(partial['sums'])
    for name in partial.keys() & set(SAVED):  # old checkpoints have fewer
      setattr(self, name, partial[name])
    self.earlier = (self._steps(), self._tokens())

  def _tokens(self) -> float:
    return self.sums['tokens/input'] + self.sums['tokens/target']

  def _steps(self) -> int:
    """Steps since the last line, those included whose update was skipped."""
    return self.steps + int(self.sums['skipped'])

  def emit(self, done: int) -> dict[str, float]:
    """Prints a line, returns the row for metrics.jsonl, and starts anew."""
    self._read()
    if not self._steps():
      return {}  # all were leapt over
    seconds = time.perf_counter() - self.clock
    self.clock += seconds
    self.spent += seconds
    row = self._row(done, seconds)
    speed = self.flops_between(self.first, done) / self.spent
    left = self.flops_between(done, self.last) / speed if speed else 0.0
    by_name = ', '.join(
      f'{k[5:]} {v:.3f}' for k, v in row.items() if k.startswith('loss/')
    )
    skipped = int(row['skipped'])
    self.say(
      f'step {done:,}/{self.last:,}  '
      + (f'loss {row["loss"]:.3f} ({by_name})  ' if 'loss' in row else '')
      + (f'skipped {skipped:,}  ' if skipped else '')
      + f'{row.get("tokens_per_second", 0.0):,.0f} tokens/s  '
      + (f'mfu {row["mfu"]:.0%}  ' if 'mfu' in row else '')
      + f'{messages.clock_text(left)} left'
    )
    self.sums, self.steps, self.earlier = collections.Counter(), 0, (0, 0.0)
    return row

  def _row(self, done: int, seconds: float) -> dict[str, float]:
    row = {'skipped': self.sums['skipped'], **self._means(), **self.latest}
    row['flops'] = self.flops_between(0, done)
    steps = self._steps() - self.earlier[0]
    if steps:  # of this process
      row['tokens_per_second'] = (self._tokens() - self.earlier[1]) / seconds
      row['seconds_per_step'] = seconds / steps
      if peak := peak_flops.peak_flops():
        row['mfu'] = self.flops_between(done - steps, done) / seconds / peak
    return row

  def _means(self) -> dict[str, float]:
    """Averages over the targets of all steps that were not skipped."""
    if not self.steps:
      return {}
    s = self.sums
    targets = max(1.0, s['tokens/target'] + s['tokens/prompt_loss'])
    row = {
      'loss': s['sum/loss'] / targets,
      'accuracy': s['sum/accuracy'] / targets,
      'z_loss': s['sum/z_loss'] / targets,
    }
    if 'sum/smoothing' in s:
      row['label_smoothing'] = s['sum/smoothing'] / targets
    for name in objectives.OBJECTIVE_NAMES:
      if s[f'weight/loss/{name}']:
        total = s[f'sum/loss/{name}']
        row[f'loss/{name}'] = total / s[f'weight/loss/{name}']
    for side, positions in self.positions.items():
      row[f'tokens/{side}'] = s[f'tokens/{side}']
      row[f'padding/{side}'] = 1 - s[f'tokens/{side}'] / (
        positions * self.steps
      )
    return row


def _not_finite(values: dict) -> str:
  """Names what was not finite in a step's metrics: 'the loss is nan', ..."""
  loss = values['sum/loss'] + values['sum/z_loss']
  found = {'loss': loss, "gradient's norm": values['grad_norm']}
  return ' and '.join(
    f'the {name} is {x}' for name, x in found.items() if not math.isfinite(x)
  )
