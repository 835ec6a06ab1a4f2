"""The greedy and sampled requests of an engine, and the slots they take."""

import bisect
import threading
import time
from collections import deque
from collections.abc import Callable

import numpy as np

from atm.model import cache_blocks
from atm.serve import row_sampling
from atm.serve.generation_request import GenerationRequest
from atm.serve.job import Job
from atm.serve.observer import Observer
from atm.serve.programs import Programs
from atm.serve.slots import OPEN, REASONS, make_row
from atm.serve.stop_pool import StopPool


class RowLane:
  """Slots that decode together, and the requests that have or wait for them.

  Each output takes a slot. The lock guards `waiting` and `taken`: one thread
  takes the lane's turns, others read and submit.

  Attributes:
    programs: what it runs.
    rows: how many slots there are.
    waiting: requests without slots, the first to come first; of all siblings.
    taken: slot -> (request, which of its outputs).
  """

  kind = 'decode'  # of its calls, see `Observer.device_call`

  def __init__(
    self,
    programs: Programs,
    stops: StopPool,
    observer: Observer,
    lock: threading.Condition,
    siblings: list | None = None,
  ):
    """Makes a lane of `siblings` with the same programs and requests."""
    self._siblings: list[RowLane] = [self] if siblings is None else siblings
    self.waiting: deque[Job] = siblings[0].waiting if siblings else deque()
    self.taken: dict[int, tuple[Job, int]] = {}
    self.rows = programs.rows
    self.programs, self._sizes = programs, programs.sizes
    self._stops, self._observer, self._lock = stops, observer, lock
    self._free = list(range(self.rows))  # ascending

  def start(self) -> None:
    """Allocates the slots and times the programs, which are compiled."""
    self._state = self.programs.allocate()
    if self is self._siblings[0]:
      table = self._stops.table
      self._state = self.programs.time_steps(self._state, table)

  def check(self, request: GenerationRequest) -> None:
    """Raises ValueError for a request that it never has room for."""
    s, config = self._sizes, request.config
    if config.results > s.slots:
      raise ValueError(
        f'results = {config.results}: expected at most {s.slots}, the rows '
        'that decode together'
      )
    if request.targets is None:
      row_sampling.limit_tokens(request, s.max_output)
      return
    if not 1 <= len(request.targets) <= s.max_output + 1 - len(request.prefix):
      raise ValueError(
        f'targets of {len(request.targets):,} ids: expected 1 to '
        f'{s.max_output + 1 - len(request.prefix):,}'
      )

  def count_taken(self) -> int:
    """Returns how many rows decode."""
    return len(self.taken)

  def list_jobs(self) -> list[Job]:
    """Returns those that have slots, and then those that wait."""
    running = dict.fromkeys(job for job, _ in self.taken.values())
    return [*running, *self.waiting]

  def has_work(self) -> bool:
    """Tells whether a turn may do something."""
    return bool(self.taken or self.waiting)

  def collect_early(self, reasons: dict[Job, str]) -> None:
    """Collects what requests have that `take_out` is to remove."""

  def count_positions(self) -> np.ndarray:
    """Returns [[used, all], [used, all]] positions: own and cross caches'."""
    rows, s = list(self.taken.values()), self._sizes
    own = sum(j.outputs[i].position for j, i in rows)
    cross = sum(len(j.request.ids) for j, _ in rows)
    return np.array(
      [[own, self.rows * s.max_output], [cross, self.rows * s.max_input]]
    )

  def take_out(self, find_reason: Callable, collects: bool = True) -> dict:
    """Takes out requests that are to end, and frees their slots.

    Args:
      find_reason: request -> why it ends, or None.
      collects: they keep what they have.

    Returns:
      Request -> why.
    """
    with self._lock:
      jobs = {job: find_reason(job) for job in self.list_jobs()}
      reasons = {job: reason for job, reason in jobs.items() if reason}
      for job in reasons:
        if not job.slots:
          self.waiting.remove(job)
    if collects:
      self.collect_early(reasons)
    with self._lock:
      for slot, (job, _) in list(self.taken.items()):
        if job in reasons:
          self._release(slot)
    return reasons

  def take_turn(self) -> bool:
    """Admits requests, and decodes; returns whether there was any to do."""
    self._admit()
    if not self.taken:
      return False
    self._decode()
    return True

  def _release(self, slot: int) -> None:
    job, _ = self.taken.pop(slot)
    bisect.insort(self._free, slot)
    job.slots.remove(slot)
    if job.stops and not job.slots:
      self._stops.release(job.stops)
      job.stops = None

  # --- Admission

  def _admit(self) -> None:
    """Fills free slots with those who wait, the first first."""
    jobs, tokens = [], 0
    with self._lock:
      while self.waiting and not self._leaves_to_sibling():
        job = self.waiting[0]
        tokens += len(job.request.ids)
        # Where there is no room, not the next one: requests of many rows would
        # wait forever behind those of few.
        if jobs and tokens > self._sizes.admit_tokens or not self._place(job):
          break
        jobs.append(self.waiting.popleft())
    jobs.sort(key=lambda job: len(job.request.ids))
    while jobs:
      B, S = self.programs.find_batch([len(x.request.ids) for x in jobs])
      self._admit_batch(jobs[-B:], B, S)
      del jobs[-B:]

  def _leaves_to_sibling(self) -> bool:
    """Tells whether a lane of less than half as many rows takes what waits."""
    return any(2 * len(x.taken) < len(self.taken) for x in self._siblings)

  def _count_rows(self, job: Job) -> int:
    """Returns how many slots a request takes."""
    return len(job.outputs)

  def _make_row(self, job: Job, result: int):
    """Returns what a request brings to one of its slots."""
    pad = self.programs.model.config.pad_id
    return make_row(job.request, result, self._sizes, pad, job.stops)

  def _place(self, job: Job) -> bool:
    """Gives a request slots and its stop strings' states, or nothing."""
    rows = self._count_rows(job)
    if rows > len(self._free):
      return False
    if job.request.stop_table is not None:
      job.stops = self._stops.acquire(job.request.stop_table)
      if job.stops is None:
        return False
    for i, slot in enumerate(self._choose_slots(rows, len(job.request.ids))):
      self._free.remove(slot)
      self.taken[slot] = job, i
      job.slots.append(slot)
    return True

  def _choose_slots(self, count: int, length: int) -> list[int]:
    """Returns free slots for an input of some length.

    In the fewest rows that a program has, for the others are not computed. Long
    inputs take the last of these and short ones the first: rows of a group that
    are short are read in part.
    """
    for bound in sorted({rows for rows, _, _ in self.programs.windows}):
      free = [slot for slot in self._free if slot < bound]
      if len(free) >= count:
        break
    is_long = length * cache_blocks.MOST_PARTS > self._sizes.max_input
    return free[-count:] if is_long else free[:count]

  def _admit_batch(self, jobs: list[Job], B: int, S: int) -> None:
    """Reads the inputs of some requests, and writes their rows."""
    start = time.perf_counter()
    pad = self.programs.model.config.pad_id
    tokens, lengths = np.full((B, S), pad, np.int32), np.zeros(B, np.int32)
    inputs, slots, rows = [], [], []
    for i, job in enumerate(jobs):
      ids = job.request.ids
      tokens[i, : len(ids)], lengths[i] = ids, len(ids)
      for result, slot in enumerate(job.slots):
        inputs.append(i)
        slots.append(slot)
        rows.append(self._make_row(job, result))
    self._state = self.programs.admit(
      self._state, tokens, lengths, inputs, slots, rows
    )
    now = time.perf_counter()
    for job in jobs:
      job.note_admission(self._observer, start, now)
    self._observer.device_call('admit', now - start, len(rows), 0)

  # --- Decoding

  def _decode(self) -> None:
    """Takes steps of all rows, and tells what they brought."""
    start = time.perf_counter()
    is_open = np.zeros(self.programs.rows, bool)
    is_open[list(self.taken)] = True
    limit, window = self._choose_program()
    self._state, steps = self.programs.decode(
      self._state, self._stops.table, is_open, limit,
      window,
    )  # fmt: skip
    now = time.perf_counter()
    self._observer.device_call(
      self.kind, now - start, self.count_taken(), int(steps.count)
    )
    self.programs.times.note_call(window, int(steps.count), now - start)
    self._tell(steps, now)
    self.programs.times.note_host(time.perf_counter() - now)

  def _choose_program(self) -> tuple[int, tuple[int, int, int]]:
    """Returns (how many steps, the window they fit in) for the rows taken."""
    programs, most = self.programs, self._sizes.max_output
    position = max(job.outputs[i].position for job, i in self.taken.values())
    longest = max(len(job.request.ids) for job, _ in self.taken.values())
    find = lambda steps: programs.find_window(
      max(self.taken) + 1, min(position + steps, most), longest
    )
    limit = programs.times.choose_steps(find(1))
    return limit, find(limit)

  def _tell(self, steps, now: float) -> None:
    """Gives the requests what a call brought, and frees rows that ended."""
    jobs, end_id = {}, self.programs.model.config.end_id
    for slot, (job, result) in sorted(self.taken.items()):
      jobs[job] = None
      if _tell_row(steps, slot, job, result, end_id):
        with self._lock:
          self._release(slot)
    for job in jobs:
      job.note_tokens(self._observer, now)
      job.deliver(self._observer)


def _tell_row(steps, slot: int, job: Job, result: int, end_id: int) -> bool:
  """Gives one output what a call brought it; returns whether it ended."""
  output = job.outputs[result]
  for k in range(int(steps.count)):
    output.position += 1
    if steps.token[k, slot] >= 0:
      job.add_token(
        result, steps.token[k, slot], steps.log_probability[k, slot],
        steps.top_ids[k, slot], steps.top_logs[k, slot], end_id,
      )  # fmt: skip
    if (code := steps.ended[k, slot]) != OPEN:
      job.end_output(result, REASONS[code])
      return True
  return False
