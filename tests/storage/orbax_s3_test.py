"""Tests how Orbax comes to s3://; whole runs: system/bucket_hosts_test.py."""

import asyncio
import os

import pytest
from etils import epath

from atm import storage
from atm.storage import client, orbax_s3


@pytest.fixture
def folder(make_bucket, monkeypatch):
  """A folder of s3:// that Orbax and epath write and read by our client."""
  import fsspec
  from etils.epath import backend, gpath
  from orbax.checkpoint._src.path import gcs_utils
  from orbax.checkpoint._src.serialization import tensorstore_utils

  path = make_bucket('s3')
  monkeypatch.setenv('EPATH_USE_TF', 'false')
  for name in ('_GCS_PATH_PREFIX', 'get_kvstore_for_gcs'):
    monkeypatch.setattr(gcs_utils, name, getattr(gcs_utils, name))
  for name in ('_use_gcs_driver', '_normalize_path'):
    known = getattr(tensorstore_utils, name)
    monkeypatch.setattr(tensorstore_utils, name, known)
  known = fsspec.get_filesystem_class('s3')
  forget = (
    gpath._is_tf_installed.cache_clear,
    backend.fsspec_backend._get_filesystem.cache_clear,
  )
  for clear in forget:
    clear()
  orbax_s3.teach_orbax()
  yield path
  fsspec.register_implementation('s3', known, clobber=True)
  for clear in forget:
    clear()


def test_epath_writes_lists_and_removes_by_our_client(folder):
  path = epath.Path(folder)
  (path / 'a' / 'b').write_text('text')
  assert storage.read_bytes(f'{folder}/a/b') == b'text'
  storage.write_bytes(f'{folder}/a/c', b'')  # another host's
  assert sorted(x.name for x in (path / 'a').iterdir()) == ['b', 'c']
  (path / 'a').rmtree()
  assert not path.exists()


def test_orbax_takes_both_schemes_for_buckets(folder):
  """Fault seen: it built the path of a local folder, s3:/bucket."""
  from orbax.checkpoint._src.path import gcs_utils
  from orbax.checkpoint._src.serialization import tensorstore_utils

  assert gcs_utils.is_gcs_path(epath.Path(folder))
  assert not gcs_utils.is_gcs_path(epath.Path('/tmp/a'))
  build = tensorstore_utils.build_kvstore_tspec
  base = build('s3://bucket/run//1/', use_ocdbt=False)
  assert base == {
    'driver': 's3', 'bucket': 'bucket', 'path': 'run/1',
    'endpoint': os.environ['AWS_ENDPOINT_URL'], 'aws_region': 'us-east-1',
    'aws_credentials': {'type': 'environment'},
  }  # fmt: skip
  base = build('gs://bucket/run', use_ocdbt=False)
  assert base == {'driver': 'gcs', 'bucket': 'bucket', 'path': 'run'}
  base = build('/tmp/run', use_ocdbt=False)
  assert base == {'driver': 'file', 'path': '/tmp/run'}


def test_amazons_own_address_and_credentials_are_tensorstores(monkeypatch):
  for name in ('AWS_ENDPOINT_URL', 'AWS_ENDPOINT_URL_S3', 'AWS_ACCESS_KEY_ID'):
    monkeypatch.delenv(name, raising=False)
  assert orbax_s3.describe_s3_folder('s3://b/x/y') == {
    'driver': 's3', 'bucket': 'b', 'path': 'x/y'
  }  # fmt: skip


def test_a_busy_server_is_asked_again(folder, monkeypatch):
  """Fault seen: the whole object that epath sends was tried once."""
  from s3fs import S3FileSystem

  asked, work = [], S3FileSystem._call_s3

  async def busy(self, method, *args, **named):
    asked.append(method)
    await asyncio.sleep(0)
    if method == 'put_object' and asked.count(method) in (1, 2):
      raise ConnectionError
    return await work(self, method, *args, **named)

  monkeypatch.setattr(S3FileSystem, '_call_s3', busy)
  monkeypatch.setattr(client, 'FIRST_WAIT', 0.01)
  epath.Path(f'{folder}/a').write_text('text')
  assert asked.count('put_object') == 3
  assert storage.read_bytes(f'{folder}/a') == b'text'


def test_who_has_lost_the_lease_writes_nothing(folder, monkeypatch):
  def refuse(path):
    raise client.PassingError(path)

  monkeypatch.setitem(client.GUARDS, folder, refuse)
  with pytest.raises(client.PassingError, match='commit'):
    epath.Path(f'{folder}/commit').write_text('text')
  assert not storage.exists(f'{folder}/commit')


def test_another_orbax_is_refused():
  with pytest.raises(ImportError, match='has no _gone: .*gs://'):
    orbax_s3._take(orbax_s3, '_gone')
