"""Writes a tiny Blenderbot into public/blenderbot, and dialogue.json.

Its tokenizer is there already, see make_tokenizers.py; as in the public ones
`<mask>` has no row in the embedding. dialogue.json has texts and the texts that
transformers answers, greedily. Every parameter is drawn anew. Deterministic on
one thread; downloads nothing. Needs the extra:

  pip install -e '.[hf]'
  python tests/golden/make_dialogue.py
"""

import json
import pathlib

import torch
import transformers

HERE = pathlib.Path(__file__).resolve().parent
FOLDER = HERE / 'public' / 'blenderbot'
TEXTS = [
  'Hello, how are you?', ' leading and trailing ', 'two  spaces',
  'Alle Menschen sind frei.', '\u3059\u3079\u3066 \U0001f600', 'a </s> b',
  'My cat <unk> sleeps', 'line\nbreak', 'x',
]  # fmt: skip
NEW_TOKENS = 12


def main() -> None:
  """Writes the folder's config.json and weights, and dialogue.json."""
  torch.manual_seed(11)
  config = transformers.BlenderbotConfig(
    vocab_size=500, d_model=24, max_position_embeddings=40, encoder_layers=1,
    decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=2,
    encoder_ffn_dim=40, decoder_ffn_dim=32, scale_embedding=True,
    pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    forced_eos_token_id=None, dropout=0.0,
  )  # fmt: skip
  model = transformers.BlenderbotForConditionalGeneration(config).eval()
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.normal_(0, 0.35)
    model.final_logits_bias.normal_(0, 0.3)
  model.save_pretrained(FOLDER)
  limits = dict(max_new_tokens=NEW_TOKENS, num_beams=1)
  generation = transformers.GenerationConfig(
    bos_token_id=1, eos_token_id=2, pad_token_id=0, decoder_start_token_id=1,
    **limits,
  )  # fmt: skip
  generation.save_pretrained(FOLDER)
  tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDER)
  answers = []
  for text in TEXTS:
    # transformers 5 adds no `</s>` where a folder has no tokenizer.json, as the
    # public ones and their tokenizer.json do.
    ids = tokenizer(text).input_ids
    rows = torch.tensor([[*ids, 2]])
    out = model.generate(rows, generation_config=generation)[0, 1:].tolist()
    answer = tokenizer.decode(out, skip_special_tokens=True)
    answers.append({'text': text, 'ids': out, 'answer': answer})
  text = json.dumps({'new_tokens': NEW_TOKENS, 'answers': answers}, indent=1)
  (HERE / 'dialogue.json').write_text(text + '\n')


if __name__ == '__main__':
  main()
