"""Public models are served as `Model.complete` and `Model.score` have them.

With their own languages, forced ids, beams and other generation settings.
"""

import os

import jax
import numpy as np
import pytest

import atm
from atm.inference import sampling
from atm.parallel import mesh as mesh_lib
from atm.serve.engine import Engine, EngineSizes
from atm.serve.request_builder import build_score_requests
from serve.engine_test import run
from tests.public_folders import NAMES, PUBLIC

pytestmark = pytest.mark.slow
TEXTS = ['All are born free.', 'Alle sind frei.', 'free', '自由、平等。']
TARGETS = ['Alle sind frei.', 'All are born free.', 'equal', 'free and alive']
LANGUAGES = {
  'mbart25': ('en_XX', 'de_DE'),
  'mbart50': ('en_XX', 'de_DE'),
  'm2m_100': ('en', 'de'),
  'nllb': ('eng_Latn', 'deu_Latn'),
}


@pytest.fixture(scope='module', params=NAMES)
def served(request):
  """Returns (a model, its engine, source and target of its languages)."""
  mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
  model = atm.load(os.path.join(PUBLIC, request.param), mesh=mesh)
  sizes = EngineSizes(slots=2, beam_groups=2, max_input=32, max_output=40)
  engine = Engine(model, sizes, say=lambda text: None)
  engine.start()
  source, target = LANGUAGES.get(request.param, (None, None))
  yield model, engine, dict(source=source, target=target)
  engine.close()


@pytest.mark.parametrize('options', [
  {},
  dict(prefixes=['Alle', '', 'free', 'All are']),
  dict(config=sampling.Config(beams=3, results=3, max_tokens=9)),
  dict(config=sampling.Config(temperature=1.3, results=2, seed=3), stop=['e']),
])  # fmt: skip
def test_outputs_are_those_of_the_model(served, options):
  model, engine, languages = served
  ours = engine.complete(TEXTS, **options, **languages)
  for mine, alone in zip(ours, model.complete(TEXTS, **options, **languages)):
    assert [x.ids for x in mine] == [x.ids for x in alone]
    assert [x.text for x in mine] == [x.text for x in alone]
    scores = [x.score for x in alone]
    np.testing.assert_allclose([x.score for x in mine], scores, atol=1e-4)


def test_scores_are_those_of_the_model(served):
  model, engine, languages = served
  given = [0, 1, 0, 2]
  for n in (None, given):
    total, count, _ = model.likelihoods(TEXTS, TARGETS, n, **languages)
    requests = build_score_requests(model, TEXTS, TARGETS, n, **languages)
    outputs = [x for (x,) in run(engine, requests)]
    assert [len(x.log_probabilities) for x in outputs] == count.tolist()
    mine = [x.score for x in outputs]
    np.testing.assert_allclose(mine, total, atol=1e-5)
