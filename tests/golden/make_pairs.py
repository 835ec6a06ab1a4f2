"""Writes public/pairs.json: pairs as transformers trains models on them.

Of each model of public/ with a tokenizer and weights: the ids of a pair by
`tokenizer(text, text_target=...)`, whole and truncated, the decoder's inputs
that the model makes of the labels, and its loss on each pair alone. On one
thread; downloads nothing. Needs the extra, and public/ as it is:

  pip install -e '.[hf]'
  python tests/golden/make_pairs.py
"""

import json
import pathlib

import torch
import transformers

FOLDER = pathlib.Path(__file__).parent / 'public'
LONGEST = 12  # tokens of a truncated text

# Their own codes of English, German, Tamil and Japanese.
CODES = {
  'mbart25': ('en_XX', 'de_DE', 'ro_RO', 'ja_XX'),
  'mbart50': ('en_XX', 'de_DE', 'ta_IN', 'ja_XX'),
  'm2m_100': ('en', 'de', 'ta', 'ja'),
  'nllb': ('eng_Latn', 'deu_Latn', 'tam_Taml', 'jpn_Jpan'),
  'pegasus': (None,) * 4,
}
TEXTS = (
  'All are born free.',
  'Alle sind frei.',
  'அனைவரும் சமம்.',
  '自由、平等。',
)
DIRECTIONS = ((0, 1), (1, 0), (0, 2), (3, 0))


def make_pair(name: str, tokenizer, model, source: int, target: int) -> dict:
  """Returns what transformers makes of one pair."""
  codes = CODES[name]
  if codes[0] is not None:
    tokenizer.src_lang, tokenizer.tgt_lang = codes[source], codes[target]
  texts = dict(text=TEXTS[source], text_target=TEXTS[target])
  whole = tokenizer(**texts)
  cut = tokenizer(**texts, max_length=LONGEST, truncation=True)
  ids, read = {k: torch.tensor([v]) for k, v in whole.items()}, []
  hook = model.get_decoder().register_forward_pre_hook(
    lambda _, args, named: read.append(named['input_ids']), with_kwargs=True
  )
  with torch.no_grad(), hook:
    loss = model(**ids).loss
  return {
    'input': TEXTS[source], 'target': TEXTS[target],
    'languages': [codes[source], codes[target]],
    'input_ids': whole['input_ids'], 'labels': whole['labels'],
    'decoder_input_ids': read[0][0].tolist(), 'loss': round(loss.item(), 6),
    'cut_input_ids': cut['input_ids'], 'cut_labels': cut['labels'],
  }  # fmt: skip


def main() -> None:
  torch.set_num_threads(1)
  found = {}
  for name in CODES:
    tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDER / name)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(
      FOLDER / name, dtype=torch.float32, attn_implementation='eager'
    ).eval()
    found[name] = [
      make_pair(name, tokenizer, model, *pair) for pair in DIRECTIONS
    ]
  with open(FOLDER / 'pairs.json', 'w', encoding='utf-8') as f:
    lines = (
      f'{json.dumps(name)}: [\n'
      + ',\n'.join(json.dumps(row, ensure_ascii=False) for row in rows)
      + '\n]'
      for name, rows in found.items()
    )
    f.write('{\n' + ',\n'.join(lines) + '\n}\n')


if __name__ == '__main__':
  main()
