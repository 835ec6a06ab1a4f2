"""Reads the tokenizer of a public model's folder into the form that is kept.

A folder has tokenizer.json or older files, and settings in config.json,
tokenizer_config.json and special_tokens_map.json. What is kept beside a model
is tokenizer.json and format.json, or, of M2M-100, whose tokenizer is no
tokenizer.json anywhere, sentencepiece.bpe.model, vocab.json and format.json.
Either stands for itself: no other file and no transformers is needed.
"""

import dataclasses
import json
import os
import re
from collections.abc import Iterable, Mapping

from atm import fileio, storage
from atm.data.added_tokens import AddedTokens, collect_tokens
from atm.data.tokenizer_json import (
  import_tokenizers,
  parse_tokenizer,
  rebuild_tokenizer,
)
from atm.data.vocabulary_base import FORMAT_FILE
from atm.messages import (
  MissingExtraError,
  missing_extra,
  one_line,
  quote,
)

TOKENIZER_FILE = 'tokenizer.json'
VOCAB_FILE = 'vocab.json'
SENTENCEPIECE_FILE = 'sentencepiece.bpe.model'
MOST_BYTES = 2**28  # of one file; NLLB-200's tokenizer.json has 17 MB

M2M_CLASS, NLLB_CLASS = 'M2M100Tokenizer', 'NllbTokenizer'
CLASSES = {  # by config.json's model_type, where a folder names no class
  'mbart': 'MBartTokenizer',
  'mbart50': 'MBart50Tokenizer',
  'm2m_100': M2M_CLASS,
  'nllb': NLLB_CLASS,
  'pegasus': 'PegasusTokenizer',
  'blenderbot': 'BlenderbotTokenizer',
}
# transformers reads tokenizer.json as it stands for these.
GENERIC = ('PreTrainedTokenizer', 'TokenizersBackend', 'PythonBackend')
# By class, what transformers makes a tokenizer of. NLLB-200's is not among
# them: without tokenizer.json its languages get other ids than the model's.
OLDER_FILES = {
  'MBartTokenizer': (SENTENCEPIECE_FILE,),
  'MBart50Tokenizer': (SENTENCEPIECE_FILE,),
  'PegasusTokenizer': ('spiece.model',),
  'BlenderbotTokenizer': (VOCAB_FILE, 'merges.txt'),
}
LANGUAGE_TOKENS = {  # by input format: a language's token, its code in brackets
  'mbart': r'([a-z]{2,3}_[A-Z]{2})',
  'mbart50': r'([a-z]{2,3}_[A-Z]{2})',
  'm2m_100': r'__([a-z]{2,3})__',
  'nllb': r'([a-z]{3}_[A-Z][a-z]{3})',
  'nllb_legacy': r'([a-z]{3}_[A-Z][a-z]{3})',
}
# M2M-100's languages are in no file: they stand behind the last id of
# vocab.json, in this order.
M2M_CODES = {
  'm2m100': tuple(
    """
    af am ar ast az ba be bg bn br bs ca ceb cs cy da de el en es et fa ff fi fr
    fy ga gd gl gu ha he hi hr ht hu hy id ig ilo is it ja jv ka kk km kn ko lb
    lg ln lo lt lv mg mk ml mn mr ms my ne nl no ns oc or pa pl ps pt ro ru sd
    si sk sl so sq sr ss su sv sw ta th tl tn tr uk ur uz vi wo xh yi yo zh zu
    """.split()
  ),
  'wmt21': ('en', 'ha', 'is', 'ja', 'cs', 'ru', 'zh', 'de'),
}


@dataclasses.dataclass(frozen=True)
class TokenizerFolder:
  """The settings of a folder's tokenizer; its vocabulary is still unread.

  Attributes:
    path: the folder.
    name: the tokenizer's class in transformers, without 'Fast'.
    config, settings: config.json and tokenizer_config.json; {} without.
  """

  path: str
  name: str
  config: dict
  settings: dict

  def join(self, name: str) -> str:
    """Returns the path of a file of the folder."""
    return os.path.join(self.path, name)

  def has(self, name: str) -> bool:
    """Tells whether the folder has a file."""
    return storage.exists(self.join(name))

  def read_object(self, name: str) -> dict:
    """Returns the object in a JSON file; {} where there is none."""
    if not self.has(name):
      return {}
    return parse_settings(read_tokenizer_file(self.join(name)), self.join(name))


def read_tokenizer_file(path: str) -> bytes:
  """Returns the bytes of a file of a tokenizer.

  Raises:
    OSError: it cannot be read.
    ValueError: it is a pipe, or far too large.
  """
  fileio.check_regular(path)
  if (size := storage.get_size(path)) > MOST_BYTES:
    raise ValueError(
      f'{path} has {size:,} bytes: expected a file of a tokenizer, of at most '
      f'{MOST_BYTES:,}'
    )
  return storage.read_bytes(path)


def parse_settings(text: bytes, where: str) -> dict:
  """Returns a JSON object; raises ValueError where it is none."""
  value = fileio.parse_json(text, where)
  if not isinstance(value, dict):
    raise ValueError(f'{where}: expected an object, not {quote(value)}')
  return value


def open_folder(path: str) -> TokenizerFolder | None:
  """Returns the settings of a folder; None where it is of no known family.

  Raises:
    OSError: a file cannot be read.
    ValueError: a file is damaged, or names an unknown class of tokenizers.
  """
  folder = TokenizerFolder(path, '', {}, {})
  config = folder.read_object('config.json')
  settings = folder.read_object('tokenizer_config.json')
  by_type = CLASSES.get(str(config.get('model_type')))
  if by_type == M2M_CLASS and not folder.has(VOCAB_FILE):
    by_type = NLLB_CLASS
  given = settings.get('tokenizer_class') or config.get('tokenizer_class')
  name = str(given).removesuffix('Fast') if given else by_type
  if by_type is None and name not in CLASSES.values():
    return None
  if name not in (*CLASSES.values(), *GENERIC):
    raise ValueError(
      f'{folder.join("tokenizer_config.json")}: tokenizer_class = '
      f'{quote(given)}: expected one of {", ".join(CLASSES.values())}'
    )
  return TokenizerFolder(path, name, config, settings)


def read_folder(path: str) -> dict[str, bytes]:
  """Returns the kept form of a folder's tokenizer: name of a file -> bytes.

  Raises:
    FileNotFoundError: the folder lacks the files of its kind of tokenizer.
    ImportError: names the extra that is missing.
    ValueError: the files are damaged, or of a kind that is not known.
  """
  folder = open_folder(path)
  if folder is None:
    raise ValueError(
      f'{path} has no tokenizer of a known model: expected the model_type '
      f'{", ".join(CLASSES)} in config.json'
    )
  if folder.name == M2M_CLASS:
    return _read_m2m(folder)
  if folder.has(TOKENIZER_FILE):
    data = folder.read_object(TOKENIZER_FILE)
    tokens = collect_tokens(
      folder.name, folder.settings,
      folder.read_object('special_tokens_map.json'),
      folder.read_object('added_tokens.json'),
      data, path,
    )  # fmt: skip
    tokenizer = rebuild_tokenizer(
      folder.name, data, folder.settings, tokens, path
    )
    clean_up = folder.settings.get('clean_up_tokenization_spaces', False)
  else:
    tokenizer, tokens, clean_up = _read_older(folder)
  return _keep_tokenizer(folder, tokenizer, tokens.named, bool(clean_up))


def _keep_tokenizer(
  folder: TokenizerFolder, tokenizer, named: dict, clean_up: bool
) -> dict[str, bytes]:
  """Returns the files of a tokenizer without post-processor."""
  tokenizer.no_truncation()
  tokenizer.no_padding()
  ids = tokenizer.get_vocab(with_added_tokens=True)
  added = [
    token.content for token in tokenizer.get_added_tokens_decoder().values()
  ]
  form = _name_format(folder, added)
  # It was made for WordPiece; transformers spares BPE.
  clean_up = clean_up and type(tokenizer.model).__name__ != 'BPE'
  return {
    TOKENIZER_FILE: tokenizer.to_str().encode(),
    FORMAT_FILE: _write_format(
      folder,
      form,
      languages=find_languages(form, {x: ids[x] for x in added}),
      special={key: ids[x] for key, x in named.items() if x in ids},
      clean_up=clean_up,
    ),
  }


def _read_older(folder: TokenizerFolder):
  """Returns what transformers makes of a folder without tokenizer.json."""
  needed = OLDER_FILES.get(folder.name, (TOKENIZER_FILE,))
  for name in needed:
    if not folder.has(name):
      raise FileNotFoundError(
        f'{folder.path} has no tokenizer: expected {TOKENIZER_FILE}'
        + f', or {" and ".join(needed)}' * (needed != (TOKENIZER_FILE,))
      )
  # transformers would wait for a pipe.
  for name in (*needed, 'special_tokens_map.json', 'added_tokens.json'):
    if folder.has(name):
      read_tokenizer_file(folder.join(name))
  import_tokenizers(folder.path)
  # That there is no PyTorch is as it should be.
  os.environ.setdefault('TRANSFORMERS_NO_ADVISORY_WARNINGS', '1')
  try:
    import transformers
  except ImportError as e:
    what = f'{folder.path} has no {TOKENIZER_FILE}, and needs transformers'
    raise MissingExtraError(missing_extra(what, 'tokenizers')) from e
  loudness = transformers.logging.get_verbosity()
  transformers.logging.set_verbosity_error()
  try:
    slow = transformers.AutoTokenizer.from_pretrained(
      folder.path, local_files_only=True
    )
    data = json.loads(slow.backend_tokenizer.to_str())
    data['post_processor'] = None  # which frames a text
    tokenizer = parse_tokenizer(json.dumps(data), folder.path)
  except Exception as e:
    raise ValueError(
      f'{folder.path}: transformers reads no tokenizer from '
      f'{" and ".join(needed)}: {one_line(e, 150)}'
    ) from e
  finally:
    transformers.logging.set_verbosity(loudness)
  tokens = AddedTokens([], dict(slow.special_tokens_map))
  return tokenizer, tokens, slow.clean_up_tokenization_spaces


def _read_m2m(folder: TokenizerFolder) -> dict[str, bytes]:
  """Returns the files of an M2M-100; languages are behind the last id."""
  for name in (VOCAB_FILE, SENTENCEPIECE_FILE):
    if not folder.has(name):
      raise FileNotFoundError(
        f'{folder.path} has no tokenizer: expected {VOCAB_FILE} and '
        f'{SENTENCEPIECE_FILE}'
      )
  vocab = folder.read_object(VOCAB_FILE)
  fileio.check_json(vocab, {str: int}, folder.join(VOCAB_FILE))
  tokens = collect_tokens(
    folder.name, folder.settings,
    folder.read_object('special_tokens_map.json'),
    folder.read_object('added_tokens.json'),
    folder.read_object(TOKENIZER_FILE), folder.path,
  )  # fmt: skip
  known = str(folder.settings.get('language_codes', 'm2m100'))
  if known not in M2M_CODES:
    raise ValueError(
      f'{folder.path}: language_codes = {quote(known)}: expected '
      f'{" or ".join(M2M_CODES)}'
    )
  languages = {code: len(vocab) + i for i, code in enumerate(M2M_CODES[known])}
  ids = {**vocab, **tokens.ids}
  for token in tokens.added:
    ids.setdefault(token['content'], len(ids))
  special = {key: ids[x] for key, x in tokens.named.items()}
  silent = {ids[x] for x in (*tokens.named.values(), *tokens.extra)}
  form = _write_format(
    folder,
    'm2m_100',
    languages=languages,
    special=special,
    clean_up=bool(folder.settings.get('clean_up_tokenization_spaces', False)),
    added=[{**token, 'id': ids[token['content']]} for token in tokens.added],
    silent=sorted(silent),
  )
  model = read_tokenizer_file(folder.join(SENTENCEPIECE_FILE))
  vocab = json.dumps(vocab, ensure_ascii=False).encode()
  return {SENTENCEPIECE_FILE: model, VOCAB_FILE: vocab, FORMAT_FILE: form}


# --- Formats and languages


def _name_format(folder: TokenizerFolder, added: Iterable[str]) -> str:
  """Returns the name of the input format that a folder's model reads."""
  forms = {'MBartTokenizer': 'mbart', 'MBart50Tokenizer': 'mbart50'}
  model_type = folder.config.get('model_type')
  has = lambda form: find_languages(form, dict.fromkeys(added, 0))
  if folder.name == NLLB_CLASS or (
    folder.name in GENERIC and model_type == 'm2m_100' and has('nllb')
  ):
    legacy = folder.settings.get('legacy_behaviour', False)
    return 'nllb_legacy' if legacy else 'nllb'
  if folder.name in GENERIC and model_type == 'mbart':
    return 'mbart50' if 'gl_ES' in has('mbart') else 'mbart'
  if folder.name in GENERIC and model_type == 'm2m_100':
    return 'm2m_100'
  return forms.get(folder.name, 'plain')


def find_languages(form: str, tokens: Mapping[str, int]) -> dict[str, int]:
  """Returns the languages among tokens, code -> id in the order of the ids."""
  pattern = LANGUAGE_TOKENS.get(form)
  matches = (
    (re.fullmatch(pattern, token), i)
    for token, i in (tokens.items() if pattern else ())
  )
  codes = {match[1]: i for match, i in matches if match}
  return dict(sorted(codes.items(), key=lambda item: item[1]))


def _write_format(
  folder: TokenizerFolder, form: str, languages: dict, **more
) -> bytes:
  """Returns format.json."""
  named = lambda key: folder.settings.get(key)
  ours = lambda code: code if code in languages else None
  values = {
    'input_format': form,
    'tokenizer_class': folder.name,
    'languages': languages,
    'source': ours(named('src_lang')),
    'target': ours(named('tgt_lang')),
    **more,
  }
  return (json.dumps(values, indent=1, ensure_ascii=False) + '\n').encode()
