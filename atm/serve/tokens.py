"""POST /tokenize and /detokenize: ids of texts, and texts of ids."""

from atm.serve import response_schema as schema
from atm.serve.api_error import ApiError, convert_errors
from atm.serve.chat_completions import render_chat
from atm.serve.generation_settings import PARAMS
from atm.serve.request_schema import DetokenizeRequest, TokenizeRequest
from atm.serve.service import Service


def tokenize_text(service: Service, body: TokenizeRequest) -> schema.TokenList:
  """Returns the ids of a text, or of a conversation."""
  if (body.prompt is None) == (body.messages is None):
    raise ApiError(400, 'expected either prompt or messages', 'prompt')
  text, field = body.prompt, 'prompt'
  if text is None:
    text, _ = render_chat(service, body.messages, body.mode)
    field = 'messages'
  model = service.model
  words = _find_vocabulary(service)
  with convert_errors({**PARAMS, 'text': field}):
    if body.add_special_tokens is False:
      ids = words.encode(text)
    else:
      ids = model.encode(text, body.mode, body.source)
  names = None
  if body.return_token_strs:
    names = list(map(service.token_texts.name_token, ids))
  return schema.TokenList(
    count=len(ids), max_model_len=model.config.positions, tokens=ids,
    token_strs=names,
  )  # fmt: skip


def detokenize_ids(
  service: Service, body: DetokenizeRequest
) -> schema.DetokenizedText:
  """Returns the text of ids."""
  with convert_errors({'ids': 'tokens'}):
    text = _find_vocabulary(service).decode(body.tokens)
  return schema.DetokenizedText(prompt=text)


def _find_vocabulary(service: Service):
  """Returns the tokenizer; raises ApiError 400 where the model has none."""
  if service.model.vocabulary is None:
    raise ApiError(400, 'this model has no tokenizer: its texts are ids')
  return service.model.vocabulary
