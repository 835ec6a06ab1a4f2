"""`atm serve`: what is refused, what is said, and the way to the end.

tests/system/serve_test.py runs it in processes of its own.
"""

import contextlib
import dataclasses
import http.client
import json
import signal
import sys
import threading
import types

import jax
import pytest
from serve.fake_engine import FakeEngine

from atm.cli import interrupts, serve_command
from atm.inference import api
from atm.serve import engine_memory, http_server
from atm.serve.engine import EngineStats

import small_models


class Engine(FakeEngine):
  """A fake that can be started, drained and closed."""

  def __init__(self, model, sizes, observer, say):
    super().__init__(model, seconds=0.02)
    self.events, self.whole = [], True

  def start(self):
    self.events.append('start')

  def stats(self):
    return EngineStats(*[1] * len(dataclasses.fields(EngineStats)))

  def drain(self, seconds):
    self.events.append(('drain', seconds))
    return self.whole

  def close(self):
    self.events.append('close')


@pytest.fixture
def signals(monkeypatch):
  """The signals that a command has noted."""
  heard = []
  monkeypatch.setattr(
    interrupts, 'note_signals', lambda: contextlib.nullcontext(heard)
  )
  return heard


@pytest.fixture(scope='module')
def untrained(byte_words):
  """A model that was not trained."""
  return small_models.untrained(byte_words)


@pytest.fixture
def engines(monkeypatch, untrained):
  """The engines that a command made."""
  made = []

  def make(*args):
    made.append(Engine(*args))
    return made[-1]

  monkeypatch.setattr(serve_command.engine_lib, 'Engine', make)
  monkeypatch.setattr(api, 'load', lambda *args, **named: untrained)
  source = types.SimpleNamespace(
    directory='x', config=untrained.config, weights=None, adapter=None
  )
  monkeypatch.setattr(api.ModelSource, 'open', lambda self: source)
  monkeypatch.delenv(serve_command.KEY_VARIABLE, raising=False)
  return made


class Run:
  """A command in a thread, once it is ready."""

  def __init__(self, **settings):
    self.lines, self.error = [], None
    ready = threading.Event()

    def say(text):
      self.lines.append(text)
      if ' serves ' in text:
        ready.set()

    def run():
      try:
        command.run()
      except BaseException as e:
        self.error = e
      ready.set()

    command = serve_command.ServeCommand(
      '/runs/tiny/', port=0, say=say, **settings
    )
    self.thread = threading.Thread(target=run, daemon=True)
    self.thread.start()
    assert ready.wait(30)

  def ask(self, method, path, body=None, headers=()):
    """Returns the status and the content of an answer."""
    port = int(self.lines[0].split('/')[2].partition(':')[2])
    connection = http.client.HTTPConnection('127.0.0.1', port, timeout=10)
    connection.request(method, path, body, dict(headers))
    response = connection.getresponse()
    return response.status, response.read()

  def end(self):
    self.thread.join(30)
    assert not self.thread.is_alive()


def test_from_the_first_probe_to_the_end(engines, signals):
  run = Run(drain_seconds=7)
  assert run.lines[0].endswith('answers probes while /runs/tiny/ is read')
  assert "serves 'tiny', step 7, 16 slots, ready in" in run.lines[1]
  assert run.ask('GET', '/health')[0] == 200
  status, content = run.ask('POST', '/v1/completions', '{"prompt": "a"}')
  assert status == 200 and json.loads(content)['model'] == 'tiny'
  assert (
    b'atm:num_requests_running{model_name="tiny"} 1'
    in (run.ask('GET', '/metrics')[1])
  )
  signals.append(signal.SIGTERM)
  run.end()
  assert run.error is None
  assert engines[0].events == ['start', ('drain', 7), 'close']
  assert run.lines[2].startswith('draining: 1 requests run and 1 wait')
  assert run.lines[3] == 'stopped'


def test_while_it_drains_probes_are_answered(engines, signals, monkeypatch):
  held, drains = threading.Event(), threading.Event()

  def drain(self, seconds):
    drains.set()
    held.wait(10)
    return False

  monkeypatch.setattr(Engine, 'drain', drain)
  run = Run()
  signals.append(signal.SIGTERM)
  assert drains.wait(10)
  assert run.ask('GET', '/live')[0] == 200
  assert run.ask('GET', '/health')[0] == 503
  status, content = run.ask('POST', '/v1/completions', '{"prompt": "a"}')
  assert status == 503 and b'the server is draining' in content
  held.set()
  run.end()
  assert run.lines[-1] == 'stopped; some requests were cut'


def test_an_engine_that_fails_ends_the_command(engines, signals):
  """So that whoever watches it starts it again."""
  run = Run()
  engines[0].failure = RuntimeError('no memory')
  run.end()
  assert run.error is engines[0].failure and engines[0].events[-1] == 'close'


def test_a_key_is_asked_for_and_never_said(engines, signals, monkeypatch):
  monkeypatch.setenv(serve_command.KEY_VARIABLE, 'of-the-environment')
  for settings in ({}, dict(api_key='of-a-setting')):
    run = Run(**settings)
    key = settings.get('api_key', 'of-the-environment')
    assert run.ask('GET', '/v1/models')[0] == 401
    headers = {'Authorization': f'Bearer {key}'}
    assert run.ask('GET', '/v1/models', headers=headers)[0] == 200
    signals.append(signal.SIGTERM)
    run.end()
    signals.clear()
    assert not any(key in line for line in run.lines)


@pytest.mark.parametrize('key', ['', 'two words', 'sch\u00f6n', 'a\n', 5, b'a'])
def test_a_key_that_no_header_holds(key, monkeypatch):
  with pytest.raises(ValueError, match='API_KEY') as e:
    serve_command.ServeCommand('x', api_key=key)
  assert not str(key) or str(key) not in str(e.value)
  command = serve_command.ServeCommand('x', api_key='visible')
  assert 'visible' not in repr(command)


def test_others_need_a_key(engines):
  command = serve_command.ServeCommand('x', host='0.0.0.0', port=0)
  with pytest.raises(ValueError, match="HOST = '0.0.0.0': others could use"):
    command.run()
  assert not engines


def test_a_port_in_use_is_refused_before_the_model_is_read(engines):
  with http_server.listen('127.0.0.1', 0) as sock:
    port = sock.getsockname()[1]
    with pytest.raises(ValueError, match=f'PORT = {port}: another process'):
      serve_command.ServeCommand('x', port=port).run()
  assert not engines


def test_several_processes_are_refused(engines, monkeypatch):
  monkeypatch.setattr(jax, 'process_count', lambda: 4)
  with pytest.raises(ValueError, match='serve runs in one process, .* are 4'):
    serve_command.ServeCommand('x', port=0).run()


def test_a_model_without_tokenizer_is_refused(engines, monkeypatch):
  model = api.Model(None, {}, None, None, None, 0)
  monkeypatch.setattr(api, 'load', lambda *args, **named: model)
  with pytest.raises(ValueError, match="'x' has no tokenizer: expected one"):
    serve_command.ServeCommand('x', port=0, say=lambda text: None).run()


def test_a_model_that_memory_has_no_room_for_is_not_read(engines, monkeypatch):
  monkeypatch.setattr(engine_memory, 'count_free_bytes', lambda mesh: 1000)
  monkeypatch.setattr(api, 'load', None)
  with pytest.raises(ValueError, match='the parameters take .* 0.98 KiB free'):
    serve_command.ServeCommand('x', port=0, say=lambda text: None).run()


@pytest.mark.parametrize(
  'name', ['fastapi', 'uvicorn', 'prometheus_client', 'pydantic']
)
def test_a_missing_extra_is_named(name, monkeypatch):
  monkeypatch.setitem(sys.modules, name, None)
  with pytest.raises(ValueError, match=r"pip install 'atm-jax\[serve\]'") as e:
    serve_command.ServeCommand('x').run()
  assert f'no module {name!r}' in str(e.value)


@pytest.mark.parametrize(
  'adapter, name, served', [
    (None, None, 'tiny'), ('gs://x/law/', None, 'tiny+law'),
    ('runs/law', 'mine', 'mine'),
  ],
)  # fmt: skip
def test_the_name_of_a_model_has_that_of_its_adapter(adapter, name, served):
  command = serve_command.ServeCommand('runs/tiny/', adapter=adapter, name=name)
  assert command.served_name == served
