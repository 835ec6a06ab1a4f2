import jax
import pytest
from jax.sharding import PartitionSpec as P

from atm import sharding
from atm.sharding import Rules


def test_spec_maps_logical_axes():
  rules = Rules()
  assert rules.spec('layers', 'embed', 'mlp') == P(None, 'fsdp', 'tensor')
  assert rules.spec('batch', None) == P(('data', 'fsdp'), None)


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
  assert dict(sharding.mesh(tensor=2).shape) == {
    'data': 4, 'fsdp': 1, 'tensor': 2
  }  # fmt: skip


@pytest.mark.parametrize(
  'sizes', [dict(data=3), dict(data=-1, fsdp=-1), dict(data=0), dict(tensor=16)]
)
def test_mesh_names_sizes_that_do_not_fit(sizes):
  with pytest.raises(ValueError, match='mesh.data = .*mesh.tensor'):
    sharding.mesh(**sizes)


def test_sizes_that_do_not_divide_name_the_binding():
  mesh = sharding.mesh(tensor=8)
  with pytest.raises(ValueError, match=r'Config.vocab_size = 100 .*8.*104|96'):
    sharding.check_divides(mesh, Rules(), {'vocab': ('Config.vocab_size', 100)})
  sharding.check_divides(mesh, Rules(), {'embed': ('Config.d_model', 7)})


def test_start_refuses_another_number_of_devices():
  with pytest.raises(ValueError, match='already started with 8'):
    sharding.start(cpu_devices=4)
  sharding.start(cpu_devices=8)
  assert jax.device_count() == 8
