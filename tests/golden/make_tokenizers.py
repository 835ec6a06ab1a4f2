"""Writes the tiny tokenizer folders of public/, in the public models' formats.

The files, the layout of the ids and the language codes are those of the public
folders: fairseq's ids (SentencePiece's + 1, languages behind them, `<mask>`
last), a `vocab.json` in another order than SentencePiece's with pieces missing,
Pegasus's ids + 103, byte-level BPE that puts a space first. The pieces are
trained on tasks/udhr. Deterministic; downloads nothing. Needs the extra:

  pip install -e '.[hf]'
  python tests/golden/make_tokenizers.py
"""

import io
import json
import pathlib
import tempfile
import types
import unicodedata

import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2
from transformers.convert_slow_tokenizer import (
  MBart50Converter,
  MBartConverter,
  PegasusConverter,
)
from transformers.models.m2m_100 import tokenization_m2m_100
from transformers.models.mbart import tokenization_mbart
from transformers.models.mbart50 import tokenization_mbart50
from transformers.models.nllb import tokenization_nllb
from transformers.tokenization_utils_base import generate_merges

HERE = pathlib.Path(__file__).resolve().parent
UDHR = HERE.parents[1] / 'tasks' / 'udhr'
PUBLIC = HERE / 'public'

FAIRSEQ = {
  'bos_token': '<s>', 'eos_token': '</s>', 'sep_token': '</s>',
  'cls_token': '<s>', 'unk_token': '<unk>', 'pad_token': '<pad>',
}  # fmt: skip
MASK = dict(content='<mask>', lstrip=True, rstrip=False, single_word=False)


def texts() -> list[str]:
  """Returns the paragraphs of all languages, in turn."""
  columns = [
    [line.split('\t', 1)[1] for line in file.read_text('utf-8').splitlines()]
    for file in sorted(UDHR.glob('*.tsv'))
  ]
  rows = max(map(len, columns))
  return [x[i] for i in range(rows) for x in columns if i < len(x)]


def normalization_rules() -> str:
  """Returns what nmt_nfkc does to some characters; whole, it has 240 KB."""
  pairs = {chr(i): ' ' for i in (9, 10, 13, 0x200B, 0x2028, 0x2581, 0xFEFF)}
  pairs |= {chr(i): '' for i in (1, 2, 8, 0x1F, 0x7F, 0x9F)}
  changed = [
    *range(0xA0, 0x180),
    *range(0x2000, 0x2200),
    *range(0x3000, 0x3400),
  ]
  for i in [*changed, *range(0xFB00, 0xFB07), *range(0xFE70, 0xFF9F)]:
    normal = unicodedata.normalize('NFKC', chr(i))
    if normal != chr(i) and i != 0xFF5E:
      pairs[chr(i)] = normal
  for i in [*range(0xC0, 0x180), *range(0x900, 0xC00), *range(0x3040, 0x30FF)]:
    parts = unicodedata.normalize('NFD', chr(i))
    if len(parts) > 1 and unicodedata.normalize('NFC', parts) == chr(i):
      pairs[parts] = chr(i)
  code = lambda text: ' '.join(f'{ord(x):X}' for x in text)
  return ''.join(f'{code(x)}\t{code(y)}\n' for x, y in sorted(pairs.items()))


def train(size: int, kind: str, **arguments) -> bytes:
  """Returns a SentencePiece model of `size` pieces."""
  model = io.BytesIO()
  with tempfile.NamedTemporaryFile('w', suffix='.tsv') as rules:
    rules.write(normalization_rules())
    rules.flush()
    train_into(model, size, kind, rules.name, **arguments)
  proto = sentencepiece_model_pb2.ModelProto.FromString(model.getvalue())
  proto.normalizer_spec.ClearField('normalization_rule_tsv')
  return proto.SerializeToString(deterministic=True)


def train_into(model, size: int, kind: str, rules: str, **arguments) -> None:
  """Trains a SentencePiece model and writes it to a file object."""
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(texts()),
    model_writer=model,
    model_type=kind,
    vocab_size=size,
    character_coverage=0.985,
    num_threads=1,
    normalization_rule_tsv=rules,
    minloglevel=2,
    **arguments,
  )


def write_json(path: pathlib.Path, data) -> None:
  """Writes indented JSON."""
  path.write_text(
    json.dumps(data, ensure_ascii=False, indent=1) + '\n', 'utf-8'
  )


def convert(
  converter, file: pathlib.Path, **attributes
) -> tokenizers.Tokenizer:
  """Returns the fast tokenizer that transformers 4 made of a SentencePiece."""
  tokenizer = types.SimpleNamespace(vocab_file=str(file), **attributes)
  tokenizer.convert_tokens_to_ids = lambda token: 0  # only post-processors ask
  return converter(tokenizer).converted()


def write_fast(folder, tokenizer, special, mask=None, older=False) -> None:
  """Writes tokenizer.json with its special tokens; `older`: as before 2024."""
  tokenizer.add_special_tokens(
    [tokenizers.AddedToken(x, normalized=False, special=True) for x in special]
  )
  if mask:
    tokenizer.add_special_tokens(
      [tokenizers.AddedToken(mask, lstrip=True, normalized=False, special=True)]
    )
  data = json.loads(tokenizer.to_str())
  if older:
    merges = data['model'].get('merges', [])
    data['model']['merges'] = [' '.join(pair) for pair in merges]
    data['model'].pop('byte_fallback')
    data['model'].pop('ignore_merges')
    for part in ('pre_tokenizer', 'decoder'):
      data[part].pop('prepend_scheme')
      data[part].pop('split')
      data[part].update(str_rep='\u2581', add_prefix_space=True)
  write_json(folder / 'tokenizer.json', data)


def write_configs(
  folder, name: str, special: dict, languages=(), **more
) -> None:
  """Writes tokenizer_config.json and special_tokens_map.json."""
  named = {
    **special,
    **({'mask_token': MASK} if 'mask_token' not in special else {}),
  }
  if languages:
    named['additional_special_tokens'] = list(languages)
  write_json(folder / 'special_tokens_map.json', named)
  config = {**named, 'model_max_length': 1024, 'tokenizer_class': name, **more}
  if config['mask_token'] is MASK:
    config['mask_token'] = {**MASK, 'normalized': True, '__type': 'AddedToken'}
  write_json(folder / 'tokenizer_config.json', config)


def make_mbart(folder, codes, name, converter, size) -> None:
  """Writes the folder of an mBART, with tokenizer.json and its older file."""
  file = folder / 'sentencepiece.bpe.model'
  file.write_bytes(train(size, 'unigram'))
  tokenizer = convert(converter, file, add_prefix_space=True)
  write_fast(
    folder, tokenizer, ['<s>', '<pad>', '</s>', '<unk>', *codes], '<mask>'
  )
  write_configs(
    folder, name, FAIRSEQ, codes if name == 'MBart50Tokenizer' else (),
    src_lang=None, tgt_lang=None,
  )  # fmt: skip


def make_m2m(folder) -> None:
  """Writes the folder of an M2M-100: SentencePiece and vocab.json."""
  file = folder / 'sentencepiece.bpe.model'
  file.write_bytes(train(486, 'bpe'))
  sp = sentencepiece.SentencePieceProcessor(str(file))
  pieces = [sp.id_to_piece(i) for i in range(3, sp.get_piece_size())]
  # fairseq's dictionary is sorted by another corpus, and lacks rare pieces.
  pieces = [pieces[i * 5 % len(pieces)] for i in range(len(pieces))][:-5]
  tokens = ['<s>', '<pad>', '</s>', '<unk>', *pieces]
  write_json(
    folder / 'vocab.json', {token: i for i, token in enumerate(tokens)}
  )
  codes = tokenization_m2m_100.FAIRSEQ_LANGUAGE_CODES['m2m100']
  special = {key: x for key, x in FAIRSEQ.items() if key != 'cls_token'}
  special['additional_special_tokens'] = [f'__{code}__' for code in codes]
  write_json(folder / 'special_tokens_map.json', special)
  config = dict(
    src_lang=None, tgt_lang=None, language_codes='m2m100', num_madeup_words=8,
    model_max_length=1024, tokenizer_class='M2M100Tokenizer', **special,
  )  # fmt: skip
  write_json(folder / 'tokenizer_config.json', config)


def make_nllb(folder) -> None:
  """Writes the folder of an NLLB-200, tokenizer.json as of 2022."""
  file = folder / 'sentencepiece.bpe.model'
  file.write_bytes(train(570, 'bpe'))
  sp = sentencepiece.SentencePieceProcessor(str(file))
  pieces = [sp.id_to_piece(i) for i in range(3, sp.get_piece_size())]
  codes = tokenization_nllb.FAIRSEQ_LANGUAGE_CODES
  tokens = ['<s>', '<pad>', '</s>', '<unk>', *pieces]
  merges = generate_merges({token: i for i, token in enumerate(tokens)})
  vocab = {token: i for i, token in enumerate([*tokens, *codes, '<mask>'])}
  tokenizer = tokenizers.Tokenizer(
    tokenizers.models.BPE(vocab, merges, unk_token='<unk>', fuse_unk=True)
  )
  proto = sentencepiece_model_pb2.ModelProto.FromString(file.read_bytes())
  tokenizer.normalizer = tokenizers.normalizers.Sequence(
    [
      tokenizers.normalizers.Precompiled(
        proto.normalizer_spec.precompiled_charsmap
      ),
      tokenizers.normalizers.Replace(tokenizers.Regex(' {2,}'), ' '),
    ]
  )
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
  tokenizer.decoder = tokenizers.decoders.Metaspace()
  special = ['<s>', '<pad>', '</s>', '<unk>', *codes]
  write_fast(folder, tokenizer, special, '<mask>', older=True)
  write_configs(
    folder, 'NllbTokenizer', FAIRSEQ, codes,
    src_lang=None, tgt_lang=None, sp_model_kwargs={},
  )  # fmt: skip


def make_pegasus(folder) -> None:
  """Writes the folder of a Pegasus."""
  file = folder / 'spiece.model'
  model = train(
    460, 'unigram', pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
  )  # fmt: skip
  file.write_bytes(model)
  special = dict(
    pad_token='<pad>', eos_token='</s>', unk_token='<unk>',
    mask_token='<mask_2>', mask_token_sent='<mask_1>',
  )  # fmt: skip
  tokenizer = convert(
    PegasusConverter, file, **special,
    eos_token_id=1, mask_token_id=3, offset=103,
  )  # fmt: skip
  more = ['<mask_1>', *(f'<unk_{i}>' for i in range(2, 103))]
  write_fast(folder, tokenizer, ['<pad>', '</s>', *more, '<unk>', '<mask_2>'])
  special.pop('mask_token_sent')
  write_configs(
    folder, 'PegasusTokenizer', special, more,
    mask_token_sent='<mask_1>', offset=103, full_tokenizer_file=None,
  )  # fmt: skip


def make_blenderbot(folder) -> None:
  """Writes the folder of a Blenderbot: vocab.json and merges.txt."""
  special = ['<pad>', '<s>', '</s>', '<unk>']
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
  byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
  tokenizer.pre_tokenizer = byte_level
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=500,
    special_tokens=special,
    initial_alphabet=sorted(byte_level.alphabet()),
    show_progress=False,
  )
  tokenizer.train_from_iterator(texts(), trainer)
  model = json.loads(tokenizer.to_str())['model']
  write_json(folder / 'vocab.json', model['vocab'])
  merges = '\n'.join(' '.join(pair) for pair in model['merges'])
  text = f'#version: 0.2\n{merges}\n'
  (folder / 'merges.txt').write_text(text, 'utf-8')
  write_json(folder / 'added_tokens.json', {'<mask>': len(model['vocab'])})
  write_configs(
    folder, 'BlenderbotTokenizer', FAIRSEQ,
    add_prefix_space=True, errors='replace', model_max_length=128,
  )  # fmt: skip


def main() -> None:
  """Writes all folders."""
  folders = ('mbart25', 'mbart50', 'm2m_100', 'nllb', 'pegasus', 'blenderbot')
  folders = {name: PUBLIC / name for name in folders}
  for folder in folders.values():
    folder.mkdir(parents=True, exist_ok=True)
  make_mbart(
    folders['mbart25'], tokenization_mbart.FAIRSEQ_LANGUAGE_CODES,
    'MBartTokenizer', MBartConverter, 570,
  )  # fmt: skip
  make_mbart(
    folders['mbart50'], tokenization_mbart50.FAIRSEQ_LANGUAGE_CODES,
    'MBart50Tokenizer', MBart50Converter, 543,
  )  # fmt: skip
  make_m2m(folders['m2m_100'])
  make_nllb(folders['nllb'])
  make_pegasus(folders['pegasus'])
  make_blenderbot(folders['blenderbot'])


if __name__ == '__main__':
  main()
