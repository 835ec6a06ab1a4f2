"""Changes of a run that does not fit a pod, each known to fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from atm.plan import workers
from atm.plan.search_space import Candidate, Outlook
from atm.train import optimizer

TRIES = 8  # quick plans
WANTED = 3
ROUNDED = "MOMENTS_DTYPE = 'bfloat16'"


@dataclasses.dataclass(frozen=True)
class Change:
  """What a run becomes; `rounded`: with ROUNDED."""

  to: Candidate
  rounded: bool


def fitting(given: dict, needs: float) -> list[dict]:
  """Three changes that fit, by quick plans; fewer if `TRIES` find no more.

  Those of fewest settings first, a mesh being one, then the fastest by the
  formula of candidates.py.

  Args:
    given: settings of `train_plan.plan`, of a run that does not fit its pod.
    needs: bytes of a chip that it takes.

  Returns:
    Rows of `change`, `costs`, `peak_hbm_gib`, `usable_hbm_gib`.
  """
  outlook = Outlook(given)
  queue, found, failed = possible(outlook, needs), [], []

  def jobs() -> Iterator[tuple]:
    tries = 0
    for change in queue:
      if len(found) >= WANTED or tries >= TRIES:
        return
      if not any(_as_large(outlook, change, other) for other in failed):
        tries += 1
        yield change, settings(outlook, change), True

  for change, made in workers.planned(jobs(), workers.workers()):
    if made.get('fits'):
      found.append((queue.index(change), change, made))
    else:
      failed.append(change)
  found.sort(key=lambda place: place[0])
  return [row(outlook, change, made) for _, change, made in found[:WANTED]]


def possible(outlook: Outlook, needs: float) -> list[Change]:
  """All that may fit, the cheapest first.

  What the run needs beyond the least that is known of it, others are taken to
  need, too, or as much in proportion if that is less.
  """
  kind = optimizer.kind(outlook.given['optimizer_config'])
  halves = kind['name'] == 'adamw' and kind['moments_dtype'] != 'bfloat16'
  every = [
    Change(to, rounded)
    for to in outlook.candidates()
    for rounded in ((False, True) if halves else (False,))
  ]
  least = outlook.least_memory(outlook.own)

  def may_fit(change):
    known = _least(outlook, change)
    beyond = max(0, needs - least) * min(1, known / least)
    return known + beyond <= outlook.usable

  some = [change for change in every if may_fit(change)]
  price = lambda c: (len(costs(outlook, c)), c.rounded, outlook.formula(c.to))
  return sorted(some, key=price)


def _least(outlook: Outlook, change: Change) -> float:
  """Bytes: rounded moments take 8 of 12 bytes a parameter."""
  saved = outlook.held(change.to) / 3 if change.rounded else 0
  return outlook.least_memory(change.to) - saved


def _as_large(outlook: Outlook, change: Change, other: Change) -> bool:
  """Whether it keeps no less than another."""
  no_less = outlook.no_less(change.to, other.to)
  return no_less and change.rounded <= other.rounded


def settings(outlook: Outlook, change: Change) -> dict:
  made = change.to.settings(workers.settings(outlook.given), outlook.slices)
  if change.rounded:
    config = made['optimizer_config']
    rounded = dataclasses.replace(config, moments_dtype='bfloat16')
    made['optimizer_config'] = rounded
  return made


def costs(outlook: Outlook, change: Change) -> list[str]:
  """What each changed setting does; none: nothing is changed."""
  own, to, said = outlook.own, change.to, []
  if to.mesh != own.mesh:
    said.append('another mesh')
  if to.remat != own.remat:
    more = outlook.traced(to.remat).flops / outlook.traced(own.remat).flops - 1
    said.append(f'{more:+.0%} computation')
  if to.micro_batches != own.micro_batches:
    said.append(f'parameters gathered {to.micro_batches} times')
  return [*said, *(['moments are rounded'] * change.rounded)]


def row(outlook: Outlook, change: Change, made: dict) -> dict:
  """What `fitting` returns of a change and its quick plan."""
  bound = outlook.own.bindings()
  lines = [line for line in change.to.bindings() if line not in bound]
  lines += [ROUNDED] * change.rounded
  least, most = outlook.step_range(
    change.to, made['time_split_s'], outlook.assumed
  )
  seconds = f'a step about {least:.1f} to {most:.1f} s'
  return {
    'change': ', '.join(line.removeprefix('sharding.') for line in lines),
    'costs': ', '.join([*costs(outlook, change), seconds]),
    'peak_hbm_gib': made['peak_hbm_gib'],
    'usable_hbm_gib': made['usable_hbm_gib'],
  }
