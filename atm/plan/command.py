"""The command `atm plan`: plans a run, searches settings, compares pods."""

import functools
import os
from collections.abc import Callable, Iterator

from atm.messages import check_arguments
from atm.plan import (
  hardware,
  report,
  search_report,
  step_time,
  suggestions,
  train_plan,
  workers,
)
from atm.plan.search import Search, headroom

PODS_FILE = 'pods.json'


@check_arguments()
def run(
  run_plan: Callable,
  of_pod: Callable | None,
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
    A plan, a search, or `compare_pods`.

  Raises:
    ValueError: see `train_plan.plan`; no such pod, or none to search for.
  """
  given = run_plan(instead=dict)
  if pods:
    short = [n.removeprefix('pods/').removesuffix('.gin') for n in pods]
    settings = {name: of_pod(name) for name in short}
    return compare_pods(settings, search, given['say'], given['model_dir'])
  if search:
    return Search(train_plan.plan, given).run()
  return run_plan(tried=functools.partial(_find_changes, given))


def _find_changes(given: dict, needs: float) -> list[dict]:
  """Returns changes of a run that fit; see `suggestions.find_fitting`."""
  if given['topology'] is None:
    return []
  given['say']('it does not fit: trying changes that may')
  return suggestions.find_fitting(train_plan.plan, given, needs)


def compare_pods(
  settings: dict[str, dict], searched: bool, say: Callable, model_dir
) -> dict:
  """Compares pods that may hold a run: a table, printed, and in pods.json."""
  # `settings` are those of `train_plan.plan` by name of a pods file. Each pod
  # is planned partly with the mesh of its file, or searched. `model_dir` gets
  # pods.json, and a folder of each search.
  for name, given in settings.items():
    if given['topology'] is None:
      raise ValueError(f'PODS: {name!r} has no TOPOLOGY: it is no TPU')
  rows: dict[str, dict] = {}
  results = _search_all(settings, say, model_dir)
  try:
    for name, row in results if searched else _plan_all(settings):
      given = settings[name]
      pod = hardware.parse_pod(given['topology'])
      rows[name] = {
        'pod': name,
        'chips': pod.chips,
        'share_of_peak': pod.chip.share,
        'batch_size': given['batch_size'],
        'train_steps': given['train_steps'],
        **row,
      }
      outcome = search_report.format_outcome(rows[name])
      say(f'[{len(rows)}/{len(settings)}] {name}: {outcome}')
  finally:
    table = {
      'searched': searched,
      'finished': len(rows) == len(settings),
      'versions': hardware.installed_versions(),
      'rows': [rows[name] for name in settings if name in rows],
    }
    say(search_report.pods_page(table))
    report.write(table, model_dir, PODS_FILE)
  return table


def _plan_all(settings: dict) -> Iterator[tuple[str, dict]]:
  jobs = (
    (name, workers.portable_settings(given), True)
    for name, given in settings.items()
  )
  names = 'mesh', 'fits', 'peak_hbm_gib', 'usable_hbm_gib'
  for name, result in workers.run_plans(train_plan.plan, jobs):
    if 'error' in result:
      yield name, {'error': result['error']}
      continue
    # Partial plans have no cycles: computation is by the share of peak.
    flops = result['hardware_flops'] - result['kernel_flops']
    pod = hardware.parse_pod(result['topology'])
    compute = (flops / pod.assumed_flops,) * 2
    split = {**result['time_split_s'], 'compute': compute}
    row = {key: result[key] for key in names}
    row['headroom'] = headroom(result)
    yield name, {**row, 'step_s': step_time.step_time(split)}


def _search_all(settings: dict, say, model_dir) -> Iterator[tuple[str, dict]]:
  for name, given in settings.items():
    folder = model_dir and os.path.join(model_dir, name)
    say(f'--- {name}')
    try:
      summary = Search(train_plan.plan, {**given, 'model_dir': folder}).run()
    except ValueError as e:
      yield name, {'error': str(e)}
      continue
    rows = {tuple(row['bindings']): row for row in summary['rows']}
    best = rows[tuple(summary['best'])] if summary['best'] else {}
    names = 'peak_hbm_gib', 'headroom', 'bindings'
    row = {
      **{name: best.get(name) for name in names},
      'fits': bool(best),
      'usable_hbm_gib': summary['usable_hbm_gib'],
      'step_s': best['plan']['step_time_range_s'] if best else None,
    }
    yield name, row
