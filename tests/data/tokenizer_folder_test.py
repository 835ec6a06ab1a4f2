"""Folders of many versions and writers give transformers' tokenizer, or why."""

import json
import os
import re
import sys

import pytest

from atm.data import tokenizer_folder
from atm.data.vocabulary import open_vocabulary
from tests.public_folders import NAMES, change, copy_folder

TEXTS = (
  'Alle Menschen  sind\nfrei.', ' x </s> <mask>y', 'foo foox <keep> a new tokb',
  'de_DE __de__ deu_Latn', '\ufb01ne \uff21 \u4e01', '', "is n't . \t",
)  # fmt: skip


def remove(folder: str, *names: str) -> None:
  for name in names:
    if os.path.exists(path := os.path.join(folder, name)):
      os.remove(path)


def settings_of(folder: str) -> str:
  return os.path.join(folder, 'tokenizer_config.json')


def save_again(folder: str) -> None:
  """Writes the folder as transformers 5 does."""
  import transformers

  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  remove(folder, *({*os.listdir(folder)} - {'config.json'}))
  tokenizer.save_pretrained(folder)


def decode_added(folder: str) -> None:
  """Adds the tokens of a user, as transformers 4 wrote them."""
  flags = dict(
    lstrip=False, rstrip=False, normalized=False, single_word=False,
    special=False,
  )  # fmt: skip
  added, last = {}, 900
  if 'm2m_100' in folder:  # whose languages are among them
    codes = open_vocabulary(folder).languages
    special = {**flags, 'special': True}
    added = {i: {**special, 'content': f'__{x}__'} for x, i in codes.items()}
    last = 582
  added |= {
    last: {**flags, 'content': 'foo', 'single_word': 'm2m' not in folder},
    last + 1: {**flags, 'content': '<keep>', 'lstrip': True, 'rstrip': True},
    last + 2: {**flags, 'content': 'new tok', 'normalized': True},
  }
  change(settings_of(folder), added_tokens_decoder=added)


CHANGES = {
  'older': lambda f: remove(f, 'tokenizer.json'),
  'saved': save_again,
  'bare': lambda f: remove(f, 'special_tokens_map.json', settings_of(f)),
  'generic': lambda f: change(
    settings_of(f), tokenizer_class='PreTrainedTokenizerFast'
  ),
  'fast': lambda f: change(
    settings_of(f),
    tokenizer_class=json.load(open(settings_of(f)))['tokenizer_class'] + 'Fast',
  ),
  'no added tokens': lambda f: change(
    os.path.join(f, 'tokenizer.json'), added_tokens=[]
  ),
  'no table': lambda f: change(
    os.path.join(f, 'tokenizer.json'), normalizer={'type': 'NFC'}
  ),
  'added_tokens_decoder': decode_added,
  'no prefix space': lambda f: change(settings_of(f), add_prefix_space=False),
}
CASES = [
  *((name, 'saved') for name in NAMES),
  *((name, 'added_tokens_decoder') for name in NAMES),
  *((name, 'fast') for name in NAMES),
  *((name, 'older') for name in ('mbart25', 'mbart50', 'pegasus')),
  *((name, 'bare') for name in ('mbart25', 'pegasus', 'blenderbot')),
  *((name, x) for name in ('mbart25', 'mbart50', 'nllb', 'pegasus')
    for x in ('generic', 'no added tokens', 'no table')),
  ('blenderbot', 'no prefix space'),
]  # fmt: skip


@pytest.mark.parametrize('name, what', CASES)
def test_a_folder_is_read_as_transformers_does(name, what, tmp_path):
  transformers = pytest.importorskip('transformers')
  folder = copy_folder(name, tmp_path)
  CHANGES[what](folder)
  theirs = transformers.AutoTokenizer.from_pretrained(folder)
  mine = open_vocabulary(folder)
  languages = dict(mine.languages)
  for text in TEXTS:
    ids = theirs(text, add_special_tokens=False).input_ids
    assert mine.encode(text) == ids, text
    assert mine.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
  for code, i in languages.items():
    token = f'__{code}__' if name == 'm2m_100' else code
    assert theirs.convert_tokens_to_ids(token) == i
  for name in ('pad', 'bos', 'eos', 'unk'):
    assert getattr(mine, f'{name}_id') == getattr(theirs, f'{name}_token_id')


@pytest.mark.parametrize(
  'name, legacy',
  [
    ('mbart25', False), ('mbart50', False), ('m2m_100', False), ('nllb', False),
    ('nllb', True),
  ],
)  # fmt: skip
def test_frames_are_those_of_transformers(name, legacy, tmp_path):
  """Inputs and labels of a pair, without and with `legacy_behaviour`."""
  transformers = pytest.importorskip('transformers')
  folder = copy_folder(name, tmp_path, legacy_behaviour=legacy or None)
  mine = open_vocabulary(folder)
  for source, target in zip([*mine.languages], [*mine.languages][::-3]):
    theirs = transformers.AutoTokenizer.from_pretrained(
      folder, src_lang=source, tgt_lang=target
    )
    form, text = mine.input_format, 'Alle Menschen'
    ids = theirs(text).input_ids
    assert form.frame(mine.encode(text), source) == ids
    if not legacy:  # there, only the encoder's is as NLLB was trained
      labels = theirs(text_target=text).input_ids
      assert form.labels(mine.encode(text), target) == labels
    if list(mine.languages).index(source) > 3:
      break


def test_folders_without_config_or_of_other_models(tmp_path):
  (tmp_path / 'config.json').write_text('{"model_type": "bert"}')
  assert tokenizer_folder.open_folder(str(tmp_path)) is None
  with pytest.raises(FileNotFoundError, match='no vocabulary at'):
    open_vocabulary(tmp_path)
  folder = copy_folder('nllb', tmp_path)
  remove(folder, 'config.json')
  assert len(open_vocabulary(folder).languages) == 202
  assert len(open_vocabulary(f'{folder}/tokenizer.json').languages) == 202


def test_languages_of_a_folder_are_its_defaults(tmp_path):
  folder = copy_folder('nllb', tmp_path, src_lang='deu_Latn', tgt_lang='xxx')
  form = open_vocabulary(folder).input_format
  assert (form.source, form.target) == ('deu_Latn', None)
  assert form.frame([5]) == [form.languages['deu_Latn'], 5, 2]


def damage_pipe(folder: str) -> None:
  remove(folder, 'tokenizer.json')
  os.mkfifo(os.path.join(folder, 'tokenizer.json'))


def write(name: str, text: str):
  def damage(folder: str) -> None:
    with open(os.path.join(folder, name), 'w') as f:
      f.write(text)

  return damage


def make_huge(folder: str) -> None:
  with open(os.path.join(folder, 'tokenizer.json'), 'r+b') as f:
    f.truncate(2**30)  # a hole, no blocks


def edit_model(**values):
  def damage(folder: str) -> None:
    path = os.path.join(folder, 'tokenizer.json')
    with open(path) as f:
      model = json.load(f)['model']
    change(path, model={**model, **values})

  return damage


DAMAGES = [
  (damage_pipe, 'not a pipe'),
  (make_huge, '1,073,741,824 bytes'),
  (write('tokenizer.json', '{"model": '), 'no JSON'),
  (write('tokenizer.json', '[]'), 'expected an object'),
  (write('tokenizer.json', '{}'), "has no 'model'"),
  (write('tokenizer.json', '{"model": {"vocab": 5}}'), 'model.vocab is 5'),
  (write('tokenizer_config.json', '\0'), 'no JSON'),
  (write('special_tokens_map.json', '[]'), 'expected an object'),
  (write('added_tokens.json', '{"x": "y"}'), "'y': expected the id"),
  (edit_model(type='WordPiece'), 'a WordPiece model, where NllbTokenizer'),
  (edit_model(merges=['a']), 'is damaged'),
  (edit_model(vocab={'a': 0}), 'is damaged'),
  (lambda f: change(settings_of(f), tokenizer_class='XTokenizer'),
   "'XTokenizer': expected one of MBartTokenizer"),
  (write('special_tokens_map.json', '{"unk_token": {"a": 1}}'),
   'expected a token'),
  (lambda f: change(settings_of(f), added_tokens_decoder={'x': '<s>'}),
   "'x': expected the id"),
  (lambda f: change(settings_of(f), added_tokens_decoder=[5]), 'expected'),
  (lambda f: remove(f, 'tokenizer.json'), 'expected tokenizer.json'),
  (lambda f: change(os.path.join(f, 'tokenizer.json'), normalizer={
    'type': 'Precompiled', 'precompiled_charsmap': 'ABCD'}), 'is damaged'),
]  # fmt: skip


@pytest.mark.parametrize('damage, message', DAMAGES)
def test_damaged_files_are_refused_in_one_line(damage, message, tmp_path):
  folder = copy_folder('nllb', tmp_path)
  damage(folder)
  with pytest.raises((ValueError, OSError), match=re.escape(message)) as e:
    open_vocabulary(folder)
  text = str(e.value)
  assert '\n' not in text and len(text) < 500 and folder in text


@pytest.mark.parametrize(
  'name, file, message',
  [
    ('m2m_100', 'vocab.json', 'expected vocab.json and sent'),
    ('m2m_100', 'sentencepiece.bpe.model', 'expected vocab.json and sent'),
    ('pegasus', 'spiece.model', 'expected tokenizer.json, or spiece.model'),
    ('mbart25', 'sentencepiece.bpe.model', 'expected tokenizer.json, or sent'),
    ('blenderbot', 'merges.txt', 'or vocab.json and merges.txt'),
  ],
)
def test_missing_files_are_named(name, file, message, tmp_path):
  folder = copy_folder(name, tmp_path)
  remove(folder, 'tokenizer.json', file)
  with pytest.raises(FileNotFoundError, match=message):
    open_vocabulary(folder)


@pytest.mark.parametrize(
  'name, file', [('m2m_100', 'sentencepiece.bpe.model'),
                 ('pegasus', 'spiece.model'), ('blenderbot', 'merges.txt')],
)  # fmt: skip
def test_damaged_older_files_are_refused(name, file, tmp_path):
  folder = copy_folder(name, tmp_path)
  remove(folder, 'tokenizer.json')
  write(file, 'x y z')(folder)
  with pytest.raises(ValueError) as e:
    open_vocabulary(folder)
  assert '\n' not in str(e.value) and len(str(e.value)) < 500


@pytest.mark.parametrize(
  'name, module', [('nllb', 'tokenizers'), ('blenderbot', 'transformers')]
)
def test_a_missing_extra_is_named(name, module, tmp_path, monkeypatch):
  folder = copy_folder(name, tmp_path)
  monkeypatch.setitem(sys.modules, module, None)
  with pytest.raises(ImportError, match=r'pip install .*\[tokenizers\]') as e:
    open_vocabulary(folder)
  assert module in str(e.value)


def test_what_needs_no_extra(tmp_path, monkeypatch):
  """tokenizer.json needs tokenizers alone, M2M-100 nothing."""
  monkeypatch.setitem(sys.modules, 'transformers', None)
  for name in ('mbart25', 'mbart50', 'nllb', 'pegasus'):
    assert open_vocabulary(copy_folder(name, tmp_path)).encode('a')
  monkeypatch.setitem(sys.modules, 'tokenizers', None)
  assert open_vocabulary(copy_folder('m2m_100', tmp_path)).encode('a')
