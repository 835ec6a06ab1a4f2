"""Renders a conversation to the text that the encoder reads.

A single message by the user is the text as it is. Else, each message is named
by who wrote it, ` <br> ` stands between, as in the paper's prompts, for
tokenizers drop newlines, and the last words ask for the answer:

  System: Be brief. <br> User: Who is born free? <br> Assistant:

The answer ends where `<br>` or `User:` begins.
"""

from collections.abc import Sequence

from atm.serve.api_error import ApiError
from atm.serve.request_schema import ChatMessage

_BETWEEN = ' <br> '
_STOPS = ('<br>', 'User:')
_NAMES = {
  'system': 'System', 'developer': 'System', 'user': 'User',
  'assistant': 'Assistant',
}  # fmt: skip


def render_messages(
  messages: Sequence[ChatMessage], continues: bool = True
) -> tuple[str, tuple[str, ...]]:
  """Returns (the text of a conversation, strings that end the answer).

  Args:
    messages: at least one.
    continues: whether the model continues texts; else it has no use for more
      than one message.

  Raises:
    ApiError: 400, there are more, or none has any text.
  """
  if len(messages) == 1 and messages[0].role == 'user':
    return messages[0].text, ()
  if not continues:
    raise ApiError(
      400, f'messages has {len(messages)} elements: this model, in this mode, '
      "writes a text anew, and does not continue one: expected one, by 'user'",
      'messages',
    )  # fmt: skip
  turns = [f'{_NAMES[x.role]}: {" ".join(x.text.split())}' for x in messages]
  return _BETWEEN.join([*turns, 'Assistant:']), _STOPS
