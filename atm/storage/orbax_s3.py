"""Leads Orbax to s3:// where several hosts write and read there themselves.

Orbax 0.12 takes a path for a bucket's if it begins with gs://, and for a
folder's otherwise; TensorStore and epath know s3:// as well. So Orbax's own
functions that tell a bucket are given both schemes. They are private, and
another Orbax may have others: `teach_orbax` refuses what it does not know.
"""

import asyncio
import importlib
import os

from atm.messages import MissingExtraError, missing_extra
from atm.storage import client

# Module of Orbax -> the private names that are replaced there.
PATH_UTILS = 'orbax.checkpoint._src.path.gcs_utils'
ARRAY_UTILS = 'orbax.checkpoint._src.serialization.tensorstore_utils'


def teach_orbax() -> None:
  """Makes Orbax write and read s3:// as it does gs://.

  Raises:
    ImportError: the extra [s3] is missing, or Orbax has other functions.
  """
  _register_client()
  paths, arrays = map(importlib.import_module, (PATH_UTILS, ARRAY_UTILS))
  plain = _take(paths, 'get_kvstore_for_gcs')
  normalize = _take(arrays, '_normalize_path')
  _take(arrays, '_use_gcs_driver')
  _take(paths, '_GCS_PATH_PREFIX')
  buckets = 'gs://', 's3://'
  # A step is whole when its last object is there; nothing is renamed.
  paths._GCS_PATH_PREFIX = buckets
  arrays._use_gcs_driver = lambda path: path.startswith(buckets)
  arrays._normalize_path = lambda path: (
    f's3://{os.path.normpath(path[5:])}'
    if path.startswith('s3://')
    else normalize(path)
  )
  paths.get_kvstore_for_gcs = lambda path: (
    describe_s3_folder(path) if path.startswith('s3://') else plain(path)
  )


def _take(module, name: str):
  """Returns a private function or constant of Orbax's."""
  try:
    return getattr(module, name)
  except AttributeError as e:
    raise ImportError(
      f'{module.__name__} has no {name}: for several hosts on s3:// '
      'orbax-checkpoint 0.12.8 is known; or set CHECKPOINT_DIR to gs://...'
    ) from e


def describe_s3_folder(path: str) -> dict:
  """Returns TensorStore's description of a folder of s3://."""
  bucket, _, inner = path.removeprefix('s3://').partition('/')
  place = {'driver': 's3', 'bucket': bucket, 'path': inner}
  names = 'AWS_ENDPOINT_URL_S3', 'AWS_ENDPOINT_URL'
  endpoint = next(filter(None, map(os.environ.get, names)), None)
  if endpoint:  # which tells no region
    regions = map(os.environ.get, ('AWS_REGION', 'AWS_DEFAULT_REGION'))
    place['endpoint'] = endpoint
    place['aws_region'] = next(filter(None, regions), 'us-east-1')
  if os.environ.get('AWS_ACCESS_KEY_ID'):
    # Else it looks for files first, and prints that there are none.
    place['aws_credentials'] = {'type': 'environment'}
  return place


def _register_client() -> None:
  """Gives epath, which Orbax uses for all but arrays, a client of ours."""
  try:
    import fsspec
    from fsspec.asyn import sync_wrapper
    from s3fs import S3FileSystem
  except ImportError as e:
    raise MissingExtraError(missing_extra('s3:// needs s3fs', 's3')) from e

  class OrbaxClient(S3FileSystem):
    """A file system that tries again as `client.call` does.

    It remembers no listing, because other hosts write, too.
    """

    def __init__(self, **given):
      super().__init__(**{**client.make_s3_settings(), **given})
      self.retries = 1

    def _open(self, path, mode='rb', **settings):
      if mode != 'rb':
        client.check_guards(f's3://{path}')
      return super()._open(path, mode, **settings)

    async def _call_s3(self, method, *given, **settings):
      where = '/'.join(
        str(settings[x]) for x in ('Bucket', 'Key') if x in settings
      )
      doing = 'reading' if method[:4] in ('get_', 'head', 'list') else 'writing'
      tries = client.Tries(doing, f's3://{where}')
      while True:
        try:
          return await super()._call_s3(method, *given, **settings)
        except (FileNotFoundError, FileExistsError):
          raise
        except Exception as e:
          error = e
        await asyncio.sleep(tries.wait_after(error))

    call_s3 = sync_wrapper(_call_s3)  # s3fs' own is of its own `_call_s3`

  fsspec.register_implementation('s3', OrbaxClient, clobber=True)
