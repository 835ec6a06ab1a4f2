"""Changes of a run that does not fit a pod, each known to fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from atm import layers, optimizer, quick
from atm.candidates import MICRO_BATCHES, TENSOR, Candidate, Outlook

TRIES = 8  # quick plans
WANTED = 3
ROUNDED = "MOMENTS_DTYPE = 'bfloat16'"


@dataclasses.dataclass(frozen=True)
class Change:
  """What a run becomes, and what that costs."""

  to: Candidate
  rounded: bool
  costs: str


class Changes:
  """Changes of one run, the cheapest first."""

  def __init__(self, given: dict):
    self.given = quick.settings(given)
    self.outlook = Outlook(self.given)
    self.own = self.outlook.own
    kind = optimizer.kind(given['optimizer_config'])
    moments = kind.get('moments_dtype', 'float32')
    self.rounds = kind.get('name') == 'adamw' and moments != 'bfloat16'
    self.possible = set(self.outlook.candidates())

  def every(self) -> list[Change]:
    """One setting changed, then several; those that may fit."""
    own, change = self.own, dataclasses.replace
    found = [Change(own, True, 'moments are rounded')]
    for to in self._wider(own):
      found.append(Change(to, False, 'longer gathers of parameters'))
    smaller = self._less_kept()
    for remat in smaller:
      to = change(own, remat=remat)
      found.append(Change(to, False, 'more is computed again'))
    for to in self._fewer_rows(own):
      costs = f'parameters gathered {to.micro_batches} times'
      found.append(Change(to, False, costs))
    for to in self._split(own):
      found.append(Change(to, False, 'activations cross the links'))
    least = change(own, remat=smaller[-1]) if smaller else own
    for to in (least, *self._fewer_rows(least)):
      for wide in (to, *self._wider(to)[-1:], *self._split(to)):
        found += [Change(wide, rounded, 'all of these') for rounded in (0, 1)]
    return [c for c in dict.fromkeys(found) if self._may_fit(c)]

  def _less_kept(self) -> list[str]:
    """Kinds of remat that keep less than the run's, the fastest first."""
    traced = self.outlook.traced
    kept = traced(self.own.remat).kept
    less = [r for r in layers.REMAT if traced(r).kept < kept]
    return sorted(less, key=lambda r: (traced(r).flops, traced(r).kept))

  def _wider(self, of: Candidate) -> list[Candidate]:
    wider = (
      dataclasses.replace(of, data=of.data // n, fsdp=of.fsdp * n)
      for n in (2, 4, 8, 16)
      if of.data % n == 0
    )
    return self._among(wider)

  def _fewer_rows(self, of: Candidate) -> list[Candidate]:
    more = (n for n in MICRO_BATCHES if n > of.micro_batches)
    return self._among(dataclasses.replace(of, micro_batches=n) for n in more)

  def _split(self, of: Candidate) -> list[Candidate]:
    more = (n // of.tensor for n in TENSOR if n > of.tensor)
    return self._among(
      dataclasses.replace(of, fsdp=of.fsdp // n, tensor=of.tensor * n)
      for n in more
      if of.fsdp % n == 0
    )

  def _among(self, some) -> list[Candidate]:
    return [candidate for candidate in some if candidate in self.possible]

  def _may_fit(self, change: Change) -> bool:
    if change.rounded and not self.rounds:
      return False
    if change.to == self.own and not change.rounded:
      return False
    needs = self.outlook.least_memory(change.to)
    if change.rounded:  # two moments of 4 bytes a parameter, of 12 with it
      needs -= self.outlook.held(change.to) / 3
    return needs <= self.outlook.usable

  def settings(self, change: Change) -> dict:
    made = change.to.settings(self.given, self.outlook.slices)
    if change.rounded:
      config = made['optimizer_config']
      made['optimizer_config'] = dataclasses.replace(
        config, moments_dtype='bfloat16'
      )
    return made

  def text(self, change: Change) -> str:
    """'mesh.data = 1, mesh.fsdp = 256': what differs."""
    own, to = self.own.bindings(), change.to.bindings()
    lines = [line for line in to if line not in own]
    short = [line.removeprefix('sharding.') for line in lines]
    return ', '.join([*short, *([ROUNDED] * change.rounded)])

  def fitting(self) -> list[dict]:
    """Three that fit, by quick plans; fewer where `TRIES` find no more.

    Returns:
      Rows of `change`, `costs`, `peak_hbm_gib`, `usable_hbm_gib`.
    """
    every, found = self.every(), []

    def jobs() -> Iterator[tuple]:
      for number, change in enumerate(every[:TRIES]):
        if len(found) < WANTED:
          yield number, self.settings(change), True

    for number, made in quick.planned(jobs(), quick.workers()):
      if made.get('fits'):
        found.append((number, made))
    rows = []
    for number, made in sorted(found, key=lambda pair: pair[0])[:WANTED]:
      change = every[number]
      figures = {k: made[k] for k in ('peak_hbm_gib', 'usable_hbm_gib')}
      row = dict(change=self.text(change), costs=change.costs)
      rows.append({**row, **figures})
    return rows
