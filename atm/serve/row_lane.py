"""The greedy and sampled requests of an engine, and the slots they take."""

import heapq
import threading
import time
from collections import deque

import numpy as np

from atm.serve.generation_request import GenerationRequest
from atm.serve.job import Job
from atm.serve.observer import Observer
from atm.serve.programs import Programs
from atm.serve.slots import OPEN, REASONS


class RowLane:
  """Requests that wait for slots or have them; each output takes one.

  All methods but `push` and `list_jobs` are for the engine's thread.

  Attributes:
    rows: how many slots there are.
    waiting: requests without slots, the first to come first.
    taken: slot -> (request, which of its outputs).
  """

  def __init__(
    self, programs: Programs, observer: Observer, lock: threading.Condition
  ):
    self.waiting: deque[Job] = deque()
    self.taken: dict[int, tuple[Job, int]] = {}
    self.rows = programs.sizes.slots
    self._programs, self._sizes = programs, programs.sizes
    self._observer, self._lock = observer, lock
    self._free = list(range(self.rows))

  def start(self, say) -> None:
    """Allocates the slots and compiles every program."""
    self._state = self._programs.allocate()
    self._state = self._programs.compile(self._state, say)

  def check(self, request: GenerationRequest) -> None:
    """Raises ValueError for a request that it never has room for."""
    s, results = self._sizes, request.config.results
    if results > s.slots:
      raise ValueError(f'results = {results}: expected at most {s.slots}')

  def list_jobs(self) -> list[Job]:
    """Returns those that have slots, and then those that wait."""
    running = dict.fromkeys(job for job, _ in self.taken.values())
    return [*running, *self.waiting]

  def count_positions(self) -> tuple[int, int]:
    """Returns how many positions of the caches hold something, and all."""
    rows = list(self.taken.values())
    used = sum(len(j.request.ids) + j.outputs[i].position for j, i in rows)
    return used, self.rows * (self._sizes.max_input + self._sizes.max_output)

  def remove(self, jobs) -> None:
    """Takes requests out, and frees their slots."""
    with self._lock:
      self.waiting = deque(x for x in self.waiting if x not in jobs)
      for slot, (job, _) in list(self.taken.items()):
        if job in jobs:
          self._release(slot)

  def take_turn(self) -> None:
    """Admits requests, and decodes."""
    self._admit()
    if self.taken:
      self._decode()

  def _release(self, slot: int) -> None:
    del self.taken[slot]
    heapq.heappush(self._free, slot)

  # --- Admission

  def _admit(self) -> None:
    """Fills free slots with those who wait, the first first."""
    jobs, tokens = [], 0
    with self._lock:
      while self.waiting:
        job = self.waiting[0]
        tokens += len(job.request.ids)
        if len(job.outputs) > len(self._free):
          break  # not the next one: it would wait forever behind small ones
        if jobs and tokens > self._sizes.admit_tokens:
          break
        self.waiting.popleft()
        jobs.append(job)
        for i in range(len(job.outputs)):
          slot = heapq.heappop(self._free)
          self.taken[slot] = job, i
          job.slots.append(slot)
    jobs.sort(key=lambda job: len(job.request.ids))
    while jobs:
      B, S = self._programs.find_batch([len(x.request.ids) for x in jobs])
      self._admit_batch(jobs[-B:], B, S)
      del jobs[-B:]

  def _admit_batch(self, jobs: list[Job], B: int, S: int) -> None:
    """Reads the inputs of some requests, and writes their rows."""
    start = time.perf_counter()
    R, pad = self._sizes.slots, self._programs.model.config.pad_id
    tokens, lengths = np.full((B, S), pad, np.int32), np.zeros(B, np.int32)
    inputs, slots = np.zeros(R, np.int32), np.full(R, R, np.int32)
    row, count = self._programs.blank_rows(), 0
    for i, job in enumerate(jobs):
      ids = job.request.ids
      tokens[i, : len(ids)], lengths[i] = ids, len(ids)
      for slot in job.slots:
        inputs[count], slots[count] = i, slot
        self._write_row(row, count, job.request)
        count += 1
    self._state = self._programs.admit(
      self._state, tokens, lengths, count, inputs, slots, row
    )
    now = time.perf_counter()
    for job in jobs:
      job.note_admission(self._observer, now)
    self._observer.device_call('admit', now - start, count, 0)

  def _write_row(self, row, at: int, request: GenerationRequest) -> None:
    """Writes what a request brings to its slot into row `at` of arrays."""
    given = [*request.prefix, *(request.targets or ())]
    row.ids[at, : len(given)] = given
    row.length[at], row.told[at] = len(given), len(request.prefix)
    row.is_scored[at] = request.targets is not None
    room = min(
      request.config.max_tokens,
      self._sizes.max_output - len(request.prefix) + request.forced,
    )
    row.limit[at] = len(request.prefix) - request.forced + room

  # --- Decoding

  def _decode(self) -> None:
    """Takes steps of all rows, and tells what they brought."""
    start = time.perf_counter()
    limit, stops_early = 4, bool(self.waiting)
    is_open = np.zeros(self._sizes.slots, bool)
    is_open[list(self.taken)] = True
    position = max(job.outputs[i].position for job, i in self.taken.values())
    longest = max(len(job.request.ids) for job, _ in self.taken.values())
    window = self._programs.find_window(
      max(self.taken) + 1,
      min(position + limit, self._sizes.max_output),
      longest,
    )
    self._state, steps = self._programs.decode(
      self._state, is_open, limit, stops_early, window
    )
    now = time.perf_counter()
    self._observer.device_call(
      'decode', now - start, len(self.taken), int(steps.count)
    )
    self._tell(steps, now)

  def _tell(self, steps, now: float) -> None:
    """Gives the requests what a call brought, and frees rows that ended."""
    jobs = {}
    for slot, (job, result) in sorted(self.taken.items()):
      jobs[job] = None
      if self._tell_row(steps, slot, job, result):
        with self._lock:
          self._release(slot)
    for job in jobs:
      job.note_tokens(self._observer, now)
      job.deliver(self._observer)

  def _tell_row(self, steps, slot: int, job: Job, result: int) -> bool:
    """Gives one output what a call brought it; returns whether it ended."""
    output, end_id = job.outputs[result], self._programs.model.config.end_id
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
