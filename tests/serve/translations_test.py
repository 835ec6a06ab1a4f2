"""Translations by examples, and by languages."""

import os

import jax
import pytest
from starlette.testclient import TestClient

from atm.checkpoint import pretrained
from atm.inference import api, few_shot
from atm.parallel import mesh as mesh_lib
from atm.parallel.sharding import Rules
from atm.serve.app import create_app
from atm.serve.service import Service
from serve.completions_test import read_events
from serve.fake_engine import FakeEngine
from tests.public_folders import PUBLIC

PATH = '/v1/translate'


@pytest.mark.parametrize('mode', ['clm', 'denoise'])
def test_examples_stand_in_the_prompt(client, service, mode):
  body = dict(
    text=['one', 'a'], target='German', shots=[['no', 'nein']], mode=mode,
    n=2, use_beam_search=True, max_tokens=30, truncate='start',
  )  # fmt: skip
  answer = client.post(PATH, json=body).json()
  plan = few_shot.plan_translation(
    service.model, ['one', 'a'], 'de', [('no', 'nein')], mode
  )
  first, second = service.engine.checked[-2:]
  cut = service.model.ids(plan.texts, mode, truncate='start')
  assert [list(first.ids), list(second.ids)] == cut
  assert (first.stop_table is None) == (mode == 'denoise')
  assert first.config.temperature == 0
  events = read_events(client.post(PATH, json={**body, 'stream': True}))
  texts = {}
  for event in events:
    for choice in event['choices']:
      at = choice['index']
      texts[at] = texts.get(at, '') + choice['text']
  assert answer['object'] == 'translation' and len(answer['choices']) == 4
  for choice in answer['choices']:
    assert texts[choice['index']] == choice['text']


def test_answers_are_cut_out_of_outputs(client, service, monkeypatch):
  words = service.model.vocabulary
  monkeypatch.setattr(type(words), 'decode', lambda *x: ' another; one')
  body = dict(text='one', target='de', truncate='start')
  (choice,) = client.post(PATH, json=body).json()['choices']
  assert choice['text'] == 'another'


@pytest.mark.parametrize(
  'body, param, text',
  [
    (dict(text='a'), 'target', 'missing'),
    (dict(target='de'), 'text', 'missing'),
    (dict(text='', target='de'), 'text', "field 'sentence'"),
    (dict(text=[1], target='de'), 'text', 'text[0] = 1'),
    (dict(text='a', target='xx'), 'target', "'xx'"),
    (dict(text='a', target='de', source='xx'), 'source', "'xx'"),
    (dict(text='a', target='de', shots=[['a']]), 'shots', 'shots[0]'),
    (dict(text='a', target='de', shots='a'), 'shots', 'list'),
    (dict(text='a', target='de', truncate='end'), 'truncate', 'cue'),
    (dict(text='a ' * 99, target='de'), 'text', 'tokens: expected'),
    (dict(text=['a'] * 129, target='de'), 'text', 'expected 1 to 128'),
    (dict(text='a', target='de', logprobs=1), 'logprobs', 'no field'),
  ],
)
def test_a_wrong_field_is_named(client, body, param, text):
  answer = client.post(PATH, json=body)
  error = answer.json()['error']
  assert answer.status_code == 400 and error['param'] == param, error
  assert text in error['message'], error
  assert '\n' not in error['message']


@pytest.fixture(scope='module')
def translator():
  """A client of a model that knows languages; its engine is a fake."""
  source = pretrained.open_pretrained(os.path.join(PUBLIC, 'nllb'))
  mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
  model = api.Model(source.config, {}, source.vocabulary, mesh, Rules(), 0)
  engine = FakeEngine(model)
  service = Service(model, engine, 'nllb', phase='ready')
  return TestClient(create_app(service)), model, engine


def test_models_of_languages_translate_by_their_codes(translator):
  client, model, engine = translator
  body = dict(text=['One.', 'Two'], source='en', target='German')
  answer = client.post(PATH, json=body).json()
  one, two = engine.checked[-2:]
  expected = model.ids(body['text'], source='eng_Latn')
  assert [list(one.ids), list(two.ids)] == expected
  german = model.vocabulary.languages['deu_Latn']
  assert one.prefix[-1] == german and one.config.temperature == 0
  texts = [x['text'] for x in answer['choices']]
  assert len(texts) == 2 and all(texts)
  events = read_events(client.post(PATH, json={**body, 'stream': True}))
  assert len(events) > 2  # as they come
  for i, text in enumerate(texts):
    assert text == ''.join(
      x['text'] for event in events for x in event['choices'] if x['index'] == i
    )
  (card,) = client.get('/v1/models').json()['data']
  assert 'deu_Latn' in card['languages'] and card['modes'] == []
  ids = client.post('/tokenize', json=dict(prompt='One.', source='en')).json()
  assert ids['tokens'] == expected[0]


@pytest.mark.parametrize(
  'path, body, param, text',
  [
    (PATH, dict(text='a', target='deu'), 'source', 'None'),
    (PATH, dict(text='a', source='en', target='deu_Ltn'), 'target', 'deu_Latn'),
    (
      PATH,
      dict(text='a', source='en', target='de', shots=[['a', 'b']]),
      'shots',
      'reads no examples',
    ),
    ('/v1/completions', dict(prompt='a', source='en'), 'target', 'None'),
    ('/v1/completions', dict(prompt='a', mode='clm'), 'mode', 'no [CLM]'),
    ('/tokenize', dict(prompt='a'), 'source', 'None'),
    (
      '/v1/score',
      dict(inputs='a', targets='b', source='en'),
      'target',
      'None',
    ),
    (
      '/v1/chat/completions',
      dict(
        messages=[
          {'role': 'system', 'content': 'a'},
          {'role': 'user', 'content': 'b'},
        ],
        source='en',
        target='de',
      ),
      'messages',
      '2 elements',
    ),
  ],
)
def test_a_missing_or_wrong_language_is_named(
  translator, path, body, param, text
):
  answer = translator[0].post(path, json=body)
  error = answer.json()['error']
  assert answer.status_code == 400 and error['param'] == param, error
  assert text in error['message'], error
