"""Changes of a run that does not fit: estimated, or each known to fit.

Estimated savings follow from the split of memory, so only planning again tells;
`find_fitting` plans again.
"""

import dataclasses
from collections.abc import Callable, Iterator

from atm.plan import workers
from atm.plan.decode_programs import DecodeJob, ModelJob
from atm.plan.search_space import Candidate, CostModel
from atm.train import optimizer

MOST_PLANS = 8  # partial ones
WANTED = 3


# Rows of changes: those estimated have the bytes that they save, those tried
# `peak_hbm_gib` and `usable_hbm_gib`.
def _change(change: str, costs: str, saves: float) -> dict:
  return {'change': change, 'costs': costs, 'saves': int(saves)}


def estimate_train_changes(plan: dict, given: dict, mesh, rows: int) -> list:
  """Returns the three changes of a training run that cost the least speed."""
  # `rows` are those of a batch that a data shard has. Those changes that save
  # enough come first.
  memory, config = plan['memory'], given['model_config']
  micro = given['micro_batches']
  changes = []
  if _may_round_moments(given):
    halved, saved = "MOMENTS_DTYPE = 'bfloat16'", memory['optimizer'] // 2
    changes.append(_change(halved, 'moments are rounded', saved))
  if mesh.shape['data'] > 1:
    less, more = mesh.shape['data'] // 2, mesh.shape['fsdp'] * 2
    wider = f'mesh.data = {less}, mesh.fsdp = {more}'
    state = memory['parameters'] + memory['optimizer']
    changes.append(_change(wider, 'longer gathers of parameters', state // 2))
  if config.remat != 'full':
    layers = config.encoder_layers + config.decoder_layers
    kept = memory['temporaries'] * (1 - 1 / max(2, layers / 4))
    costs = 'up to a third more computation'
    changes.append(_change("Config.remat = 'full'", costs, kept))
  smaller = [n for n in range(micro + 1, rows + 1) if rows % n == 0]
  if smaller:
    n = smaller[0]
    saved = int(memory['temporaries'] * (1 - micro / n)) - memory['parameters']
    costs = f'parameters gathered {n} times'
    changes.append(_change(f'MICRO_BATCHES = {n}', costs, max(0, saved)))
  if mesh.shape['tensor'] == 1:
    costs = 'activations cross the links'
    changes.append(_change('mesh.tensor = 2', costs, memory['peak'] // 3))
  over = memory['peak'] - plan['usable_hbm_gib'] * 2**30
  enough = lambda row: row['saves'] >= over
  # Stable: those that save enough stay in the order of what they cost.
  changes.sort(key=lambda r: (not enough(r), 0 if enough(r) else -r['saves']))
  return changes[:WANTED]


def _may_round_moments(given: dict) -> bool:
  kind = optimizer.describe_state(given['optimizer_config'])
  return kind['name'] == 'adamw' and kind['moments_dtype'] != 'bfloat16'


def estimate_decode_changes(plan: dict, job: DecodeJob) -> list[dict]:
  """Returns three changes of decoding or encoding, the cheapest first."""
  memory, changes = plan['memory'], _estimate_weight_changes(plan, job)
  if plan['batch_size'] > job.unit:
    rows = plan['batch_size'] // job.unit // 2 * job.unit
    saved = (memory['cache'] + memory['temporaries']) // 2
    fewer = f'DECODE_BATCH_SIZE = {rows}'
    changes.append(_change(fewer, 'fewer tokens/s', saved))
  if job.config.beams > 1:
    saved = memory['cache'] * (1 - 1 / job.config.beams) / 2
    greedy = 'choosing.Config.beams = 1'
    changes.append(_change(greedy, 'other outputs', saved))
  if job.kind == 'decode':
    targets = plan['lengths']['targets'] // 2
    shorter = f"TASK_FEATURE_LENGTHS['targets'] = {targets}"
    changes.append(_change(shorter, 'shorter outputs', memory['cache'] // 4))
  return changes[:WANTED]


def estimate_serve_changes(plan: dict, job: ModelJob) -> list[dict]:
  """Returns three changes of an engine, the cheapest first."""
  memory, sizes = plan['memory'], plan['sizes']
  changes = _estimate_weight_changes(plan, job)
  if sizes['beam_groups']:
    none = 'no request may have beams'
    changes.append(_change('BEAM_GROUPS = 0', none, memory['beams']))
  if plan['slots'] > job.unit:
    fewer = plan['slots'] // job.unit // 2 * job.unit
    saved = (memory['self cache'] + memory['cross cache']) // 2
    changes.append(_change(f'SLOTS = {fewer}', 'fewer tokens/s', saved))
  for name, part in (('max_output', 'self'), ('max_input', 'cross')):
    shorter = f'{name.upper()} = {sizes[name] // 2}'
    saved = memory[f'{part} cache'] // 2
    changes.append(_change(shorter, 'shorter requests', saved))
  return changes[:WANTED]


def _estimate_weight_changes(plan: dict, job: ModelJob) -> list[dict]:
  """Returns the changes by which a chip has less of the parameters."""
  held, changes = plan['memory']['parameters'], []
  half, mesh = held // 2, job.target.mesh
  if plan['weights'] == 'float32':
    changes.append(
      _change("WEIGHTS = 'bfloat16'", 'parameters are rounded', half)
    )
  if plan['weights'] != 'int8':
    saved = held * 3 // 4 if plan['weights'] == 'float32' else half
    changes.append(_change("WEIGHTS = 'int8'", 'products are in int8', saved))
  tensor = 2 * mesh.shape['tensor']
  divides = job.net.config.decoder_heads % tensor == 0
  if mesh.shape['data'] % 2 == 0 and divides:
    wider = f'mesh.data = {mesh.shape["data"] // 2}, mesh.tensor = {tensor}'
    costs = 'twice the chips wait for each other'
    changes.append(_change(wider, costs, half))
  return changes


# --- Changes that were tried


def find_fitting(plan: Callable, given: dict, needs: float) -> list[dict]:
  """Returns three changes that fit, by partial plans; fewer if no more do."""
  # The run is too large: it needs so many bytes of a chip.
  model = CostModel(given)
  queue, fit, failed = possible_changes(model, needs), {}, []

  def jobs() -> Iterator[tuple]:
    plans = 0
    for change in queue:
      if len(fit) >= WANTED or plans >= MOST_PLANS:
        return
      if not any(model.keeps_no_less(change, other) for other in failed):
        plans += 1
        yield change, change.settings(given, model.slices), True

  for change, result in workers.run_plans(plan, jobs()):
    if result.get('fits'):
      fit[change] = result
    else:
      failed.append(change)
  cheapest = sorted(fit, key=queue.index)[:WANTED]
  return [_describe(model, change, fit[change]) for change in cheapest]


def possible_changes(model: CostModel, needs: float) -> list[Candidate]:
  """Returns all changes that may fit, of a run that needs so many bytes."""
  # Those of fewest settings come first, a mesh being one, then the fastest by
  # the formula of search_space.py.
  changes = model.candidates()
  if _may_round_moments(model.given):
    replace = dataclasses.replace
    changes = [replace(c, rounded=r) for c in changes for r in (False, True)]
  least = model.least_memory(model.own)

  def may_fit(change):
    # What the run needs beyond the least that is known of it, others are taken
    # to need, too, or as much in proportion if that is less.
    known = model.least_memory(change)
    beyond = max(0, needs - least) * min(1, known / least)
    return known + beyond <= model.usable

  price = lambda c: (
    len(change_costs(model, c)), c.rounded, model.formula_time(c)
  )  # fmt: skip
  return sorted(filter(may_fit, changes), key=price)


def change_costs(model: CostModel, to: Candidate) -> list[str]:
  """Returns what each changed setting costs; none: nothing is changed."""
  own, costs = model.own, []
  if to.mesh != own.mesh:
    costs.append('another mesh')
  if to.remat != own.remat:
    more = model.traced(to.remat).flops / model.traced(own.remat).flops - 1
    costs.append(f'{more:+.0%} computation')
  if to.micro_batches != own.micro_batches:
    costs.append(f'parameters gathered {to.micro_batches} times')
  return [*costs, *(['moments are rounded'] * to.rounded)]


def _describe(model: CostModel, change: Candidate, result: dict) -> dict:
  """Returns the row of a change and its partial plan."""
  bound = model.own.bindings()
  lines = [line for line in change.bindings() if line not in bound]
  least, most = model.step_range(change, result['time_split_s'])
  seconds = f'a step about {least:.1f} to {most:.1f} s'
  return {
    'change': ', '.join(line.removeprefix('sharding.') for line in lines),
    'costs': ', '.join([*change_costs(model, change), seconds]),
    'peak_hbm_gib': result['peak_hbm_gib'],
    'usable_hbm_gib': result['usable_hbm_gib'],
  }
