"""`atm serve` in processes of its own: drains, kills and starts again."""

import json
import random
import signal
import subprocess
import sys
import time

import pytest

from atm.serve import http_server

from server_process import Server, body, kill
from tiny_runs import small_model

pytestmark = pytest.mark.processes

# Three times what the slots hold, so that it lasts on any machine.
LONG = dict(prompt=['All human beings'] * 12, max_tokens=480, min_tokens=480)
# Few programs to compile.
SMALL = (
  '--gin.SLOTS=4', '--gin.BEAM_GROUPS=0', '--gin.MAX_INPUT=64',
)  # fmt: skip


@pytest.fixture(scope='module')
def folder(train, tmp_path_factory):
  """A run whose outputs may be long."""
  made = tmp_path_factory.mktemp('served') / 'tiny'
  train(made, 1, model_config=small_model(positions=512))
  return made


def is_drained(server: Server) -> bool:
  """Tells whether all rows are free."""
  return not server.read_metric('atm:slots_used')


def complete(server: Server, **fields) -> list[dict]:
  """Returns the choices of an answer that is no stream."""
  status, _, text = server.ask(
    'POST', '/v1/completions', body(stream=False, **fields)
  )
  assert status == 200, text
  return json.loads(text)['choices']


def list_events(server: Server) -> list[dict]:
  """Returns the access log, which has nothing else."""
  assert all(isinstance(line, dict) for line in server.log), server.log
  return server.log


def test_a_signal_lets_a_stream_end(folder):
  with Server(folder, *SMALL) as server:
    assert server.ask('GET', '/health')[0] == 200
    client = server.open_stream(**LONG)
    assert client.stdout.readline() == '200\n'
    client.stdout.readline()
    for name in ('kv_cache', 'cross_kv_cache'):
      assert 0 < server.read_metric(f'atm:{name}_usage_perc') <= 1
    server.signal(signal.SIGTERM)
    server.wait_for(lambda: 'draining' in server.lines[-1])
    assert server.ask('GET', '/live')[0] == 200
    assert server.ask('GET', '/health')[0] == 503
    status, headers, text = server.ask('POST', '/v1/completions', body())
    assert status == 503 and int(headers['retry-after']) > 0
    assert json.loads(text)['error']['message'] == 'the server is draining'
    lines = client.stdout.read().split('\n')
    assert client.wait(30) == 0 and 'data: [DONE]' in lines
    assert server.wait() == 0
    assert server.lines[-1] == 'stopped'
    events = list_events(server)
    assert 'human' not in json.dumps(events)
    stream = next(e for e in events if e.get('completion_tokens'))
    assert stream['completion_tokens'] == 12 * 480 and stream['status'] == 200


def test_killed_clients_free_rows_and_a_killed_server_starts_again(folder):
  """Clients that are killed close their connections, mid-answer."""
  fields = dict(max_tokens=8, temperature=1, seed=3)
  with Server(folder, *SMALL) as server:
    expected = complete(server, **fields)
    clients = [server.open_stream(**LONG) for _ in range(6)]
    for client in clients[:4]:  # all slots
      assert client.stdout.readline() == '200\n'
    for client in clients:
      kill(client)
    server.wait_for(lambda: is_drained(server), 5)
    assert server.read_metric('atm:request_success_total', 'abort') >= 4
    server.wait_for(lambda: sum(
      'client_went_away' in e for e in list_events(server)
    ) >= 4)  # fmt: skip
    waits = server.open_stream(**LONG)
    assert waits.stdout.readline() == '200\n'
    server.signal(signal.SIGKILL)
    assert server.wait() == -signal.SIGKILL
    start = time.monotonic()
    assert '[DONE]' not in waits.stdout.read() and waits.wait(10) is not None
    assert time.monotonic() - start < 5
  with Server(
    folder, *SMALL, '--gin.DRAIN_SECONDS=60', port=server.port
  ) as same:
    assert complete(same, **fields) == expected
    client = same.open_stream(**LONG)
    assert client.stdout.readline() == '200\n'
    same.signal(signal.SIGINT)
    same.wait_for(lambda: 'draining' in same.lines[-1])
    start = time.monotonic()
    same.signal(signal.SIGINT)
    assert same.wait() == 128 + signal.SIGINT
    assert time.monotonic() - start < 2
    kill(client)
    assert same.log[-1] == 'atm: stopped by SIGINT: at once'


def test_what_cannot_be_served_is_one_line(folder):
  def refuse(*settings):
    done = subprocess.run(
      [sys.executable, '-m', 'atm', 'serve', f'--gin.MODEL_DIR={str(folder)!r}',
       *settings], capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.count('\n') == 1
    return done.stderr

  with http_server.listen('127.0.0.1', 0) as sock:
    port = sock.getsockname()[1]
    text = refuse(f'--gin.PORT={port}', "--gin.API_KEY='secret-key'")
  assert f'PORT = {port}: another process listens there' in text
  text = refuse("--gin.HOST='0.0.0.0'", '--gin.API_KEY=secret-key')
  assert 'API_KEY' in text and 'secret-key' not in text


@pytest.mark.slow
def test_fifty_kills_of_clients_and_ten_of_the_server(folder):
  """Nothing hangs, all rows are free afterwards, and each start is quick.

  The first start compiles what others find in the cache.
  """
  draws, killed, starts = random.Random(0), 0, []
  port = 0
  for life in range(11):
    with Server(folder, *SMALL, port=port) as server:
      port = server.port
      starts.append(server.started)
      for _ in range(5 if life < 10 else 0):
        clients = [
          server.open_stream(
            prompt='All ' * draws.randint(1, 20), n=draws.randint(1, 3),
            temperature=1, max_tokens=draws.randint(1, 480), seed=i,
          )
          for i in range(draws.randint(1, 6))
        ]  # fmt: skip
        time.sleep(draws.uniform(0.05, 1.5))
        for client in clients:
          killed += client.poll() is None
          kill(client)
        server.wait_for(lambda: is_drained(server), 10)  # noqa: B023
      if life < 10:
        clients = [server.open_stream(**LONG) for _ in range(5)]
        time.sleep(draws.uniform(0, 1))
        server.signal(signal.SIGKILL)
        assert server.wait() == -signal.SIGKILL
        for client in clients:
          client.stdout.read()
          assert client.wait(10) is not None
      else:
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
  print(f'{killed} clients killed, starts {starts} s of CPU')
  assert killed >= 50 and max(starts[1:]) < 15
