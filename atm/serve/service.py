"""What is served, and whether requests are taken."""

import dataclasses
import functools
from typing import TYPE_CHECKING

from atm.serve.api_error import ApiError
from atm.serve.output_text import TokenTexts
from atm.serve.request_limits import RequestLimits

if TYPE_CHECKING:  # they import JAX, which endpoints do not need
  from atm.inference import api
  from atm.serve import engine
  from atm.serve.metrics import Metrics

PHASES = 'starting', 'ready', 'draining'
RETRY_SECONDS = {'queue': 1, 'starting': 10, 'draining': 10}


@dataclasses.dataclass(eq=False)
class Service:
  """A model and its engine, as HTTP offers them.

  Attributes:
    model, engine: what answers; None while they are made.
    name: of the model, as requests have it.
    limits: of requests.
    api_key: what requests must bear; None: nothing.
    allowed_origins: other sites whose pages may ask, '*' for all.
    metrics: what /metrics answers; None: there is no /metrics.
    phase: one of PHASES; whoever starts and drains the engine sets it.
  """

  model: 'api.Model | None'
  engine: 'engine.Engine | None'
  name: str
  limits: RequestLimits = RequestLimits()
  api_key: str | None = dataclasses.field(default=None, repr=False)
  allowed_origins: tuple[str, ...] = ()
  metrics: 'Metrics | None' = None
  phase: str = 'starting'

  @functools.cached_property
  def token_texts(self) -> TokenTexts:
    """Names of the model's tokens."""
    return TokenTexts(self.model.vocabulary)

  @property
  def state(self) -> str:
    """One of PHASES, or 'failed' where the engine has ended."""
    failed = self.engine is not None and self.engine.failure is not None
    return 'failed' if failed else self.phase

  def check_ready(self) -> None:
    """Raises ApiError 503 unless requests are taken."""
    if self.state == 'ready':
      return
    seconds = RETRY_SECONDS.get(self.state)
    raise ApiError(
      503, f'the server is {self.state}', code=self.state,
      headers={'retry-after': str(seconds)} if seconds else None,
    )  # fmt: skip
