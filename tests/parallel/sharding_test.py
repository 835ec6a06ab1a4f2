import dataclasses
import itertools

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from atm.data import task_registry
from atm.parallel import distributed, sharding
from atm.parallel import mesh as mesh_lib
from atm.parallel.sharding import Rules
from atm.train import config_checks

from conftest import tiny


def test_spec_maps_logical_axes():
  rules = Rules()
  assert rules.spec('layers', 'embed', 'mlp') == P(None, 'fsdp', 'tensor')
  assert rules.spec('batch', None) == P(('slice', 'data', 'fsdp'), None)


def test_spec_refuses_what_linen_would_silently_replicate():
  with pytest.raises(ValueError, match="'embde'.*Did you mean 'embed'"):
    Rules().spec('embde')
  with pytest.raises(ValueError, match="'mlp' and 'heads'.*'tensor'"):
    Rules().spec('mlp', 'heads')


def test_rules_check_themselves():
  with pytest.raises(ValueError, match="Rules.embed = 'fdsp'.*'fsdp'"):
    Rules(embed='fdsp')
  with pytest.raises(ValueError, match='twice'):
    Rules(batch=('data', 'data'))


def test_mesh_fills_an_axis():
  assert dict(mesh_lib.make_mesh(tensor=2).shape) == {
    'slice': 1, 'data': 4, 'fsdp': 1, 'tensor': 2
  }  # fmt: skip
  filled = mesh_lib.make_mesh(slice=-1, data=2, fsdp=2)
  assert tuple(filled.shape.values()) == (2, 2, 2, 1)


@pytest.mark.parametrize(
  'sizes',
  [
    dict(data=3),
    dict(data=-1, fsdp=-1),
    dict(data=0),
    dict(tensor=16),
    dict(slice=3),
    dict(data=2, fsdp=2),
    dict(data=4, fsdp=4),
  ],  # fmt: skip
)
def test_mesh_names_sizes_that_do_not_fit(sizes):
  with pytest.raises(
    ValueError, match='mesh.slice = .*mesh.data = .*mesh.tensor'
  ):
    mesh_lib.make_mesh(**sizes)


@dataclasses.dataclass
class Chip:
  """What a mesh asks of a TPU's device."""

  coords: tuple[int, int, int]
  slice_index: int
  id: int
  platform: str = 'tpu'
  device_kind: str = 'TPU v5'
  process_index: int = 0
  core_on_chip: int = 0


def pod(*sides, slices=1):
  """The chips of a few slices, as shuffled as JAX may list them."""
  coords = itertools.product(*map(range, sides))
  chips = [Chip(at, n, 0) for at in coords for n in range(slices)]
  np.random.default_rng(0).shuffle(chips)
  for number, chip in enumerate(chips):
    chip.id = number
  return chips


def test_slices_are_the_outer_axis():
  """Faults seen: devices reshaped as listed; slices laid on `fsdp`."""
  chips = pod(4, 4, 8, slices=2)
  made = mesh_lib.arrange_devices((2, 2, 64, 1), chips)
  assert made.shape == (2, 2, 64, 1)
  assert len({chip.id for chip in made.flat}) == 256
  for number, block in enumerate(made):
    assert {chip.slice_index for chip in block.flat} == {number}
  with pytest.raises(ValueError, match='mesh.slice = 1, .* are 2 slices: set'):
    mesh_lib.arrange_devices((1, 4, 64, 1), chips)


def test_the_last_axis_follows_the_links_of_a_pod():
  """Fault seen: devices reshaped as listed."""
  made = mesh_lib.arrange_devices((1, 2, 16, 4), pod(4, 4, 8))
  for line in made.reshape(-1, 4):  # a ring of four chips along one side
    coords = np.array([chip.coords for chip in line])
    assert sorted(np.ptp(coords, axis=0)) == [0, 0, 3]


def test_sizes_that_do_not_divide_name_the_binding():
  mesh = mesh_lib.make_mesh(tensor=8)
  with pytest.raises(
    ValueError, match=r'Config.vocab_size = 100 .*8.* (104|96)'
  ):
    sharding.check_divides(mesh, Rules(), {'vocab': ('Config.vocab_size', 100)})
  sharding.check_divides(mesh, Rules(), {'embed': ('Config.d_model', 7)})


@pytest.mark.parametrize(
  'split, message',
  [
    (dict(embed='fsdp', mlp=None), 'Config.d_model = 36 .*fsdp = 8.* (32|40)'),
    (dict(embed=None, mlp='fsdp'), r'Config.decoder_ff = 36 .*Rules.mlp'),
    (dict(embed=None, heads='fsdp'), 'Config.encoder_heads = 4 .*fsdp = 8'),
    (dict(embed=None, vocab='fsdp'), 'Config.vocab_size = 100 .* (96|104)'),
    (dict(embed=None, position='fsdp'), 'Config.positions = 60 '),
    (dict(embed=None, layers='fsdp'), 'Config.encoder_layers = 2 '),
    (dict(embed=None, vector='fsdp'), 'Config.d_model = 36 .*Rules.vector'),
    (dict(embed=None, hidden='fsdp'), 'Config.d_model = 36 .*Rules.hidden'),
    (
      dict(embed=None, length='fsdp'),
      r"TASK_FEATURE_LENGTHS\['targets'\] = 20",
    ),
    (dict(embed=None), 'BATCH_SIZE = 12 .*8 .*slice = 1 x .*fsdp = 8.*: 16'),
  ],
)
def test_every_size_is_checked_before_anything_is_compiled(split, message):
  """Fault seen: another size checked for an axis."""
  rules = {'heads': None, 'vocab': None, 'mlp': None, **split}
  config = tiny(
    d_model=36, decoder_ff=36, encoder_ff=64, vocab_size=100, positions=60
  )
  sizes, rows = task_registry.Lengths(16, 20), 12 if 'BATCH' in message else 16
  with pytest.raises(ValueError, match=message):
    config_checks.check_sizes(
      mesh_lib.make_mesh(data=1, fsdp=8), Rules(**rules), config, sizes, rows
    )


def test_place_gives_each_device_its_rows():
  """Fault seen: every device given the first rows."""
  mesh = mesh_lib.make_mesh(slice=2, data=2, fsdp=1, tensor=2)
  rows = np.arange(8)
  np.testing.assert_array_equal(sharding.host_rows(mesh, Rules(), 8), rows)
  for size in (None, 8):
    x = sharding.shard_batch(
      {'x': rows[:, None] * [1, 1]}, mesh, Rules(), size
    )['x']
    assert x.shape == (8, 2) and x.sharding.spec == Rules().spec('batch')
    for shard in x.addressable_shards:
      at = np.argwhere(mesh.device_ids == shard.device.id)[0]
      first = 4 * at[0] + 2 * at[1]
      assert shard.data[:, 0].tolist() == [first, first + 1]


def test_start_refuses_another_number_of_devices():
  with pytest.raises(ValueError, match='already started with 8'):
    distributed.start_jax(cpu_devices=4)
  distributed.start_jax(cpu_devices=8)
  assert jax.device_count() == 8


@pytest.mark.parametrize(
  'settings, message',
  [
    (dict(distributed='atuo'), "'atuo'.*Did you mean 'auto'"),
    (dict(distributed='auto', coordinator='a:1'), 'set one of them'),
    (dict(processes=2), 'start.processes = 2 without start.coordinator'),
    (dict(coordinator='a:1'), 'start.processes = None.*needs both'),
    (
      dict(coordinator='a:1', processes=2, process=2),
      'start.process = 2: .*from 0 to processes - 1',
    ),
    (
      dict(coordinator='host', processes=2, process=1),
      "coordinator = 'host': expected 'host:port'",
    ),
    (
      dict(timeout=0),
      'start.timeout = 0: expected a whole number of at least 1',
    ),
  ],
)
def test_start_names_what_does_not_fit(settings, message):
  with pytest.raises(ValueError, match=message):
    distributed.start_jax(**settings)


@pytest.mark.parametrize(
  'name, environment',
  [
    ('SLURM', {'SLURM_NTASKS': '4', 'SLURM_STEP_NODELIST': 'node[1-4]'}),
    ('TPU', {'TPU_WORKER_HOSTNAMES': 'a,b,c,d'}),
  ],
)
def test_copies_of_one_run_are_refused(monkeypatch, name, environment):
  """What a launcher started four times must not train four times in one
  MODEL_DIR by itself."""
  for variable, value in environment.items():
    monkeypatch.setenv(variable, value)
  with pytest.raises(ValueError, match=f"{name} started 4 .*'auto'.*'off'"):
    distributed.start_jax()
  distributed.start_jax(distributed='off')
