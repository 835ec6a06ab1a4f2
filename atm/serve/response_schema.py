"""Bodies of responses, by pydantic, in OpenAI's form."""

from typing import Any, Literal

from pydantic import BaseModel

from atm.serve.request_schema import Field

_REASON = (
  "'stop': the end token or a stop string; 'length': max_tokens; 'timeout': "
  "the server's limit of seconds."
)
Reason = Literal['stop', 'length', 'timeout']


class TokenUsage(BaseModel):
  """Counts of tokens."""

  prompt_tokens: int = Field(0, 'Ids that the encoder read, of all prompts.')
  completion_tokens: int = Field(
    0, 'Tokens chosen, end tokens included, of all outputs.'
  )
  total_tokens: int = Field(0, 'Both.')


class ErrorDetail(BaseModel):
  """An error."""

  message: str = Field(..., 'One line.')
  type: str = Field(..., 'Its kind.')
  param: str | None = Field(None, 'The field that is wrong.')
  code: str | None = Field(None, 'A word for programs.')


class ErrorResponse(BaseModel):
  """What a request with a status of 400 or more is answered."""

  error: ErrorDetail = Field(..., 'The error.')


class CompletionLogprobs(BaseModel):
  """Log-probabilities of an output's tokens, or of those new in an event."""

  tokens: list[str] = Field(..., 'What each token adds to a text.')
  token_logprobs: list[float] = Field(..., 'Of each token.')
  top_logprobs: list[dict[str, float]] | None = Field(
    None, 'The likeliest tokens in each place; null where logprobs is 0.'
  )
  text_offset: list[int] = Field(..., 'Where in the text each token begins.')


class CompletionChoice(BaseModel):
  """One output."""

  index: int = Field(..., 'Prompt number x n + the number of the output.')
  text: str = Field(..., 'The output; of a stream what is new of it.')
  logprobs: CompletionLogprobs | None = Field(None, 'Where asked for.')
  finish_reason: Reason | None = Field(..., _REASON)
  token_ids: list[int] | None = Field(None, 'Where asked for.')
  prompt_token_ids: list[int] | None = Field(None, 'Where asked for.')


class Completion(BaseModel):
  """What /v1/completions answers; a stream's events have the same form."""

  id: str = Field(..., 'Of the request.')
  object: Literal['text_completion'] = Field('text_completion', 'The form.')
  created: int = Field(..., 'Seconds since 1970.')
  model: str = Field(..., "The model's name.")
  choices: list[CompletionChoice] = Field(..., 'The outputs.')
  usage: TokenUsage | None = Field(None, 'Of a stream only where asked for.')


class ModelCard(BaseModel):
  """What is served."""

  id: str = Field(..., 'Its name.')
  object: Literal['model'] = Field('model', 'The form.')
  created: int = Field(..., 'When the server started, in seconds since 1970.')
  owned_by: str = Field('atm', 'Always atm.')
  max_model_len: int = Field(
    ..., 'Tokens that an input may have, and that an output may have.'
  )
  languages: list[str] = Field(..., 'Codes, of a translation model; else [].')
  modes: list[str] = Field(..., "Of 'clm' and 'denoise', those it knows.")
  defaults: dict[str, Any] = Field(
    ..., "The model's own settings, which count where a request has none."
  )


class ModelList(BaseModel):
  """The one model that is served, as a list."""

  object: Literal['list'] = Field('list', 'The form.')
  data: list[ModelCard] = Field(..., 'The model.')
