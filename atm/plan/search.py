"""Which mesh, remat and number of micro-batches a pod runs fastest with.

Candidates (candidates.py) that may fit, the fastest by a formula first, are
compiled as far as memory and collectives (quick.py); the best three, and the
run as it is bound, whole.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterator

from atm.plan import search_report, train_plan, workers
from atm.plan.search_space import Candidate, Outlook

SEARCH_FILE = 'search.json'
TRIES = 32  # quick plans of a search
BEST = 3  # of them, planned whole
HEADROOM = 0.1  # of a chip's memory: left where any candidate leaves it
# What is said of a candidate that is not tried.
TOO_LARGE = 'need more than a chip has, by state and what layers keep'
LARGER = 'keep no less than one that did not fit'
SLOWER = 'are slower by the formula than those tried'
STOPPED = 'were not tried when it was stopped'


class Search:
  """A search of one run on one pod.

  Attributes:
    rows: a dict of each candidate that was tried, see `row`.
    plans: whole plans by candidate.
    per_flop: remat -> seconds a FLOP outside kernels, of the first whole plan
      that has it, see `Outlook.step_range`.
    left_out: reason -> candidates.
  """

  def __init__(self, given: dict):
    if given['topology'] is None:
      raise ValueError(
        'TOPOLOGY = None: a search is for a pod; add its file, '
        '--gin_file=pods/v5p_4x4x8.gin'
      )
    self.given, self.say = given, given['say']
    self.settings = workers.settings(given)
    self.outlook = Outlook(given)
    self.rows: dict[Candidate, dict] = {}
    self.plans: dict[Candidate, dict] = {}
    self.left_out: dict[str, list[Candidate]] = {}
    self.per_flop: dict[str, tuple[float, float]] = {}
    self.began, self.finished = time.perf_counter(), False

  def done(self) -> dict:
    """Searches, prints and writes; what was found so far if interrupted."""
    queue = self._queue()
    try:
      self._try_many(queue)
      self._plan_best()
      self.finished = True
    finally:
      self._leave(SLOWER if self.finished else STOPPED, queue)
      found = self.found()
      self.say(search_report.text(found))
      self._write(found)
    return found

  # --- Quick plans

  def _try_many(self, queue: list[Candidate]) -> None:
    count = min(TRIES, len(queue))
    pod = self.outlook.pod
    self.say(
      f'{len(queue) + self._left()} candidates for {pod.name}, {pod.size} '
      f'chips: {count} to try, {workers.workers()} at a time'
    )
    began = time.perf_counter()
    jobs = self._jobs(queue)
    for candidate, made in workers.planned(jobs, workers.workers()):
      self._add(candidate, made)
      self._told(candidate, count, began)

  def _queue(self) -> list[Candidate]:
    """Candidates that may fit, the run's own first, then by the formula."""
    every, fits = self.outlook.candidates(), []
    for number, candidate in enumerate(every):
      if number and self.outlook.least_memory(candidate) > self.outlook.usable:
        self._leave(TOO_LARGE, [candidate])
      else:
        fits.append(candidate)
    return fits[:1] + sorted(fits[1:], key=self.outlook.formula)

  def _jobs(self, queue: list[Candidate]) -> Iterator[tuple]:
    """Takes from the queue what is worth trying as processes get free.

    Until one fits with room to spare, every other one is that which needs
    least memory.
    """
    tries = 0
    while queue and tries < TRIES:
      place = 0
      if tries % 2 and not any(map(roomy, self.rows.values())):
        least = min(queue, key=self.outlook.least_memory)
        place = queue.index(least)
      candidate = queue.pop(place)
      if self._hopeless(candidate):
        self._leave(LARGER, [candidate])
        continue
      tries += 1
      yield self._job(candidate)

  def _job(self, candidate: Candidate, fast: bool = True) -> tuple:
    settings = candidate.settings(self.settings, self.outlook.slices)
    return candidate, settings, fast

  def _hopeless(self, candidate: Candidate) -> bool:
    return any(
      row['fits'] is False and self.outlook.no_less(candidate, other)
      for other, row in self.rows.items()
    )

  def _add(self, candidate: Candidate, made: dict) -> None:
    self.rows[candidate] = {
      **dataclasses.asdict(candidate),
      'own': candidate == self.outlook.own,
      'error': made.get('error'),
      'fits': made.get('fits'),
      'peak_hbm_gib': made.get('peak_hbm_gib'),
      'headroom': headroom(made),
      'wire_bytes': sum(r['wire_bytes'] for r in made.get('collectives') or ()),
      'split': made.get('time_split_s'),
      'seconds': made['seconds'],
    }

  def _compiled(self, candidate: Candidate, made: dict) -> None:
    self.plans[candidate] = made
    if made.get('time_split_s'):
      known = self.outlook.per_flop(made, candidate)
      self.per_flop.setdefault(candidate.remat, known)

  def _leave(self, reason: str, which: list[Candidate]) -> None:
    if which:
      self.left_out.setdefault(reason, []).extend(which)

  def _left(self) -> int:
    return sum(map(len, self.left_out.values()))

  def _told(self, candidate: Candidate, count: int, began: float) -> None:
    number, spent = len(self.rows), time.perf_counter() - began
    left = spent / number * max(0, count - number)
    self.say(
      f'[{number}/{count}] {candidate}: '
      f'{search_report.outcome(self.rows[candidate])}; '
      f'{search_report.clock(left)} left'
    )

  # --- Whole plans

  def _plan_best(self) -> None:
    self.say(f'compiling the best {BEST} whole, and the run as it is bound')
    for candidate, made in workers.planned(self._whole(), workers.workers()):
      self._compiled(candidate, made)
      self.say(f'{candidate}: {search_report.whole(made)}')

  def _whole(self) -> Iterator[tuple]:
    """The run's own, then the fastest by estimate, anew for each.

    Of those with headroom, if there are any. Plans that have ended correct the
    estimates of what is not begun; one whose remat is being planned waits for
    that, where there is another.
    """
    own, begun = self.outlook.own, []
    if self.rows.get(own, {}).get('fits'):
      begun.append(own)
      yield self._job(own, fast=False)
    fit = [c for c, row in self.rows.items() if row['fits']]
    some = [c for c in fit if roomy(self.rows[c])] or fit
    for _ in range(min(BEST, len(some))):
      waiting = {c.remat for c in begun if c not in self.plans}
      best = min(
        some, key=lambda c: (c.remat in waiting, middle(self.estimate(c)))
      )
      some.remove(best)
      if best not in begun:
        begun.append(best)
        yield self._job(best, fast=False)

  def estimate(self, candidate: Candidate) -> tuple[float, float]:
    """Seconds a step (least, most), without cycles of its own."""
    split = self.rows[candidate]['split'] or self.outlook.split(candidate)
    per_flop = self.per_flop.get(candidate.remat) or self._per_flop_of_any()
    return self.outlook.step_range(candidate, split, per_flop)

  def _per_flop_of_any(self) -> tuple[float, float]:
    known = self.per_flop
    own = known.get(self.outlook.own.remat)
    return own or next(iter(known.values()), self.outlook.assumed)

  # --- What was found

  def _write(self, found: dict) -> None:
    folder = self.given['model_dir']
    train_plan.write(found, folder, SEARCH_FILE)
    if folder is not None and any(r['peak_hbm_gib'] for r in found['rows']):
      search_report.picture(found, os.path.join(folder, search_report.PICTURE))

  def found(self) -> dict:
    """What search.json holds.

    Returns:
      `rows` by estimated time, those that fit first, each with `estimate_s`
      and, where it was planned whole, `step_time_range_s` and the plan's
      other figures; `best`, gin bindings of the fastest planned whole.
    """
    rows = []
    for candidate, row in self.rows.items():
      row = {**row, 'estimate_s': self.estimate(candidate)}
      whole = self.plans.get(candidate, {})
      row['plan'] = {
        name: whole[name]
        for name in ('step_time_range_s', 'mfu_range', 'peak_hbm_gib', 'error')
        if name in whole
      } or None
      row['bindings'] = candidate.bindings()
      del row['split']
      rows.append(row)
    rows.sort(key=lambda r: (not r['fits'], middle(r['estimate_s'])))
    ranked = sorted(
      (r for r in rows if timed(r)),
      key=lambda r: (
        not roomy(r),
        middle(r['plan']['step_time_range_s']),
      ),
    )
    return {
      'topology': self.outlook.pod.name,
      'usable_hbm_gib': self.outlook.usable / 2**30,
      'headroom_wanted': HEADROOM,
      'finished': self.finished,
      'minutes': (time.perf_counter() - self.began) / 60,
      'shares_of_peak': self._shares(),
      'versions': train_plan.versions(),
      'left_out': {why: len(which) for why, which in self.left_out.items()},
      'least_gib_left_out': self._least_left_out(),
      'ranked': [r['bindings'] for r in ranked],
      'rows': rows,
      'best': ranked[0]['bindings'] if ranked else None,
    }

  def _shares(self) -> dict[str, float]:
    """Of peak, what is computed outside kernels reaches, by remat: of whole
    plans; 'assumed' without any."""
    share = self.outlook.pod.chip.share
    if not self.per_flop:
      return {'assumed': share}
    peak = share * middle(self.outlook.assumed)
    return {kind: peak / middle(pair) for kind, pair in self.per_flop.items()}

  def _least_left_out(self) -> float | None:
    large = self.left_out.get(TOO_LARGE)
    least = min(map(self.outlook.least_memory, large)) if large else None
    return least and least / 2**30


def middle(pair) -> float:
  return sum(pair) / 2


def headroom(made: dict) -> float | None:
  """Share of a chip's memory that is left; negative where it does not fit."""
  if not made.get('usable_hbm_gib'):
    return None
  return 1 - made['peak_hbm_gib'] / made['usable_hbm_gib']


def roomy(row: dict) -> bool:
  return bool(row['fits']) and row['headroom'] >= HEADROOM


def timed(row: dict) -> bool:
  """Whether it was planned whole, and its time is known."""
  return bool((row['plan'] or {}).get('step_time_range_s'))
