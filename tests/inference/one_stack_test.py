"""Models without an encoder generate and score as the whole forward does."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atm.evals import predict
from atm.evals.task import Question
from atm.inference import api
from atm.inference.framing import Framing
from atm.inference.sampling import Config
from atm.model import kernels
from atm.parallel import mesh as mesh_lib
from atm.parallel.sharding import Rules

from conftest import tiny
from eval_runs import tasks
from small_models import init, untrained

KINDS = 'decoder_only', 'prefix_lm'


def make_model(kind, devices=1, **changes):
  config = tiny(architecture=kind, encoder_layers=0, **changes)
  mesh = mesh_lib.make_mesh(devices=jax.devices()[:devices])
  return api.Model(config, init(config), None, mesh, Rules(), 0)


@pytest.fixture(scope='module', params=KINDS)
def model(request):
  return make_model(request.param)


@pytest.fixture
def inputs(rng):
  return [rng.integers(3, 96, n).tolist() for n in (9, 3, 14, 6)]


def write_greedily(model, row, count: int) -> list[int]:
  """Recomputes the whole forward for each token."""
  written = [model.config.start_id]
  while len(written) <= count:
    token = int(model.logits([row], [written])[0, -1].argmax())
    if token == model.config.end_id:
      break
    written.append(token)
  return written[1:]


@pytest.mark.parametrize('by_kernel', [True, False])
def test_greedy_ids_are_those_without_a_cache(
  model, inputs, by_kernel, monkeypatch
):
  """Faults seen: positions that begin at 0 behind a prompt."""
  if by_kernel and not kernels.are_available():
    pytest.skip('no C compiler')
  monkeypatch.setattr(kernels, 'are_available', lambda: by_kernel)
  model = dataclasses.replace(model)  # packs its parameters anew
  got = model.generate(inputs, max_tokens=12)
  assert got == [write_greedily(model, row, 12) for row in inputs]
  prefixes = [ids[:2] for ids in got]
  behind = model.generate(inputs, prefixes=prefixes, max_tokens=10)
  assert [a + b for a, b in zip(prefixes, behind)] == got
  assert model.generate(inputs[:1], max_tokens=12) == got[:1]


def test_all_ways_to_generate(model, inputs):
  """Beams, samples and drafts; log-probabilities are those of `score`."""
  greedy = model.generate(inputs, max_tokens=8)
  assert model.generate(inputs, max_tokens=8, prompt_lookup_num_tokens=3) == (
    greedy
  )
  for config in (
    Config(max_tokens=8, beams=3, results=3),
    Config(max_tokens=8, results=3, temperature=1.0, seed=5),
  ):
    for row, generations in zip(inputs, model.complete(inputs, config=config)):
      ends = [
        [model.config.end_id] if len(x.log_probabilities) > len(x.ids) else []
        for x in generations
      ]
      targets = [[*x.ids, *end] for x, end in zip(generations, ends)]
      sums, _ = model.score([row] * len(targets), targets)
      np.testing.assert_allclose(
        [sum(x.log_probabilities) for x in generations], sums, rtol=1e-4
      )


def test_scores_are_those_of_logits(model, inputs, rng):
  """Two targets of one prompt share a row."""
  sources = [inputs[0], inputs[0], inputs[1]]
  targets = [rng.integers(3, 96, n).tolist() for n in (5, 8, 4)]
  sums, _ = model.score(sources, targets)
  for source, target, total in zip(sources, targets, sums):
    logits = model.logits([source], [[model.config.start_id, *target[:-1]]])[0]
    logs = np.asarray(jax.nn.log_softmax(logits))
    want = logs[np.arange(len(target)), target].sum()
    np.testing.assert_allclose(total, want, rtol=1e-5)


def test_a_mesh_changes_nothing(model, inputs):
  meshed = make_model(model.config.architecture, devices=4)
  assert meshed.generate(inputs, max_tokens=6) == (
    model.generate(inputs, max_tokens=6)
  )


def test_int8_is_near_float32(model, inputs, rng):
  targets = [rng.integers(3, 96, 6).tolist() for _ in inputs]
  want, _ = model.score(inputs, targets)
  copied = dataclasses.replace(
    model, params=jax.tree.map(jnp.copy, model.params)
  )
  small = api.quantize(copied)
  got, _ = small.score(inputs, targets)
  np.testing.assert_allclose(got, want, rtol=0.05)
  assert [len(x) for x in small.generate(inputs, max_tokens=4)]


def test_positions_bound_input_and_output_together(model, rng):
  row = lambda n: rng.integers(3, 96, n).tolist()
  both = 'Config.positions = 48 for an input and its output together'
  with pytest.raises(ValueError, match=f'input 0 has 47 tokens: .*{both}'):
    model.generate([row(47)])
  assert len(model.complete([row(46)])[0][0].log_probabilities) == 1
  for side in ('start', 'end'):
    ((made,),) = model.complete(
      [row(60)], config=Config(max_tokens=10), truncate=side
    )
    assert made.truncated == 60 - (48 - 11)
  with pytest.raises(ValueError, match=f'input 0 has 30 tokens: .*{both}'):
    model.score([row(30)], [row(19)])
  long = row(40)
  for side, kept in (('start', long[-29:]), ('end', long[:29])):
    target = row(19)
    want = model.score([kept], [target])[0]
    got = model.score([long], [target], truncate=side)[0]
    np.testing.assert_allclose(got, want, rtol=1e-6)
  with pytest.raises(ValueError, match=f'rows of 40 and 9 ids: .*{both}'):
    model.logits([row(40)], [row(9)])


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('mode', ['clm', 'denoise'])
def test_questions_longer_than_the_model(words, kind, mode):
  """Choices and prompts are cut so that what is written has room."""
  model = untrained(words, architecture=kind, encoder_layers=0)
  framing = Framing(model.config, words)
  text = 'All human beings are born free and equal in dignity. ' * 8
  answers = 'yes', 'no, they are not'
  repeated = text * (mode == 'denoise')
  pairs = *((text, repeated + x) for x in answers), (text, 'yes')
  for pair in pairs:
    source, target, cut = predict.encode_pair(framing, pair, mode)
    assert cut and len(source) + len(target) <= model.config.positions
  (task,) = tasks('superglue_copa', mode=mode)
  questions = [Question(id='0', truth=0, pairs=pairs)]
  ((answer,), _) = predict.predict(model, task, questions, 4)
  assert answer['cut'] and np.isfinite(answer['log_probabilities']).all()
  ids, cut = predict.encode_prompt(framing, text, mode, max_tokens=16)
  assert cut and len(ids) == model.config.positions - 17
  questions = [Question(id='0', truth='', prompt=text)]
  task = dataclasses.replace(task, max_tokens=16, answer=None)
  ((answer,), _) = predict.predict(model, task, questions, 4)
  assert answer['cut']
