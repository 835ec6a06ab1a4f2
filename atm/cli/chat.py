"""`atm chat`: prompts a model line by line and shows its words as they come."""

import contextlib
import dataclasses
import os
import shlex
import sys
import time
from collections.abc import Callable
from functools import partial

import rich.console
import rich.markup
import rich.table
import rich.text

from atm import fileio
from atm.data import text_reader
from atm.data.language_codes import describe_language
from atm.inference import api, generation_defaults, prompts, sampling
from atm.inference.file_jobs import LANGUAGE_SETTINGS
from atm.inference.framing import TRUNCATIONS, Framing
from atm.inference.model_frame import SOURCE_AND_TARGET
from atm.messages import check_choice, check_text, check_texts, one_line, quote

HELP = {
  '/mode clm|denoise': "continue a text, or complete it; none: the model's own",
  '/source LANGUAGE': 'of your lines, a code or a name; see /languages',
  '/target LANGUAGE': 'of the output',
  '/languages': 'all that the model has',
  '/set NAME VALUE': 'choose tokens by temperature, top_p, max_tokens, ...',
  '/truncate refuse|start|end': 'a long prompt is refused, or cut there',
  '/stop STRING ...': 'end an output at these; none: at the end token only',
  '/template NAME': 'ask in a template, summary or so; none: plain text',
  '/shots FILE': "examples to learn from, JSONL of the template's fields",
  '/shots': 'forget them',
  '/prompt TEXT': 'show what the encoder would read',
  '/again': 'the last prompt once more, with another seed',
  '/show': 'all settings',
  '/help': 'this',
  '/quit': 'or Ctrl-D',
}
# An isolate keeps a right-to-left text from turning what stands around it.
ISOLATE, POP = '\u2068', '\u2069'


@dataclasses.dataclass
class Chat:
  """A conversation and its settings; each line is a prompt of its own.

  See `api.Model.complete` for mode, config, stop, truncate, source and target.
  """

  model: api.Model
  console: rich.console.Console
  mode: str | None = None
  config: sampling.Config = sampling.Config()
  stop: tuple[str, ...] = ()
  truncate: str = 'refuse'
  template: prompts.Template | None = None
  # Examples for the template.
  shots: list[dict] = dataclasses.field(default_factory=list)
  last: str = ''  # prompt
  source: str | None = None
  target: str | None = None

  def __post_init__(self):
    self.framing = Framing(self.model.config, self.model.vocabulary)
    for name, setting in zip(SOURCE_AND_TARGET, LANGUAGE_SETTINGS):
      self._choose_language(name, getattr(self, name), setting)

  @property
  def frame(self) -> str:
    """The mode, or the languages, that a line is read in."""
    pair = self.source, self.target
    mode = self.framing.name_mode(self.mode, any(pair))
    if not self.model.languages or mode in prompts.MODES:
      return mode
    pair = zip(pair, self.framing.default_languages)
    return ' to '.join(own or default or '?' for own, default in pair)

  def describe(self) -> str:
    """Describes how lines are read, for the first line of a conversation."""
    if self.frame in prompts.MODES or not self.model.languages:
      return f'mode {self.frame}'
    return f'{self.frame}, /source and /target choose of /languages'

  def line(self, text: str) -> bool:
    """Answers a line or obeys its command; returns False at the end."""
    text = text.removeprefix('\ufeff').strip()
    command, _, rest = text.partition(' ')
    if not command:
      return True
    if command == '/quit':
      return False
    try:
      _check_line(text)
      if command.startswith('/'):
        check_choice('command', command, {line.split()[0] for line in HELP})
        getattr(self, '_' + command[1:])(rest.strip())
      else:
        self.last = self.prompt(text)
        self.answer()
    except Exception as e:  # whatever it is, the conversation goes on
      mistake = isinstance(e, ValueError | OSError)
      said = str(e) if mistake else f'{type(e).__name__}: {one_line(e)}'
      self.console.print(f'[red]{rich.markup.escape(said)}[/]')
    except KeyboardInterrupt:
      self.console.print(f'{POP} [dim]interrupted[/]')
    return True

  def _help(self, rest: str) -> None:
    self._table(HELP)

  def _show(self, rest: str) -> None:
    name = self.template.name if self.template else 'none'
    self._table({
      'mode': self.mode or 'none', 'truncate': self.truncate,
      'source': self._name(self.source), 'target': self._name(self.target),
      'stop': ' '.join(map(repr, self.stop)) or 'none',
      'template': name, 'shots': len(self.shots),
      **dataclasses.asdict(self.config),
    })  # fmt: skip

  def _table(self, rows: dict) -> None:
    table = rich.table.Table(box=None, show_header=False, padding=(0, 2))
    for name, value in rows.items():
      table.add_row(rich.text.Text(name, 'cyan'), rich.text.Text(str(value)))
    self.console.print(table)

  def _mode(self, rest: str) -> None:
    mode = None if rest == 'none' else check_choice('mode', rest, prompts.MODES)
    self.framing.name_mode(mode, bool(self.source or self.target))
    self.mode = mode

  def _source(self, rest: str) -> None:
    self._choose_language('source', rest or None)

  def _target(self, rest: str) -> None:
    self._choose_language('target', rest or None)

  def _languages(self, rest: str) -> None:
    self._table(
      {code: describe_language(code) for code in self.model.languages}
    )

  def _choose_language(self, name: str, value, setting: str = '') -> None:
    """Sets source or target to the model's own code of a language."""
    code = self.framing.find_language(setting or f'/{name}', value)
    self.framing.name_mode(self.mode, code is not None)
    setattr(self, name, code)

  def _name(self, code: str | None) -> str:
    """Returns a language's code and its name."""
    return f'{code} ({describe_language(code)})' if code else 'none'

  def _truncate(self, rest: str) -> None:
    check_choice('truncate', rest, TRUNCATIONS)
    self.truncate = rest

  def _set(self, rest: str) -> None:
    name, _, value = rest.partition(' ')
    check_choice('setting', name, dataclasses.asdict(self.config))
    with contextlib.suppress(ValueError):  # else a word, such as never
      number = fileio.parse_json(value.lower(), name)
      value = value if number is None else number
    self.config = dataclasses.replace(self.config, **{name: value})

  def _stop(self, rest: str) -> None:
    self.stop = check_texts('/stop', shlex.split(rest), empty=False)

  def _template(self, rest: str) -> None:
    self.shots, self.template = [], None
    if rest not in ('', 'none'):
      self.template = prompts.find_template(rest)
      fields = self.template.fields
      between = ', with | between' if len(fields) > 1 else ''
      self.console.print(f'[dim]a line is {", ".join(fields)}{between}[/]')

  def _shots(self, rest: str) -> None:
    if not rest:
      self.shots = []
      return
    if self.template is None:
      raise ValueError('/shots: choose a /template first')
    path, shots = os.path.expanduser(rest), []
    for number, shot in text_reader.read_objects(path):
      try:  # so that a wrong one is named here
        prompts.build_prompt(self.template, shot, [shot])
      except ValueError as e:
        raise ValueError(f'{path}, line {number}: {e}') from e
      shots.append(shot)
    if not shots:
      raise ValueError(f'{path} has no shots: expected a JSON object a line')
    self.shots = shots
    self.console.print(f'[dim]{len(shots)} shots[/]')

  def _prompt(self, rest: str) -> None:
    text = self.prompt(rest)
    shown = rich.text.Text(f'{ISOLATE}{text}{POP}')
    self.console.print(shown, soft_wrap=True)
    count, most = self._count(text), self.model.config.positions
    room = f', of which {most} have room' if count > most else ''
    self.console.print(f'[dim]{count} tokens{room}[/]')

  def _count(self, text: str) -> int:
    """Returns how many tokens a prompt has, framed."""
    return len(self.model.encode(text, self.mode, self.source))

  def _again(self, rest: str) -> None:
    if not self.last:
      raise ValueError('/again: there was no prompt yet')
    self.config = dataclasses.replace(self.config, seed=self.config.seed + 1)
    self.answer()

  def prompt(self, text: str) -> str:
    """Returns what the encoder reads for a line."""
    if self.template is None:
      return text
    fields = self.template.fields
    values = [part.strip() for part in text.split('|', len(fields) - 1)]
    if len(values) != len(fields):
      raise ValueError(
        f'expected {len(fields)} texts with | between: {", ".join(fields)}'
      )
    query = dict(zip(fields, values))
    return prompts.build_prompt(self.template, query, self.shots)

  def answer(self) -> None:
    """Writes the output of the last prompt as it comes, and how fast it was."""
    stop = self.stop
    if self.template and self.mode != 'denoise':
      stop = (*stop, self.template.cut)
    out = self.console
    start, first, size = time.perf_counter(), None, 0
    if self.config.beams > 1 or self.config.results > 1:
      (found,) = self.model.complete(
        [self.last],
        self.mode,
        self.config,
        stop=stop,
        truncate=self.truncate,
        source=self.source,
        target=self.target,
      )
      for one in found:
        shown = rich.text.Text(f'{ISOLATE}{one.text}{POP} ')
        out.print(shown.append(f'{one.score:.2f}', 'dim'), soft_wrap=True)
        size += len(one.ids)
    else:
      pieces = self.model.stream(
        self.last,
        self.mode,
        self.config,
        stop,
        truncate=self.truncate,
        source=self.source,
        target=self.target,
      )
      out.print(ISOLATE, end='')
      for piece in pieces:
        first = first or time.perf_counter() - start
        size += len(self.model.vocabulary.encode(piece))
        # A Text, for in a string rich reads `:smile:` as an emoji.
        out.print(rich.text.Text(piece), end='', soft_wrap=True)
      out.print(POP)
    seconds = time.perf_counter() - start
    cut = max(0, self._count(self.last) - self.model.config.positions)
    cut = f', {cut} of the prompt cut at its {self.truncate}' if cut else ''
    begun = f', the first after {first:.1f} s' if first else ''
    out.print(f'[dim]about {size} tokens in {seconds:.1f} s{begun}{cut}[/]')


@dataclasses.dataclass
class ChatCommand(api.ModelSource):
  """`atm chat`: reads prompts and commands until /quit or the input's end.

  Attributes:
    mode, source, target, config, truncate: what the conversation begins with.
    read: reads a line, given the prompt to show; raises EOFError at the end.
    console: where to write; None: standard output.
  """

  mode: str | None = None
  source: str | None = None
  target: str | None = None
  config: sampling.Config = sampling.Config()
  truncate: str = 'refuse'
  read: Callable[[str], str] = input
  console: rich.console.Console | None = None

  checks = api.ModelSource.checks | {
    'mode': partial(check_choice, 'MODE', known=prompts.MODES, optional=True),
    **{
      field: partial(check_text, name, optional=True, empty=False)
      for field, name in zip(SOURCE_AND_TARGET, LANGUAGE_SETTINGS)
    },
    'truncate': partial(check_choice, 'TRUNCATE', known=TRUNCATIONS),
  }

  def run(self) -> None:
    """Loads the model and talks; raises ValueError without a tokenizer."""
    console = self.console or rich.console.Console()
    model = self.load()
    if model.vocabulary is None:
      raise ValueError(
        f'{self.model_dir!r} has no tokenizer: expected one to chat'
      )
    if self.read is input:
      _read_any_bytes()
    _keep_history()
    config, _, note = generation_defaults.fill_settings(
      model.generation_path, model.generation_defaults, self.config
    )
    chat = Chat(
      model, console, self.mode, config, truncate=self.truncate,
      source=self.source, target=self.target,
    )  # fmt: skip
    console.print(
      f'[bold]step {model.step:,} of {rich.markup.escape(self.title)}[/]  '
      f'[dim]{chat.describe()}, /help for commands[/]'
    )
    if note:
      console.print(f'[dim]{rich.markup.escape(note)}[/]')
    try:
      while chat.line(self.read(f'{chat.frame}> ')):
        pass
    except (EOFError, KeyboardInterrupt):
      console.print()


def _check_line(text: str) -> None:
  """Raises ValueError for a line that is no text."""
  try:
    text.encode()
  except UnicodeEncodeError:  # see `_read_any_bytes`
    raise ValueError(f'expected UTF-8; got {quote(text)}') from None
  check_text('line', text)


def _read_any_bytes() -> None:
  """Makes bytes that are no UTF-8 a mistake in a line, not the chat's end."""
  if sys.stdin is None:
    raise ValueError('standard input is closed: expected lines to read')
  if hasattr(sys.stdin, 'reconfigure'):
    sys.stdin.reconfigure(encoding='utf-8', errors='surrogateescape')


def _keep_history() -> None:
  """Keeps lines for the arrow keys, from one conversation to the next.

  Where the home folder cannot be written, there is no history.
  """
  try:
    import atexit
    import readline
  except ImportError:  # not on Windows
    return
  path = os.path.expanduser('~/.cache/atm/chat_history')
  readline.set_history_length(1000)
  with contextlib.suppress(OSError, ValueError):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if os.path.exists(path):
      fileio.check_regular(path)
      readline.read_history_file(path)
    atexit.register(_write_history, readline, path)


def _write_history(readline, path: str) -> None:
  """Writes the lines of a conversation where they can be written."""
  with contextlib.suppress(OSError):
    readline.write_history_file(path)
