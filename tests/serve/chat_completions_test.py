"""The next message of a conversation."""

import pytest

from atm.serve.chat_template import render_messages
from atm.serve.request_schema import ChatMessage
from serve.completions_test import read_events

PATH = '/v1/chat/completions'
MESSAGES = [
  {'role': 'system', 'content': 'plain'},
  {'role': 'user', 'content': [{'type': 'text', 'text': 'one?'}]},
]


@pytest.mark.parametrize(
  'body',
  [
    dict(temperature=0),
    dict(n=2, seed=1, logprobs=True, top_logprobs=2, max_completion_tokens=9),
    dict(use_beam_search=True, n=2, return_token_ids=True),
  ],
)
def test_a_stream_is_what_the_whole_answer_is(client, body):
  body = {'messages': MESSAGES, **body}
  whole = client.post(PATH, json=body).json()
  events = read_events(client.post(PATH, json={**body, 'stream': True}))
  n = body.get('n', 1)
  for i, event in enumerate(events[:n]):
    (choice,) = event['choices']
    assert choice['index'] == i and choice['delta']['role'] == 'assistant'
  for choice in whole['choices']:
    parts = [
      part
      for event in events[n:]
      for part in event['choices']
      if part['index'] == choice['index']
    ]
    text = ''.join(x['delta']['content'] or '' for x in parts)
    assert text == choice['message']['content']
    assert choice['message']['role'] == 'assistant'
    assert parts[-1]['finish_reason'] == choice['finish_reason']
    if 'logprobs' in body:
      tokens = [t for x in parts for t in x['logprobs']['content']]
      assert tokens == choice['logprobs']['content']
      assert all(len(t['top_logprobs']) == 2 for t in tokens)
    if 'return_token_ids' in body:
      ids = [i for x in parts for i in x['token_ids']]
      assert ids == choice['token_ids']


def test_the_prompt_is_the_rendered_text(client, service):
  ids = service.model.vocabulary.encode(
    render_messages([ChatMessage(**x) for x in MESSAGES])[0]
  )
  body = dict(messages=MESSAGES, return_token_ids=True, temperature=0)
  answer = client.post(PATH, json=body).json()
  assert answer['prompt_token_ids'] == service.model.framed(ids, 'clm')
  request = service.engine.checked[-1]
  assert request.stop_table is not None


@pytest.mark.parametrize(
  'body, param, text',
  [
    (dict(), 'messages', 'missing'),
    (dict(messages=[]), 'messages', 'at least 1 item'),
    (
      dict(messages=[{'role': 'tool'}]),
      'messages',
      "messages[0].role = 'tool'",
    ),
    (dict(messages=[{'content': 'a'}]), 'messages', 'messages[0].role is miss'),
    (
      dict(messages=[{'role': 'user', 'content': [{'type': 'image_url'}]}]),
      'messages',
      'content',
    ),
    (dict(messages=MESSAGES, mode='denoise'), 'messages', '2 elements'),
    (
      dict(messages=MESSAGES, top_logprobs=2),
      'top_logprobs',
      'logprobs = true',
    ),
    (dict(messages=MESSAGES, tools=[{}]), 'tools', 'leave it out'),
    (dict(messages=MESSAGES, prompt='a'), 'prompt', "no field 'prompt'"),
  ],
)
def test_a_wrong_field_is_named(client, body, param, text):
  answer = client.post(PATH, json=body)
  error = answer.json()['error']
  assert answer.status_code == 400 and error['param'] == param
  assert text in error['message'], error


def test_fields_of_clients_without_effect_are_accepted(client):
  body = dict(
    messages=MESSAGES[1:], tools=[], tool_choice='none', user='me',
    parallel_tool_calls=True, response_format={'type': 'text'}, store=False,
    reasoning_effort=None, modalities=['text'], metadata={}, top_logprobs=None,
  )  # fmt: skip
  assert client.post(PATH, json=body).status_code == 200
