"""What `atm plan` does: plan a run, search its settings, try it on pods."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator

from atm.plan import (
  hardware,
  search_report,
  step_time,
  suggestions,
  train_plan,
  workers,
)
from atm.plan.search import Search, headroom

PODS_FILE = 'pods.json'


def run(
  run_plan: Callable,
  of_pod: Callable,
  search: bool = False,
  pods: tuple[str, ...] = (),
) -> dict:
  """Plans a run; or searches its settings, tries it on pods, or both.

  Args:
    run_plan: `train_plan.plan` with the run's settings.
    of_pod: from the name of a pods file to `train_plan.plan`'s settings
      with that.
    search: look for the fastest settings that fit.
    pods: names of pods files, in place of the run's own.

  Returns:
    A plan, a search, or `by_pods`.

  Raises:
    ValueError: see `train_plan.plan`; no such pod, or none to search for.
  """
  if not isinstance(search, bool):
    raise ValueError(f'SEARCH = {search!r}: expected True or False')
  listed = isinstance(pods, tuple | list)
  if not listed or not all(isinstance(name, str) for name in pods):
    raise ValueError(
      f"PODS = {pods!r}: expected names of pods files, ('v5p_4x4x8', "
      "'v5e_16x16')"
    )
  given = run_plan(instead=dict)
  if pods:
    short = [n.removeprefix('pods/').removesuffix('.gin') for n in pods]
    settings = {name: of_pod(name) for name in short}
    return by_pods(settings, search, given['say'], given['model_dir'])
  if search:
    return Search(given).done()
  return run_plan(tried=functools.partial(fitting, given))


def fitting(given: dict, needs: float) -> list[dict]:
  """Changes of a run that do; see `suggestions.fitting`."""
  if given['topology'] is None:
    return []
  given['say']('it does not fit: trying changes that may')
  return suggestions.fitting(given, needs)


def by_pods(
  settings: dict[str, dict], searched: bool, say: Callable, model_dir
) -> dict:
  """Which pods hold a run, and how fast they are: printed, and in pods.json.

  Each is planned quickly with the mesh of its file, or searched.

  Args:
    settings: name of a pods file -> `train_plan.plan`'s settings
      with that.
    searched: look for the fastest settings of each.
    say: prints a line.
    model_dir: gets pods.json, and a folder of each search.

  Returns:
    What pods.json holds: `rows`, and what their times assume.
  """
  for name, given in settings.items():
    if given['topology'] is None:
      raise ValueError(f'PODS: {name!r} has no TOPOLOGY: it is no TPU')
  rows: dict[str, dict] = {}
  try:
    for name, row in (_searched if searched else _planned)(
      settings, say, model_dir
    ):
      rows[name] = {'pod': name, **_known(settings[name]), **row}
      shown = search_report.outcome(rows[name])
      say(f'[{len(rows)}/{len(settings)}] {name}: {shown}')
  finally:
    found = {
      'searched': searched,
      'finished': len(rows) == len(settings),
      'versions': train_plan.versions(),
      'rows': [rows[name] for name in settings if name in rows],
    }
    say(search_report.pods(found))
    train_plan.write(found, model_dir, PODS_FILE)
  return found


def _known(given: dict) -> dict:
  pod = hardware.pod(given['topology'])
  return {
    'chips': pod.size,
    'share_of_peak': pod.chip.share,
    'batch_size': given['batch_size'],
    'train_steps': given['train_steps'],
  }


def _planned(settings: dict, say, model_dir) -> Iterator[tuple[str, dict]]:
  jobs = (
    (name, workers.settings(given), True) for name, given in settings.items()
  )
  for name, made in workers.planned(jobs, workers.workers()):
    row = {'error': made['error']} if 'error' in made else _row(made)
    yield name, row


def _row(made: dict) -> dict:
  pod = hardware.pod(made['topology'])
  flops = made['hardware_flops'] - made['kernel_flops']
  compute = (flops / (pod.chip.share * pod.chip.peak * pod.size),) * 2
  split = {**made['time_split_s'], 'compute': compute}
  return {
    'mesh': made['mesh'],
    'fits': made['fits'],
    'peak_hbm_gib': made['peak_hbm_gib'],
    'usable_hbm_gib': made['usable_hbm_gib'],
    'headroom': headroom(made),
    'step_s': step_time.step_time(split),
  }


def _searched(settings: dict, say, model_dir) -> Iterator[tuple[str, dict]]:
  for name, given in settings.items():
    folder = model_dir and os.path.join(model_dir, name)
    say(f'--- {name}')
    try:
      found = Search({**given, 'model_dir': folder}).done()
    except ValueError as e:
      yield name, {'error': str(e)}
      continue
    best = next(
      (r for r in found['rows'] if r['bindings'] == found['best']), {}
    )
    shown = ('fits', 'peak_hbm_gib', 'headroom', 'bindings')
    yield (
      name,
      {
        **{k: best.get(k) for k in shown},
        'fits': bool(best),
        'usable_hbm_gib': found['usable_hbm_gib'],
        'step_s': best['plan']['step_time_range_s'] if best else None,
      },
    )
