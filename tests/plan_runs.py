"""Runs to plan, on simulated devices, and plans that are made up."""

import functools

import jax
import numpy as np

from atm.inference import api, sampling
from atm.model import parameters, transformer
from atm.parallel import mesh as mesh_lib
from atm.parallel.sharding import Rules
from atm.plan import decode_programs, hardware, workers
from atm.plan.search_space import Candidate, CostModel
from atm.train import optimizer

import conftest

FSDP = functools.partial(mesh_lib.make_mesh, data=2, fsdp=4)
TENSOR = functools.partial(mesh_lib.make_mesh, data=2, tensor=4)
ADAMW = optimizer.OptimizerConfig(learning_rate=1e-3)
REFUSED = (
  'RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for '
  'HLO temporaries (19.19G) exceeds available HBM (15.75G).'
)


def silent(text: str) -> None:
  """Prints nothing."""


def on_device(tree, number: int = 3) -> int:
  """Returns bytes of the shards that one device really has."""
  device = jax.devices()[number]
  return sum(
    shard.data.nbytes
    for x in jax.tree.leaves(tree)
    for shard in x.addressable_shards
    if shard.device == device
  )


# --- Training, on a pod whose chips are simulated devices

POD = 'v5e:2x4'
OWN = Candidate(2, 4, 1, 'none', 1)
SMALL = dict(
  lengths={'inputs': 128, 'targets': 128}, batch_size=64,
  model_config=conftest.tiny(
    d_model=128, vocab_size=256, dtype='bfloat16', positions=128,
    attention='einsum',
  ),
)  # fmt: skip


def run(**changed) -> dict:
  """Returns settings of `train_plan.plan`, of a run on eight chips."""
  given = dict(
    lengths={'inputs': 20, 'targets': 12}, batch_size=32, train_steps=10,
    model_config=conftest.tiny(), optimizer_config=ADAMW, make_mesh=FSDP,
    rules=Rules(), topology=POD, packed=False, micro_batches=1, seed=0,
    z_loss=0.0, freeze_encoder_steps=0, freeze=(), prompt_loss=False,
    lora=None, lora_base_dtype='float32', model_dir=None, say=silent,
  )  # fmt: skip
  return {**given, **changed}


trace_of = CostModel._trace
# The same for all of a run.
_trace = functools.cache(lambda remat: trace_of(CostModel(run()), remat))


def simulate_pod(monkeypatch) -> None:
  """Lets simulated devices stand for a pod's chips."""
  monkeypatch.setattr(CostModel, '_trace', lambda self, remat: _trace(remat))

  def coordinates(target, axes):
    names = target.mesh.axis_names
    index = tuple(slice(None) if axis in axes else 0 for axis in names)
    return [divmod(d.id, 4) for d in target.mesh.devices[index].flat]

  find_target = lambda topology, make_mesh, start=None: hardware.Target(
    make_mesh(devices=jax.devices()),
    topology and hardware.parse_pod(topology),
  )
  monkeypatch.setattr(hardware, 'pod_devices', lambda pod: jax.devices())
  monkeypatch.setattr(hardware.Target, 'coordinates', coordinates)
  monkeypatch.setattr(hardware, 'find_target', find_target)


def candidate_of(settings: dict) -> Candidate:
  """Returns what some settings of `train_plan.plan` are."""
  axes = settings['make_mesh'].keywords
  return Candidate(
    *(axes[name] for name in ('data', 'fsdp', 'tensor')),
    settings['model_config'].remat, settings['micro_batches'],
  )  # fmt: skip


class MadeUpPlans:
  """Plans that are made up: 10 GiB each, or as `sizes` has it by candidate.

  A step's traffic is that of the candidate's formula; its computation takes 2 s
  if it is planned whole.

  Attributes:
    tried, whole: candidates in turn.
    sizes: candidate -> GiB.
    failing: candidate -> an exception raised, or an error reported.
  """

  def __init__(self, monkeypatch):
    self.tried, self.whole, self.sizes, self.failing = [], [], {}, {}
    self._model = CostModel(run())
    monkeypatch.setattr(workers, 'run_plans', self._run_plans)

  def make(self, settings: dict, partly: bool) -> dict:
    """Returns a plan of some settings."""
    candidate = candidate_of(settings)
    (self.tried if partly else self.whole).append(candidate)
    failing = self.failing.get(candidate)
    if isinstance(failing, BaseException):
      raise failing
    if failing:
      return {'error': failing, 'seconds': 1.0}
    gib, compute = self.sizes.get(candidate, 10.0), 0.0 if partly else 2.0
    split = self._model.formula_split(candidate)
    return {
      'fits': gib <= 15.75, 'peak_hbm_gib': gib, 'usable_hbm_gib': 15.75,
      'time_split_s': {**split, 'compute': (compute, compute)},
      'collectives': [], 'seconds': 1.0,
      'step_time_range_s': None if partly else (2.0, 2.0 + candidate.fsdp),
      'mfu_range': (0.4, 0.5),
    }  # fmt: skip

  def _run_plans(self, plan, jobs, processes=None):
    for name, settings, partly in jobs:
      yield name, self.make(settings, partly)


# --- Decoding

INPUTS, TARGETS = 16, 9
LENGTHS = {'inputs': INPUTS, 'targets': TARGETS}
GREEDY = sampling.Config(max_tokens=TARGETS)
SAMPLED = sampling.Config(max_tokens=TARGETS, temperature=0.7, results=2)
BEAMS = sampling.Config(max_tokens=TARGETS, beams=3, results=2)
tiny = functools.partial(conftest.tiny, encoder_layers=1, decoder_layers=2)


def job_of(config, weights=None) -> decode_programs.DecodeJob:
  """Returns a job of decoding on two by four simulated devices."""
  target = hardware.Target(TENSOR(), None)
  return decode_programs.DecodeJob(
    tiny(), weights, Rules(), target, 'decode', config, INPUTS
  )


def zeros_model() -> api.Model:
  """Returns a model of zeros as `api.load` has it, on two by four devices."""
  abstract = parameters.abstract_params(
    transformer.AlexaTM(tiny()), TENSOR(), Rules()
  )
  zeros = lambda x: jax.device_put(np.zeros(x.shape, x.dtype), x.sharding)
  params = jax.tree.map(zeros, abstract)
  return api.Model(tiny(), params, None, TENSOR(), Rules(), 0)


class Line:
  """A target of eight chips in a row of a pod, tensor along it."""

  pod = hardware.parse_pod('v5e:2x4')
  mesh = None

  def coordinates(self, axes):
    return [(x, y) for x in range(2) for y in range(4)]
