"""Outputs of prompts by HTTP are those of the engine."""

import dataclasses
import json

import pytest
from starlette.testclient import TestClient

from atm.serve.app import create_app
from atm.serve.service import Service
from serve.fake_engine import FakeEngine

PATH = '/v1/completions'


def read_events(response) -> list[dict]:
  """Returns the events of a stream, which ends in [DONE]."""
  assert response.headers['content-type'].startswith('text/event-stream')
  *events, done, end = response.text.split('\n\n')
  assert done == 'data: [DONE]' and end == ''
  return [json.loads(event.removeprefix('data: ')) for event in events]


def join_events(events) -> dict[int, dict]:
  """Returns index -> text, tokens and reason of a stream's choices."""
  joined = {}
  for event in events:
    for choice in event['choices']:
      out = joined.setdefault(
        choice['index'], dict(text='', ids=[], logs=[], offsets=[], reason=None)
      )
      assert out['reason'] is None  # nothing comes behind the end
      out['text'] += choice['text']
      out['reason'], out['score'] = choice['finish_reason'], choice['score']
      out['ids'] += choice['token_ids'] or []
      if logprobs := choice['logprobs']:
        out['logs'] += logprobs['token_logprobs']
        out['offsets'] += logprobs['text_offset']
  return joined


@pytest.mark.parametrize(
  'body',
  [
    dict(prompt='one', temperature=0),
    dict(prompt=['one', 'two', 'another'], temperature=0, logprobs=3),
    dict(prompt=[5, 6, 7], n=3, seed=5, logprobs=0, prefix='plain'),
    dict(prompt=[[5, 6], [7]], n=2, stop=['ex', 'て', 'a'], prefix='a text'),
    dict(prompt='a', use_beam_search=True, n=2, best_of=3, logprobs=1),
    dict(prompt='a', echo=True, temperature=0, max_tokens=2),
    dict(prompt='a', temperature=0, ignore_eos=True, max_tokens=50),
  ],
)
def test_a_stream_is_what_the_whole_answer_is(client, body):
  body |= dict(return_token_ids=True)
  whole = client.post(PATH, json=body).json()
  options = dict(include_usage=True)
  stream = client.post(
    PATH, json={**body, 'stream': True, 'stream_options': options}
  )
  *events, last = read_events(stream)
  assert last['choices'] == [] and last['usage'] == whole['usage']
  joined = join_events(events)
  assert len(joined) == len(whole['choices'])
  for choice in whole['choices']:
    out = joined[choice['index']]
    assert out['text'] == choice['text']
    assert out['score'] == choice['score']
    assert (choice['score'] is None) == ('use_beam_search' not in body)
    assert out['reason'] == choice['finish_reason'] in ('stop', 'length')
    assert out['ids'] == choice['token_ids']
    if 'logprobs' in body:
      assert out['logs'] == choice['logprobs']['token_logprobs']
      assert out['offsets'] == choice['logprobs']['text_offset']
      tops = choice['logprobs']['top_logprobs'] or []
      assert len(tops) == (len(out['ids']) if body['logprobs'] else 0)


def test_beams_have_scores(client):
  body = dict(prompt='a', use_beam_search=True, n=2, best_of=3)
  beams = client.post(PATH, json=body).json()['choices']
  assert all(isinstance(x['score'], float) for x in beams)
  (plain,) = client.post(PATH, json=dict(prompt='a')).json()['choices']
  assert plain['score'] is None


def test_texts_are_cut_at_stop_strings_and_begin_with_prefix_and_prompt(client):
  body = dict(prompt=[5, 6], temperature=0, max_tokens=30)
  text = client.post(PATH, json=body).json()['choices'][0]['text']
  stop = text[3:5]
  cut = client.post(PATH, json={**body, 'stop': stop}).json()
  assert cut['choices'][0]['text'] == text[: text.index(stop)]
  echo = client.post(PATH, json={**body, 'prompt': 'one', 'echo': True}).json()
  assert echo['choices'][0]['text'].startswith('one')
  begun = client.post(PATH, json={**body, 'prefix': 'a plain'}).json()
  assert begun['choices'][0]['text'].startswith('a plain')


def test_the_best_by_mean_log_probability_are_returned(client):
  body = dict(prompt='a', temperature=1, logprobs=0, seed=1)
  mean = lambda choice: (
    sum(choice['logprobs']['token_logprobs'])
    / len(choice['logprobs']['token_logprobs'])
  )
  every = client.post(PATH, json={**body, 'n': 8}).json()['choices']
  best = client.post(PATH, json={**body, 'n': 2, 'best_of': 8}).json()
  means = sorted(map(mean, every), reverse=True)
  assert list(map(mean, best['choices'])) == means[:2]
  assert best['usage']['completion_tokens'] == sum(
    len(x['logprobs']['tokens']) for x in every
  )


@pytest.mark.parametrize(
  'body, param, text',
  [
    (dict(), 'prompt', 'prompt is missing'),
    (dict(prompt=''), 'prompt', None),  # not wrong
    (dict(prompt=[]), 'prompt', 'expected a text'),
    (dict(prompt=[1.5]), 'prompt', 'expected a text'),
    (dict(prompt=[10**6]), 'prompt', '1000000'),
    (dict(prompt=['a'] * 129), 'prompt', '1 to 128'),
    (dict(prompt='plain ' * 99), 'prompt', 'tokens: expected 1 to'),
    (dict(prompt='\ud800'), 'prompt', 'surrogate'),
    (dict(prompt='a', n=0), 'n', 'from 1 to 16'),
    (dict(prompt='a', n=17), 'n', 'from 1 to 16'),
    (dict(prompt='a', n=2, temperature=0), 'n', 'temperature above 0'),
    (dict(prompt='a', n=3, best_of=2), 'best_of', 'at least n = 3'),
    (dict(prompt='a', best_of=2, stream=True), 'best_of', 'known at the end'),
    (dict(prompt='a', logprobs=21), 'logprobs', '20'),
    (dict(prompt='a', logprobs=1, echo=True), 'echo', '/v1/score'),
    (dict(prompt='a', temperature='x'), 'temperature', 'number'),
    (dict(prompt='a', temperature=-1), 'temperature', 'at least 0'),
    (dict(prompt='a', top_p=0), 'top_p', 'above 0'),
    (dict(prompt='a', max_tokens=0), 'max_tokens', 'at least 1'),
    (dict(prompt='a', seed=-1), 'seed', '-1'),
    (dict(prompt='a', seed=2**64), 'seed', 'from 0 to'),
    (dict(prompt='a', stop=['']), 'stop', 'not empty'),
    (dict(prompt='a', stop='x' * 400), 'stop', 'at most 63'),
    (dict(prompt='a', mode='chat'), 'mode', 'clm'),
    (dict(prompt='a', source='de'), 'source', 'no language codes'),
    (dict(prompt='a', bad_words=[[-1]]), 'bad_words', '-1'),
    (dict(prompt='a', prefix='plain ' * 99), 'prefix', 'prefix of'),
    (dict(prompt='a', suffix='b'), 'suffix', 'does not have it'),
    (dict(prompt='a', logit_bias={'5': 1}), 'logit_bias', 'leave it out'),
    (dict(prompt='a', temperatur=1), 'temperatur', "'temperature'"),
    (dict(prompt='a', stream_options={}), 'stream_options', 'without stream'),
    (
      dict(prompt='a', use_beam_search=True, temperature=1),
      'temperature',
      'beams',
    ),
    (dict(prompt='a', model='tiney'), 'model', "'tiny'"),
  ],
)
def test_a_wrong_field_is_named(client, body, param, text):
  response = client.post(
    PATH, content=json.dumps(body), headers={'content-type': 'application/json'}
  )
  error = response.json().get('error')
  if text is None:
    assert response.status_code in (200, 400)
    return
  assert response.status_code == (404 if param == 'model' else 400)
  assert error['param'] == param and text in error['message'], error
  assert set(error) == {'message', 'type', 'param', 'code'}
  assert '\n' not in error['message'] and len(error['message']) < 500


def test_fields_without_effect_are_accepted(client):
  body = dict(
    prompt='a', user='me', suffix=None, frequency_penalty=0, logit_bias={},
    presence_penalty=0.0, best_of=1, n=1, metadata={'a': 1}, top_k=-1,
    stop=None, response_format={'type': 'text'}, store=False, max_tokens=None,
  )  # fmt: skip
  assert client.post(PATH, json=body).status_code == 200


def test_a_model_without_tokenizer_reads_and_writes_ids(byte_model):
  model = dataclasses.replace(byte_model, vocabulary=None)
  service = Service(model, FakeEngine(model), 'ids', phase='ready')
  client = TestClient(create_app(service))
  body = dict(prompt=[5, 6], temperature=0, return_token_ids=True, logprobs=1)
  (choice,) = client.post(PATH, json=body).json()['choices']
  assert choice['text'] == '' and choice['prompt_token_ids'] == [5, 6]
  assert choice['logprobs']['tokens'][0] == f'token:{choice["token_ids"][0]}'
  events = read_events(client.post(PATH, json={**body, 'stream': True}))
  assert join_events(events)[0]['ids'] == choice['token_ids']
  assert client.get('/v1/models').status_code == 200
  for path, body in (
    (PATH, dict(prompt='a')),
    (PATH, dict(prompt=[5], stop='a')),
    ('/v1/chat/completions', dict(messages=[{'role': 'user'}])),
    ('/v1/translate', dict(text='a', target='de')),
    ('/v1/score', dict(inputs='a', targets='b')),
    ('/tokenize', dict(prompt='a')),
    ('/detokenize', dict(tokens=[5])),
  ):
    error = client.post(path, json=body).json()['error']
    assert 'no tokenizer' in error['message'], path
