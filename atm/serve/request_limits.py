"""What one request may ask for: settings, which need no HTTP."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import ClassVar

from atm.messages import check_count, check_fields, check_number


@dataclasses.dataclass(frozen=True)
class RequestLimits:
  """What one request may ask for.

  Attributes:
    body_bytes: of its body.
    prompts: in a list.
    results: outputs of one prompt: n and best_of.
    tokens: max_tokens; None: as many as the model has room for.
    seconds: from its arrival on; what has not ended by then ends as it is.
  """

  body_bytes: int = 2**21
  prompts: int = 128
  results: int = 16
  tokens: int | None = None
  seconds: float = 600.0

  checks: ClassVar[dict[str, Callable]] = {
    'body_bytes': partial(check_count, 'BODY_BYTES'),
    'prompts': partial(check_count, 'PROMPTS'),
    'results': partial(check_count, 'RESULTS'),
    'tokens': partial(check_count, 'MAX_TOKENS', optional=True),
    'seconds': partial(check_number, 'REQUEST_SECONDS', above=0, whole=False),
  }

  def __post_init__(self):
    check_fields(self)
