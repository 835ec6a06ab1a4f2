"""Modes and languages of one model: what stands around the ids of a text."""

import dataclasses
from collections.abc import Sequence

from atm.data.input_format import InputFormat
from atm.data.language_codes import (
  describe_language,
  find_language,
  join_codes,
)
from atm.data.token_ids import check_ids
from atm.data.vocabulary import Vocabulary
from atm.inference import prompts
from atm.messages import check_choice, check_text, quote
from atm.model.config import ModelConfig

# The arguments that name the languages of an input and of its output.
SOURCE_AND_TARGET = 'source', 'target'


@dataclasses.dataclass(frozen=True)
class ModelFrame:
  """Frames ids as one model was trained to read and write them.

  Modes are those of `prompts.MODES`, None, or what `name_mode` made of it.
  Languages are the model's own codes, as `find_languages` returns them; None
  stands for the model's default, if it has one.

  Attributes:
    config: the model's sizes.
    vocabulary: its vocabulary, or None where all is given as ids.
    forced_bos_id: what outputs begin with where no language is known, of
      Hugging Face's `forced_bos_token_id`; None: nothing.
  """

  config: ModelConfig
  vocabulary: Vocabulary | None
  forced_bos_id: int | None = None

  @property
  def format(self) -> InputFormat:
    """The format of the texts; raises ValueError without a tokenizer."""
    if self.vocabulary is None:
      raise ValueError('this model has no tokenizer: give ids, framed')
    return self.vocabulary.input_format

  # --- Modes

  def name_mode(
    self, mode: str | None, named: bool = False, name: str = 'mode'
  ) -> str:
    """Returns a mode of `prompts.MODES`, or the name of the model's format.

    None is 'clm' where the vocabulary has `[CLM]` and no language is named,
    else what the model was trained with; that is 'denoise' of our own models.

    Args:
      mode: what was asked for.
      named: whether a language was.
      name: of the argument or setting, as a user writes it.

    Raises:
      ValueError: the model was never trained so.
    """
    if self.vocabulary is None:
      return check_choice(name, mode, prompts.MODES, optional=True) or 'clm'
    form, is_ours = self.format, self.format.name == 'alexatm'
    if mode is None and form.clm_id is not None and not named:
      return 'clm'
    if mode is None or mode == form.name:
      return 'denoise' if is_ours else form.name
    check_choice(name, mode, prompts.MODES)
    if form.clm_id is None and (mode == 'clm' or not is_ours):
      raise ValueError(
        f'{name} = {mode!r}: the vocabulary has no [CLM], as of a model that '
        "was not trained so: leave it out, or give None, the model's own"
      )
    if named and self.known_languages:
      raise ValueError(
        f'{name} = {mode!r} reads no languages: leave it out, or the languages'
      )
    return mode

  # --- Languages

  @property
  def known_languages(self) -> tuple[str, ...]:
    """The codes of the languages that the model tells apart; () for none."""
    if self.vocabulary is None or not self.format.has_languages:
      return ()
    return tuple(self.format.languages)

  @property
  def default_languages(self) -> tuple[str | None, str | None]:
    """The languages of inputs and of outputs where none are named."""
    if not self.known_languages:
      return None, None
    return self.format.source, self.format.target

  def find_languages(self, name: str, given, count: int) -> list[str | None]:
    """Returns the model's own code for each of `count` texts.

    Args:
      name: of the argument or setting, as a user writes it.
      given: a code or a name for all, see `find_language`; or a list with one
        or None for each; or None.
      count: how many texts there are.

    Raises:
      ValueError: no such language, or the model has none.
    """
    if not isinstance(given, list | tuple):
      return [self.find_language(name, given)] * count
    if len(given) != count:
      raise ValueError(f'{name} has {len(given)} languages: expected {count}')
    return [self.find_language(f'{name}[{i}]', x) for i, x in enumerate(given)]

  def find_language(self, name: str, language) -> str | None:
    """Returns the model's own code of a language; None of None."""
    if check_text(name, language, optional=True, empty=False) is None:
      return None
    if not self.known_languages:
      raise ValueError(
        f'{name} = {quote(language)}: this model has no language codes: leave '
        'it out. Such a model translates by examples, see `translate`'
      )
    return find_language(name, language, self.known_languages)

  def check_named(
    self, sources: Sequence[str | None], targets: Sequence[str | None],
    names: tuple[str, str] = SOURCE_AND_TARGET,
  ) -> None:  # fmt: skip
    """Raises ValueError where texts of a model with languages have none.

    Args:
      sources, targets: of `find_languages`.
      names: of the arguments or settings, as a user writes them.
    """
    if not self.known_languages:
      return
    missing = [
      name
      for name, given, default in zip(
        names, (sources, targets), self.default_languages
      )
      if default is None and None in given
    ]
    if missing:
      raise ValueError(
        f'{" and ".join(missing)} = None: this model reads and writes named '
        "languages: expected a code or a name, 'de' or 'German'. Known: "
        f'{join_codes(self.known_languages)}; `model.languages` and '
        '/languages of `atm chat` list all'
      )

  def describe_languages(
    self, sources: Sequence[str | None], targets: Sequence[str | None]
  ) -> str:
    """Describes the languages of inputs and outputs, '' without any."""
    if not self.known_languages:
      return ''
    defaults, name = self.default_languages, describe_language
    pairs = {
      (source or defaults[0], target or defaults[1])
      for source, target in zip(sources, targets)
    }
    if len(pairs) != 1:
      return f'{len(pairs)} pairs of languages'
    (pair,) = pairs
    texts = [f'{x} ({name(x)})' if x else 'ids' for x in pair]
    return f'{texts[0]} to {texts[1]}'

  # --- Frames

  def frame(
    self, ids: Sequence[int], mode: str | None = None, source: str | None = None
  ) -> list[int]:
    """Returns a text's ids as the encoder reads them, see `input_format`."""
    mode, form = self.name_mode(mode, source is not None), self.format
    ids = check_ids('ids', ids, self.config.vocab_size)
    if mode in prompts.MODES:
      return form.frame(ids, mode=mode)
    self.check_named([source], ())
    return form.frame(ids, source or self.default_languages[0])

  def label(
    self, ids: Sequence[int], mode: str | None = None, target: str | None = None
  ) -> list[int]:
    """Returns what the decoder is trained to write for a text's ids."""
    if self.name_mode(mode, target is not None) in prompts.MODES:
      return [*ids, self.config.end_id]
    self.check_named((), [target])
    return self.format.labels(ids, target or self.default_languages[1])

  def start(
    self, mode: str | None = None, target: str | None = None
  ) -> list[int]:
    """Returns what the decoder begins with: the start token, a language."""
    start_id = self.config.start_id
    if self.known_languages:
      if self.name_mode(mode, target is not None) in prompts.MODES:
        return [start_id]
      if target := target or self.default_languages[1]:
        return self.format.decoder_start(start_id, target)
    return [start_id] + [self.forced_bos_id] * (self.forced_bos_id is not None)

  def count_forced(
    self, mode: str | None = None, target: str | None = None
  ) -> int:
    """Returns how many ids of `start` count as written, as transformers counts.

    There `forced_bos_token_id` writes the language.
    """
    return len(self.start(mode, target)) - 1

  def count_reserved(self, tokens: int, truncate: str = 'start') -> int:
    """Returns how many positions an input leaves to `tokens` behind it.

    With an encoder none. Without one all, but at most half of the positions
    where a longer input is cut.
    """
    if self.config.has_encoder:
      return 0
    most = self.config.positions // 2
    return tokens if truncate == 'refuse' else min(tokens, most)

  def count_room(self, mode: str | None = None) -> int:
    """Returns how many tokens of a text have room in the encoder.

    Without an encoder a prompt and its output have this room together.
    """
    own = self.name_mode(mode) not in prompts.MODES
    source = next(iter(self.known_languages), None) if own else None
    return self.config.positions - len(self.frame([], mode, source))

  def count_frame(self, row: Sequence[int]) -> tuple[int, int]:
    """Returns how many ids at an input's start and end are a frame's."""
    if self.vocabulary is None:
      return 0, 0
    codes = {self.format.languages[x] for x in self.known_languages}
    head = int(row[0] in {self.format.bos_id} | codes)
    head += row[head : head + 1] == [self.format.clm_id]
    tail = int(row[-1] in codes)
    tail += row[len(row) - tail - 1] == self.format.eos_id
    return head, tail

  def count_target_frame(self, row: Sequence[int]) -> int:
    """Returns how many ids at a target's start are a language's: 1 or 0."""
    return int(
      any(row[0] == self.format.languages[x] for x in self.known_languages)
    )
