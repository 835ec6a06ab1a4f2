"""Lines of an access log: what they tell, and what they must not."""

import asyncio
import io
import json
import logging

import pytest

from atm.serve import access_log
from atm.serve.metrics import Metrics


async def answer(scope, receive, send):
  """Answers with the body that it got."""
  message = await receive()
  start = {'type': 'http.response.start', 'status': 201}
  await send({**start, 'headers': [(b'x-request-id', b'not this')]})
  await send({'type': 'http.response.body', 'body': message['body']})


def ask(app, path='/v1/completions', headers=(), method='POST', body=b'secret'):
  """Returns (logged events, sent messages, metrics) of one request."""
  events, sent, metrics = [], [], Metrics('tiny')
  scope = {
    'type': 'http', 'method': method, 'path': path, 'headers': list(headers),
    'query_string': b'prompt=secret', 'client': ('127.0.0.1', 5),
  }  # fmt: skip
  messages = [
    {'type': 'http.request', 'body': body, 'more_body': False},
    {'type': 'http.disconnect'},
  ]

  async def receive():
    return messages.pop(0)

  async def send(message):
    sent.append(message)

  log = access_log.AccessLog(app, metrics, events.append)
  asyncio.run(log(scope, receive, send))
  assert log.open_requests == 0
  return events, sent, metrics


def get_id(sent) -> bytes:
  """Returns the X-Request-Id of a response, of which there is one."""
  (found,) = [v for k, v in sent[0]['headers'] if k == b'x-request-id']
  return found


def test_a_line_tells_of_a_request_but_no_prompt():
  events, sent, metrics = ask(answer)
  (event,) = events
  assert event['status'] == 201 and event['bytes'] == 6
  assert event['method'] == 'POST' and event['path'] == '/v1/completions'
  assert event['client'] == '127.0.0.1' and event['seconds'] >= 0
  assert event['request_id'] == get_id(sent).decode()
  assert 'secret' not in json.dumps(event)
  assert b'handler="none",method="POST",status="201"' in metrics.format()[0]


@pytest.mark.parametrize('given', [b'abc-1.2_3:4', b'a' * 128])
def test_a_sane_request_id_is_kept(given):
  events, sent, _ = ask(answer, headers=[(b'x-request-id', given)])
  assert get_id(sent) == given and events[0]['request_id'] == given.decode()


@pytest.mark.parametrize('given', [
  b'', b'a' * 129, b'two words', b'line\nline', b'"quoted"', b'\xff', b'a\0',
])  # fmt: skip
def test_other_request_ids_are_replaced(given):
  events, sent, _ = ask(answer, headers=[(b'x-request-id', given)])
  assert len(get_id(sent)) == 24 and get_id(sent) != given
  assert events[0]['request_id'] == get_id(sent).decode()


def test_two_requests_have_two_ids():
  ids = {get_id(ask(answer)[1]) for _ in range(2)}
  assert len(ids) == 2


@pytest.mark.parametrize('path', access_log.QUIET)
def test_probes_are_logged_where_they_fail(path):
  def status(number):
    async def app(scope, receive, send):
      await send({'type': 'http.response.start', 'status': number})
      await send({'type': 'http.response.body'})

    return app

  assert ask(status(200), path)[0] == []
  assert len(ask(status(503), path)[0]) == 1


def test_a_fault_is_one_line_without_its_text():
  """A fault's text may quote a prompt."""

  async def fails(scope, receive, send):
    raise RuntimeError('secret')

  events, sent, _ = ask(fails)
  assert events[0]['status'] == 500 and events[0]['fault'] == 'RuntimeError'
  assert 'in __call__, atm/serve/access_log.py' in events[0]['where'][0]
  assert 'secret' not in json.dumps(events)
  body = json.loads(sent[1]['body'])
  assert body['error']['type'] == 'server_error'
  assert events[0]['request_id'] in body['error']['message']


def test_a_fault_behind_the_first_byte_ends_the_answer():
  async def fails(scope, receive, send):
    await send({'type': 'http.response.start', 'status': 200})
    raise RuntimeError('secret')

  events, sent, _ = ask(fails)
  assert len(sent) == 1 and events[0]['fault'] == 'RuntimeError'


def test_a_client_that_went_away():
  async def waits(scope, receive, send):
    while (await receive())['type'] != 'http.disconnect':
      pass

  (event,), sent, _ = ask(waits)
  assert event['client_went_away'] and event['status'] == 499 and not sent

  async def answers(scope, receive, send):
    await answer(scope, receive, send)
    await receive()  # as Starlette does behind a whole answer

  assert 'client_went_away' not in ask(answers)[0][0]


def test_facts_of_the_application_are_told():
  async def app(scope, receive, send):
    access_log.add_facts(scope, prompt_tokens=5)
    access_log.add_facts(scope, finish_reason='stop')
    await answer(scope, receive, send)

  (event,) = ask(app)[0]
  assert event['prompt_tokens'] == 5 and event['finish_reason'] == 'stop'


def test_what_is_no_request_passes():
  seen = []

  async def app(scope, receive, send):
    seen.append(scope)

  log = access_log.AccessLog(app, Metrics('tiny'))
  asyncio.run(log({'type': 'lifespan'}, None, None))
  assert seen == [{'type': 'lifespan'}]


@pytest.mark.parametrize(
  'text',
  ['a\n{"event": "request"}', '\x1b[2J', '\u202e', '\u2028', '"', '\ud800'],
)
def test_no_path_looks_like_another_line(text, monkeypatch):
  """Fault that it looks for: a path with a line break forged a line."""
  stream = io.StringIO()
  monkeypatch.setattr('sys.stderr', stream)
  for event in ask(answer, path='/' + text, method=text)[0]:
    access_log.write_line(event)
  line = stream.getvalue()
  assert line.count('\n') == 1 and line.isascii() and line[:-1].isprintable()
  assert json.loads(line)['path'] == '/' + text
  assert json.loads(line)['method'] == 'other'
  assert json.loads(line)['time'].endswith('Z')


def test_long_paths_are_cut():
  assert len(ask(answer, path='/' * 5000)[0][0]['path']) == 200


def test_lines_that_cannot_be_written_are_dropped(monkeypatch):
  with open('/dev/full', 'w') as full:
    monkeypatch.setattr('sys.stderr', full)
    access_log.write_line({'event': 'request'})
    monkeypatch.undo()
    full.close = lambda: None
  closed = io.StringIO()
  closed.close()
  monkeypatch.setattr('sys.stderr', closed)
  access_log.write_line({'event': 'request'})


def test_libraries_log_lines_of_the_same_form(monkeypatch):
  stream = io.StringIO()
  monkeypatch.setattr('sys.stderr', stream)
  handler = access_log.LogHandler()
  try:
    raise ValueError('secret')
  except ValueError as e:
    handler.handle(
      logging.LogRecord(
        'uvicorn.error', logging.ERROR, 'x', 1, 'failed\n%s', ('b',),
        (type(e), e, None),
      )
    )  # fmt: skip
  event = json.loads(stream.getvalue())
  assert event['level'] == 'error' and event['fault'] == 'ValueError'
  assert event['message'] == 'failed\nb' and 'secret' not in str(event)
