"""The conversation, line by line."""

import io
import json
import os

import pytest
import rich.console

from atm.checkpoint import pretrained
from atm.cli import chat
from atm.inference import api, sampling
from tests.public_folders import PUBLIC


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


@pytest.mark.parametrize('beams', [1, 2])
def test_an_output_is_shown_as_it_was_generated(talk, monkeypatch, beams):
  """Faults seen: `:smile:` shown as an emoji; brackets read as a style; spaces
  lost."""
  text = 'a :smile: [red]b[/]  c\\'
  one = api.Generation(text, [1], [-1.0], -1.0)
  monkeypatch.setattr(talk.model, 'complete', lambda *args, **named: [[one]])
  monkeypatch.setattr(
    talk.model, 'stream', lambda *args, **named: iter([text[:5], text[5:]])
  )
  talk.line(f'/set beams {beams}')
  talk.line('Everyone has')
  assert f'{chat.ISOLATE}{text}{chat.POP}' in said(talk)
  talk.line('/prompt :smile: [red]')
  assert f'{chat.ISOLATE}:smile: [red]{chat.POP}' in said(talk)


def test_an_empty_stop_string_is_refused_where_it_is_given(talk):
  """Fault seen: taken, and every answer an error."""
  talk.line('/stop ; ""')
  assert '/stop[1]' in said(talk) and talk.stop == ()


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
    ('/set top_p 2', 'top_p = 2: expected a number above 0'),
    ('/set top_p x', "top_p = 'x': expected a number"),
    ('/template sumary', "Did you mean 'summary'"),
    ('/shots /none', 'choose a /template first'),
    ('/again', 'there was no prompt yet'),
    ('a ' * 200, 'tokens: expected 1 to'),
    ('hello \udcff', "expected UTF-8; got 'hello \\udcff'"),
    ('a\0b', "line = 'a\\x00b': character 1 is NUL"),
    ('/set temperature "0.7"', "temperature = '0.7': expected a number"),
    ('/set temperature ' + '[' * 100_000, 'expected a number'),
    ('/set beams null', "beams = 'null': expected a whole number"),
    ('/set seed ' + '9' * 5000, 'seed = '),
    ('/stop "', 'No closing quotation'),
  ],
  ids=lambda text: text[:30],
)
def test_a_mistake_is_said_and_the_conversation_goes_on(talk, line, message):
  assert talk.line(line)
  assert message in said(talk)


def test_words_and_marks_of_byte_order(talk):
  assert talk.line('\ufeff/set early_stopping never')
  assert talk.config.early_stopping == 'never'


@pytest.mark.parametrize('content, message', [
  ('', 'has no shots'),
  ('{"sentence": "a"}', "line 1: field 'language'"),
  ('{"sentence": 5, "language": "de", "translation": "b"}', "'sentence'"),
  ('\n{"sentence": "\\ud83d"}', 'line 2: expected text'),
  ('[' * 100_000, 'line 1: expected an object'),
  ('["a"]', 'line 1: expected an object'),
], ids=lambda text: text[:30])  # fmt: skip
def test_shots_that_are_none(talk, tmp_path, content, message):
  """Fault seen: the chat ended in a traceback."""
  path = tmp_path / 'shots.jsonl'
  path.write_text(content)
  talk.line('/template translation')
  talk.shots = ['kept']
  assert talk.line(f'/shots {path}') and talk.shots == ['kept']
  assert message in said(talk).replace('\n', ' ')
  assert talk.line(f'/shots {tmp_path}') and 'is a folder' in said(talk)


def test_a_fault_of_ours_does_not_end_the_conversation(talk, monkeypatch):
  def fails(*args, **named):
    raise RuntimeError('out of memory')

  monkeypatch.setattr(api.Model, 'stream', fails)
  assert talk.line('a') and 'RuntimeError: out of memory' in said(talk)


def test_bytes_that_are_no_text_on_standard_input(talk, monkeypatch):
  """Fault seen: UnicodeDecodeError, and no second line."""
  raw = io.BytesIO(b'hello \xff\xfe\n/show\n')
  monkeypatch.setattr('sys.stdin', io.TextIOWrapper(raw, 'utf-8'))
  chat._read_any_bytes()
  assert talk.line(input()) and 'expected UTF-8' in said(talk)
  assert talk.line(input()) and 'mode' in said(talk)
  monkeypatch.setattr('sys.stdin', None)
  with pytest.raises(ValueError, match='standard input is closed'):
    chat._read_any_bytes()


@pytest.mark.parametrize('home', ['/proc/none', '/dev/null'])
def test_no_home_means_no_history(monkeypatch, home):
  """Fault seen: no chat in a container without a home folder."""
  monkeypatch.setenv('HOME', home)
  chat._keep_history()


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


@pytest.fixture
def translator(monkeypatch):
  """Returns a chat with a model of 202 languages, which answers itself."""
  source = pretrained.open_pretrained(os.path.join(PUBLIC, 'nllb'))
  model = api.Model(source.config, {}, source.vocabulary, None, None, 0)
  answer = lambda text, mode, *args, source, target, **named: iter(
    [f'{mode} {source} {target} {text}']
  )
  monkeypatch.setattr(model, 'stream', answer)
  console = rich.console.Console(file=io.StringIO(), width=200)
  return chat.Chat(model, console, source='en')


def test_a_line_is_translated_where_a_model_has_languages(translator):
  """Fault seen: a mode that the model lacks ended the conversation."""
  talk = translator
  assert talk.frame == 'eng_Latn to ?'
  assert talk.describe().startswith('eng_Latn to ?, /source and /target')
  talk.line('/target Germn')
  assert "/target = 'Germn': no language of this model. Did you" in said(talk)
  talk.line('/target German')
  talk.line('Good morning.')
  assert 'None eng_Latn deu_Latn Good morning.' in said(talk)
  for line in ('/mode clm', '/mode denoise'):
    talk.line(line)
    assert 'no [CLM]' in said(talk)
  assert talk.frame == 'eng_Latn to deu_Latn'
  talk.line('/show')
  text = said(talk)
  assert 'deu_Latn (German)' in text and 'eng_Latn (English)' in text
  talk.line('/languages')
  assert said(talk).count('\n') == 202
  talk.line('/source')
  assert talk.frame == '? to deu_Latn' and talk.line('/mode none')


def test_a_model_without_languages_refuses_them(talk):
  talk.line('/source en')
  assert "/source = 'en': this model has no language codes" in said(talk)
  talk.line('/languages')
  assert said(talk).strip() == '' and talk.frame == talk.describe()[5:] == 'clm'
