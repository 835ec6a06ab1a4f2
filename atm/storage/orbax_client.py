"""Leads Orbax to a store where it writes and reads there itself.

It uses TensorStore for arrays, and etils' epath for all other files. Epath
takes TensorFlow's file system where that is installed, which does not know
STORAGE_EMULATOR_HOST. Told so, it takes fsspec's `gcs` instead, for which we
give a client that keeps our rules.
"""

import asyncio
import functools
import os

from atm.messages import MissingExtraError, missing_extra, one_line
from atm.storage import client, orbax_s3

GAVE_UP = 'retry attempts failed'  # TensorStore's words, after a quarter hour


@functools.cache
def prepare_orbax(scheme: str) -> None:
  """Makes Orbax read and write a store by our credentials, address and tries.

  To be called before Orbax first opens such a path.

  Args:
    scheme: 'gs' or 's3'.

  Raises:
    ImportError: the extra is missing, or Orbax is not one that is known.
  """
  _prepare_libraries()
  {'gs': _register_gcs, 's3': orbax_s3.teach_orbax}[scheme]()


def _register_gcs() -> None:
  """Gives epath a client of ours for gs://."""
  try:
    import fsspec
    from gcsfs.core import GCSFileSystem
  except ImportError as e:
    raise MissingExtraError(missing_extra('gs:// needs gcsfs', 'gcs')) from e

  class OrbaxClient(GCSFileSystem):
    """A file system that tries again as `client.call` does.

    It remembers no listing, because other hosts write, too.
    """

    def __init__(self, **given):
      settings = {
        'token': client.find_gcs_token(),
        'use_listings_cache': False,
        'requests_timeout': client.SILENCE,
      }
      super().__init__(**{**settings, **given})

    def _open(self, path, mode='rb', **settings):
      if mode != 'rb':
        client.check_guards(f'gs://{path}')
      return super()._open(path, mode, **settings)

    async def _request(self, method, path, *names, **settings):
      where = f'gs://{"/".join(names)}' if names else path
      doing = 'reading' if method == 'GET' else 'writing'
      tries, work = client.Tries(doing, where), GCSFileSystem._request
      while True:
        try:
          return await work.__wrapped__(self, method, path, *names, **settings)
        except (FileNotFoundError, FileExistsError):
          raise
        except Exception as e:
          error = e
        await asyncio.sleep(tries.wait_after(error))

  fsspec.register_implementation('gcs', OrbaxClient, clobber=True)


def _prepare_libraries() -> None:
  """Tells epath and TensorStore by their environment what we know."""
  # Each is what a user's own setting of the same variable goes before.
  os.environ.setdefault('EPATH_USE_TF', 'false')
  if emulator := os.environ.get('STORAGE_EMULATOR_HOST'):
    url = emulator if '://' in emulator else f'http://{emulator}'
    os.environ.setdefault('TENSORSTORE_GCS_HTTP_URL', url)
  # TensorStore would wait for ever for a server that is silent.
  silent = 'TENSORSTORE_CURL_LOW_SPEED_'
  os.environ.setdefault(f'{silent}TIME_SECONDS', f'{client.SILENCE:.0f}')
  os.environ.setdefault(f'{silent}LIMIT_BYTES', '1')


def explain_orbax(error: Exception, path: str) -> Exception:
  """Returns a PassingError for TensorStore's of a store; others as they are."""
  if GAVE_UP not in str(error):
    return error
  return client.PassingError(
    f'{path}: {one_line(error, 240)}. See that the bucket can be reached, then '
    'give the same command again'
  )
