"""Bodies of requests, by pydantic: OpenAI's and vLLM's names, and ours.

Values are checked where they are used, by `sampling.Config` and `Framing`; here
are types. A field that another server has, and that would change outputs, is
refused by name, unless its value changes nothing.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict
from pydantic import Field as _Field
from pydantic_core import PydanticCustomError

from atm.inference.framing import TRUNCATIONS
from atm.inference.prompts import MODES

MOST_LOGPROBS = 20  # as OpenAI


def Field(default, text: str, **more):  # noqa: N802, it is pydantic's
  """Returns pydantic's Field with a description."""
  return _Field(default, description=text, **more)


def _check_ids_or_text(value, many: bool):
  """Returns a text or ids, or, if `many`, a list of these, as it is."""
  is_id = lambda x: isinstance(x, int) and not isinstance(x, bool)
  if isinstance(value, str):
    return value
  if isinstance(value, list):
    if value and all(map(is_id, value)):
      return value
    if many and value and all(isinstance(x, str) for x in value):
      return value
    if many and value and all(
      isinstance(x, list) and x and all(map(is_id, x)) for x in value
    ):  # fmt: skip
      return value
  also = ', or a list of texts or of such lists' if many else ''
  raise PydanticCustomError(
    'prompt', 'expected a text, or a list of token ids{also}', {'also': also}
  )


def _inputs(many: bool = True):
  return BeforeValidator(lambda x: _check_ids_or_text(x, many))


TextField = Annotated[str | list[int], _inputs(many=False)]
PromptField = Annotated[
  str | list[str] | list[int] | list[list[int]], _inputs()
]  # fmt: skip


def make_unsupported(*neutral, text: str):
  """Returns a type of fields that change nothing, or are refused by name."""

  def check(value):
    if value is None or any(
      type(value) is type(x) and value == x for x in neutral
    ):
      return value
    raise PydanticCustomError(
      'refused', 'this server does not have it: leave it out'
    )

  return Annotated[
    Any, AfterValidator(check), Field(None, f'Not supported: {text}.')
  ]


class Body(BaseModel):
  """A JSON object without other fields than its own."""

  model_config = ConfigDict(extra='forbid', strict=True, allow_inf_nan=False)


class StreamOptions(Body):
  """What a stream tells besides."""

  include_usage: bool | None = Field(
    None, 'A last event before [DONE] has the usage, and no choices.'
  )
  continuous_usage_stats: bool | None = Field(
    None, 'Every event has the usage so far.'
  )


class ModelBody(Body):
  """What all requests have."""

  model: str | None = Field(
    None, 'Name of the model, see /v1/models; null: the one that is served.'
  )
  user: str | None = Field(None, 'Without effect.')


class FramedBody(ModelBody):
  """How texts become ids of the encoder."""

  mode: Literal[MODES] | None = Field(
    None,
    "'clm' continues the text, 'denoise' returns it completed; null: 'clm' "
    'where the vocabulary has [CLM], else as the model was trained.',
  )
  truncate: Literal[TRUNCATIONS] | None = Field(
    None,
    "What becomes of a text that is too long: 'refuse' (the default) answers "
    "400, 'start' cuts tokens at its start, 'end' at its end.",
  )
  source: str | None = Field(
    None,
    "The input's language, of a translation model: 'de', 'deu_Latn', 'German'.",
  )
  target: str | None = Field(
    None, "The output's language, of a translation model."
  )


class SamplingBody(FramedBody):
  """How tokens are chosen; a field that is null is the model's own default."""

  n: int | None = Field(None, 'Outputs of each prompt; default 1.')
  best_of: int | None = Field(
    None,
    'Outputs that are generated, of which the n best are returned, by mean '
    'log-probability of their tokens. With use_beam_search: beams.',
  )
  max_tokens: int | None = Field(
    None,
    'At most this many tokens an output, its end token included. Default: the '
    "model's own, of its generation_config.json, or 64.",
  )
  max_completion_tokens: int | None = Field(
    None, 'The same as max_tokens, as newer clients call it.'
  )
  min_tokens: int | None = Field(None, 'No end token before this many.')
  ignore_eos: bool | None = Field(
    None, 'Goes on to max_tokens, as min_tokens = max_tokens does.'
  )
  temperature: float | None = Field(
    None,
    '0 takes the likeliest token, else logits are divided by it. Default: as '
    "the model's generation_config.json has it, greedy or beams, too; 1 where "
    'a model has none.',
  )
  top_k: int | None = Field(
    None, 'Samples among this many likeliest tokens; 0 or -1: among all.'
  )
  top_p: float | None = Field(
    None, 'Samples among the likeliest that together have this probability.'
  )
  min_p: float | None = Field(
    None, "Samples among those with this share of the likeliest's probability."
  )
  repetition_penalty: float | None = Field(
    None, 'Divides positive logits of tokens already written; 1: none.'
  )
  no_repeat_ngram_size: int | None = Field(
    None, 'So many tokens in a row are not written twice; 0: they may be.'
  )
  encoder_no_repeat_ngram_size: int | None = Field(
    None, 'Nor so many in a row that the input has.'
  )
  seed: int | None = Field(
    None,
    'Of sampling, together with the place of a prompt in its list; the same '
    'seed gives the same outputs. Default: another for every request.',
  )
  stop: str | list[str] | None = Field(
    None, 'Strings that end an output, and are not in its text.'
  )
  bad_words: list[str] | list[list[int]] | None = Field(
    None, 'Texts, or lists of ids, that no output has.'
  )
  use_beam_search: bool | None = Field(
    None,
    "Searches with best_of beams. Default: the model's own; false: none. A "
    'stream of beams has its text at the end.',
  )
  length_penalty: float | None = Field(
    None, "A beam's score is divided by its tokens to this power."
  )
  early_stopping: bool | Literal['never'] | None = Field(
    None, 'Of beams: true ends as soon as enough are finished.'
  )
  prefix: TextField | None = Field(
    None, 'What every output begins with: a text, or ids.'
  )
  stream: bool | None = Field(
    None, 'Server-sent events, each with the text that became sure.'
  )
  stream_options: StreamOptions | None = Field(None, 'Only with stream.')
  return_token_ids: bool | None = Field(
    None, 'Choices have token_ids, and the first of them prompt_token_ids.'
  )
  frequency_penalty: make_unsupported(0, 0.0, text='see repetition_penalty')
  presence_penalty: make_unsupported(0, 0.0, text='see repetition_penalty')
  logit_bias: make_unsupported({}, text='see bad_words')
  logits_processors: make_unsupported([], text='see bad_words')
  response_format: make_unsupported({'type': 'text'}, text='outputs are texts')
  stop_token_ids: make_unsupported([], text='see stop')
  include_stop_str_in_output: make_unsupported(
    False, text='texts end before stops'
  )
  skip_special_tokens: make_unsupported(True, text='texts have none')
  spaces_between_special_tokens: make_unsupported(True, text='texts have none')
  add_special_tokens: make_unsupported(
    True, text='see mode; ids are taken as they are'
  )
  detokenize: make_unsupported(True, text='see return_token_ids')
  return_tokens_as_token_ids: make_unsupported(
    False, text='see return_token_ids'
  )
  prompt_logprobs: make_unsupported(0, False, text='see /v1/score')
  truncate_prompt_tokens: make_unsupported(text='see truncate')
  store: make_unsupported(False, text='nothing is stored')
  metadata: Any = Field(None, 'Without effect.')
  service_tier: Any = Field(None, 'Without effect.')
  priority: make_unsupported(0, text='requests are answered in order')
  request_id: str | None = Field(None, 'Without effect.')


class CompletionRequest(SamplingBody):
  """Asks for outputs of prompts."""

  prompt: PromptField = Field(
    ..., 'A text, a list of texts, ids, or a list of lists of ids.'
  )
  suffix: make_unsupported('', text="see mode 'denoise', which fills gaps")
  echo: bool | None = Field(
    None, 'Texts begin with the prompt; not together with logprobs.'
  )
  logprobs: int | None = Field(
    None,
    f'Log-probabilities of the tokens, and of so many likeliest, 0 to '
    f'{MOST_LOGPROBS}, by the model before penalties and temperature.',
    ge=0, le=MOST_LOGPROBS,
  )  # fmt: skip


class TextPart(Body):
  """A part of a message."""

  type: Literal['text'] = Field(..., "Always 'text'.")
  text: str = Field(..., 'The text.')


class ChatMessage(Body):
  """What one side of a conversation wrote."""

  role: Literal['system', 'developer', 'user', 'assistant'] = Field(
    ..., 'Who wrote it.'
  )
  content: str | list[TextPart] | None = Field(
    None, 'A text, or parts that are joined.'
  )
  name: str | None = Field(None, 'Without effect.')
  refusal: str | None = Field(None, 'Without effect, as answers have it.')
  tool_calls: make_unsupported([], text='there are no tools')
  function_call: make_unsupported(text='there are no tools')
  audio: make_unsupported(text='texts only')
  annotations: Any = Field(None, 'Without effect, as answers have it.')

  @property
  def text(self) -> str:
    """The content."""
    parts = self.content or ''
    return parts if isinstance(parts, str) else ''.join(x.text for x in parts)


class ChatRequest(SamplingBody):
  """Asks for the next message of a conversation."""

  messages: list[ChatMessage] = Field(
    ..., 'The conversation; it is rendered to one text.', min_length=1
  )
  logprobs: bool | None = Field(
    None, 'Log-probabilities of the tokens, before penalties and temperature.'
  )
  top_logprobs: int | None = Field(
    None,
    f'And of so many likeliest, 0 to {MOST_LOGPROBS}.',
    ge=0, le=MOST_LOGPROBS,
  )  # fmt: skip
  tools: make_unsupported([], text='there are no tools')
  tool_choice: make_unsupported('none', 'auto', text='there are no tools')
  parallel_tool_calls: bool | None = Field(None, 'Without effect.')
  functions: make_unsupported([], text='there are no tools')
  function_call: make_unsupported('none', 'auto', text='there are no tools')
  modalities: make_unsupported(['text'], text='texts only')
  audio: make_unsupported(text='texts only')
  prediction: Any = Field(None, 'Without effect.')
  reasoning_effort: make_unsupported('none', text='the model does not reason')
  verbosity: make_unsupported('medium', text='see max_tokens')
  web_search_options: make_unsupported(text='there is no search')
  add_generation_prompt: make_unsupported(True, text='the template has it')
  continue_final_message: make_unsupported(False, text='see prefix')
  chat_template: make_unsupported(text="the template is the server's")
  chat_template_kwargs: make_unsupported({}, text='the template has none')
  safety_identifier: str | None = Field(None, 'Without effect.')
  prompt_cache_key: str | None = Field(None, 'Without effect.')
  prompt_cache_retention: str | None = Field(None, 'Without effect.')


class TranslationRequest(SamplingBody):
  """Asks for translations."""

  text: str | list[str] = Field(..., 'A text, or a list of texts.')
  target: str = Field(
    ..., "The language to translate to: 'de', 'deu_Latn', 'German'."
  )
  shots: list[list[str]] | None = Field(
    None,
    'Pairs of a text and its translation, to learn from, of a model without '
    'languages of its own.',
  )


class ScoreRequest(FramedBody):
  """Asks how likely the model would write targets for inputs."""

  inputs: PromptField = Field(
    ..., 'What the encoder reads: one for all targets, or one for each.'
  )
  targets: PromptField = Field(
    ..., 'Texts, which are framed, end token and language; or ids, as they are.'
  )
  logprobs: int | None = Field(
    None,
    f'Tell the log-probability of each token, and of so many likeliest, 0 to '
    f'{MOST_LOGPROBS}, in its place.',
    ge=0, le=MOST_LOGPROBS,
  )  # fmt: skip


class TokenizeRequest(ModelBody):
  """Asks for the ids of a text."""

  prompt: str | None = Field(None, 'The text.')
  messages: list[ChatMessage] | None = Field(
    None, 'A conversation instead, see /v1/chat/completions.', min_length=1
  )
  add_special_tokens: bool | None = Field(
    None, 'The ids as the encoder reads them (the default), or of text alone.'
  )
  return_token_strs: bool | None = Field(None, 'Name the tokens, too.')
  mode: Literal[MODES] | None = Field(None, 'See /v1/completions.')
  source: str | None = Field(None, 'See /v1/completions.')


class DetokenizeRequest(ModelBody):
  """Asks for the text of ids."""

  tokens: list[int] = Field(..., 'The ids.')
