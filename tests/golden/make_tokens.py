"""Writes tokens.json: texts, and what transformers makes of them.

The texts are the names of languages and territories in 60 locales, by Unicode's
CLDR, and hard ones: special tokens, spaces, emoji, control characters. Each
folder of public/ has their ids, without a frame, and the texts of the ids;
those of locales are hashed. Needs the extra and babel:

  pip install -e '.[hf]' babel
  python tests/golden/make_tokens.py
"""

import hashlib
import json
import pathlib
import random
import shutil
import tempfile

import babel
import transformers

HERE = pathlib.Path(__file__).resolve().parent
LOCALES = """
  af am ar as az be bg bn bs ca cs cy da de el en es et eu fa fi fil fr ga gl gu
  ha he hi hr hu hy id ig is it ja ka kk km kn ko ky lo lt lv mk ml mn mr ms my
  nb ne nl or pa pl ps pt ro ru sd si sk sl so sq sr sv sw ta te th tk tr uk ur
  uz vi yo zh zh_Hant zu
""".split()
HARD = [
  '', ' ', '   ', '\n', '\t\n ', 'a', ' a', 'a ', '  a  b  ', 'a\nb\r\nc\td',
  '</s>', '<s>', '<pad>', '<unk>', '<mask>', '  <mask>', 'a <mask> b<mask>',
  'x </s> y', 'x</s>y', '<s><s> <pad></s>', '<mask_1> a <mask_2>', '<unk_7>b',
  '__de__', 'x __de__ y', '__en____fr__z', '__xx__ __toolong__', 'deu_Latn',
  'a eng_Latnb', 'de_DE en_XX', 'xgl_ES.', '<n>', 'a<n>b <n> c', 'a\n\nb',
  "do n't , 's , 've . I 'm ' q ' ? !", ' . , ! ?', 'e\u0301 n\u0303 u\u0308',
  '\u0301a', 'a\u0300\u0301\u0302', '\u00e9', '\ufb01ne \uff21\u3000\uff22',
  '\u00bd \u2460 \u3350', '\uff76\uff9e\uff77', '\ufdfa', '\u0915\u094d\u0937',
  '\U0001f600', '\U0001f469\u200d\U0001f469\u200d\U0001f467', '\U0001f1e9',
  'a\u200db\u200cc\u200bd\ufeffe', '\u2581a \u2581\u2581b', '\x01\x02\x7f\x9f',
  'a\0b', '\0', '\u00a0a\u00a0\u00a0b', '\u2028x\u2029', '\u202eabc',
  '\U00010348',
  '\u05d0\u05b8', '1234567890 3,14', 'http://a.b/c?d=e&f', 'aaaaaaaa' * 40,
  'Alle Menschen ' * 200, '\u3059\u3079\u3066\u306e' * 50, '_', '. . .', '\\n',
  'ABC abc aBc', '\u0130 \u0131 \u00df \u1e9e', '\u4e00\u4e01', '<', '>',
  '</', '<m',
]  # fmt: skip
FOLDERS = ('mbart25', 'mbart50', 'm2m_100', 'nllb', 'pegasus', 'blenderbot')
TYPES = {'mbart25': 'mbart', 'mbart50': 'mbart', 'nllb': 'm2m_100'}


def names(locale: str) -> str:
  """Returns names of languages and territories in a locale."""
  locale = babel.Locale.parse(locale)
  tables = locale.languages, locale.territories
  keys = [(table, sorted(table)[5 :: len(table) // 9]) for table in tables]
  return ', '.join(table[key] for table, some in keys for key in some)


def digest(value) -> str:
  """Returns a short hash of a value as JSON."""
  return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def describe(folder: pathlib.Path, texts: dict, clean_up: bool) -> dict:
  """Returns what transformers makes of all texts, and of random ids."""
  with tempfile.TemporaryDirectory() as place:
    copy = pathlib.Path(place) / folder.name
    shutil.copytree(folder, copy)
    config = {'model_type': TYPES.get(folder.name, folder.name)}
    (copy / 'config.json').write_text(json.dumps(config))
    path = copy / 'tokenizer_config.json'
    settings = json.loads(path.read_text('utf-8'))
    settings['clean_up_tokenization_spaces'] = clean_up
    path.write_text(json.dumps(settings))
    tokenizer = transformers.AutoTokenizer.from_pretrained(copy)
  encode = lambda x: tokenizer(x, add_special_tokens=False).input_ids
  decode = lambda ids: tokenizer.decode(ids, skip_special_tokens=True)
  draw = random.Random(0)
  rows = [
    [draw.randrange(len(tokenizer)) for _ in range(draw.randrange(12))]
    for _ in range(100)
  ]
  hard = [encode(text) for text in HARD]
  return {
    'hard': [ids if len(ids) < 20 else digest(ids) for ids in hard],
    'hard_texts': [
      text if len(text) < 60 else digest(text) for text in map(decode, hard)
    ],
    'locales': {x: digest(encode(text)) for x, text in texts.items()},
    'locale_texts': {
      x: digest(decode(encode(text))) for x, text in texts.items()
    },
    'random': rows,
    'random_texts': [decode(row) for row in rows],
  }


def main() -> None:
  """Writes tokens.json."""
  texts = {locale: names(locale) for locale in LOCALES}
  folders = {
    f'{name}{"+clean_up" * clean_up}': describe(
      HERE / 'public' / name, texts, clean_up
    )
    for name in FOLDERS
    for clean_up in (False, True)
  }
  data = {'hard': HARD, 'locales': texts, 'folders': folders}
  text = json.dumps(data, ensure_ascii=True, separators=(',', ':'))
  (HERE / 'tokens.json').write_text(text.replace('},"', '},\n"') + '\n')


if __name__ == '__main__':
  main()
