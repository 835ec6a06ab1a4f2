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
  score: float | None = Field(
    None, "A beam's, where the answer is no stream; see length_penalty."
  )
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


class TopToken(BaseModel):
  """A token that could have been chosen."""

  token: str = Field(..., 'What it adds to a text.')
  logprob: float = Field(..., 'Its log-probability.')
  bytes: list[int] = Field(..., 'What it adds to a text, in UTF-8.')


class ChosenTopToken(TopToken):
  """A token that was chosen."""

  top_logprobs: list[TopToken] = Field(..., 'The likeliest in its place.')


class ChatLogprobs(BaseModel):
  """Log-probabilities of a message's tokens."""

  content: list[ChosenTopToken] = Field(..., 'The tokens.')
  refusal: None = Field(None, 'Always null.')


class AssistantMessage(BaseModel):
  """An answer."""

  role: Literal['assistant'] = Field('assistant', 'Who wrote it.')
  content: str = Field(..., 'The text.')
  refusal: None = Field(None, 'Always null.')


class MessageDelta(BaseModel):
  """What is new of an answer."""

  role: Literal['assistant'] | None = Field(None, 'In the first event.')
  content: str | None = Field(None, 'New text.')


class _ChatChoice(BaseModel):
  index: int = Field(..., 'The number of the answer.')
  logprobs: ChatLogprobs | None = Field(None, 'Where asked for.')
  finish_reason: Reason | None = Field(..., _REASON)
  token_ids: list[int] | None = Field(None, 'Where asked for.')


class ChatChoice(_ChatChoice):
  """One answer."""

  message: AssistantMessage = Field(..., 'The answer.')


class ChatDelta(_ChatChoice):
  """What is new of one answer."""

  delta: MessageDelta = Field(..., 'What is new.')


class ChatCompletion(BaseModel):
  """What /v1/chat/completions answers."""

  id: str = Field(..., 'Of the request.')
  object: Literal['chat.completion'] = Field('chat.completion', 'The form.')
  created: int = Field(..., 'Seconds since 1970.')
  model: str = Field(..., "The model's name.")
  choices: list[ChatChoice] = Field(..., 'The answers.')
  usage: TokenUsage | None = Field(None, 'Counts of tokens.')
  prompt_token_ids: list[int] | None = Field(None, 'Where asked for.')


class ChatChunk(BaseModel):
  """An event of a stream of /v1/chat/completions."""

  id: str = Field(..., 'Of the request.')
  object: Literal['chat.completion.chunk'] = Field(
    'chat.completion.chunk', 'The form.'
  )
  created: int = Field(..., 'Seconds since 1970.')
  model: str = Field(..., "The model's name.")
  choices: list[ChatDelta] = Field(..., 'What is new.')
  usage: TokenUsage | None = Field(None, 'Only where asked for.')


class Translation(Completion):
  """What /v1/translate answers, as /v1/completions does."""

  object: Literal['translation'] = Field('translation', 'The form.')


class TargetScore(BaseModel):
  """How likely a target is."""

  index: int = Field(..., 'The number of the target.')
  object: Literal['score'] = Field('score', 'The form.')
  score: float = Field(..., 'The sum of the log-probabilities of its tokens.')
  token_count: int = Field(..., 'Tokens that were scored.')
  token_ids: list[int] | None = Field(None, 'Where logprobs were asked for.')
  logprobs: CompletionLogprobs | None = Field(None, 'Where asked for.')


class ScoreList(BaseModel):
  """What /v1/score answers."""

  id: str = Field(..., 'Of the request.')
  object: Literal['list'] = Field('list', 'The form.')
  created: int = Field(..., 'Seconds since 1970.')
  model: str = Field(..., "The model's name.")
  data: list[TargetScore] = Field(..., 'One of each target.')
  usage: TokenUsage = Field(..., 'How many tokens there are.')


class TokenList(BaseModel):
  """What /tokenize answers."""

  count: int = Field(..., 'How many there are.')
  max_model_len: int = Field(..., 'How many the encoder has room for.')
  tokens: list[int] = Field(..., 'Their ids.')
  token_strs: list[str] | None = Field(None, 'Their names, where asked for.')


class DetokenizedText(BaseModel):
  """What /detokenize answers."""

  prompt: str = Field(..., 'The text; special tokens have none.')


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
