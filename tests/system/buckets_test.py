"""Text, vocabulary and rows in object stores: the bytes of a local build.

A store that fails now and then changes nothing but the time that it takes; one
that fails for good ends a build in one line, and the same call goes on.
"""

import os

import pytest

from atm import storage
from atm.data import cache
from atm.data import vocabulary as vocabulary_lib
from atm.storage import client

import faulty_proxy
from row_caches import build, contents, write_shipped_texts

SERVERS = {'gs': 'STORAGE_EMULATOR_HOST', 's3': 'AWS_ENDPOINT_URL'}


@pytest.fixture
def configure(words):
  """Configures the tasks, and as they were again afterwards."""
  import atm_tasks

  yield lambda **named: atm_tasks.configure(vocabulary=words.path, **named)
  atm_tasks.configure(vocabulary=words.path)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Three files of text of one language."""
  folder = write_shipped_texts(tmp_path_factory.mktemp('text'))
  for name in os.listdir(folder):
    if not name.startswith('te-'):
      os.remove(folder / name)
  return folder


@pytest.fixture(scope='module')
def whole(folder, words, tmp_path_factory):
  """A local folder of rows."""
  import atm_tasks

  directory = tmp_path_factory.mktemp('whole')
  again = lambda **named: atm_tasks.configure(vocabulary=words.path, **named)
  assert build(directory, words, again, folder)
  return directory


def download(path: str, target) -> dict[str, str]:
  """Returns every file below a folder of an object store -> a hash of it."""
  storage.download(path, str(target), storage.find_objects(path))
  return contents(target)


@pytest.fixture
def proxy(bucket, monkeypatch):
  """A proxy in front of the store of `bucket`, that fails where it is told."""
  name = SERVERS[bucket[:2]]
  with faulty_proxy.Proxy(os.environ[name]) as proxy:
    monkeypatch.setenv(name, proxy.url)
    monkeypatch.setattr(client, 'FIRST_WAIT', 0.01)
    yield proxy


def test_all_of_a_build_in_a_bucket(
  bucket, folder, words, configure, whole, tmp_path
):
  storage.upload_folder(str(folder), f'{bucket}/text')
  storage.upload_folder(os.path.dirname(words.path), f'{bucket}/words')
  vocabulary = vocabulary_lib.open_vocabulary(f'{bucket}/words')
  assert vocabulary.files == words.files
  rows = f'{bucket}/rows'
  share = lambda i: build(
    rows, words, configure, f'{bucket}/text', vocabulary=f'{bucket}/words',
    share=(i, 2),
  )  # fmt: skip
  assert not share(0) and share(1)
  assert download(rows, tmp_path / 'rows') == contents(whole)
  assert cache.open_cache(rows)[0].files == words.files
  assert share(0)  # nothing is left to do


def test_faults_change_nothing(
  proxy, bucket, words, configure, whole, folder, tmp_path, monkeypatch
):
  monkeypatch.setattr(client, 'SILENCE', 1)
  storage.upload_folder(str(folder), f'{bucket}/text')
  proxy.fail('status', code=503, path='rows', times=2)
  proxy.fail('status', code=429, times=2)
  proxy.fail('status', code=401)
  proxy.fail('refuse')
  proxy.fail('drop', method='GET', path='te-0')
  proxy.fail('stall', method='GET', path='te-1', seconds=1.5)
  gs = bucket.startswith('gs')  # which names the object in the body
  sends = ('POST', 'upload') if gs else ('PUT', 'rows')
  proxy.fail('lose', method=sends[0], path=sends[1], times=2)
  proxy.fail('drop', method=sends[0], path=sends[1])
  assert build(f'{bucket}/rows', words, configure, f'{bucket}/text')
  met = [kind for _, _, kind in proxy.requests if kind]
  assert len(met) == 11, met
  assert download(f'{bucket}/rows', tmp_path / 'rows') == contents(whole)


def test_a_store_that_stays_down_ends_in_one_line(
  proxy, bucket, words, configure, whole, folder, tmp_path, monkeypatch
):
  monkeypatch.setattr(client, 'TRY_FOR', 0.3)
  name, rows = 'text_te_denoise', f'{bucket}/rows'
  proxy.fail('status', code=503, path='array_record', times=10**6)
  with pytest.raises(storage.StorageError) as caught:
    build(rows, words, configure, folder, name=name)
  line = str(caught.value)
  assert '\n' not in line and len(line) < 500
  assert rows in line and 'HTTP 503' in line and 'tries' in line
  proxy.heal()
  assert build(rows, words, configure, folder, name=name)
  made = download(rows, tmp_path / 'there').items()
  assert {x for x in contents(whole).items() if name in x[0]} <= {*made}
