"""Ids of texts, and texts of ids."""

import json


def test_ids_are_those_that_the_encoder_reads(client, service):
  ask = lambda **body: client.post('/tokenize', json=body).json()
  model = service.model
  framed = ask(prompt='a text', return_token_strs=True)
  assert framed['tokens'] == model.ids(['a text'], 'clm')[0]
  assert framed['count'] == len(framed['tokens'])
  assert framed['max_model_len'] == 64
  names = framed['token_strs']
  assert names[-1] == '</s>' and ''.join(names).endswith('text</s>')
  plain = ask(prompt='a text', add_special_tokens=False)
  assert plain['tokens'] == model.vocabulary.encode('a text')
  long = ask(prompt='a text ' * 99)
  assert long['count'] > 64  # counting is what it is for
  messages = [{'role': 'user', 'content': 'a text'}]
  assert ask(messages=messages)['tokens'] == framed['tokens']
  text = client.post('/detokenize', json={'tokens': framed['tokens']}).json()
  assert text == {'prompt': 'a text'}


def test_a_wrong_field_is_named(client, service):
  for path, body, param in (
    ('/tokenize', {}, 'prompt'),
    ('/tokenize', {'prompt': 'a', 'messages': []}, 'messages'),
    ('/tokenize', {'prompt': 'a\ud800'}, 'prompt'),
    ('/detokenize', {'tokens': [10**9]}, 'tokens'),
    ('/detokenize', {'tokens': ['a']}, 'tokens'),
  ):
    answer = client.post(path, content=json.dumps(body))
    assert answer.status_code == 400, path
    assert answer.json()['error']['param'] == param
