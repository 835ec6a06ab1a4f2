"""Writes translation.json: what transformers reads and writes of languages.

  OMP_NUM_THREADS=1 python tests/golden/make_translation.py

It needs torch and transformers. Of each folder of public/ with languages: ids
that the tokenizer gives, and greedy and beam search's outputs with the target
language forced, as ids and as text.
"""

import json
import os

import torch
import transformers

HERE = os.path.dirname(os.path.abspath(__file__))
SENTENCES = (
  'Good morning.',
  'All human beings are born free and equal in dignity and rights.',
  'Everyone has the right to life, liberty and security of person',
  'न्याय',
)
# (source, target) of each folder, by its own codes.
PAIRS = {
  'mbart25': [('en_XX', 'de_DE'), ('hi_IN', 'zh_CN')],
  'mbart50': [('en_XX', 'ta_IN'), ('de_DE', 'ar_AR')],
  'm2m_100': [('en', 'de'), ('hi', 'zh')],
  'nllb': [('eng_Latn', 'tam_Taml'), ('deu_Latn', 'zho_Hant')],
}
SETTINGS = {
  'greedy': dict(max_new_tokens=12, num_beams=1),
  'beams': dict(max_new_tokens=12, num_beams=3, length_penalty=0.6),
}


def translate(folder: str, source: str, target: str) -> dict:
  """Returns what is read and written of SENTENCES."""
  path = os.path.join(HERE, 'public', folder)
  words = transformers.AutoTokenizer.from_pretrained(
    path, src_lang=source, tgt_lang=target
  )
  model = transformers.AutoModelForSeq2SeqLM.from_pretrained(path).eval()
  # Only what is named below counts.
  model.generation_config = transformers.GenerationConfig(
    **{
      k: getattr(model.generation_config, k)
      for k in ('bos_token_id', 'eos_token_id', 'pad_token_id')
    }
  )
  if folder == 'm2m_100':
    language = words.get_lang_id(target)
  else:
    language = words.convert_tokens_to_ids(target)
  begin = dict(decoder_start_token_id=language)
  if folder != 'mbart25':
    begin = dict(
      decoder_start_token_id=model.config.decoder_start_token_id,
      forced_bos_token_id=language,
    )
  rows = [words(text)['input_ids'] for text in SENTENCES]
  labels = [words(text_target=text)['input_ids'] for text in SENTENCES]
  outputs = {'log_probabilities': []}
  for row, label in zip(rows, labels):
    with torch.no_grad():
      ids, label = torch.tensor([row]), torch.tensor([label])
      loss = model(ids, labels=label).loss
    outputs['log_probabilities'].append(-float(loss) * label.shape[1])
  for name, settings in SETTINGS.items():
    outputs[name] = []
    for row in rows:
      with torch.no_grad():
        (ids,) = model.generate(
          torch.tensor([row]), **begin, **settings, do_sample=False
        ).tolist()
      text = words.decode(ids, skip_special_tokens=True)
      outputs[name].append({'ids': ids, 'text': text})
  return {
    'folder': folder, 'source': source, 'target': target, 'read': rows,
    'labels': labels, 'begin': [*begin.values()], **outputs,
  }  # fmt: skip


if __name__ == '__main__':
  made = [
    translate(folder, *pair)
    for folder, pairs in PAIRS.items()
    for pair in pairs
  ]
  with open(f'{HERE}/translation.json', 'w', encoding='utf-8') as f:
    whole = {'sentences': SENTENCES, 'settings': SETTINGS, 'pairs': made}
    json.dump(whole, f, ensure_ascii=False)
    f.write('\n')
