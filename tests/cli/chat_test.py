"""The conversation, line by line."""

import io
import json

import pytest
import rich.console

from atm.cli import chat
from atm.inference import api, sampling


@pytest.fixture
def talk(model):
  console = rich.console.Console(file=io.StringIO(), width=200)
  return chat.Chat(model, console, config=sampling.Config(max_tokens=8))


def said(talk) -> str:
  text = talk.console.file.getvalue()
  talk.console.file.truncate(0)
  talk.console.file.seek(0)
  return text


def test_a_line_is_a_prompt(talk):
  assert talk.line('Everyone has')
  made = talk.model.generate(['Everyone has'], max_tokens=8)[0]
  assert chat.ISOLATE + made + chat.POP in said(talk)


def test_settings_change_what_is_generated(talk):
  talk.line('/mode denoise')
  talk.line('/set max_tokens 3')
  talk.line('/set beams 2')
  talk.line('/stop ; "a b"')
  talk.line('Everyone has')
  assert (talk.mode, talk.stop) == ('denoise', (';', 'a b'))
  config = sampling.Config(max_tokens=3, beams=2)
  assert talk.config == config
  ((one,),) = talk.model.complete(
    ['Everyone has'], 'denoise', config, stop=talk.stop
  )
  assert one.text in said(talk)
  talk.line('/show')
  assert 'denoise' in said(talk)


def test_shots_from_a_file(talk, tmp_path):
  path = tmp_path / 'shots.jsonl'
  shot = {'sentence': 'one', 'language': 'de', 'translation': 'eins'}
  path.write_text(json.dumps(shot) + '\n')
  talk.line(f'/shots {path}')
  assert 'choose a /template first' in said(talk)
  talk.line('/template translation')
  talk.line(f'/shots {path}')
  talk.line('/prompt two | German')
  assert (
    'Sentence: one; Translation in German: eins; '
    'Sentence: two; Translation in German:'
  ) in said(talk)
  talk.line('two')
  assert 'expected 2 texts with | between' in said(talk)
  path.write_text('{"sentence": "one"}\n')
  talk.line(f'/shots {path}')
  assert "field 'language'" in said(talk)
  assert talk.shots == [shot]


@pytest.mark.parametrize(
  'line, message',
  [
    ('/mood clm', "Did you mean '/mode'"),
    ('/mode cml', "Did you mean 'clm'"),
    ('/set temprature 1', "Did you mean 'temperature'"),
    ('/set top_p 2', 'top_p = 2: expected above 0'),
    ('/set top_p x', "top_p = 'x': expected a number"),
    ('/template sumary', "Did you mean 'summary'"),
    ('/shots /none', 'choose a /template first'),
    ('/again', 'there was no prompt yet'),
    ('a ' * 200, 'tokens: expected 1 to'),
  ],
)
def test_a_mistake_is_said_and_the_conversation_goes_on(talk, line, message):
  assert talk.line(line)
  assert message in said(talk)


def test_another_seed_gives_another_output(talk):
  talk.line('/set temperature 1.5')
  talk.line('Everyone has')
  first = said(talk)
  talk.line('/again')
  assert said(talk).split(chat.POP)[0] != first.split(chat.POP)[0]


def test_until_the_end_of_the_input(model, monkeypatch):
  monkeypatch.setattr(api, 'load', lambda *args, **options: model)
  monkeypatch.setattr(chat, '_keep_history', lambda: None)
  lines = iter(['/help', '', 'a', '/quit', 'never read'])
  console = rich.console.Console(file=io.StringIO(), width=200)
  chat.ChatCommand(
    'run', read=lambda prompt: next(lines), console=console
  ).run()
  text = console.file.getvalue()
  assert '/shots FILE' in text and 'tokens in' in text
  assert next(lines) == 'never read'

  def end(prompt):
    raise EOFError

  chat.ChatCommand('run', read=end, console=console).run()
