"""Searches the mesh, remat and number of micro-batches that run fastest.

Candidates (search_space.py) that may fit, the fastest by a formula first, are
compiled partly, as far as memory and collectives (compilation.py); the best
three, and the run as it is bound, whole.
"""

import os
import time
from collections.abc import Callable, Iterator

from atm.messages import clock_text
from atm.plan import hardware, report, search_report, workers
from atm.plan.search_space import Candidate, CostModel

SEARCH_FILE = 'search.json'
MOST_TRIED = 32  # partial plans of a search
BEST = 3  # of them, planned whole
HEADROOM = 0.1  # of a chip's memory: left where any candidate leaves it
# Reasons why a candidate is not tried, as reports have them.
TOO_LARGE = 'need more than a chip has, by state and what layers keep'
LARGER = 'keep no less than one that did not fit'
SLOWER = 'are slower by the formula than those tried'
STOPPED = 'were not tried when it was stopped'


class Search:
  """A search of one run on one pod."""

  def __init__(self, plan: Callable, given: dict):
    """Takes `train_plan.plan` and its settings, which a pod has to fit."""
    if given['topology'] is None:
      raise ValueError(
        'TOPOLOGY = None: a search is for a pod; add its file, '
        '--gin_file=pods/v5p_4x4x8.gin'
      )
    self.plan, self.given, self.say = plan, given, given['say']
    self.model = CostModel(given)
    self.rows: dict[Candidate, dict] = {}  # of those that were tried
    self.plans: dict[Candidate, dict] = {}  # whole ones
    self.left_out: dict[str, list[Candidate]] = {}  # by reason
    # By remat, seconds a FLOP outside kernels: of the first whole plan of it.
    self.per_flop: dict[str, tuple[float, float]] = {}
    self._began, self._finished = time.perf_counter(), False

  def run(self) -> dict:
    """Searches, prints and writes `summary`, even if interrupted."""
    queue = self._queue()
    try:
      self._try_many(queue)
      self._plan_best()
      self._finished = True
    finally:
      self._leave_out(SLOWER if self._finished else STOPPED, queue)
      summary = self.summary()
      self.say(search_report.search_page(summary))
      folder = self.given['model_dir']
      report.write(summary, folder, SEARCH_FILE)
      if folder and any(r['peak_hbm_gib'] for r in summary['rows']):
        path = os.path.join(folder, search_report.PICTURE)
        search_report.draw(summary, path)
    return summary

  # --- Partial plans

  def _queue(self) -> list[Candidate]:
    """Returns candidates that may fit, the run's own, then by the formula."""
    own, *others = self.model.candidates()
    fits = lambda c: self.model.least_memory(c) <= self.model.usable
    self._leave_out(TOO_LARGE, [c for c in others if not fits(c)])
    return [own, *sorted(filter(fits, others), key=self.model.formula_time)]

  def _try_many(self, queue: list[Candidate]) -> None:
    count = min(MOST_TRIED, len(queue))
    total = len(queue) + sum(map(len, self.left_out.values()))
    pod = self.model.pod
    self.say(
      f'{total} candidates for {pod.name}, {pod.chips} chips: {count} to try, '
      f'{workers.default_processes()} at a time'
    )
    began = time.perf_counter()
    for candidate, result in workers.run_plans(self.plan, self._jobs(queue)):
      self._add(candidate, result)
      number, spent = len(self.rows), time.perf_counter() - began
      left = clock_text(spent / number * max(0, count - number))
      outcome = search_report.format_outcome(self.rows[candidate])
      self.say(f'[{number}/{count}] {candidate}: {outcome}; {left} left')

  def _jobs(self, queue: list[Candidate]) -> Iterator[tuple]:
    """Takes from the queue what is worth trying as processes get free."""
    tries = 0
    while queue and tries < MOST_TRIED:
      candidate = queue[0]
      # Until one fits with room to spare, every other one is that which needs
      # least memory.
      if tries % 2 and not any(map(has_headroom, self.rows.values())):
        candidate = min(queue, key=self.model.least_memory)
      queue.remove(candidate)
      failed = [c for c, row in self.rows.items() if row['fits'] is False]
      if any(self.model.keeps_no_less(candidate, c) for c in failed):
        self._leave_out(LARGER, [candidate])
        continue
      tries += 1
      yield self._job(candidate, partly=True)

  def _job(self, candidate: Candidate, partly: bool) -> tuple:
    settings = candidate.settings(self.given, self.model.slices)
    return candidate, settings, partly

  def _add(self, candidate: Candidate, result: dict) -> None:
    traffic = result.get('collectives') or ()
    self.rows[candidate] = {
      **candidate.mesh,
      'remat': candidate.remat,
      'micro_batches': candidate.micro_batches,
      'own': candidate == self.model.own,
      **{name: result.get(name) for name in ('error', 'fits', 'peak_hbm_gib')},
      'headroom': headroom(result),
      'wire_bytes': sum(row['wire_bytes'] for row in traffic),
      'split': result.get('time_split_s'),
      'seconds': result['seconds'],
    }

  def _leave_out(self, reason: str, candidates: list[Candidate]) -> None:
    if candidates:
      self.left_out.setdefault(reason, []).extend(candidates)

  # --- Whole plans

  def _plan_best(self) -> None:
    self.say(f'compiling the best {BEST} whole, and the run as it is bound')
    for candidate, result in workers.run_plans(self.plan, self._best_jobs()):
      self.plans[candidate] = result
      if result.get('time_split_s'):
        # Seconds a FLOP (least, most) by the cycles of the whole plan.
        flops = self.model.traced(candidate.remat).flops
        known = tuple(s / flops for s in result['time_split_s']['compute'])
        self.per_flop.setdefault(candidate.remat, known)
      self.say(f'{candidate}: {search_report.format_outcome(result)}')

  def _best_jobs(self) -> Iterator[tuple]:
    """Yields the run's own, then the fastest by estimate, anew for each."""
    own, begun = self.model.own, []
    if self.rows.get(own, {}).get('fits'):
      begun.append(own)
      yield self._job(own, partly=False)
    # Of those with headroom, if there are any. Plans that have ended correct
    # the estimates of what is not begun; one whose remat is being planned waits
    # for that, where there is another.
    fit = [c for c, row in self.rows.items() if row['fits']]
    some = [c for c in fit if has_headroom(self.rows[c])] or fit
    for _ in range(min(BEST, len(some))):
      waiting = {c.remat for c in begun if c not in self.plans}
      rank = lambda c, busy=waiting: (c.remat in busy, sum(self.estimate(c)))
      best = min(some, key=rank)
      some.remove(best)
      if best not in begun:
        begun.append(best)
        yield self._job(best, partly=False)

  def estimate(self, candidate: Candidate) -> tuple[float, float]:
    """Returns seconds a step (least, most), without cycles of its own."""
    split = self.rows[candidate]['split']
    any_known = next(iter(self.per_flop.values()), None)
    remats = candidate.remat, self.model.own.remat
    known = filter(None, map(self.per_flop.get, remats))
    split = split or self.model.formula_split(candidate)
    return self.model.step_range(candidate, split, next(known, any_known))

  # --- Results

  def summary(self) -> dict:
    """Returns what search.json holds."""
    # By estimated time, those that fit first. `ranked` and `best` are the gin
    # bindings of those that were planned whole, and of the fastest of them.
    rows = [self._row(candidate) for candidate in self.rows]
    rows.sort(key=lambda r: (not r['fits'], sum(r['estimate_s'])))
    time_of = lambda r: (r['plan'] or {}).get('step_time_range_s')
    ranked = sorted(
      filter(time_of, rows),
      key=lambda r: (not has_headroom(r), sum(time_of(r))),
    )
    too_large = self.left_out.get(TOO_LARGE, ())
    least = min(map(self.model.least_memory, too_large), default=None)
    return {
      'topology': self.model.pod.name,
      'usable_hbm_gib': self.model.usable / 2**30,
      'headroom_wanted': HEADROOM,
      'finished': self._finished,
      'minutes': (time.perf_counter() - self._began) / 60,
      'shares_of_peak': self._shares_of_peak(),
      'versions': hardware.installed_versions(),
      'left_out': {why: len(which) for why, which in self.left_out.items()},
      'least_gib_left_out': least and least / 2**30,
      'ranked': [r['bindings'] for r in ranked],
      'rows': rows,
      'best': ranked[0]['bindings'] if ranked else None,
    }

  def _row(self, candidate: Candidate) -> dict:
    row, plan = dict(self.rows[candidate]), self.plans.get(candidate, {})
    del row['split']
    names = 'step_time_range_s', 'mfu_range', 'peak_hbm_gib', 'error'
    return {
      **row,
      'estimate_s': self.estimate(candidate),
      'plan': {name: plan[name] for name in names if name in plan} or None,
      'bindings': candidate.bindings(),
    }

  def _shares_of_peak(self) -> dict[str, float]:
    """Returns remat -> share of peak outside kernels, or 'assumed' -> it."""
    share = self.model.pod.chip.share
    if not self.per_flop:
      return {'assumed': share}
    peak = share * sum(self.model.assumed_per_flop)
    return {remat: peak / sum(pair) for remat, pair in self.per_flop.items()}


def headroom(result: dict) -> float | None:
  """Returns the share of a chip's memory that is left; below 0: too little."""
  if not result.get('usable_hbm_gib'):
    return None
  return 1 - result['peak_hbm_gib'] / result['usable_hbm_gib']


def has_headroom(row: dict) -> bool:
  """Tells whether a row's candidate fits with HEADROOM."""
  return bool(row['fits']) and row['headroom'] >= HEADROOM
