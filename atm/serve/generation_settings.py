"""How a request's fields become `sampling.Config`."""

import dataclasses
import secrets

from atm.inference import sampling
from atm.serve.api_error import ApiError, convert_errors
from atm.serve.request_schema import SamplingBody
from atm.serve.service import Service

_BEAMS = 4  # where a request asks for beams, and nobody says how many
# The first noun of an error's text -> the field of the request.
PARAMS = {
  **{name: name for name in SamplingBody.model_fields},
  'results': 'n', 'beams': 'best_of', 'banned': 'bad_words', 'prefixes':
  'prefix',
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class OutputSettings:
  """How outputs of one request are chosen.

  Attributes:
    config: its `results` are generated, of each prompt.
    n: of them are returned.
  """

  config: sampling.Config
  n: int


def choose_settings(
  service: Service, body: SamplingBody, temperature: float = 1.0
) -> OutputSettings:
  """Returns the settings of a request; raises ApiError 400 for wrong ones.

  Args:
    service: whose model and limits count.
    body: how outputs are to be chosen.
    temperature: where neither the body nor the model has one; by default
      OpenAI's, which is vLLM's, too.
  """
  n = _check_results(service, 'n', body.n) or 1
  best_of = _check_results(service, 'best_of', body.best_of)
  if best_of is not None and best_of < n:
    raise ApiError(
      400, f'best_of = {best_of}: expected at least n = {n}', 'best_of'
    )
  names = {x.name for x in dataclasses.fields(sampling.Config)}
  given = {
    name: getattr(body, name) for name in names & set(type(body).model_fields)
  }
  given['max_tokens'] = _find_max_tokens(service, body)
  if body.top_k == -1:  # as vLLM says all
    given['top_k'] = 0
  if body.seed is None:
    given['seed'] = secrets.randbelow(2**31)
  with convert_errors(PARAMS):
    given |= _choose_method(service, body, n, best_of, temperature)
    config = sampling.Config(**given)
    if body.ignore_eos:
      config = _never_end(config, service)
  return OutputSettings(config, n)


def _find_own(service: Service) -> dict:
  """Returns the model's own settings that are of `sampling.Config`."""
  own = service.model.generation_defaults
  return {name: value for name, value in own.items() if name != 'banned'}


def _check_results(service: Service, name: str, value) -> int | None:
  """Returns a number of outputs that the limits allow, or None."""
  most = service.limits.results
  if value is not None and not 1 <= value <= most:
    raise ApiError(
      400, f'{name} = {value}: expected a whole number from 1 to {most}', name
    )
  return value


def _find_max_tokens(service: Service, body: SamplingBody) -> int | None:
  """Returns max_tokens, of either name."""
  old, new = body.max_tokens, body.max_completion_tokens
  if old is not None and new is not None and old != new:
    raise ApiError(
      400, f'max_tokens = {old}, but max_completion_tokens = {new}: expected '
      'one of them', 'max_completion_tokens',
    )  # fmt: skip
  given, most = old if new is None else new, service.limits.tokens
  if most is not None and given is not None and given > most:
    name = 'max_tokens' if new is None else 'max_completion_tokens'
    raise ApiError(400, f'{name} = {given}: expected at most {most}', name)
  if most is not None and given is None:
    default = sampling.Config().max_tokens
    return min(most, _find_own(service).get('max_tokens', default))
  return given


def _choose_method(
  service: Service, body: SamplingBody, n: int, best_of: int | None,
  default: float,
) -> dict:  # fmt: skip
  """Returns beams, results and temperature: how, and of how many, to choose."""
  own = _find_own(service)
  plain = sampling.Config(temperature=body.temperature)
  beams = own.get('beams', 1)
  search = body.use_beam_search
  if search is None:
    search = plain.with_defaults(own).beams > 1
  if search:
    if body.temperature:
      raise ApiError(
        400, f'temperature = {body.temperature} with use_beam_search: expected '
        '0, for beams are not sampled', 'temperature',
      )  # fmt: skip
    if beams == 1:
      beams = min(_BEAMS, service.engine.sizes.beams)
    beams = best_of or max(n, beams)
    return dict(beams=beams, results=n, temperature=0.0)
  temperature = body.temperature
  if temperature is None and not own:
    temperature = default
  sampled = temperature if temperature is not None else own.get('temperature')
  results = best_of or n
  if results > 1 and not sampled:
    name = 'n' if n > 1 else 'best_of'
    raise ApiError(
      400, f'{name} = {results}: expected 1 where the likeliest tokens are '
      'taken: give a temperature above 0, or use_beam_search', name,
    )  # fmt: skip
  return dict(beams=1, results=results, temperature=temperature)


def _never_end(config: sampling.Config, service: Service) -> sampling.Config:
  """Returns settings with which no output ends before max_tokens."""
  most = config.with_defaults(_find_own(service)).max_tokens
  return sampling.Config(**{**config.list_given(), 'min_tokens': most})
