"""What does not fit is refused, and what would is said."""

import types

import jax
import pytest

from atm.parallel import mesh as mesh_lib
from atm.parallel.sharding import Rules
from atm.serve import engine_memory
from atm.serve.engine_memory import EngineMemory
from atm.serve.engine_sizes import EngineSizes

from conftest import tiny

SIZES = EngineSizes(slots=16, max_input=1024, max_output=1024)


def make_memory(monkeypatch, free: int | None) -> EngineMemory:
  """Returns the memory of slots of a MiB each, in all 20 MiB."""
  one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  array = lambda n: jax.ShapeDtypeStruct((n,), 'int8', sharding=one)
  programs = types.SimpleNamespace(
    model=types.SimpleNamespace(
      mesh=None, config=types.SimpleNamespace(vocab_size=1024)
    ),
    params=array(5 * 2**20),
    abstract_states=[array(16 * 2**20)],
    temporary_bytes=int(3.75 * 2**20),
    shards=1,
    in_blocks=False,
  )
  monkeypatch.setattr(engine_memory, 'count_free_bytes', lambda mesh: free)
  return EngineMemory(SIZES, [programs])


@pytest.mark.parametrize('free', [None, 20 * 2**20])
def test_what_fits_is_stated(monkeypatch, free):
  memory = make_memory(monkeypatch, free)
  memory.check()
  assert '5.00 MiB parameters, 16.00 MiB for 16 slots' in memory.describe()


@pytest.mark.parametrize(
  ('mib', 'advice'),
  [
    (14, 'SLOTS = 10 and BEAM_GROUPS = 1 would fit'),
    (4.5, 'SLOTS = 1, BEAM_GROUPS = 1, MAX_INPUT = 512 and MAX_OUTPUT = 512'),
    (1, "no sizes fit; WEIGHTS = 'bfloat16'"),
  ],
)
def test_what_does_not_fit_is_refused_with_what_would(monkeypatch, mib, advice):
  memory = make_memory(monkeypatch, int(mib * 2**20))
  with pytest.raises(ValueError, match='which leave') as error:
    memory.check()
  assert advice in str(error.value) and len(str(error.value)) < 500


def test_a_model_that_is_too_large_is_refused(monkeypatch):
  mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
  config = tiny(vocab_size=2**20)  # 384 MiB of embeddings, 4 bytes each
  monkeypatch.setattr(engine_memory, 'count_free_bytes', lambda mesh: 2**28)
  engine_memory.check_weights(config, mesh, Rules(), width=2)
  with pytest.raises(ValueError, match='2 times as many devices'):
    engine_memory.check_weights(config, mesh, Rules(), width=4)
