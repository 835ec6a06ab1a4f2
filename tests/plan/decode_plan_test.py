"""Plans of decoding and encoding: the largest batch, and mistakes."""

import dataclasses
import functools
import json

import numpy as np
import pytest

from atm.inference import sampling
from atm.parallel import mesh as mesh_lib
from atm.plan import (
  compilation,
  decode_plan,
  hardware,
  largest,
  memory,
  report,
)

from plan_runs import BEAMS, LENGTHS, REFUSED, silent, tiny
from plan_runs import TENSOR as MESH


def planned(**changes):
  given = dict(
    lengths=LENGTHS, model_config=tiny(), make_mesh=MESH, batch_size=8,
    say=silent,
  )  # fmt: skip
  return decode_plan.plan_rows(**{**given, **changes})


def test_the_encoder_is_planned_alone():
  said = planned(program='encode')
  assert said['memory']['cache'] == 0 and said['token'] is None
  assert said['tokens_per_second_range'] is None
  assert not said['prefill']['unknown_loops']


def test_what_does_not_fit_gets_changes(monkeypatch):
  found = memory.parse_overflow(REFUSED)
  monkeypatch.setattr(
    compilation, 'compile_or_overflow', lambda *_: (None, found)
  )
  lines = []
  made = planned(say=lines.append)
  assert made['fits'] is False and len(made['changes']) == 3
  assert 'does not fit' in lines[-1] and "WEIGHTS = 'bfloat16'" in lines[-1]


def test_a_plan_is_written_and_printed(tmp_path):
  lines = []
  said = planned(model_dir=str(tmp_path), say=lines.append)
  with open(tmp_path / report.PLAN_FILE) as f:
    kept = json.load(f)
  assert kept == json.loads(json.dumps(said))
  assert {'program', 'batches', 'memory', 'token', 'cache_row_bytes'} <= set(
    kept
  )
  assert not kept['prefill']['unknown_loops']
  assert kept['fits'] is None and kept['memory']['cache'] > 0
  assert 'the cache of an input' in lines[1] and 'all-reduce' in lines[1]


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'make_mesh': functools.partial(mesh_lib.make_mesh, data=2, fsdp=4)},
     'mesh.tensor=4 --gin.sharding.mesh.data=2'),
    ({'make_mesh': functools.partial(mesh_lib.make_mesh, data=2, fsdp=4),
      'model_config': tiny(vocab_size=98)},
     'mesh.tensor=2 --gin.sharding.mesh.data=4'),
    ({'batch_size': None}, 'DECODE_BATCH_SIZE'),
    ({'batch_size': 3}, 'DECODE_BATCH_SIZE = 3 does not divide by 2'),
    ({'batch_size': 0}, 'DECODE_BATCH_SIZE = 0'),
    ({'program': 'decod'}, "Did you mean 'decode'"),
    ({'weights': 'bf16'}, 'WEIGHTS'),
    ({'make_mesh': functools.partial(mesh_lib.make_mesh, data=1, tensor=8)},
     'heads'),
  ],
)  # fmt: skip
def test_mistakes_are_one_line(changes, message):
  with pytest.raises(ValueError, match=message) as e:
    planned(**changes)
  assert '\n' not in str(e.value)


SMALL = dict(
  d_model=128, vocab_size=256, dtype='bfloat16', positions=128,
  encoder_layers=1, decoder_layers=1,
)  # fmt: skip


@pytest.mark.libtpu
@pytest.mark.parametrize('config', [sampling.Config(), BEAMS])
def test_decoding_is_planned_for_a_tpu(config):
  """Neither greedy choice nor beams copy a cache; all end with their rows."""
  said = planned(
    lengths={'inputs': 128, 'targets': 64}, model_config=tiny(**SMALL),
    config=config, topology='v5e:2x4',
  )  # fmt: skip
  token = said['token']
  assert said['fits'] and said['usable_hbm_gib'] == 15.75
  assert not token['unknown_loops'] and not said['prefill']['unknown_loops']
  assert not token['cache_copies']
  least, most = token['time_range_s']
  assert 0 < least < most
  low, high = said['tokens_per_second_range']
  assert low == pytest.approx(8 * config.results / most)
  assert token['cycles']['elementwise'] > 0
  assert {'tensor'} <= {
    axis for r in token['collectives'] for axis in r['axes']
  }
  assert np.prod([*said['mesh'].values()]) == 8


@pytest.mark.libtpu
def test_the_largest_batch_is_searched_for_a_tpu(monkeypatch):
  """The encoder alone, on chips of less memory than there are."""
  small = dataclasses.replace(hardware.CHIPS['v5e'], usable=64 * 2**20)
  monkeypatch.setitem(hardware.CHIPS, 'v5e', small)
  monkeypatch.setattr(largest, 'RESERVED', 8 * 2**20)
  said = planned(
    lengths={'inputs': 128, 'targets': 64}, model_config=tiny(**SMALL),
    program='encode', topology='v5e:2x4', batch_size=None,
  )  # fmt: skip
  sizes = {row['batch_size']: row['fits'] for row in said['batches']}
  assert said['fits'] and sizes[said['batch_size']]
  assert len(sizes) <= 8 and not sizes[max(sizes)]
  whole = [r['batch_size'] for r in said['batches'] if r['whole'] and r['fits']]
  assert said['batch_size'] == max(whole)
  assert 0 < said['mfu_range'][0] < said['mfu_range'][1] < 1
