"""Programs of an engine on one CPU have banks of slots."""

import numpy as np

from atm.serve.engine_sizes import EngineSizes
from atm.serve.programs import Programs, count_lanes, prepare_engine_params


def test_banks_are_a_few_slots_each(byte_model):
  sizes = EngineSizes(slots=6, max_input=8, max_output=6)
  sizes = sizes.fit(byte_model.config, byte_model.mesh, byte_model.rules)
  programs = Programs(byte_model, sizes, prepare_engine_params(byte_model))
  assert (programs.banks, programs.bank_rows, programs.rows) == (2, 3, 6)
  assert programs.windows == [(1, 6, 8), (3, 6, 8), (6, 6, 8)]
  assert [programs.count_banks(x) for x in programs.windows] == [1, 1, 2]
  states = programs.allocate()
  assert [len(x.position) for x in states] == [3, 3]
  assert programs.abstract_states[1].source.shape == states[1].source.shape
  assert np.shape(states[0].caches[0].self_keys[0][0])[0] == 3
  assert count_lanes(byte_model.mesh, 1) == 1
