"""Tests which failures are tried again, for how long, and what is said."""

import re

import google.auth
import pytest
from google.auth import exceptions

from atm.messages import MissingExtraError
from atm.storage import client


class HttpError(Exception):
  """Looks as gcsfs's does."""

  def __init__(self, code):
    super().__init__(f'answered {code}')
    self.code = code


class Failing:
  """Work that fails some times, and then returns 'done'."""

  def __init__(self, *errors):
    self.errors, self.tries = list(errors), 0

  def __call__(self, fs, path):
    self.tries += 1
    if self.errors:
      raise self.errors.pop(0)
    return 'done'


@pytest.fixture
def waits(monkeypatch):
  """What is waited, in seconds; the clock goes on by it."""
  waits = []
  monkeypatch.setattr(client.time, 'sleep', waits.append)
  monkeypatch.setattr(client.time, 'monotonic', lambda: sum(waits))
  monkeypatch.setattr(client, 'get_client', lambda path: None)
  return waits


def test_what_may_pass_is_tried_again_with_growing_waits(waits):
  work = Failing(
    HttpError(503), TimeoutError(), ConnectionResetError(), HttpError('429')
  )
  assert client.call('reading', 'gs://b/x', work) == 'done'
  assert work.tries == 5
  for i, wait in enumerate(waits):
    assert 0.5 <= wait / (client.FIRST_WAIT * 2**i) <= 1


def test_what_stays_ends_in_one_line(waits):
  work = Failing(*[HttpError(503)] * 1000)
  with pytest.raises(client.StorageError) as e:
    client.call('writing', 's3://b/x', work)
  assert client.TRY_FOR - client.LONGEST_WAIT <= sum(waits) <= client.TRY_FOR
  assert re.fullmatch(
    r's3://b/x: writing failed \(\d+ tries in 2:\d\d\): HTTP 503, answered 503'
    r'\. Nothing was lost; see that the bucket can be reached, then give the '
    'same command again',
    str(e.value),
  )


@pytest.mark.parametrize(
  'error, hint',
  [
    (HttpError(403), 'credentials'),
    (PermissionError('no'), 'credentials'),
    (KeyError('a fault'), 'reached'),
    (ValueError('Bad Request'), 'reached'),
  ],
)
def test_what_cannot_pass_is_tried_once(waits, error, hint):
  work = Failing(error)
  with pytest.raises(client.StorageError, match=f'(once).*{hint}'):
    client.call('reading', 'gs://b/x', work)
  assert work.tries == 1 and not waits


@pytest.mark.parametrize('kind', [FileNotFoundError, FileExistsError])
def test_what_is_no_failure_is_raised_as_the_system_raises_it(waits, kind):
  with pytest.raises(kind) as e:
    client.call('reading', 'gs://b/x', Failing(kind('http://server/long')))
  assert e.value.filename == 'gs://b/x' and e.value.errno


def test_an_expired_token_is_read_anew(waits, monkeypatch):
  monkeypatch.setattr(client, '_clients', {'old': 1})
  monkeypatch.setattr(client, 'find_gcs_token', lambda: 'google_default')
  assert client.call('reading', 'gs://b/x', Failing(HttpError(401))) == 'done'
  assert not client._clients


def test_botocores_names_are_known():
  error = PermissionError('expired')
  error.__cause__ = Exception()
  error.__cause__.response = {
    'Error': {'Code': 'ExpiredToken'},
    'ResponseMetadata': {'HTTPStatusCode': 400},
  }
  assert client.is_passing(error)
  error.__cause__.response['Error']['Code'] = 'AccessDenied'
  assert not client.is_passing(error)


@pytest.mark.parametrize(
  'path, text',
  [
    ('gcs://b/x', 'gs://BUCKET'),
    ('http://b/x', 'gs://BUCKET'),
    ('gs://', 'gs://BUCKET'),
    ('s3:///x', 's3://BUCKET'),
  ],
)
def test_other_schemes_are_refused(path, text):
  assert client.is_remote(path)
  with pytest.raises(ValueError, match=text):
    client.get_scheme(path)


def test_a_failure_that_lasts_is_told_once(waits, monkeypatch, capsys):
  monkeypatch.setattr(client, '_told', None)
  for _ in range(2):
    work = Failing(*[HttpError(503)] * client.TELL_AT)
    assert client.call('reading', 'gs://b/x', work) == 'done'
  told = capsys.readouterr().err.splitlines()
  assert told == [
    'atm: gs://b/x: reading failed 5 times (HTTP 503, answered 503); trying '
    'again for up to 3:00'
  ]


def test_without_credentials_nothing_is_tried_again(monkeypatch):
  """A private bucket answers 401 to nobody; as if a token had expired."""

  def find(*_, **__):
    raise exceptions.DefaultCredentialsError

  monkeypatch.setattr(google.auth, 'default', find)
  monkeypatch.delenv('STORAGE_EMULATOR_HOST', raising=False)
  monkeypatch.delenv('GOOGLE_APPLICATION_CREDENTIALS', raising=False)
  monkeypatch.setattr(client, '_clients', {})
  work = Failing(HttpError(401))
  with pytest.raises(client.StorageError, match='no cred.*gcloud auth') as e:
    client.call('reading', 'gs://b/x', work)
  assert work.tries == 1 and not isinstance(e.value, client.PassingError)


def test_a_bucket_that_is_not_there_is_told_when_it_is_written_to(waits):
  work = Failing(FileNotFoundError('The specified bucket does not exist'))
  with pytest.raises(FileNotFoundError, match='no such bucket'):
    client.call('writing', 'gs://b/x', work)


def test_a_local_path_is_not_remote():
  assert not any(map(client.is_remote, ('', '/a', 'a:/b', '1://', 'a b://c')))


def test_a_missing_extra_is_named(monkeypatch):
  monkeypatch.setitem(__import__('sys').modules, 's3fs', None)
  monkeypatch.setattr(client, '_clients', {})
  with pytest.raises(MissingExtraError, match=r"pip install '.*\[s3\]'"):
    client.get_client('s3://bucket/x')
