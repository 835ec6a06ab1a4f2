"""Fixed prompts on which `atm check` compares a model with transformers."""

import contextlib
import dataclasses
from collections.abc import Collection

from atm.data.language_codes import find_language
from atm.data.vocabulary import Vocabulary
from atm.model.config import ModelConfig

# The first sentence of the Universal Declaration of Human Rights, article 1.
SENTENCES = {
  'en': 'All human beings are born free and equal in dignity and rights.',
  'de': 'Alle Menschen sind frei und gleich an Würde und Rechten geboren.',
  'hi': 'सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और '
  'समानता प्राप्त है।',
  'ja': 'すべての人間は、生まれながらにして自由であり、かつ、'
  '尊厳と権利とについて平等である。',
  'ar': 'يولد جميع الناس أحراراً متساوين في الكرامة والحقوق.',
  'ru': 'Все люди рождаются свободными и равными в своем достоинстве и правах.',
  'zh': '人人生而自由,在尊严和权利上一律平等。',
  'ta': 'மனிதப் பிறிவியினர் சகலரும் சுதந்திரமாகவே பிறக்கின்றனர்.',
  'fr': 'Tous les êtres humains naissent libres et égaux en dignité et en '
  'droits.',
  'ko': '모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.',
  'sw': 'Watu wote wamezaliwa huru, hadhi na haki zao ni sawa.',
  'vi': 'Tất cả mọi người sinh ra đều được tự do và bình đẳng về nhân phẩm và '
  'quyền.',
}
# What tokenizers trip over; only the ids of these are compared.
SPECIAL_TEXTS = (
  '',
  ' spaces  in   front, inside and behind  ',
  'Two lines.\nA\ttab.',
  'Special tokens: <s> </s> <unk> <pad> <mask> __en__ eng_Latn en_XX.',
  '3.14159 × 2 = 6,283.18 %; 1st, 2nd; 12:30',
  'U.S.A.: don\'t WON\'T "quoted" (brackets) [and] {more} a/b_c',
  '“Quotes” … – — ½ ① Ⅳ ﬁne ｆｕｌｌ ㈱',
  'Cafe\u0301 Café n\u0303 ñ',
  '🙂 👩‍👩‍👧 🇫🇷 emoji',
  'soft\u00adhyphen, zero\u200bwidth, no\u00a0break',
  'Mixed हिन्दी и русский 中文 عربي 한국어 text',
  'a' * 80,
)


@dataclasses.dataclass(frozen=True)
class Prompt:
  """An input to compare on.

  Attributes:
    text: what is read; None of a model without a tokenizer.
    ids: the encoder's, by our tokenizer.
    source, target: languages, as the model's own codes; None where it has none.
    computed: whether states, logits and outputs are compared, not ids alone.
  """

  text: str | None
  ids: list[int]
  source: str | None = None
  target: str | None = None
  computed: bool = True


def list_prompts(
  config: ModelConfig, vocabulary: Vocabulary | None, limit: int | None = None
) -> list[Prompt]:
  """Makes the prompts of a model: sentences, then texts of which ids count.

  Args:
    config: the model's sizes; longer sentences are not computed.
    vocabulary: None: prompts are ids.
    limit: how many prompts are computed at most.
  """
  if vocabulary is None:
    prompts = [Prompt(None, ids) for ids in make_id_prompts(config)]
  else:
    prompts = [
      _make_prompt(config, vocabulary, *chosen)
      for chosen in choose_texts(vocabulary.languages)
    ]
  count = 0
  for number, prompt in enumerate(prompts):
    fits = prompt.computed and (limit is None or count < limit)
    prompts[number] = dataclasses.replace(prompt, computed=fits)
    count += fits
  return prompts


def _make_prompt(
  config: ModelConfig, vocabulary: Vocabulary, text: str, source: str | None,
  target: str | None, computed: bool,
) -> Prompt:  # fmt: skip
  """Makes a prompt; a sentence without room is shortened."""
  frame = vocabulary.input_format.frame
  ids = frame(vocabulary.encode(text), source)
  while computed and len(ids) > config.positions:
    text = text[: len(text) // 2]
    ids = frame(vocabulary.encode(text), source)
  return Prompt(text, ids, source, target, computed)


def choose_texts(
  languages: Collection[str],
) -> list[tuple[str, str | None, str | None, bool]]:
  """Chooses what a model reads: (text, source, target, is computed).

  Args:
    languages: the model's own codes; without any all texts are chosen.
  """
  codes = {}
  for code in SENTENCES:
    with contextlib.suppress(ValueError):  # the model has no such language
      codes[code] = find_language('source', code, languages)
  if not codes:
    return [
      *((text, None, None, True) for text in SENTENCES.values()),
      *((text, None, None, False) for text in SPECIAL_TEXTS),
    ]
  sources = [*codes.values()]
  targets = [*sources[1:], sources[0]]  # each is a source and a target once
  return [
    *(
      (SENTENCES[code], source, target, True)
      for code, source, target in zip(codes, sources, targets)
    ),
    *((text, sources[0], targets[0], False) for text in SPECIAL_TEXTS),
  ]


def make_id_prompts(config: ModelConfig) -> list[list[int]]:
  """Makes encoder ids for a model without a tokenizer, its end token last."""
  special = {config.pad_id, config.start_id, config.end_id}
  known = [i for i in range(config.vocab_size) if i not in special] or [0]
  rows = []
  for number in range(len(SENTENCES)):
    # A fixed walk through the vocabulary, another one for each prompt.
    step, length = 15838 * number + 3, min(24 - number, config.positions - 1)
    row = [known[(i + 1) * step % len(known)] for i in range(length)]
    rows.append([*row, config.end_id])
  return rows
