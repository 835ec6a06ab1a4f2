"""Conversations become one text."""

import pytest

from atm.serve.api_error import ApiError
from atm.serve.chat_template import render_messages
from atm.serve.request_schema import ChatMessage


def render(*turns, continues=True):
  messages = [ChatMessage(role=role, content=x) for role, x in turns]
  return render_messages(messages, continues)


def test_a_single_message_is_the_text_as_it_is():
  assert render(('user', 'a\nb ')) == ('a\nb ', ())
  parts = [{'type': 'text', 'text': 'a '}, {'type': 'text', 'text': 'b'}]
  assert render(('user', parts), continues=False) == ('a b', ())


def test_several_are_named_by_who_wrote_them():
  text, stops = render(
    ('system', 'Be\nbrief.'), ('user', 'Who?'), ('assistant', 'I.'),
    ('developer', 'Go on.'), ('user', None),
  )  # fmt: skip
  assert text == (
    'System: Be brief. <br> User: Who? <br> Assistant: I. <br> '
    'System: Go on. <br> User:  <br> Assistant:'
  )
  assert stops == ('<br>', 'User:')
  assert render(('assistant', 'I.'))[0] == 'Assistant: I. <br> Assistant:'


def test_a_model_that_writes_texts_anew_reads_one_message():
  with pytest.raises(ApiError, match='2 elements') as caught:
    render(('system', 'a'), ('user', 'b'), continues=False)
  assert caught.value.param == 'messages'
