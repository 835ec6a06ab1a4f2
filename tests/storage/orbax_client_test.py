"""Tests how epath, which Orbax uses, comes to our client for gs://."""

import os

import pytest
from etils import epath

from atm import storage
from atm.storage import client, orbax_client

NAMES = (
  'EPATH_USE_TF', 'TENSORSTORE_GCS_HTTP_URL',
  'TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS',
  'TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES',
)  # fmt: skip


@pytest.fixture
def folder(make_bucket, monkeypatch):
  """A folder of gs:// that epath reads and writes by our client."""
  import fsspec
  import gcsfs.core
  from etils.epath import backend, gpath

  path = make_bucket('gs')
  for name in NAMES:  # put back after the test
    monkeypatch.setenv(name, '')
    monkeypatch.delenv(name)
  known = fsspec.get_filesystem_class('gcs')
  forget = (
    gpath._is_tf_installed.cache_clear,
    backend.fsspec_backend._get_filesystem.cache_clear,
  )
  for clear in forget:
    clear()
  orbax_client.prepare_orbax.__wrapped__('gs')
  yield path, gcsfs.core.GCSFileSystem
  fsspec.register_implementation('gcs', known, clobber=True)
  for clear in forget:
    clear()


def test_epath_writes_lists_and_removes_by_our_client(folder):
  """Fault seen: TensorFlow's file system, which knows no emulator."""
  path = epath.Path(folder[0])
  (path / 'a' / 'b').write_text('text')
  assert storage.read_bytes(f'{folder[0]}/a/b') == b'text'
  assert [x.name for x in path.iterdir()] == ['a']
  storage.write_bytes(f'{folder[0]}/a/c', b'')  # another host's
  assert sorted(x.name for x in (path / 'a').iterdir()) == ['b', 'c']
  (path / 'a').rmtree()
  assert not path.exists()
  emulator = os.environ['STORAGE_EMULATOR_HOST']
  assert [os.environ[x] for x in NAMES] == ['false', emulator, '60', '1']


def test_a_busy_server_is_asked_again(folder, monkeypatch):
  path, kind = folder
  asked, work = [], kind._request.__wrapped__

  class BusyError(Exception):
    code = 503

  async def busy(self, *args, **named):
    asked.append(args[0])
    if len(asked) in (1, 2):
      raise BusyError
    return await work(self, *args, **named)

  monkeypatch.setattr(kind._request, '__wrapped__', busy)
  monkeypatch.setattr(client, 'FIRST_WAIT', 0.01)
  epath.Path(f'{path}/a').write_text('text')
  assert asked[:3] == ['POST'] * 3
  monkeypatch.setattr(client, 'TRY_FOR', 0)
  asked.clear()
  with pytest.raises(client.PassingError, match='writing failed .*HTTP 503'):
    epath.Path(f'{path}/b').write_text('text')


def test_who_has_lost_the_lease_writes_nothing(folder, monkeypatch):
  def refuse(path):
    raise client.PassingError(path)

  monkeypatch.setitem(client.GUARDS, folder[0], refuse)
  with pytest.raises(client.PassingError, match='commit'):
    epath.Path(f'{folder[0]}/commit').write_text('text')
  assert not storage.exists(f'{folder[0]}/commit')


def read_with_tensorstore(url, monkeypatch):
  """Reads an object as Orbax does, but tries it twice."""
  import tensorstore as ts

  monkeypatch.setenv('TENSORSTORE_GCS_HTTP_URL', url)
  tries = ts.Context({'gcs_request_retries': {'max_retries': 2}})
  where = {'driver': 'gcs', 'bucket': 'bucket', 'path': 'a/'}
  return ts.KvStore.open(where, context=tries).result().read('b').result()


def test_what_tensorstore_gives_up_is_the_stores_failure(monkeypatch):
  """Fault seen: a step that could not be read for a while counts as damaged."""
  from storage_servers import find_free_port

  with pytest.raises(ValueError) as e:
    read_with_tensorstore(f'http://127.0.0.1:{find_free_port()}', monkeypatch)
  error = orbax_client.explain_orbax(e.value, 'gs://b/checkpoints')
  assert isinstance(error, client.PassingError)
  assert str(error).startswith('gs://b/checkpoints: ABORTED: All 2 retry')
  assert len(str(error)) < 500
  other = ValueError('no such array')
  assert orbax_client.explain_orbax(other, 'gs://b') is other
