"""Clients of object stores, over fsspec, and the one place that tries again.

`gs://` needs the extra [gcs], `s3://` the extra [s3]; neither is imported
before a path of that kind is used. Credentials and addresses come from the
environment as everywhere: GOOGLE_APPLICATION_CREDENTIALS and
STORAGE_EMULATOR_HOST; AWS_* with AWS_ENDPOINT_URL.
"""

import asyncio
import contextlib
import errno
import os
import random
import re
import sys
import time
from collections.abc import Callable

from atm.messages import (
  MissingExtraError,
  clock_text,
  did_you_mean,
  missing_extra,
  one_line,
  quote,
)

SCHEMES = 'gs', 's3'
TRY_FOR = 180.0  # seconds after which a call that fails is not tried again
FIRST_WAIT, LONGEST_WAIT = 0.25, 16.0  # seconds between two tries
TELL_AT = 5  # tries after which a line says so: some seconds
SILENCE = 60.0  # seconds without an answer that count as a failure
# HTTP's codes of failures that pass; 401 is an access token that has expired.
PASSING = {401, 408, 429, 500, 502, 503, 504}
# S3's names of such failures, which come with other codes.
PASSING_NAMES = {
  'ExpiredToken', 'ExpiredTokenException', 'InternalError', 'RequestTimeout',
  'RequestTimeTooSkewed', 'ServiceUnavailable', 'SlowDown',
  'TokenRefreshRequired',
  'ThrottlingException', 'XAmzContentSHA256Mismatch',
}  # fmt: skip
PASSING_TYPES = {
  'ChecksumError', 'ClientError', 'FSTimeoutError', 'HTTPClientError',
  'IncompleteRead', 'ProxyError', 'RefreshError', 'ResponseParserError',
  'Timeout', 'TransportError', 'ConnectionError',
}  # fmt: skip
_SCHEME = re.compile(r'([A-Za-z][\w+.-]*)://')
# Whoever changes one of these gets another client.
_ENVIRONMENT = (
  'GOOGLE_APPLICATION_CREDENTIALS', 'STORAGE_EMULATOR_HOST',
  'AWS_ACCESS_KEY_ID', 'AWS_SECRET_ACCESS_KEY', 'AWS_SESSION_TOKEN',
  'AWS_PROFILE', 'AWS_REGION', 'AWS_DEFAULT_REGION', 'AWS_ENDPOINT_URL',
  'AWS_ENDPOINT_URL_S3',
)  # fmt: skip
_CREDENTIALS = {
  'gs': 'set GOOGLE_APPLICATION_CREDENTIALS, or run '
  '`gcloud auth application-default login`',
  's3': 'set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE',
}
_clients: dict[tuple, object] = {}
_told: float | None = None  # when it was said that a failure lasts
# Folder -> a check of a path, called before each write below it; see `lease`.
GUARDS: dict[str, Callable[[str], None]] = {}
WRITES = {'writing', 'removing', 'copying'}


class StorageError(OSError):
  """An object store failed for too long, or refused; one line says how."""


class PassingError(StorageError):
  """It failed for too long: the same command may go on later."""


def is_remote(path: str) -> bool:
  """Tells whether a path is one of an object store, or of a wrong scheme."""
  return _SCHEME.match(os.fspath(path)) is not None


def get_scheme(path: str) -> str:
  """Returns 'gs' or 's3'.

  Raises:
    ValueError: the path has another scheme, or names no bucket.
  """
  scheme, _, rest = path.partition('://')
  if scheme not in SCHEMES:
    raise ValueError(
      f'{quote(path)}: expected a path of this machine, gs://BUCKET/... or '
      's3://BUCKET/...' + did_you_mean(scheme, SCHEMES)
    )
  if not rest.strip('/') or rest.startswith('/'):
    raise ValueError(f'{quote(path)}: expected {scheme}://BUCKET/...')
  return scheme


def get_client(path: str):
  """Returns the fsspec file system of a path, one for each process."""
  scheme = get_scheme(path)
  key = scheme, os.getpid(), *map(os.environ.get, _ENVIRONMENT)
  if key not in _clients:
    _clients[key] = {'gs': _open_gcs, 's3': _open_s3}[scheme]()
  return _clients[key]


def _open_gcs():
  try:
    from gcsfs.core import GCSFileSystem
  except ImportError as e:
    raise MissingExtraError(missing_extra('gs:// needs gcsfs', 'gcs')) from e

  class OneTry(GCSFileSystem):
    """A file system that leaves it to `call` to try again."""

    _request = GCSFileSystem._request.__wrapped__

  return OneTry(
    token=find_gcs_token(),
    use_listings_cache=False,
    skip_instance_cache=True,
    requests_timeout=SILENCE,
  )


def find_gcs_token() -> str:
  """Returns gcsfs' name of the credentials that there are for gs://."""
  if _is_emulated():
    return 'anon'
  import google.auth
  from google.auth.exceptions import DefaultCredentialsError

  try:
    google.auth.default()
  except DefaultCredentialsError:  # which a public bucket does not need
    return 'anon'
  return 'google_default'


def _is_emulated() -> bool:
  """Tells whether gs:// is an emulator's, which asks for no credentials."""
  given = os.environ.get('GOOGLE_APPLICATION_CREDENTIALS')
  return bool(os.environ.get('STORAGE_EMULATOR_HOST')) and not given


def _open_s3():
  try:
    from s3fs import S3FileSystem
  except ImportError as e:
    raise MissingExtraError(missing_extra('s3:// needs s3fs', 's3')) from e

  client = S3FileSystem(skip_instance_cache=True, **make_s3_settings())
  client.retries = 1  # it is `call` that tries again
  return client


def make_s3_settings() -> dict:
  """Returns s3fs' settings of a client that leaves it to us to try again."""
  return {
    'use_listings_cache': False,
    'config_kwargs': {
      'connect_timeout': SILENCE,
      'read_timeout': SILENCE,
      'retries': {'total_max_attempts': 1},
    },
  }


def call(doing: str, path: str, work: Callable):
  """Returns work(file system, path); tries again where a failure may pass.

  Args:
    doing: what an error says of it, as in 'reading'; WRITES are guarded.
    path: of an object store.
    work: a call that may be done twice.

  Raises:
    FileNotFoundError, FileExistsError: as `work` raises them.
    ImportError: the extra is missing; names it.
    ValueError: see `get_scheme`.
    StorageError: it failed for TRY_FOR seconds, or for good.
  """
  get_scheme(path)
  tries = Tries(doing, path)
  while True:
    if doing in WRITES:
      check_guards(path)
    try:
      return work(get_client(path), path)
    except (FileNotFoundError, FileExistsError) as e:
      number = (
        errno.ENOENT if isinstance(e, FileNotFoundError) else errno.EEXIST
      )
      # In a bucket that is there, any object can be written.
      lacks_bucket = number == errno.ENOENT and doing == 'writing'
      why = 'no such bucket' if lacks_bucket else os.strerror(number)
      raise type(e)(number, why, path) from e
    except ImportError:
      raise
    except Exception as e:
      error = e
    wait = tries.wait_after(error)
    forget_credentials(error)
    time.sleep(wait)


def check_guards(path: str) -> None:
  """Raises PassingError where a lease does not cover a write to a path."""
  for folder, check in [*GUARDS.items()]:
    if path.startswith(f'{folder}/'):
      check(path)


class Tries:
  """The tries of one call.

  Waits grow from FIRST_WAIT to LONGEST_WAIT seconds, with jitter, so that many
  hosts do not ask at the same moments; the last try begins before TRY_FOR.
  """

  def __init__(self, doing: str, path: str):
    """Starts the clock; `doing` and the path are what an error names."""
    self._doing, self._path = doing, path
    self._began, self._failed = time.monotonic(), 0

  def wait_after(self, error: Exception) -> float:
    """Returns how many seconds to wait after a failure, before the next try.

    Raises:
      StorageError: no try is left, or none would help.
    """
    self._failed += 1
    wait = min(LONGEST_WAIT, FIRST_WAIT * 2 ** (self._failed - 1))
    wait *= random.uniform(0.5, 1)
    late = time.monotonic() - self._began + wait > TRY_FOR
    passing = is_passing(error) and not _lacks_credentials(self._path, error)
    if late or not passing:
      kind = PassingError if passing else StorageError
      text = _describe(
        self._doing, self._path, self._failed, self._began, error
      )
      raise kind(text) from error
    if self._failed == TELL_AT:
      _tell(self._doing, self._path, error)
    return wait


def is_passing(error: BaseException) -> bool:
  """Tells whether a failure may pass: of a network, a server, a token."""
  if isinstance(error, TimeoutError | ConnectionError | asyncio.TimeoutError):
    return True
  code, name = _read_answer(error)
  if code is not None or name is not None:
    return code in PASSING or name in PASSING_NAMES
  names = {kind.__name__ for kind in type(error).__mro__}
  return bool(names & PASSING_TYPES)


def _lacks_credentials(path: str, error: BaseException) -> bool:
  """Tells whether a store refused because no credentials were found."""
  refused = path.startswith('gs://') and _read_answer(error)[0] == 401
  return refused and not _is_emulated() and find_gcs_token() == 'anon'


def forget_credentials(error: BaseException) -> None:
  """Drops the clients after a failure of credentials: new ones read them."""
  code, name = _read_answer(error)
  if code in (400, 401, 403) or 'RefreshError' in type(error).__name__:
    _clients.clear()


def _tell(doing: str, path: str, error: BaseException) -> None:
  """Says, once a minute, that a failure lasts, and for how long one waits."""
  global _told
  if _told is not None and time.monotonic() - _told < 60:
    return
  _told = time.monotonic()
  with contextlib.suppress(OSError, ValueError):  # nobody reads it
    print(
      f'atm: {path}: {doing} failed {TELL_AT} times ({_explain(error)}); '
      f'trying again for up to {clock_text(TRY_FOR)}',
      file=sys.stderr, flush=True,
    )  # fmt: skip


def _read_answer(error: BaseException) -> tuple[int | None, str | None]:
  """Returns HTTP's code and S3's name of a failure, None where not known."""
  response = getattr(error, 'response', None)
  if response is None:  # s3fs translates errors; the cause is botocore's
    response = getattr(error.__cause__, 'response', None)
  if isinstance(response, dict):
    about = response.get('ResponseMetadata', {})
    return about.get('HTTPStatusCode'), response.get('Error', {}).get('Code')
  code = getattr(error, 'code', None) or getattr(error, 'status', None)
  return (int(code) if str(code).isdigit() else None), None


def _explain(error: BaseException) -> str:
  """Returns what is known of a failure, on one line."""
  code, name = _read_answer(error)
  known = [str(x) for x in (code and f'HTTP {code}', name) if x]
  text = one_line(error, 160)
  return ', '.join([*known, *([] if text in known else [text])])


def _describe(doing, path, tries, began, error) -> str:
  """Returns the line of an error that stays."""
  why = _explain(error)
  often = f'{tries:,} tries in {clock_text(time.monotonic() - began)}'
  what = 'once' if tries == 1 else often
  hint = 'see that the bucket can be reached'
  is_refused = isinstance(error, PermissionError)
  if is_refused or _read_answer(error)[0] in (401, 403):
    hint = 'see that the credentials may do this'
  if 'locate credentials' in why or _lacks_credentials(path, error):
    hint = f'no credentials were found: {_CREDENTIALS[get_scheme(path)]}'
  return (
    f'{path}: {doing} failed ({what}): {why}. Nothing was lost; {hint}, then '
    'give the same command again'
  )
