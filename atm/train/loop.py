"""The training loop: one step after another, and what happens between two."""

import contextlib
import dataclasses
import time
from collections.abc import Callable

import jax

from atm.checkpoint.manager import CheckpointManager
from atm.data import batches, objectives
from atm.parallel import (
  compilation_cache,
  distributed,
  peak_flops,
  sharding,
)
from atm.parallel import xla_options as xla_options_lib
from atm.parallel.machine import describe_machine
from atm.train import crash_report, preemption
from atm.train.best_tracker import BestKeeper
from atm.train.config import TrainConfig
from atm.train.first_step import report_first_step
from atm.train.goodput import Goodput
from atm.train.hang_watchdog import HangWatchdog
from atm.train.held_out_loss import HeldOutLoss, unigram_loss
from atm.train.host_times import HostTimes
from atm.train.inputs import Inputs
from atm.train.lora_base import LoraBase
from atm.train.metric_logger import MetricLogger
from atm.train.profiler import Profiler
from atm.train.run_folder import RunFolder
from atm.train.step import State
from atm.train.trackers import Tracker


@dataclasses.dataclass
class Loop:
  """Steps from where a run stands to its last one."""

  config: TrainConfig
  folder: RunFolder
  mesh: jax.sharding.Mesh
  # Called with frozen=...; returns a function of (state, batch), see
  # `step.train_step`.
  bind_update: Callable[..., Callable]
  inputs: Inputs
  held_out: HeldOutLoss
  # Called with (parameters, step) in evaluations, see `ask_every`; returns more
  # metrics. None: nothing is asked.
  ask: Callable[[dict, int], dict] | None
  checkpoints: CheckpointManager
  # Kept in every checkpoint.
  meta: dict
  log: MetricLogger
  goodput: Goodput
  # What the state's parameters are adapters of; None: they are the model's.
  base: LoraBase | None = None

  def run(self, start: int, state: State) -> bool:
    """Does the steps after `start`, beginning with its `state`.

    Returns whether early stopping has ended them.

    Raises what `trainer.train` does.
    """
    peak_flops.peak_flops()  # measured now, on one device, not within a step
    config, last_step = self.config, self.config.train_steps
    folder, is_main = self.folder.path, distributed.is_main_process()
    with contextlib.ExitStack() as last:
      opened = last.enter_context
      report = opened(crash_report.CrashReport(folder, last_step))
      opened(sharding.use_mesh(self.mesh, config.rules))
      self.writer = self.folder.open_metrics(start)
      last.callback(self.writer.close)
      tracker = config.tracker if is_main else None
      self.tracker = opened(
        Tracker(tracker, folder, config.config_text, config.say)
      )
      last.push(self.checkpoints)
      self.signals = opened(preemption.SignalHandler())
      profiler = opened(Profiler(folder, config.profile_steps, config.say))
      self.watchdog = opened(HangWatchdog(folder, config.debug_hang))
      self.goodput.open(folder, start, is_main, machine=describe_machine())
      last.callback(self.goodput.close)
      self.evaluations, self.started = 0, False  # of this process
      self.rows = sharding.host_rows(self.mesh, config.rules, config.batch_size)
      self.state, self.done = state, start
      self.best = BestKeeper(config, self.checkpoints)
      self.best.begin(start, self.folder)
      self._evaluate_where_due_before()
      feed = batches.prefetch(self._batch_after, start, last_step)
      last.callback(feed.close)
      self.compiled, self.frozen = None, start < config.freeze_encoder_steps
      self.log.begin(start)
      self.times = HostTimes(self.goodput.write, config.say)
      while self.done < last_step and not self.best.is_over:
        self.times.lap('own')
        with self.goodput.spent_on('data'):
          host_batch = next(feed)
        self.times.lap('data')
        report.done = self._step(host_batch, profiler)
        self._after_step()
        self.times.end_step(self.done)
        self.watchdog.touch(self.done)
      self.times.close(self.done)
      self.checkpoints.raise_if_unsaved()
      return self.best.finish(self.done)

  def _batch_after(self, done: int) -> dict | None:
    """Returns the batch of the step after `done`; None where it is skipped."""
    skips = self.config.skips(done + 1)
    return None if skips else self.inputs.batches(done, self.rows)

  # --- A step

  def _step(self, host_batch: dict | None, profiler: Profiler) -> int:
    """Dispatches the next step; returns its number."""
    now, config = self.done + 1, self.config
    batch = host_batch and sharding.shard_batch(
      host_batch, self.mesh, config.rules, config.batch_size
    )
    if batch is not None:
      self._compile_where_due(batch)
    profiler.before(now)
    if batch is None:
      self.state = self.state.replace(step=self.state.step + 1)
      self.log.leap()
    else:
      self.times.lap('own')
      if not self.log.is_computing():
        self.times.add_idle()
      self.state, values = self.compiled(*self._arguments(batch))
      self._report_start(now, values)
      self.log.add(now, values)
    self.times.lap('devices')
    profiler.after(now, self.state)
    self.done = now
    return now

  def _report_start(self, step: int, values: dict) -> None:
    """Tells how long the first step of this process took from its start."""
    if not self.started:
      jax.block_until_ready(values)
      report_first_step(step, self.goodput.write, self.config.say)
      self.started = True

  def _compile_where_due(self, batch) -> None:
    """Compiles the first step, and the one that ends a frozen encoder."""
    if self.frozen and self.done >= self.config.freeze_encoder_steps:
      self.frozen = False
      jax.block_until_ready(self.state)  # its time is the frozen steps'
      with self.log.pause(), self.goodput.spent_on('compile'):
        self.config.say(
          f'step {self.done:,}: from here on the encoder trains too'
        )
        self._save()  # compiling may take longer than a notice gives
        self.checkpoints.wait_until_finished()
        with self.signals.at_once(), self.watchdog.paused():
          self._compile(batch)
    elif self.compiled is None:
      with self.goodput.spent_on('compile'), self.watchdog.paused():
        self._compile(batch)
      self.log.begin(self.done)
      self.signals.listen()

  def _arguments(self, batch) -> tuple:
    """Returns what an update is called with."""
    base = () if self.base is None else (self.base.params,)
    return self.state, batch, *base

  def _compile(self, batch) -> None:
    clock = time.perf_counter()
    update = self.bind_update(frozen=self.frozen)
    lowered = xla_options_lib.jit_update(update, self.state).lower(
      *self._arguments(batch)
    )
    self.compiled = xla_options_lib.compile_program(
      lowered, jax.devices()[0], self.config.xla_options
    )
    self.watchdog.program = self.compiled.as_text
    seconds, until = time.perf_counter() - clock, ''
    if self.frozen:
      step = self.config.freeze_encoder_steps
      until = f' with the encoder frozen to step {step:,}'
    self.config.say(f'compiled{until} in {seconds:.1f} s')
    # Gloo's first meeting on a CPU waits 30 s and fails.
    distributed.wait_for_all()
    compilation_cache.flush()
    self.times.skip()

  # --- Between two steps

  def _is_due(self, every: int) -> bool:
    """Tells whether what is done `every` so many steps, and last, is now."""
    return self.done % every == 0 or self.done == self.config.train_steps

  def _after_step(self) -> None:
    """Logs, evaluates, saves and stops, where one is due."""
    done, at_end = self.done, self.done == self.config.train_steps
    logs = self._is_due(self.config.log_every)
    if logs and (row := self.log.emit(done)):
      self._write_row({**row, 'goodput': self.goodput.share(done)})
      compilation_cache.flush()
    self.checkpoints.check_for_errors()
    stopping = self.signals.stops_after(done) and not at_end
    evaluates = self._is_due(self.config.eval_every)
    saves, improves = self._is_due(self.config.save_every) or stopping, False
    if evaluates or saves:
      jax.block_until_ready(self.state)  # what follows pays for itself alone
      self.watchdog.touch(done)
      with self.log.pause():
        if evaluates:
          try:
            improves = self._evaluate()
          except preemption.Interrupted:  # the next process does it
            stopping = True
        if saves or stopping or improves or self.best.is_over:
          with self.goodput.spent_on('checkpoint'):
            self._save(improves)
      self.times.skip()
    if logs or evaluates or saves:
      self.goodput.write(done)
    if stopping:
      self.checkpoints.raise_if_unsaved()
      self.config.say(
        f'stopped and saved at step {done:,}; the same command goes on.'
      )
      raise KeyboardInterrupt

  def _evaluate_where_due_before(self) -> None:
    """Evaluates as a fresh run does first, or as a stopped one owes."""
    due = self._is_due(self.config.eval_every)
    if due and not self.folder.was_evaluated(self.done):
      if self._evaluate():
        self.best.record(self.done)  # its checkpoint is there
    for first, last in self.config.skip_steps:
      if last > self.done:
        self.config.say(
          f'SKIP_STEPS: steps {first:,} to {last:,} are not trained on'
        )

  def _evaluate(self) -> bool:
    """Evaluates and tells whether the step is the best so far."""
    first, self.evaluations = not self.evaluations, self.evaluations + 1
    with self.goodput.spent_on('evaluation'):
      with self.watchdog.paused(compiles=first):
        row = self.signals.breakable(self._evaluated)
      if not self.done and distributed.is_main_process():
        row |= unigram_loss(self.inputs.parts, self.held_out)
      self._write_row(row)
      losses = (
        f'{name} {row[key]:.3f}'
        for name in objectives.OBJECTIVE_NAMES
        if (key := f'eval/loss/{name}') in row
      )
      self.config.say(f'step {self.done:,} held out: ' + ', '.join(losses))
      if asked := [k for k in row if k.startswith('few_shot/')]:
        means = (f'{k} {row[k]:.2f}' for k in asked if k.count('/') == 1)
        self.config.say(f'step {self.done:,} asked: ' + ', '.join(means))
    return self.best.take(self.done, row)

  def _write_row(self, row: dict[str, float]) -> None:
    self.writer.write(self.done, row)
    self.tracker.write(self.done, row)

  def _evaluated(self) -> dict[str, float]:
    params = self.state.params
    row = self.held_out(params)
    if self.ask and self._is_due(self.config.ask_every):
      params = params if self.base is None else self.base.merge(params)
      row |= self.ask(params, self.done)
    return row

  def _save(self, is_best: bool = False) -> None:
    self.writer.flush()  # a run that goes on from here has the rows before
    position = {**self.meta['data'], 'step': self.done}
    now = {**self.meta, 'data': position, 'log': self.log.partial()}
    best = self.best.get(self.done) if is_best else None
    self.checkpoints.save(self.done, self.state.to_trees(), now, best)
