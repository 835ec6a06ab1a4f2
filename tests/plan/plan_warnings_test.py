"""Warnings of plans."""

from atm.data import task_registry
from atm.model import config as config_lib
from atm.model.transformer import AlexaTM
from atm.parallel import mesh as mesh_lib
from atm.parallel.sharding import Rules
from atm.plan.plan_warnings import (
  padding_warnings,
  reduction_warnings,
  replication_warnings,
)
from atm.train import optimizer, step

from conftest import tiny
from plan_runs import ADAMW as TX
from plan_runs import FSDP


def test_sums_of_gradients_that_could_be_scattered_are_named():
  row = dict(
    kind='all-reduce', axes=('fsdp',), group=4, count=3, wire_bytes=3e9,
    asynchronous=False, source='atm/x.py:1',
  )  # fmt: skip
  (said,) = reduction_warnings([row], mesh_lib.make_mesh(data=1, fsdp=8))
  assert '3.0 GB' in said and 'atm/x.py:1' in said and 'mesh.data' in said
  (said,) = reduction_warnings([{**row, 'padded': 2.99e9}], FSDP())
  assert 'gathers over fsdp' in said and '3.0 GB' in said
  for other in (
    {'kind': 'reduce-scatter'}, {'axes': ('data',)}, {'wire_bytes': 1e6}
  ):  # fmt: skip
    assert not reduction_warnings([{**row, **other}], FSDP())


def test_a_matrix_that_is_whole_everywhere_is_named():
  """Fault seen: small vectors named too."""
  config = tiny(vocab_size=2**19 + 8, d_model=64)
  tx = optimizer.make_optimizer(TX)
  net, mesh = AlexaTM(config), FSDP()
  params = lambda rules: step.abstract_state(net, tx, mesh, rules).params
  said = replication_warnings(params(Rules(embed=None)), FSDP())
  assert len(said) == 3 and any('lm_head' in line for line in said)
  assert not replication_warnings(params(Rules()), FSDP())


def test_padding_of_kernels_is_named():
  lengths = task_registry.Lengths(1024, 130)
  said = padding_warnings(tiny(attention='splash'), lengths, 'cpu')
  assert ['targets of 130 up to 256' in line for line in said] == [True, False]
  assert 'a head of 8 up to 128: 94%' in said[1]
  big = config_lib.ModelConfig()
  assert not padding_warnings(big, task_registry.Lengths(1024, 1024), 'tpu')
