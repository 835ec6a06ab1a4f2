"""Trains a small model in mBART-50's format, for the figures of from-mbart.md.

Where mBART-50's own weights cannot be had, it stands in for them: the folder
holds the same files as transformers writes them, and the model was trained by
mBART's objective. Text of LANG.txt, a document a line, is split by documents:
the first part trains SentencePiece and this model, the next is written to
OUTPUT/text, to go on with. Of each text up to 46 pieces are read; 35% of them
are replaced, a span of Poisson(3.5) pieces by one `<mask>`; the decoder writes
`[lang] text </s>`. Takes an hour on a core. Needs the extra:

  pip install -e '.[hf]'
  python benchmarks/mbart_stand_in.py TEXT OUTPUT [--steps=2000]
"""

import argparse
import os
import pathlib
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / 'tests' / 'golden'))

PIECES, BATCH, MOST = 6000, 32, 46
TRAINING_BYTES, NEXT_BYTES = 1_200_000, 600_000  # of each language
SIZES = dict(
  d_model=128, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
  decoder_attention_heads=4, encoder_ffn_dim=512, decoder_ffn_dim=512,
  max_position_embeddings=64, activation_function='relu', dropout=0.0,
  scale_embedding=True,
)  # fmt: skip
RATE, WARM_UP = 2e-3, 200


def split_text(source: pathlib.Path, output: pathlib.Path) -> dict:
  """Returns language -> documents to train on; writes the next ones."""
  (output / 'text').mkdir(parents=True, exist_ok=True)
  texts = {}
  for path in sorted(source.glob('*.txt')):
    first, later, size = [], [], 0
    with open(path, encoding='utf-8') as f:
      for line in f:
        (first if size < TRAINING_BYTES else later).append(line.strip())
        size += len(line.encode())
        if size > TRAINING_BYTES + NEXT_BYTES:
          break
    texts[path.stem] = first
    (output / 'text' / path.name).write_text('\n'.join(later) + '\n', 'utf-8')
  return texts


def write_tokenizer(folder: pathlib.Path, texts: dict):
  """Trains and writes a tokenizer as mBART-50's; returns transformers' one."""
  import make_tokenizers
  import transformers
  from transformers.convert_slow_tokenizer import MBart50Converter
  from transformers.models.mbart50 import tokenization_mbart50

  make_tokenizers.texts = lambda: [
    text[:2000] for documents in texts.values() for text in documents
  ]
  codes = tokenization_mbart50.FAIRSEQ_LANGUAGE_CODES
  make_tokenizers.make_mbart(
    folder, codes, 'MBart50Tokenizer', MBart50Converter, PIECES
  )
  return transformers.AutoTokenizer.from_pretrained(folder)


def encode(tokenizer, texts: dict) -> list:
  """Returns (id of the language, ids) of the pieces of all documents."""
  codes = {name[:2]: name for name in tokenizer.additional_special_tokens
           } if hasattr(tokenizer, 'additional_special_tokens') else {
    token.content[:2]: token.content
    for token in tokenizer.added_tokens_decoder.values()
    if token.content[2:3] == '_'
  }  # fmt: skip
  rows = []
  for language, documents in texts.items():
    code = tokenizer.convert_tokens_to_ids(codes[language])
    for ids in tokenizer(documents, add_special_tokens=False)['input_ids']:
      parts = [ids[i : i + MOST] for i in range(0, len(ids), MOST)]
      rows += [(code, part) for part in parts if len(part) > 7]
  return rows


def add_noise(ids, mask_id: int, draw) -> list[int]:
  """Returns ids of which spans, 35% in all, are a `<mask>` each."""
  left, out, i = round(0.35 * len(ids)), [], 0
  starts = set(draw.permutation(len(ids))[: max(1, left // 3)].tolist())
  while i < len(ids):
    if i in starts and left > 0:
      span = min(left, max(1, draw.poisson(3.5)))
      out.append(mask_id)
      i, left = i + span, left - span
    else:
      out.append(ids[i])
      i += 1
  return out


def make_batch(rows, tokenizer, draw) -> dict:
  """Returns input_ids, attention_mask and labels of some rows, as tensors."""
  import numpy as np
  import torch

  eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
  mask = tokenizer.mask_token_id
  source = [[c, *add_noise(ids, mask, draw), eos] for c, ids in rows]
  target = [[c, *ids, eos] for c, ids in rows]

  def table(lists, blank):
    out = np.full((len(lists), MOST + 2), blank)
    for i, row in enumerate(lists):
      out[i, : len(row)] = row
    return torch.tensor(out)

  inputs, labels = table(source, pad), table(target, -100)
  return dict(input_ids=inputs, attention_mask=inputs != pad, labels=labels)


def main() -> None:
  """Splits the text, trains the tokenizer and the model, writes the folder."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('text', type=pathlib.Path)
  parser.add_argument('output', type=pathlib.Path)
  parser.add_argument('--steps', type=int, default=2000)
  arguments = parser.parse_args()
  import numpy as np
  import torch
  import transformers

  torch.manual_seed(0)
  torch.set_num_threads(int(os.environ.get('OMP_NUM_THREADS', 1)))
  folder = arguments.output / 'model'
  folder.mkdir(parents=True, exist_ok=True)
  texts = split_text(arguments.text, arguments.output)
  tokenizer = write_tokenizer(folder, texts)
  rows = encode(tokenizer, texts)
  pieces = sum(len(ids) for _, ids in rows)
  print(f'{len(rows):,} rows, {pieces:,} pieces', flush=True)
  config = transformers.MBartConfig(
    vocab_size=len(tokenizer), decoder_start_token_id=2, **SIZES
  )
  model = transformers.MBartForConditionalGeneration(config)
  print(f'{sum(p.numel() for p in model.parameters()):,} parameters')
  optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.98))
  steps, draw = arguments.steps, np.random.default_rng(0)
  rate = lambda n: min((n + 1) / WARM_UP, max(0.02, 1 - n / steps))
  schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
  start, losses = time.perf_counter(), []
  for step in range(1, steps + 1):
    chosen = [rows[i] for i in draw.integers(len(rows), size=BATCH)]
    loss = model(**make_batch(chosen, tokenizer, draw)).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    schedule.step()
    losses.append(loss.item())
    if step % 50 == 0:
      spent = time.perf_counter() - start
      mean = np.mean(losses[-50:])
      print(f'step {step}/{steps}  loss {mean:.3f}  {spent:.0f} s', flush=True)
    if step % 500 == 0 or step == steps:
      model.save_pretrained(folder)


if __name__ == '__main__':
  main()
