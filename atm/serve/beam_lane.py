"""The requests of an engine that search beams, and the groups they take."""

import jax
import numpy as np

from atm.serve import row_sampling
from atm.serve.beam_programs import BeamPrograms
from atm.serve.beam_slots import collect_beams, make_group_row
from atm.serve.generation_request import GenerationRequest
from atm.serve.job import Job
from atm.serve.row_lane import RowLane


class BeamLane(RowLane):
  """Requests that wait for a group of beams or have one; see RowLane.

  Its slots are groups. Nothing is told of a request before its search has
  ended.
  """

  kind = 'beams'

  def __init__(self, programs: BeamPrograms, *args):
    super().__init__(programs, *args)
    self.rows = programs.rows * programs.sizes.beams

  def check(self, request: GenerationRequest) -> None:
    """Raises ValueError for a request that it never has room for."""
    s, config = self._sizes, request.config
    if config.beams > s.beams:
      raise ValueError(
        f'beams = {config.beams}: expected at most {s.beams} (BEAMS)'
      )
    row_sampling.limit_tokens(request, s.max_output)

  def count_taken(self) -> int:
    """Returns how many rows decode: all of a group, whatever its beams."""
    return len(self.taken) * self._sizes.beams

  def count_positions(self) -> np.ndarray:
    """Returns [[used, all], [used, all]] positions: own and cross caches'."""
    s, groups, jobs = self._sizes, self.programs.rows, self.taken.values()
    own = sum(job.outputs[0].position for job, _ in jobs) * s.beams
    cross = sum(len(job.request.ids) for job, _ in jobs)
    return np.array(
      [[own, groups * s.beams * s.max_output], [cross, groups * s.max_input]]
    )

  def collect_early(self, reasons: dict[Job, str]) -> None:
    """Collects the beams of requests that are to be removed, as they are."""
    ended = [g for g, (job, _) in self.taken.items() if job in reasons]
    if ended:
      self._collect(ended, reasons)

  def _count_rows(self, job: Job) -> int:
    """Returns how many groups a request takes."""
    return 1

  def _make_row(self, job: Job, result: int):
    """Returns what a request brings to its group."""
    pad = self.programs.model.config.pad_id
    return make_group_row(job.request, self._sizes, pad, job.stops)

  def _collect(self, groups: list[int], reasons: dict[Job, str]) -> None:
    """Gives requests their outputs; `reasons` of those that end early."""
    with_top = any(self.taken[group][0].request.top for group in groups)
    search = self.programs.read_beams(self._states[0], with_top)
    for group in groups:
      job, _ = self.taken[group]
      beams = jax.tree.map(lambda x: x[group], search)  # noqa: B023
      job.end_search(collect_beams(job.request, beams, reasons.get(job)))

  def _tell(self, steps, slots: list[int], now: float) -> None:
    """Gives requests whose search has ended what it found."""
    ended = []
    for group, (job, _) in self.taken.items():
      job.outputs[0].position += int(steps.count)
      if not steps.is_open[group]:
        ended.append(group)
    if not ended:
      return
    self._collect(ended, {})
    for group in ended:
      job, _ = self.taken[group]
      with self._lock:
        self._release(group)
      job.note_tokens(self._observer, now)
      job.deliver(self._observer)
