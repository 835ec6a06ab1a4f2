"""Every pods file, without its devices: its mesh, and what a chip holds.

A file's first line says what the pod is; then for which model it is meant, and
how many GiB a chip holds. All that is said is computed here.
"""

import dataclasses
import math
import re

import jax
import pytest
from jax.sharding import AbstractMesh, AxisType

import gin
from atm.cli import gin_config, gin_files
from atm.data import task_registry
from atm.model.transformer import AlexaTM
from atm.parallel import mesh as mesh_lib
from atm.parallel.sharding import Rules
from atm.train import config_checks, optimizer, step

# What a program may use, GiB a chip: of TPUs by the compiler's own messages.
# Of GPUs three quarters of what nvidia-smi names: 81,559, 143,771, 183,359 MiB.
USABLE = {
  'v4': 30.75, 'v5e': 15.75, 'v5p': 95.73, 'v6e': 31.24, 'tpu7x': 95.0,
  'gpu': 59.7, 'h200': 105.3, 'b200': 134.3,
}  # fmt: skip
DEVICES = {'tpu7x': 2}  # of a chip, as JAX counts them; else 1
PODS = [
  name
  for name in gin_files.shipped_files()
  if name.startswith('pods/') and not name.startswith('pods/cpu')
]
LINE = re.compile(
  r'# (?:(?P<slices>\d+) slices of )?(?P<kind>TPU v\w+|TPU7x|(?:[HB]200 )?GPUs)'
  r'(?: (?P<topology>[\dx]+))?: (?P<chips>\d+) chips(?: of (?P<devices>\d) '
  r'devices)?, (?P<hosts>\d+) hosts?, '
  r'(?P<gib>[\d.]+) GiB a (?:chip|device)\.\n'
)
MEANT = re.compile(r'# For (models/\w+\.gin)')
GIB = re.compile(r'^#   ([A-Za-z ,\']+?) +([\d.]+)(?:  .*)?$', re.M)


@dataclasses.dataclass
class Pod:
  name: str
  slices: int
  kind: str
  topology: tuple[int, ...]
  chips: int
  devices: int  # as JAX counts them
  hosts: int
  gib: float
  model: str
  held: dict[str, float]  # GiB a chip, as the file says


def kind_of(named: str) -> str:
  """Returns the kind of a chip, as files' names have it."""
  return (
    named.removeprefix('TPU ')
    .lower()
    .removesuffix(' gpus')
    .replace('gpus', 'gpu')
  )


def read(name: str) -> Pod:
  with open(gin_files.find_file(name)) as f:
    text = f.read()
  found = LINE.match(text)
  assert found, f'{name}: the first line is {text.splitlines()[0]!r}'
  sides = found['topology'] or found['chips']
  return Pod(
    name,
    int(found['slices'] or 1),
    kind_of(found['kind']),
    tuple(map(int, sides.split('x'))),
    int(found['chips']),
    int(found['chips']) * int(found['devices'] or 1),
    int(found['hosts']),
    float(found['gib']),
    MEANT.search(text)[1],
    {what: float(gib) for what, gib in GIB.findall(text)},
  )


@pytest.fixture
def bound():
  """Configures a run with more files; forgets it afterwards."""

  def call(*files, run='pretrain', bindings=()):
    files = [gin_files.find_file(f) for f in (f'runs/{run}.gin', *files)]
    gin_config.apply_config(files, ['MODEL_DIR = "unused"', *bindings], set())

  with gin.unlock_config():
    yield call
  gin.clear_config()


def abstract_mesh(chips: int) -> AbstractMesh:
  """The mesh that is bound, over as many devices as the pod has."""
  sizes = {'slice': 1, 'data': -1, 'fsdp': 1, 'tensor': 1}
  sizes |= gin.get_bindings('sharding.mesh')
  return AbstractMesh(
    mesh_lib.fill_sizes(chips, **sizes),
    mesh_lib.MESH_AXES,
    axis_types=(AxisType.Auto,) * len(mesh_lib.MESH_AXES),
  )


def held_by_a_chip(tree) -> int:
  """Bytes of the shards that one device has."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for x in jax.tree.leaves(tree)
  )


def test_there_are_pods_of_every_kind():
  pods = [read(name) for name in PODS]
  for kind in USABLE:
    assert len({p.chips for p in pods if p.kind == kind}) > 1
  assert any(p.slices > 1 for p in pods)


@pytest.mark.parametrize('name', PODS)
def test_a_file_is_the_pod_its_name_says(bound, name):
  pod = read(name)
  assert pod.slices * math.prod(pod.topology) == pod.chips
  shape = 'x'.join(map(str, pod.topology))
  assert pod.devices == pod.chips * DEVICES.get(pod.kind, 1)
  if pod.kind in ('gpu', 'h200', 'b200'):
    assert name == f'pods/{pod.kind}_{pod.chips}.gin'
    assert pod.chips == 8 * pod.hosts
  else:
    many = f'_x{pod.slices}' if pod.slices > 1 else ''
    assert name == f'pods/{pod.kind}_{shape}{many}.gin'
    a_host = 8 if shape == '2x4' else 4
    assert pod.chips == a_host * pod.hosts
  assert pod.gib == USABLE[pod.kind]
  bound(pod.model, name)
  sizes = gin.get_bindings('sharding.mesh')
  assert math.prod(sizes.values()) == pod.devices and -1 not in sizes.values()
  assert sizes['slice'] == pod.slices
  joins = gin.get_bindings('sharding.start')['distributed'] == 'auto'
  assert joins == (pod.hosts > 1)


@pytest.mark.parametrize('name', PODS)
def test_its_model_divides_and_fits(bound, name):
  """The sizes, the spec of every parameter, and the sums of the comment."""
  pod = read(name)
  bound(pod.model, name)
  mesh, rules = (
    abstract_mesh(pod.devices),
    gin.get_configurable('sharding.Rules')(),
  )
  config = gin.get_configurable('model.Config')()
  lengths = task_registry.Lengths.of_model(config)
  batch = gin.query_parameter('%BATCH_SIZE')
  config_checks.check_sizes(mesh, rules, config, lengths, batch)
  tx = optimizer.make_optimizer(gin.get_configurable('optimizer.Config')())
  state = step.abstract_state(AlexaTM(config), tx, mesh, rules)
  matrices = optimizer.weight_decay_mask(state.params)
  for is_matrix, x in zip(*map(jax.tree.leaves, (matrices, state.params))):
    assert not is_matrix or 'fsdp' in str(x.sharding.spec)

  rows = batch // math.prod(mesh.shape[a] for a in rules.mesh_axes('batch'))
  S, T = lengths.both
  kept = config.encoder_layers * S + config.decoder_layers * T
  D = config.d_model
  wide = {  # what each layer keeps of a position, beside its input
    'full': (0, 0),
    'offload_widened': (0, 0),
    'save_attended': (2 * D, 3 * D),
    'save_widened': (config.encoder_ff + 2 * D, config.decoder_ff + 3 * D),
    'dots': (config.encoder_ff + 6 * D, config.decoder_ff + 11 * D),
  }[config.remat]
  results = config.encoder_layers * S * wide[0]
  results += config.decoder_layers * T * wide[1]
  held = {
    'state': held_by_a_chip(state),
    'gradients': held_by_a_chip(state.params),
    'layers\' inputs': 2 * rows * kept * config.d_model,
    'results': 2 * rows * results,
    'logits': 6 * rows * min(T, config.loss_chunk) * config.vocab_size,
    'LM head': 6 * config.vocab_size * config.d_model,
  }  # fmt: skip
  held = {what: n / 2**30 for what, n in held.items() if n}
  assert config.dtype == 'bfloat16'
  assert pod.held.keys() == {*held, 'together'}
  for what, gib in held.items():
    assert pod.held[what] == pytest.approx(gib, abs=0.051), what
  assert pod.held['together'] == pytest.approx(sum(held.values()), abs=0.051)
  assert pod.held['together'] < 0.95 * pod.gib


def test_another_pods_file_takes_the_place_of_the_first(bound):
  """As for a run that goes on elsewhere. Fault seen: two slices remain."""
  for name in PODS:
    pod = read(name)
    bound(pod.model, 'pods/v5p_4x4x8_x2.gin', name)
    assert abstract_mesh(pod.devices).shape['slice'] == pod.slices
    gin.clear_config()


def test_a_pod_of_another_size_is_refused(bound):
  """Before anything is compiled, with the bindings to change."""
  bound('models/20b.gin', 'pods/v5p_4x4x8.gin')
  with pytest.raises(
    ValueError, match='mesh.data = 2, mesh.fsdp = 64.* does not fit 64 devices'
  ):
    abstract_mesh(64)


def test_a_model_that_does_not_divide_is_refused(bound):
  """A batch of 16 over 128 chips; 768 of models/base.gin over 512."""
  bound('models/base.gin', 'pods/v5p_4x4x8.gin', bindings=['BATCH_SIZE = 16'])
  config = gin.get_configurable('model.Config')()
  lengths = task_registry.Lengths(1024, 1024)
  mesh = abstract_mesh(128)
  with pytest.raises(ValueError, match='BATCH_SIZE = 16 .* by 128'):
    config_checks.check_sizes(mesh, Rules(), config, lengths, 16)
  wide = AbstractMesh((1, 1, 512, 1), mesh_lib.MESH_AXES)
  with pytest.raises(ValueError, match='Config.d_model = 768 .* by 512'):
    config_checks.check_sizes(wide, Rules(), config, lengths, 512)


@pytest.mark.parametrize('run', ['infer', 'import'])
def test_pods_serve_other_runs_too(bound, run):
  for name in PODS:
    given = {'infer': ['INPUT = "x"'], 'import': ['SOURCE = "x"']}[run]
    bound(name, run=run, bindings=given)
    gin.clear_config()
