import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from atm.data import task_registry
from atm.parallel import mesh as mesh_lib
from atm.parallel import sharding
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
