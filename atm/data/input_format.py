"""What a model's encoder and decoder read around the ids of a text.

| name | encoder | decoder reads | decoder writes |
| --- | --- | --- | --- |
| alexatm | `<s> [CLM] X </s>`, `<s> X </s>` | start, Y | Y `</s>` |
| plain | X `</s>` | start, Y | Y `</s>` |
| mbart | X `</s>` source | target Y `</s>` | Y `</s>` target |
| mbart50, m2m_100, nllb | source X `</s>` | start target Y | target Y `</s>` |
| nllb_legacy | X `</s>` source | start target Y | target Y `</s>` |

`plain` is Blenderbot's and Pegasus's, `nllb_legacy` that of NLLB-200 folders
with `legacy_behaviour`. The start token is the model's, `Config.start_id`.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from atm.messages import check_choice, check_list, did_you_mean, quote

# Where an encoder reads the source language: in front, or behind `</s>`.
SOURCE_IN_FRONT = ('mbart50', 'm2m_100', 'nllb')
SOURCE_BEHIND = ('mbart', 'nllb_legacy')
FORMATS = ('alexatm', 'plain', *SOURCE_BEHIND, *SOURCE_IN_FRONT)
# In 'clm' the decoder continues the text; in 'denoise' it writes it again,
# completed.
MODES = ('clm', 'denoise')


@dataclasses.dataclass(frozen=True)
class InputFormat:
  """The frame of one model's inputs and targets.

  Attributes:
    name: one of FORMATS.
    eos_id: of `</s>`.
    bos_id, clm_id: of `<s>` and `[CLM]`; None where the vocabulary has none.
    languages: the model's own codes and their ids, in the order of the ids.
    source, target: the languages of an input and of an output where none are
      named, by the folder's tokenizer_config.json; None: it names none.
  """

  name: str
  eos_id: int
  bos_id: int | None = None
  clm_id: int | None = None
  languages: Mapping[str, int] = dataclasses.field(
    default_factory=dict, hash=False
  )
  source: str | None = None
  target: str | None = None

  def __post_init__(self):
    check_choice('name', self.name, FORMATS)
    object.__setattr__(self, 'languages', dict(self.languages))
    if self.has_languages and not self.languages:
      raise ValueError(
        f'an input format {self.name!r} needs languages, and has none'
      )

  @property
  def has_languages(self) -> bool:
    """Tells whether inputs name a language."""
    return self.name in (*SOURCE_BEHIND, *SOURCE_IN_FRONT)

  def language_id(self, name: str, code: str | None) -> int:
    """Returns the id of a language by the model's own code.

    Raises:
      ValueError: the model has no such language, or none was named.
    """
    if not self.has_languages:
      raise ValueError(
        f'{name} = {quote(code)}: this model reads and writes no language codes'
      )
    if code not in self.languages:
      hint = did_you_mean(code if isinstance(code, str) else '', self.languages)
      raise ValueError(
        f"{name} = {quote(code)}: expected one of the model's "
        f'{len(self.languages)} languages.{hint}'
      )
    return self.languages[code]

  def encoder_frame(
    self, source: str | None = None, mode: str | None = None
  ) -> tuple[list[int], list[int]]:
    """Returns the ids that the encoder reads before and behind a text's.

    Args:
      source: the model's own code of the text's language; None: the folder's.
      mode: 'clm' or 'denoise', of pre-training; None: 'clm' where there is
        `[CLM]` and no source is named, else the model's own frame.

    Raises:
      ValueError: no such language or mode in this model.
    """
    check_choice('mode', mode, MODES, optional=True)
    if mode is None and source is None and self.clm_id is not None:
      mode = 'clm'
    if mode is None and self.name == 'alexatm':
      mode = 'denoise'
    if mode is not None:
      return self._pretraining_head(mode), [self.eos_id]
    if not self.has_languages:
      if source is not None:
        self.language_id('source', source)
      return [], [self.eos_id]
    language = self.language_id('source', source or self.source)
    if self.name in SOURCE_IN_FRONT:
      return [language], [self.eos_id]
    return [], [self.eos_id, language]

  def _pretraining_head(self, mode: str) -> list[int]:
    if mode == 'clm' and self.clm_id is None:
      raise ValueError(
        f'mode = {mode!r} needs [CLM], which this vocabulary has not: '
        "mode=None is the model's own"
      )
    ids = [self.bos_id, self.clm_id] if mode == 'clm' else [self.bos_id]
    return [i for i in ids if i is not None]  # Pegasus has no `<s>`

  def frame(
    self,
    ids: Sequence[int],
    source: str | None = None,
    mode: str | None = None,
  ) -> list[int]:
    """Returns a text's ids as the encoder reads them, see `encoder_frame`."""
    head, tail = self.encoder_frame(source, mode)
    return [*head, *check_list('ids', ids), *tail]

  def decoder_start(
    self, start_id: int, target: str | None = None
  ) -> list[int]:
    """Returns the ids that the decoder begins with.

    Args:
      start_id: the model's start token, `Config.start_id`.
      target: the model's own code of the output's language; None: the folder's
        where it names one, else none; mBART-25 then begins with `start_id`.

    Raises:
      ValueError: the model has no such language.
    """
    target = target or (self.target if self.has_languages else None)
    if target is None:
      return [start_id]
    language = self.language_id('target', target)
    return [language] if self.name == 'mbart' else [start_id, language]

  @property
  def forced(self) -> int:
    """How many ids of `decoder_start` with a language count as generated.

    transformers counts a forced token in lengths, penalties and n-grams, and
    the start token not at all in lengths.
    """
    return int(self.has_languages and self.name != 'mbart')

  def labels(self, ids: Sequence[int], target: str | None = None) -> list[int]:
    """Returns what the decoder is trained to write for a target text's ids."""
    ids = check_list('ids', ids)
    if not self.has_languages:
      if target is not None:
        self.language_id('target', target)
      return [*ids, self.eos_id]
    language = self.language_id('target', target or self.target)
    if self.name == 'mbart':
      return [*ids, self.eos_id, language]
    return [language, *ids, self.eos_id]

  def decoder_inputs(
    self, ids: Sequence[int], start_id: int, target: str | None = None
  ) -> list[int]:
    """Returns what the decoder reads while it writes `labels`."""
    labels = self.labels(ids, target)
    first = labels[-1] if self.name == 'mbart' else start_id
    return [first, *labels[:-1]]
