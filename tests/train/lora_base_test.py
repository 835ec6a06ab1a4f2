"""Runs that train adapters: resumed, saved alone, evaluated with their base."""

import dataclasses
import functools
import json
import shutil

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax import traverse_util

from atm.checkpoint import adapters, pretrained
from atm.data import vocabulary
from atm.model import lora
from atm.model import parameters as model_parameters
from atm.model.lora import LoraConfig
from atm.model.transformer import AlexaTM
from atm.parallel import sharding
from atm.parallel.sharding import Rules
from atm.train import lora_base, metric_writer, optimizer, step

import conftest
from conftest import tiny
from tiny_runs import EIGHT, ONE, Stop, comparable, metrics_at, parameters

LORA = LoraConfig(rank=2, dropout=0.1, targets=('kernel', 'embedding'))
FAST = optimizer.OptimizerConfig(learning_rate=1e-2, decay_steps=20)


def adapt(train, folder, source, steps=6, **changes):
  """Trains adapters of a source."""
  settings = dict(init_from=str(source), lora=LORA, optimizer_config=FAST)
  return train(folder, steps, **{**settings, **changes})


@pytest.fixture(scope='module')
def adapted(train, tmp_path_factory):
  """Returns the folder of a whole run, it, and the parameters it asked."""
  asked, folder = [], tmp_path_factory.mktemp('adapted')

  def make_asker(config, vocabulary, mesh, rules, say):
    return lambda params, step: asked.append(jax.device_get(params)) or {}

  settings = dict(ask_every=4, make_asker=make_asker)
  return folder, adapt(train, folder, train.whole(4), **settings), asked


def check_resumed(train, whole, parts, make_mesh) -> None:
  """Compares a run that is cut with one that is not."""
  source = train.whole(4)
  with pytest.raises(Stop):
    adapt(train, parts, source, make_mesh=make_mesh, stop_at=5)
  resumed = adapt(train, parts, source, make_mesh=make_mesh)
  assert any(line.startswith('resumed from step 3') for line in resumed.lines)
  assert comparable(parts) == comparable(whole)
  a, b = parameters(whole, 6), parameters(parts, 6)
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    assert name.endswith(("['a']", "['b']")), name


def test_resumed_adapters_are_those_of_a_run_without_a_break(
  train, tmp_path, adapted
):
  """Faults: adapters begun anew, their optimizer's state or dropout's key lost;
  base parameters among what is saved; a base that is trained."""
  (whole, run, _), source = adapted, train.whole(4)
  check_resumed(train, whole, tmp_path / 'parts', ONE)
  moments = parameters(whole, 6, 'optimizer')
  assert sum(x.size for x in moments.values()) < 3 * sum(
    x.size for x in parameters(whole, 6).values()
  )
  # It begins where its source ended, and moves.
  begin, end = (metrics_at(run, step) for step in (0, 6))
  rows = metric_writer.read_metrics(str(source))
  for name, value in begin.items():
    assert value == pytest.approx(rows[-1][name], rel=1e-5)
  assert begin != end
  described = json.loads((whole / adapters.ADAPTER_FILE).read_text())
  assert described['lora'] == json.loads(json.dumps(dataclasses.asdict(LORA)))
  model = pretrained.open_pretrained(str(source))
  assert described['base'] == {
    'path': str(source), 'step': 4, 'fingerprint': model.fingerprint()
  }  # fmt: skip


@pytest.mark.slow
def test_resumed_adapters_are_the_same_on_eight_devices(train, tmp_path):
  """Fault: adapters that another placement of the base reads."""
  adapt(train, tmp_path / 'whole', train.whole(4), make_mesh=EIGHT)
  check_resumed(train, tmp_path / 'whole', tmp_path / 'parts', EIGHT)


def test_a_run_that_adapts_another_model_is_not_resumed(train, tmp_path):
  """Faults: adapters on weights that they were not trained on; a base that was
  trained on meanwhile taken at its newest step; another rank."""
  source, folder = train.whole(4), tmp_path / 'tuned'
  adapt(train, folder, source, steps=1)
  with pytest.raises(ValueError, match='not there any more, or not its step 4'):
    adapt(train, folder, train.whole(8), steps=2)
  other = dataclasses.replace(LORA, rank=3)
  with pytest.raises(ValueError, match='LORA_RANK = 3, but this MODEL_DIR was'):
    adapt(train, folder, source, steps=2, lora=other)
  with pytest.raises(ValueError, match='LORA_RANK = None, but this MODEL_DIR'):
    adapt(train, folder, source, steps=2, lora=None)
  with pytest.raises(ValueError, match='INIT_FROM = None: name the model'):
    adapt(train, tmp_path / 'new', source, init_from=None)
  other = dataclasses.replace(LORA, targets=('q_proj',))
  with pytest.raises(ValueError, match="'q_proj' is found in no path"):
    adapt(train, tmp_path / 'new', source, lora=other)
  with pytest.raises(ValueError, match='adapts the decoder alone'):
    adapt(train, tmp_path / 'new', source, freeze_encoder_steps=2)
  path = folder / adapters.ADAPTER_FILE
  described = json.loads(path.read_text())
  described['base']['fingerprint'] = 'of another'
  path.write_text(json.dumps(described))
  with pytest.raises(ValueError, match='has other weights than'):
    adapt(train, folder, source, steps=2)


def test_evaluations_are_of_base_and_adapters(train, adapted):
  """Fault: the few-shot suite asks the base, or adapters alone."""
  folder, _, asked = adapted
  base = parameters(train.whole(4), 4)
  flat = lambda tree: {
    jax.tree_util.keystr(k): v
    for k, v in jax.tree_util.tree_flatten_with_path(tree)[0]
  }
  first, *_, last = map(flat, asked)
  assert first.keys() == base.keys()
  kernel = "['decoder']['layers']['feed_forward']['up']['kernel']"
  np.testing.assert_array_equal(first[kernel], base[kernel])
  change = [parameters(folder, 6)[f"{kernel}['{k}']"] for k in 'ab']
  want = base[kernel] + LORA.scale * np.matmul(*change)
  np.testing.assert_allclose(last[kernel], want, atol=1e-5)
  np.testing.assert_array_equal(last["['lm_head']"], base["['lm_head']"])


@pytest.mark.slow
@pytest.mark.parametrize(
  'dtype, make_mesh', [('bfloat16', ONE), ('int8', ONE), ('int8', EIGHT)]
)
def test_a_rounded_base_is_near_the_one_in_float32(
  train, tmp_path, adapted, dtype, make_mesh
):
  """Faults: vectors or adapters that are rounded, too; misplaced scales."""
  settings = dict(lora_base_dtype=dtype, make_mesh=make_mesh)
  low = adapt(train, tmp_path, train.whole(4), **settings)
  near, exact = (metrics_at(r, 6) for r in (low, adapted[1]))
  assert near == pytest.approx(exact, abs=0.02) and near != exact


def test_a_model_without_a_tokenizer_adapts_to_pairs_of_ids(train, tmp_path):
  """Faults: ids encoded as texts; a vocabulary that the run does not keep."""
  import atm_tasks

  source = shutil.copytree(train.whole(4), tmp_path / 'source')
  shutil.rmtree(source / 'vocabulary')
  (tmp_path / 'ids').mkdir()
  ids = {'size': 2048, 'pad_id': 0, 'eos_id': 2}
  (tmp_path / 'ids' / 'token_ids.json').write_text(json.dumps(ids))
  pairs = [{'input_ids': [9, 7 + i], 'target_ids': [8, 7]} for i in range(40)]
  path = tmp_path / 'pairs.jsonl'
  path.write_text('\n'.join(map(json.dumps, pairs)))
  run = adapt(
    train, tmp_path / 'run', source, mixture='pairs', batch_size=2,
    vocabulary=str(tmp_path / 'ids'),
    configure_tasks=functools.partial(atm_tasks.configure, pairs=str(path)),
  )  # fmt: skip
  first, last = (metrics_at(run, step) for step in (0, 6))
  assert last['eval/loss/pair'] < first['eval/loss/pair'] - 0.1
  (_, batch), *_ = run.held_out.batches
  segment = batch['decoder_segment_ids'][0] == 1
  assert batch['decoder_target_tokens'][0][segment].tolist() == [8, 7, 2]
  kept = vocabulary.open_vocabulary(str(tmp_path / 'run' / 'vocabulary'))
  assert kept.decode([8, 7, 2]) == '8 7'


def test_a_base_in_int8_has_the_gradients_of_what_it_holds(one_device):
  """Faults: no gradient through products in int8; scales of another axis; a
  plan that knows other arrays than a run holds."""
  net, config = AlexaTM(tiny()), LoraConfig(rank=2)
  boxed = model_parameters.init_params(net, 0)
  params = nn.unbox(boxed)
  adapters = nn.unbox(lora.init_adapters(boxed, config, jax.random.key(1)))
  batch = conftest.batch(np.random.default_rng(0), 4, 7, 5)
  flat = traverse_util.flatten_dict(params)
  held = {k: lora_base.hold(k, x, 'int8') for k, x in flat.items()}
  loss = lambda adapters, base: step.forward(
    net, adapters, batch, base=base, lora=config
  )['loss'].sum()
  compute = jax.jit(jax.value_and_grad(loss))
  unflatten = traverse_util.unflatten_dict
  floats = lora.merge(unflatten(held), adapters, config)  # B is 0
  with sharding.use_mesh(one_device, Rules()):
    mine = compute(adapters, unflatten(held))
    want = compute(adapters, floats)
  np.testing.assert_allclose(mine[0], want[0], rtol=1e-5)
  alike = lambda x, y: np.testing.assert_allclose(
    x, y, atol=1e-5 * np.abs(y).max() + 1e-9
  )
  jax.tree.map(alike, mine[1], want[1])
  kernel = 'encoder', 'layers', 'feed_forward', 'up', 'kernel'
  change = np.abs(traverse_util.flatten_dict(floats)[kernel] - flat[kernel])
  assert 0 < change.max() < np.abs(flat[kernel]).max() / 200
  planned = lora_base.abstract_base(net, one_device, Rules(), 'int8')
  same = lambda x, y: x.shape == y.shape and x.dtype == y.dtype
  assert all(jax.tree.leaves(jax.tree.map(same, planned, unflatten(held))))
