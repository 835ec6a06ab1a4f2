"""Metrics go to a tracker, too; none ends or delays the training.

Faults seen: a resumed run began another run there; rows of the time in which a
tracker did not answer were lost.
"""

import json
import struct
import threading

import pytest

from atm.train import metric_writer, trackers

from tiny_runs import Stop

CONFIG = "MODEL_DIR = 'here'\nSEED = 3\ntrainer.train.seed = %SEED\n"


class FakeRun:
  """A tracker that answers while `works` is set."""

  works = threading.Event()
  opened: list = []
  rows: list = []
  ended: list = []

  def __init__(self, key, model_dir, settings):
    if not self.works.is_set():
      raise ConnectionError('no\nroute')
    self.key = key or 'k1'
    self.opened.append((key, settings))

  def log(self, step, values):
    if not self.works.is_set():
      raise SystemExit(3)  # some libraries exit
    self.rows.append((step, values))

  def finish(self, status):
    self.ended.append(status)


@pytest.fixture
def fake(monkeypatch):
  monkeypatch.setitem(trackers.TRACKERS, 'wandb', FakeRun)
  monkeypatch.setattr(trackers, 'check_tracker_package', lambda name: None)
  FakeRun.works.set()
  for seen in (FakeRun.opened, FakeRun.rows, FakeRun.ended):
    seen.clear()
  return FakeRun


def test_a_resumed_run_goes_on_in_the_same_run(fake, tmp_path):
  said = []
  make = lambda: trackers.Tracker('wandb', str(tmp_path), CONFIG, said.append)
  with make() as tracker:
    tracker.write(1, {'loss': 2, 'none': None})
  with pytest.raises(KeyboardInterrupt), make() as tracker:
    tracker.write(2, {'loss': 1.5})
    raise KeyboardInterrupt
  with pytest.raises(OSError), make() as tracker:
    tracker.write(3, {'loss': 1.0})
    raise OSError
  settings = {'MODEL_DIR': "'here'", 'SEED': '3'}
  assert fake.opened == [(None, settings), ('k1', settings), ('k1', settings)]
  assert fake.rows == [(1, {'loss': 2}), (2, {'loss': 1.5}), (3, {'loss': 1})]
  assert fake.ended == ['FINISHED', 'KILLED', 'FAILED'] and not said
  assert json.loads((tmp_path / 'tracker.json').read_text()) == {'wandb': 'k1'}


def test_a_tracker_that_fails_costs_a_line_and_no_row(fake, tmp_path):
  said, told = [], threading.Event()

  def say(text):
    said.append(text)
    told.set()

  with trackers.Tracker('wandb', str(tmp_path), CONFIG, say) as tracker:
    for works, step in ((False, 1), (False, 2), (True, 3), (False, 4)):
      (fake.works.set if works else fake.works.clear)()
      told.clear()
      tracker.write(step, {'loss': step})
      if step != 2:
        assert told.wait(10)
    fake.works.set()
  assert [step for step, _ in fake.rows] == [1, 2, 3, 4]
  assert [text.partition(': ')[2] for text in said] == [
    'no route: the run goes on; 1 row(s) are not sent yet',
    'answers again, and has all rows',
    '3: the run goes on; 1 row(s) are not sent yet',
    'answers again, and has all rows',
  ]


def test_a_tracker_that_hangs_holds_nobody_up(fake, tmp_path, monkeypatch):
  monkeypatch.setattr(trackers, 'CLOSE_S', 0.1)
  said, never = [], threading.Event()
  monkeypatch.setattr(fake, 'log', lambda *args: never.wait(20))
  with trackers.Tracker('wandb', str(tmp_path), '', said.append) as tracker:
    tracker.write(1, {'loss': 1})
  never.set()
  assert said == [
    "TRACKER = 'wandb': does not answer for 0.1 s; the last rows are not sent"
  ]


def test_a_run_sends_all_its_rows(fake, train, tmp_path):
  with pytest.raises(Stop):
    train(tmp_path, 4, tracker='wandb', stop_at=4)
  train(tmp_path, 4, tracker='wandb')
  rows = metric_writer.read_metrics(str(tmp_path))
  sent = {(step, tuple(values)) for step, values in fake.rows}
  assert sent >= {(row.pop('step'), tuple(row)) for row in rows}
  assert [key for key, _ in fake.opened] == [None, 'k1']


def test_a_package_that_is_missing_is_named(monkeypatch, train, tmp_path):
  find = lambda name: None
  monkeypatch.setattr(trackers.importlib.util, 'find_spec', find)
  with pytest.raises(ValueError, match=r"'mlflow' needs mlflow: .*\[mlflow\]"):
    train(tmp_path / 'run', 4, tracker='mlflow')
  assert not (tmp_path / 'run' / 'config.gin').exists()


# --- The packages themselves, without a network


@pytest.mark.trackers
def test_mlflow_has_one_run_of_a_run_that_was_resumed(
  train, tmp_path, monkeypatch
):
  mlflow = pytest.importorskip('mlflow', reason='make test-trackers')
  uri = f'sqlite:///{tmp_path}/mlflow.db'
  monkeypatch.setenv('MLFLOW_TRACKING_URI', uri)
  run, text = tmp_path / 'run', 'TRAIN_STEPS = {}\n'
  with pytest.raises(Stop):
    train(run, 4, tracker='mlflow', stop_at=3, config_text=text.format(4))
  train(run, 6, tracker='mlflow', config_text=text.format(6))
  client = mlflow.MlflowClient(uri)
  (experiment,) = client.search_experiments(filter_string="name = 'atm'")
  (found,) = client.search_runs([experiment.experiment_id])
  assert (found.info.run_name, found.info.status) == ('run', 'FINISHED')
  assert found.data.params == {'TRAIN_STEPS': '4'}
  rows = metric_writer.read_metrics(str(run))
  for name in ('loss/denoise', 'eval/loss/clm'):
    sent = client.get_metric_history(found.info.run_id, name)
    want = {row['step']: row[name] for row in rows if name in row}
    assert {m.step: m.value for m in sent} == want
  # On a server that does not know the run, another begins.
  monkeypatch.setenv('MLFLOW_TRACKING_URI', f'sqlite:///{tmp_path}/other.db')
  mlflow.set_tracking_uri(None)
  train(run, 8, tracker='mlflow', config_text=text.format(8))
  key = json.loads((run / 'tracker.json').read_text())['mlflow']
  assert key != found.info.run_id


@pytest.mark.trackers
def test_a_server_of_mlflow_that_is_not_there_costs_a_line(
  train, tmp_path, monkeypatch
):
  pytest.importorskip('mlflow', reason='make test-trackers')
  monkeypatch.setenv('MLFLOW_TRACKING_URI', 'http://127.0.0.1:9')
  monkeypatch.setenv('MLFLOW_HTTP_REQUEST_MAX_RETRIES', '0')
  run = train(tmp_path / 'run', 3, tracker='mlflow')
  (line,) = [x for x in run.lines if 'TRACKER' in x]
  assert 'the run goes on' in line and '127.0.0.1' in line
  assert len(run.history) >= 3


def read_records(content: bytes):
  """Yields the records of a .wandb file, a log of LevelDB behind 7 bytes."""
  at, parts, block = 7, b'', 32768
  while at + 7 <= len(content):
    if block - at % block < 7:
      at += block - at % block  # no header fits
      continue
    size, kind = struct.unpack('<HB', content[at + 4 : at + 7])
    parts += content[at + 7 : at + 7 + size]
    at += 7 + size
    if kind in (1, 4):  # whole, or the last part
      yield parts
      parts = b''


@pytest.mark.trackers
def test_wandb_offline_has_one_run_of_a_run_that_was_resumed(
  train, tmp_path, monkeypatch
):
  pytest.importorskip('wandb', reason='make test-trackers')
  from wandb.proto import wandb_internal_pb2

  monkeypatch.setenv('WANDB_MODE', 'offline')
  run = tmp_path / 'run'
  with pytest.raises(Stop):
    train(run, 4, tracker='wandb', stop_at=3)
  train(run, 6, tracker='wandb')
  key = json.loads((run / 'tracker.json').read_text())['wandb']
  files = sorted(run.glob(f'wandb/offline-run-*-{key}/run-{key}.wandb'))
  assert len(files) == 2
  sent = {}
  for path in files:
    for data in read_records(path.read_bytes()):
      record = wandb_internal_pb2.Record.FromString(data)
      if record.WhichOneof('record_type') == 'history':
        items = {
          '/'.join(i.nested_key) or i.key: json.loads(i.value_json)
          for i in record.history.item
        }
        sent.setdefault(items['_step'], {}).update(items)
  rows = metric_writer.read_metrics(str(run))
  for name in ('loss/denoise', 'eval/loss/clm'):
    want = {row['step']: row[name] for row in rows if name in row}
    assert {n: row[name] for n, row in sent.items() if name in row} == want
