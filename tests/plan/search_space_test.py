"""Candidates of a search, and what is known of them."""

import dataclasses
import functools

import jax
import pytest

import gin
from atm.model import remat as remat_lib
from atm.model.lora import LoraConfig
from atm.plan import train_plan, workers
from atm.plan.search_space import Candidate, CostModel

from plan_runs import OWN, run, simulate_pod


@pytest.fixture
def simulated(monkeypatch):
  """Simulated devices stand for the pod's chips."""
  simulate_pod(monkeypatch)


def test_candidates_are_those_that_a_plan_would_take(simulated):
  """Faults seen: tensor 8 of four heads; rows that do not divide."""
  found = CostModel(run()).candidates()
  assert found[0] == OWN and len(set(found)) == len(found)
  assert {c.remat for c in found} == set(remat_lib.REMAT)
  assert all(c.data * c.fsdp * c.tensor == 8 for c in found)
  meshes = {tuple(c.mesh.values()) for c in found}
  assert meshes == {
    (data, fsdp, tensor)
    for data in (1, 2, 4, 8)
    for fsdp in (1, 2, 4, 8)
    for tensor in (1, 2, 4)
    if data * fsdp * tensor == 8
  }
  # 32 rows over eight chips are four; over two they are sixteen.
  micro = lambda *mesh: {
    c.micro_batches for c in found if tuple(c.mesh.values()) == mesh
  }
  assert micro(2, 4, 1) == {1, 2, 4} and micro(1, 2, 4) == {1, 2, 4, 8}


@pytest.mark.parametrize(
  'candidate',
  [
    Candidate(2, 2, 2, 'none', 2),
    Candidate(4, 2, 1, 'full', 1),
  ],
)
def test_what_is_known_before_compiling_is_so(simulated, candidate):
  """State and FLOPs are those of the plan; memory is no more than that's.

  Fault seen: what layers keep of all micro-batches at once.
  """
  model = CostModel(run())
  settings = candidate.settings(workers.portable_settings(run()), model.slices)
  made = train_plan.plan(
    **{**settings, 'topology': None}, say=lambda text: None
  )
  known, has = model.traced(candidate.remat), made['memory']
  assert known.flops == made['hardware_flops'] and not known.kernel_flops
  assert model.state_bytes(candidate) == has['parameters'] + has['optimizer']
  least = model.least_memory(candidate)
  assert model.state_bytes(candidate) < least < has['parameters'] + has['heap']
  assert made['mesh'] == {'slice': 1, **candidate.mesh}


def test_a_larger_one_keeps_no_less(simulated):
  """Fault seen: fewer micro-batches taken to keep less."""
  model = CostModel(run())
  change = functools.partial(dataclasses.replace, OWN)
  assert model.keeps_no_less(OWN, change(remat='full'))
  assert model.keeps_no_less(OWN, change(micro_batches=2))
  assert not model.keeps_no_less(change(micro_batches=2), OWN)
  assert not model.keeps_no_less(change(remat='full'), OWN)
  assert not model.keeps_no_less(OWN, change(data=1, fsdp=8))


def test_what_waits_in_the_hosts_memory_is_copied_not_kept(simulated):
  """Faults seen: kept on the chip, too; the bytes of all chips on one."""
  model = CostModel(run())
  change = lambda remat: dataclasses.replace(OWN, remat=remat)
  full, kept, offloaded = map(
    model.traced, ('full', 'save_widened', 'offload_widened')
  )
  assert offloaded.kept == full.kept and not full.offloaded
  config, sizes = run()['model_config'], model.lengths
  positions = config.encoder_layers * sizes.inputs
  positions += config.decoder_layers * sizes.targets
  stream = 4 * run()['batch_size'] * positions * config.d_model
  assert offloaded.offloaded == kept.kept - full.kept - stream > 0
  assert 'host copies' not in model.formula_split(change('full'))
  least, most = model.formula_split(change('offload_widened'))['host copies']
  each = offloaded.offloaded / 8
  assert least == 0 and most == 2 * each / model.pod.chip.pcie


def test_bindings_are_the_candidate(configured):
  candidate = Candidate(1, 2, 4, 'dots', 2)
  configured('models/tiny.gin', bindings=candidate.bindings())
  given = gin.get_configurable('plan.plan')(instead=dict)
  mesh = given['make_mesh'](devices=jax.devices())
  assert {'slice': 1, **candidate.mesh} == dict(mesh.shape)
  assert given['model_config'].remat == 'dots'
  assert given['micro_batches'] == 2


def test_a_base_of_adapters_is_held_and_gathered_not_trained(simulated):
  """Faults: a search that leaves out the base, or sums up its gradients."""
  lora = LoraConfig(rank=1)
  model, full = CostModel(run(lora=lora)), CostModel(run())
  mesh = full.target(full.own).mesh
  held, all_trained = (x._state_bytes(mesh) for x in (model, full))
  # 4 bytes a parameter of 12, and the adapters'.
  assert all_trained / 3 < held < all_trained / 2
  sent = lambda x: {r['axes']: r['wire_bytes'] for r in x._collectives(x.own)}
  mine, theirs = sent(model), sent(full)
  assert mine['data',] < theirs['data',] / 10
  assert theirs['fsdp',] / 2 < mine['fsdp',] < theirs['fsdp',]
