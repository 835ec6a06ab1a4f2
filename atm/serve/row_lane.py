"""The greedy and sampled requests of an engine, and the slots they take."""

import bisect
import threading
import time
from collections import deque
from collections.abc import Callable

import numpy as np

from atm.serve import row_sampling
from atm.serve.banks import (
  choose_slots,
  count_rows,
  find_moves,
  list_banks,
  span_rows,
)
from atm.serve.engine_sizes import EngineSizes
from atm.serve.generation_request import GenerationRequest
from atm.serve.job import Job
from atm.serve.observer import Observer
from atm.serve.programs import Programs
from atm.serve.slots import OPEN, REASONS, make_row
from atm.serve.stop_pool import StopPool

# On a CPU each row slows the others' steps. So many are taken at once; more are
# once they have waited so long, for together they take fewer seconds.
EAGER_ROWS = 8
PATIENCE_SECONDS = 1.5


def check_row_room(request: GenerationRequest, sizes: EngineSizes) -> None:
  """Raises ValueError for a request that so many slots never have room for."""
  results, most = request.config.results, sizes.max_output
  if results > sizes.slots:
    raise ValueError(
      f'results = {results}: expected at most {sizes.slots}, the rows that '
      'decode together'
    )
  if request.targets is None:
    row_sampling.limit_tokens(request, most)
    return
  room = most + 1 - len(request.prefix)
  if not 1 <= len(request.targets) <= room:
    raise ValueError(
      f'targets of {len(request.targets):,} ids: expected 1 to {room:,}'
    )


class RowLane:
  """Slots that decode together, and the requests that have or wait for them.

  Each output takes a slot. The lock guards `waiting` and `taken`: one thread
  takes the lane's turns, others read and submit.

  Attributes:
    programs: what it runs.
    rows: how many slots there are.
    waiting: requests without slots, the first to come first; of all siblings.
    taken: slot -> (request, which of its outputs); slots of a bank are
      adjacent.
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
    self._size = programs.bank_rows
    self._stops, self._observer, self._lock = stops, observer, lock
    self._free = list(range(self.rows))  # ascending

  def start(self) -> None:
    """Allocates the slots and times the programs, which are compiled."""
    self._states = self.programs.allocate()
    if self is self._siblings[0]:
      self.programs.time_steps(self._states, self._stops.table)

  def check(self, request: GenerationRequest) -> None:
    """Raises ValueError for a request that it never has room for."""
    check_row_room(request, self._sizes)

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
    self._gather()
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
      while self.waiting and not self._leaves_waiting():
        job = self.waiting[0]
        tokens += len(job.request.ids)
        # Where there is no room, not the next one: requests of many rows would
        # wait forever behind those of few.
        if jobs and tokens > self._sizes.admit_tokens or not self._place(job):
          break
        jobs.append(self.waiting.popleft())
    jobs.sort(key=lambda job: len(job.request.ids))
    for bank in count_rows(self.taken, self._size):
      is_here = lambda slot: slot // self._size == bank  # noqa: B023
      here = [job for job in jobs if any(map(is_here, job.slots))]
      while here:
        B, S = self.programs.find_batch([len(x.request.ids) for x in here])
        self._admit_batch(bank, here[-B:], B, S)
        del here[-B:]

  def _leaves_waiting(self) -> bool:
    """Tells whether who waits is for a lane of fewer rows, or waits longer."""
    rows = len(self.taken)
    if any(len(lane.taken) < rows for lane in self._siblings):
      return True
    if not self.programs.in_blocks or rows < EAGER_ROWS:
      return False
    waited = self.waiting[0].count_seconds(time.perf_counter())
    return waited < PATIENCE_SECONDS

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
    chosen = choose_slots(self.taken, self._free, self._size, rows)
    for i, slot in enumerate(chosen):
      self._free.remove(slot)
      self.taken[slot] = job, i
      job.slots.append(slot)
    return True

  def _admit_batch(self, bank: int, jobs: list[Job], B: int, S: int) -> None:
    """Reads the inputs of some requests, and writes their rows in a bank."""
    start = time.perf_counter()
    tokens = np.full((B, S), self.programs.model.config.pad_id, np.int32)
    lengths = np.zeros(B, np.int32)
    inputs, slots, rows = [], [], []
    for i, job in enumerate(jobs):
      ids = job.request.ids
      tokens[i, : len(ids)], lengths[i] = ids, len(ids)
      for result, slot in enumerate(job.slots):
        if slot // self._size == bank:
          inputs.append(i)
          slots.append(slot % self._size)
          rows.append(self._make_row(job, result))
    self._states[bank] = self.programs.admit(
      self._states[bank], tokens, lengths, inputs, slots, rows
    )
    now = time.perf_counter()
    for job in jobs:
      if job.slots[0] // self._size == bank:  # once, of several banks
        job.note_admission(self._observer, start, now)
    self._observer.device_call('admit', now - start, len(rows), 0)

  # --- Decoding

  def _gather(self) -> None:
    """Moves rows out of banks, where others have room: calls take fewer."""
    while moves := find_moves(self.taken, self._free, self._size):
      for slot, target in moves:
        self.programs.move(self._states, slot, target)
        with self._lock:
          job, _ = self.taken[target] = self.taken.pop(slot)
          self._free.remove(target)
          bisect.insort(self._free, slot)
          job.slots[job.slots.index(slot)] = target

  def _decode(self) -> None:
    """Takes steps of all rows, and tells what they brought."""
    start = time.perf_counter()
    limit, window = self._choose_program()
    count = self.programs.count_banks(window)
    banks = list_banks(self.taken, self._size, self.programs.banks)[:count]
    slots = [bank * self._size + i for bank in banks for i in range(self._size)]
    is_open = np.array([slot in self.taken for slot in slots])
    steps = self.programs.decode(
      self._states, banks, self._stops.table, is_open, limit, window
    )
    now = time.perf_counter()
    self._observer.device_call(
      self.kind, now - start, self.count_taken(), int(steps.count)
    )
    self.programs.times.note_call(window, int(steps.count), now - start)
    self._tell(steps, slots, now)
    self.programs.times.note_host(time.perf_counter() - now)

  def _choose_program(self) -> tuple[int, tuple[int, int, int]]:
    """Returns (how many steps, the window they fit in) for the rows taken."""
    programs, most = self.programs, self._sizes.max_output
    position = max(job.outputs[i].position for job, i in self.taken.values())
    longest = max(len(job.request.ids) for job, _ in self.taken.values())
    rows = span_rows(self.taken, self._size)
    find = lambda steps: programs.find_window(
      rows, min(position + steps, most), longest
    )
    limit = programs.times.choose_steps(find(1))
    return limit, find(limit)

  def _tell(self, steps, slots: list[int], now: float) -> None:
    """Gives requests what a call of these slots brought; frees what ended."""
    jobs, end_id = {}, self.programs.model.config.end_id
    for row, slot in enumerate(slots):
      if slot not in self.taken:
        continue
      job, result = self.taken[slot]
      jobs[job] = None
      if _tell_row(steps, row, job, result, end_id):
        with self._lock:
          self._release(slot)
    for job in jobs:
      job.note_tokens(self._observer, now)
      job.deliver(self._observer)


def _tell_row(steps, row: int, job: Job, result: int, end_id: int) -> bool:
  """Gives one output what a call brought it; returns whether it ended."""
  output = job.outputs[result]
  for k in range(int(steps.count)):
    output.position += 1
    if steps.token[k, row] >= 0:
      job.add_token(
        result, steps.token[k, row], steps.log_probability[k, row],
        steps.top_ids[k, row], steps.top_logs[k, row], end_id,
      )  # fmt: skip
    if (code := steps.ended[k, row]) != OPEN:
      job.end_output(result, REASONS[code])
      return True
  return False
