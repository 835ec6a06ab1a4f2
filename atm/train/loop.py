"""The training loop: one step after another, and what happens between two."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable

import jax

from atm.checkpoint.manager import CheckpointManager
from atm.data import batches, objectives
from atm.parallel import devices, distributed, sharding
from atm.parallel import xla_options as xla_options_lib
from atm.parallel.sharding import Rules
from atm.train import (
  config_checks,
  crash_report,
  held_out_loss,
  metric_writer,
  preemption,
)
from atm.train.goodput import Goodput
from atm.train.metric_logger import Log
from atm.train.profiler import Profile
from atm.train.step import State


@dataclasses.dataclass
class Loop:
  """Steps from where a run stands to its last one.

  Attributes:
    model_dir: of the run.
    train_steps, log_every, eval_every, save_every, skip_steps,
      freeze_encoder_steps, profile_steps, xla_options: see `trainer.train`.
    update: called with (state, batch, frozen=...), see `step.train_step`.
    batch: called with a batch's number, gives this host's rows of it.
    batch_size: B, of the whole batch.
    mesh, rules: how state and batches lie.
    held_out: the evaluation.
    asks: called with (parameters, step) in every `ask_every`-th step's
      evaluation, and the last; gives more metrics. None: nothing is asked.
    unigram: called once, gives what to compare the evaluation with.
    checkpoints: of the run.
    meta: kept in every checkpoint.
    log, writer, good, say: where it is said and counted.
  """

  model_dir: str
  train_steps: int
  log_every: int
  eval_every: int
  save_every: int
  skip_steps: tuple[tuple[int, int], ...]
  freeze_encoder_steps: int
  profile_steps: tuple[int, int] | None
  xla_options: dict | None
  update: Callable
  batch: Callable[[int], dict]
  batch_size: int
  mesh: jax.sharding.Mesh
  rules: Rules
  held_out: held_out_loss.HeldOut
  asks: Callable[[dict, int], dict] | None
  ask_every: int
  unigram: Callable[[], dict]
  checkpoints: CheckpointManager
  meta: dict
  log: Log
  writer: metric_writer.Writer | metric_writer.Silent
  good: Goodput
  say: Callable[[str], None]

  def run(self, start: int, state: State) -> None:
    """Does the steps after `start`, beginning with its `state`.

    Raises:
      KeyboardInterrupt: a signal came; the step it ended with is saved.
      FloatingPointError, SaveError: see `trainer.train`.
    """
    devices.peak_flops()  # measured now, on one device, not within a step
    with contextlib.ExitStack() as last:
      opened = last.enter_context
      screen = opened(crash_report.Screen(self.model_dir, self.train_steps))
      opened(sharding.use_mesh(self.mesh, self.rules))
      last.callback(self.writer.close)
      last.callback(self.checkpoints.close)
      self.signals = opened(preemption.Signals())
      profile = opened(Profile(self.model_dir, self.profile_steps, self.say))
      self.good.open(
        self.model_dir, start, writes=distributed.is_main_process()
      )
      self.state, self.done = state, start
      self._evaluate_where_due_before()
      feed = batches.prefetch(self._batch_after, start, self.train_steps)
      last.callback(feed.close)
      self.compiled, self.frozen = None, start < self.freeze_encoder_steps
      self.log.begin(start)
      while self.done < self.train_steps:
        with self.good.spent_on('data'):
          host_batch = next(feed)
        screen.done = self._step(host_batch, profile)
        self._after_step()
      self.checkpoints.raise_if_unsaved()

  def _batch_after(self, done: int) -> dict | None:
    """The batch of the step after `done`; None where that is skipped."""
    if config_checks.skipped(self.skip_steps, done + 1):
      return None
    return self.batch(done)

  # --- A step

  def _step(self, host_batch: dict | None, profile: Profile) -> int:
    """Dispatches the next step; its number."""
    now = self.done + 1
    if host_batch is not None:
      batch = sharding.shard_batch(
        host_batch, self.mesh, self.rules, self.batch_size
      )
      self._compile_where_due(batch)
    profile.before(now)
    if host_batch is None:
      self.state = self.state.replace(step=self.state.step + 1)
      self.log.leap()
    else:
      self.state, values = self.compiled(self.state, batch)
      self.log.add(now, values)
    profile.after(now, self.state)
    self.done = now
    return now

  def _compile_where_due(self, batch) -> None:
    """Compiles the first step, and the one that ends a frozen encoder."""
    if self.frozen and self.done >= self.freeze_encoder_steps:
      self.frozen = False
      jax.block_until_ready(self.state)  # its time is the frozen steps'
      with self.log.pause(), self.good.spent_on('compile'):
        self.say(f'step {self.done:,}: from here on the encoder trains too')
        self._save()  # compiling may take longer than a notice gives
        self.checkpoints.wait_until_finished()
        with self.signals.at_once():
          self._compile(batch)
    elif self.compiled is None:
      with self.good.spent_on('compile'):
        self._compile(batch)
      self.log.begin(self.done)
      self.signals.listen()

  def _compile(self, batch) -> None:
    clock = time.perf_counter()
    update = functools.partial(self.update, frozen=self.frozen)
    lowered = xla_options_lib.jit_update(update, self.state).lower(
      self.state, batch
    )
    self.compiled = xla_options_lib.compile_program(
      lowered, jax.devices()[0], self.xla_options
    )
    until = f' with the encoder frozen to step {self.freeze_encoder_steps:,}'
    seconds = time.perf_counter() - clock
    self.say(f'compiled{until if self.frozen else ""} in {seconds:.1f} s')
    # Gloo's first meeting on a CPU waits 30 s and fails.
    distributed.wait_for_all()

  # --- Between two steps

  def _after_step(self) -> None:
    """Logs, evaluates, saves and stops, where one is due."""
    done, at_end = self.done, self.done == self.train_steps
    logs = done % self.log_every == 0 or at_end
    if logs and (row := self.log.emit(done)):
      self.writer.write(done, {**row, 'goodput': self.good.share(done)})
    self.checkpoints.check_for_errors()
    stopping = self.signals.stops_after(done) and not at_end
    evaluates = done % self.eval_every == 0 or at_end
    saves = done % self.save_every == 0 or at_end or stopping
    if evaluates or saves:
      jax.block_until_ready(self.state)  # what follows pays for itself alone
      with self.log.pause():
        if evaluates:
          try:
            self._evaluate()
          except preemption.Broken:  # the next process does it
            stopping = True
        if saves or stopping:
          with self.good.spent_on('checkpoint'):
            self._save()
    if logs or evaluates or saves:
      self.good.write(done)
    if stopping:
      self.checkpoints.raise_if_unsaved()
      self.say(f'stopped and saved at step {done:,}; the same command goes on.')
      raise KeyboardInterrupt

  def _evaluate_where_due_before(self) -> None:
    """The evaluation that a fresh run begins with, or a stopped one owes."""
    due = self.done % self.eval_every == 0 or self.done == self.train_steps
    if due and not metric_writer.was_evaluated(self.model_dir, self.done):
      self._evaluate()
    for first, last in self.skip_steps:
      if last > self.done:
        self.say(f'SKIP_STEPS: steps {first:,} to {last:,} are not trained on')

  def _evaluate(self) -> None:
    with self.good.spent_on('evaluation'):
      row = self.signals.breakable(self._evaluated)
      if not self.done and distributed.is_main_process():
        row |= self.unigram()
      self.writer.write(self.done, row)
      losses = (
        f'{name} {row[key]:.3f}'
        for name in objectives.OBJECTIVE_NAMES
        if (key := f'eval/loss/{name}') in row
      )
      self.say(f'step {self.done:,} held out: ' + ', '.join(losses))
      if asked := [k for k in row if k.startswith('few_shot/')]:
        means = (f'{k} {row[k]:.2f}' for k in asked if k.count('/') == 1)
        self.say(f'step {self.done:,} asked: ' + ', '.join(means))

  def _evaluated(self) -> dict[str, float]:
    row, params = self.held_out(self.state.params), self.state.params
    due = self.done % self.ask_every == 0 or self.done == self.train_steps
    return row | self.asks(params, self.done) if self.asks and due else row

  def _save(self) -> None:
    position = {**self.meta['data'], 'step': self.done}
    now = {**self.meta, 'data': position, 'log': self.log.partial()}
    self.checkpoints.save(self.done, self.state.to_trees(), now)
