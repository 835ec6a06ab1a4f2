"""The serving engine: threads that own the device and decode for all."""

import dataclasses
import threading
import time
from collections.abc import Callable, Sequence

from atm.inference import api
from atm.inference.outputs import Generation
from atm.messages import one_line
from atm.serve import blocking_call, row_sampling
from atm.serve.beam_lane import BeamLane
from atm.serve.beam_programs import BeamPrograms
from atm.serve.engine_errors import EngineClosedError, QueueFullError
from atm.serve.engine_memory import EngineMemory
from atm.serve.engine_sizes import EngineSizes
from atm.serve.generation_request import GenerationRequest, RequestUpdate
from atm.serve.job import Job
from atm.serve.observer import Observer
from atm.serve.programs import (
  Programs,
  count_lanes,
  prepare_engine_params,
)
from atm.serve.row_lane import RowLane
from atm.serve.stop_pool import StopPool

# A call of the device that nothing interrupts takes no longer.
LAST_CALL_SECONDS = 60
STUCK_SECONDS = 0.05

DeliverIndexed = Callable[[int, RequestUpdate], None]


@dataclasses.dataclass(frozen=True)
class EngineStats:
  """What an engine does at a moment.

  Attributes:
    running: requests that decode.
    waiting: requests that wait for slots.
    slots: rows there are, those of beams among them.
    used_slots: rows that are taken.
    cache_usage: the share of the decoder's own caches that holds something.
    cross_usage: that of the cross caches, of encoded inputs.
  """

  running: int
  waiting: int
  slots: int
  used_slots: int
  cache_usage: float
  cross_usage: float


class Ticket:
  """Several requests that were submitted at once; `cancel` ends them."""

  def __init__(self, wake: Callable[[], None]):
    self._wake = wake
    self.is_cancelled = False
    self.delivering = threading.Lock()  # lanes bring news at the same time

  def cancel(self) -> None:
    """Ends its requests and frees their rows, within one call of the device."""
    self.is_cancelled = True
    self._wake()


class Engine:
  """Serves the requests of many callers with one model; see `submit`.

  A turn of a lane's loop: requests that were cancelled or are late end; waiting
  ones are admitted, first come, first served, as many as
  `EngineSizes.admit_tokens` lets; all rows take some steps in one call, see
  `StepTimes.choose_steps`. The slot of a row that ended is free in the next.
  Lanes take turns in one thread; on one CPU each has a thread of its own.

  Attributes:
    model, sizes: what is served, and room for how much.
    failure: the exception that ended the loop, or None.
  """

  def __init__(
    self,
    model: api.Model,
    sizes: EngineSizes = EngineSizes(),
    observer: Observer = Observer(),
    say: Callable[[str], None] = print,
  ):
    self.model, self.observer = model, observer
    self.sizes = sizes.fit(
      model.config, model.mesh, model.rules,
      model.generation_defaults.get('beams') or 1,
    )  # fmt: skip
    self.failure: BaseException | None = None
    self._say = say
    self._changed = threading.Condition()
    params = prepare_engine_params(model)
    count = count_lanes(model.mesh, self.sizes.slots)
    slots = -(-self.sizes.slots // count)
    sizes = dataclasses.replace(self.sizes, slots=slots)
    programs = Programs(model, sizes, params)
    self.sizes = dataclasses.replace(self.sizes, slots=count * programs.rows)
    self._stops = StopPool(
      self.sizes.stop_states, model.config.vocab_size, programs.whole
    )
    shared = self._stops, observer, self._changed
    rows: list[RowLane] = []
    for _ in range(count):
      rows.append(RowLane(programs, *shared, rows))
    self._lanes = [*rows]
    if self.sizes.beam_groups:
      beams = BeamPrograms(model, self.sizes, params)
      self._lanes.append(BeamLane(beams, *shared))
    self._is_taking = self._is_closed = False
    self._threads: list[threading.Thread] = []

  # --- For all threads

  def start(self) -> None:
    """Compiles every program, allocates the slots and starts the loop.

    Raises:
      ValueError: they do not fit in the memory there is.
    """
    sets = [lane.programs for lane in self._lanes]
    memory = EngineMemory(self.sizes, sets)
    memory.check()
    for programs in dict.fromkeys(sets):
      programs.compile(self._say)
    self._say(memory.describe())
    memory.check()
    for lane in self._lanes:
      lane.start()
    self._is_taking = True
    # Threads may call one CPU at the same time; programs of several devices
    # would wait for each other, and an accelerator computes one at a time.
    at_once = sets[0].in_blocks
    for lanes in [[x] for x in self._lanes] if at_once else [self._lanes]:
      thread = threading.Thread(
        target=self._run, args=(lanes,), name='atm engine', daemon=True
      )
      self._threads.append(thread)
      thread.start()

  def _find_lane(self, request: GenerationRequest) -> RowLane:
    """Returns the lane that serves a request; raises ValueError for none."""
    searches = request.config.beams > 1 and request.targets is None
    if searches and not self.sizes.beam_groups:
      raise ValueError(
        f'beams = {request.config.beams}: expected 1, for this engine has no '
        'groups of beams (BEAM_GROUPS = 0)'
      )
    return self._lanes[-1 if searches else 0]

  def check(self, request: GenerationRequest) -> None:
    """Raises ValueError for a request that can never be served."""
    s = self.sizes
    if not 1 <= len(request.ids) <= s.max_input:
      raise ValueError(
        f'the input has {len(request.ids):,} tokens: expected 1 to '
        f'{s.max_input:,}'
      )
    row_sampling.check_ids_of(request, self.model.config.vocab_size)
    row_sampling.check_limits(request, s.banned, s.top)
    self._stops.check(request.stop_table)
    self._find_lane(request).check(request)

  def submit(
    self, requests: Sequence[GenerationRequest], deliver: DeliverIndexed
  ) -> Ticket:
    """Takes requests, all or none of them.

    Args:
      requests: what is asked.
      deliver: called with the number of a request and its news, once for each
        call of the device that brought any, never twice at a time; in a thread
        of the engine, so it must not block, nor raise.

    Raises:
      ValueError: see `check`.
      QueueFullError: too many would wait.
      EngineClosedError: none are taken.
    """
    for request in requests:
      self.check(request)
    ticket = Ticket(self._wake)
    with self._changed:
      if not self._is_taking:
        raise EngineClosedError(self._explain_closed())
      waiting = self._count_waiting()
      if waiting + len(requests) > self.sizes.queue:
        raise QueueFullError(waiting, self.sizes.queue)
      for i, request in enumerate(requests):
        job = Job(request, ticket, i, deliver)
        self._find_lane(request).waiting.append(job)
      self._changed.notify_all()
    return ticket

  def complete(self, inputs, mode=None, **options) -> list[list[Generation]]:
    """Returns what `Model.complete` returns, see `blocking_call.complete`."""
    return blocking_call.complete(self, inputs, mode, **options)

  def stats(self) -> EngineStats:
    """Returns what the engine does at the moment."""
    with self._changed:
      waiting = self._count_waiting()
      running = len(self._list_jobs()) - waiting
      own, cross = sum(lane.count_positions() for lane in self._lanes)
      return EngineStats(
        running,
        waiting,
        sum(lane.rows for lane in self._lanes),
        sum(lane.count_taken() for lane in self._lanes),
        float(own[0] / own[1]),
        float(cross[0] / cross[1]),
      )

  def drain(self, seconds: float) -> bool:
    """Takes no more requests; ends those that have not ended in `seconds`.

    Returns whether all had.
    """
    with self._changed:
      self._is_taking = False
      ended = self._changed.wait_for(self._is_idle, seconds)
      for job in self._list_jobs():
        job.ticket.is_cancelled = True
      self._changed.notify_all()
      self._changed.wait_for(self._is_idle, LAST_CALL_SECONDS)
    return ended

  def close(self) -> None:
    """Ends all requests, and the loops."""
    with self._changed:
      self._is_taking = False
      self._is_closed = True
      self._changed.notify_all()
    for thread in self._threads:
      thread.join()

  def _explain_closed(self) -> str:
    if self.failure is not None:
      return f'the engine failed: {one_line(self.failure)}'
    return 'the engine takes no requests: it starts, or ends'

  def _list_jobs(self) -> list[Job]:
    jobs = [job for lane in self._lanes for job in lane.list_jobs()]
    return list(dict.fromkeys(jobs))  # lanes share those that wait

  def _count_waiting(self) -> int:
    return sum(not job.slots for job in self._list_jobs())

  def _is_idle(self) -> bool:
    return not self._list_jobs()

  def _wake(self) -> None:
    with self._changed:
      self._changed.notify_all()

  # --- The loops

  def _run(self, lanes: list[RowLane]) -> None:
    """Takes turns of lanes until the engine is closed, or fails."""
    try:
      while self._wait(lanes):
        if not self._take_turn(lanes):
          # What waits needs stop strings' states that another lane has.
          with self._changed:
            self._changed.wait(STUCK_SECONDS)
    except BaseException as e:  # whatever it is, nobody may wait forever
      self.failure = self.failure or e
      self._say(f'the engine failed: {one_line(e)}')
    self._end_all(lanes)

  def _wait(self, lanes: list[RowLane]) -> bool:
    """Returns, once there is something to do, whether to go on."""
    is_over = lambda: self._is_closed or self.failure is not None
    with self._changed:
      self._changed.wait_for(
        lambda: is_over() or any(lane.has_work() for lane in lanes)
      )
      return not is_over()

  def _take_turn(self, lanes: list[RowLane]) -> bool:
    """Ends some requests, and lets each lane admit and decode."""
    now = time.perf_counter()
    for lane in lanes:
      self._end(lane, lambda job: job.find_end(now))
    busy = [lane.take_turn() for lane in lanes]
    self._wake()  # drain waits for the end of all
    return any(busy)

  def _end_all(self, lanes: list[RowLane]) -> None:
    """Ends every request of lanes: cancelled, or by the engine's failure."""
    with self._changed:
      self._is_taking = False
    error = self.failure and one_line(self.failure)
    for lane in lanes:
      self._end(lane, lambda job: 'cancelled', error)
    self._wake()

  def _end(
    self, lane: RowLane, find_reason: Callable, error: str | None = None
  ) -> None:
    """Ends requests of a lane, each for the reason that is found."""
    ended = lane.take_out(find_reason, collects=error is None)
    for job, reason in ended.items():
      job.end(reason, error)
      job.deliver(self.observer)
