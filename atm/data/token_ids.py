"""Checks token ids that a user gives."""

import numpy as np

from atm.messages import check_list, quote


def check_ids(name: str, ids, vocab_size: int) -> list[int]:
  """Returns a row of token ids of a list, an array or an iterator.

  Raises:
    ValueError: one is no whole number below `vocab_size`, or it is no row.
  """
  row = ids if isinstance(ids, np.ndarray) else check_list(name, ids)
  flags = bool, np.bool_, type(np.ma.masked)
  plain = not any(isinstance(i, flags) for i in row)
  try:
    array = np.asarray(row)
  except (ValueError, TypeError, OverflowError):  # rows within rows
    plain, array = False, np.zeros(0)
  if array.ndim == 1 and not array.size and plain:
    return []
  if not plain or array.ndim != 1 or array.dtype.kind not in 'iuf':
    raise ValueError(
      f'{name} = {quote(ids)}: expected a list of token ids, whole numbers '
      f'from 0 to {vocab_size - 1}'
    )
  fits = (array >= 0) & (array < vocab_size) & (array == np.floor(array))
  if not fits.all():
    wrong = array[~fits][0].item()
    raise ValueError(
      f'{name} has the id {quote(wrong)}: expected 0 to {vocab_size - 1}'
      + ', whole numbers' * (array.dtype.kind == 'f')
    )
  return array.astype(np.int64).tolist()
