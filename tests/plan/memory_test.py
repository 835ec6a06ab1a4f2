"""Memory of a device: shards, the compiler's messages, what fits."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from atm.parallel.device_memory import device_bytes
from atm.plan import compilation, hardware, memory

from plan_runs import FSDP, REFUSED


def test_what_does_not_fit_is_read_off_the_message():
  found = memory.parse_overflow(REFUSED)
  assert found['used'] == 19.19 * 2**30
  assert found['usable'] == 15.75 * 2**30
  assert not found['largest']
  assert memory.parse_overflow('INTERNAL: something else') is None


def test_a_device_has_its_shards_a_checkpoint_all():
  """Faults seen: whole arrays on a device; shards in a checkpoint."""
  mesh = FSDP()  # data 2, fsdp 4
  like = lambda *axes: jax.ShapeDtypeStruct(
    (8, 3), jnp.bfloat16, sharding=NamedSharding(mesh, P(*axes))
  )
  tree = {'split': like('fsdp'), 'whole': like()}
  assert device_bytes(tree) == 2 * (2 * 3 + 8 * 3)
  assert memory.total_bytes(tree) == 2 * 2 * 8 * 3


def test_what_the_compiler_may_use_goes_before_the_data_sheet():
  """Faults seen: the pod's figure; temporaries below zero."""
  pod = hardware.parse_pod('v5e:2x2')
  refused = {'used': 20 * 2**30, 'usable': 15 * 2**30, 'largest': ['an array']}
  found = memory.account({'parameters': 2**34}, None, refused, pod)
  assert found['fits'] is False and found['usable_hbm_gib'] == 15
  assert found['largest_buffers'] == ['an array']
  assert found['memory']['temporaries'] == 4 * 2**30
  program = compilation.DumpedProgram(str, 2**30)
  found = memory.account({'parameters': 2**31}, program, None, pod)
  assert found['fits'] and found['usable_hbm_gib'] == 15.75
  assert found['memory']['temporaries'] == 0 and found['memory']['heap'] is None
  assert memory.account({}, program, None, None)['fits'] is None
