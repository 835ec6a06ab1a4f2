"""Translations by examples, and by languages."""

import pytest

from atm.inference import few_shot
from serve.completions_test import read_events

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
