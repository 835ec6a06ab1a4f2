"""Tells fields of a dataclass that were given from those left at defaults."""

import functools
import inspect


def note_given(cls):
  """Decorates a dataclass: instances keep in `given` what they were made with.

  A field that is None counts as not given.
  """
  init, signature = cls.__init__, inspect.signature(cls.__init__)

  @functools.wraps(init)
  def __init__(self, *args, **fields):
    init(self, *args, **fields)
    values = signature.bind(self, *args, **fields).arguments.items()
    given = frozenset(k for k, v in values if k != 'self' and v is not None)
    object.__setattr__(self, 'given', given)

  cls.__init__ = __init__
  return cls
