"""Shapes of the programs of beams; engine_test has what they compute."""

import types

import pytest

from atm.serve.beam_programs import BeamPrograms
from atm.serve.engine_sizes import EngineSizes


@pytest.mark.parametrize('platform', ['cpu', 'tpu'])
def test_few_programs_have_room_for_every_request(platform):
  sizes = EngineSizes(beam_groups=3, max_input=400, max_output=90)
  programs = types.SimpleNamespace(
    sizes=sizes, platform=platform, shards=1, rows=3
  )
  batches = BeamPrograms.batches.func(programs)
  windows = BeamPrograms.windows.func(programs)
  assert max(batches) == (1, 400) and max(windows) == (3, 90, 400)
  assert len(batches) <= 3
  assert len(windows) == (2 if platform == 'cpu' else 1)
