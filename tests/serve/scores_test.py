"""Log-probabilities of targets."""

import pytest

PATH = '/v1/score'


def test_targets_have_the_sum_of_their_tokens(client, service):
  body = dict(inputs='a text', targets=['one', 'no more'])
  plain = client.post(PATH, json=body).json()
  assert [x['index'] for x in plain['data']] == [0, 1]
  ids = service.model.target_ids(['one', 'no more'], 'clm')
  for request, row in zip(service.engine.checked, ids):
    assert list(request.targets) == row
    assert list(request.ids) == service.model.ids(['a text'], 'clm')[0]
  told = client.post(PATH, json={**body, 'logprobs': 2}).json()
  for a, b, row in zip(plain['data'], told['data'], ids):
    assert a['logprobs'] is None and b['token_ids'] == row
    logprobs = b['logprobs']
    assert a['score'] == b['score'] == sum(logprobs['token_logprobs'])
    assert a['token_count'] == len(logprobs['tokens']) == len(row)
    assert logprobs['tokens'][-1] == '</s>'
    assert all(len(x) >= 2 for x in logprobs['top_logprobs'])
  assert plain['usage']['completion_tokens'] == sum(map(len, ids))


def test_ids_are_scored_as_they_are(client):
  body = dict(inputs=[[5], [6]], targets=[[7, 8], [9]], logprobs=0)
  data = client.post(PATH, json=body).json()['data']
  assert [x['token_ids'] for x in data] == [[7, 8], [9]]


@pytest.mark.parametrize(
  'body, param, text',
  [
    (dict(inputs='a'), 'targets', 'missing'),
    (dict(inputs=['a', 'b'], targets='c'), 'inputs', '2 inputs, but 1'),
    (dict(inputs='a', targets=['c'] * 129), 'targets', 'expected 1 to 128'),
    (dict(inputs='a ' * 99, targets='c'), 'inputs', 'tokens: expected'),
    (dict(inputs='a', targets='c ' * 99), 'targets', 'tokens: expected'),
    (dict(inputs='a', targets=[[10**9]]), 'targets', '1000000000'),
    (dict(inputs='a', targets='b', target='de'), 'target', 'language'),
    (dict(inputs='a', targets='b', logprobs=21), 'logprobs', '20'),
  ],
)
def test_a_wrong_field_is_named(client, body, param, text):
  answer = client.post(PATH, json=body)
  error = answer.json()['error']
  assert answer.status_code == 400 and error['param'] == param, error
  assert text in error['message']
