"""Writes peft/: adapters by PEFT of the tiny models, and what it computes.

Adapters are random, A and B, as after training. Deterministic by seeds and on
one thread; downloads nothing:

  pip install -e '.[hf]' peft
  python tests/golden/make_peft.py

With arguments it writes nothing here: PEFT loads adapters of another hand, and
the greatest difference between its logits and stored ones [B, T, V] is printed.

  python tests/golden/make_peft.py BASE ADAPTERS LOGITS.npz

Shapes: B batch, S inputs, T targets, V vocabulary.
"""

import json
import shutil
import sys

import numpy as np
import peft
import torch
import transformers
from make_hf import HERE

FOLDER = HERE / 'peft'
COLUMNS = slice(None, None, 8)  # of logits that are stored
SPREAD = 0.06  # of A and B
LAYERS = ['q_proj', 'v_proj']
DENSE = ['k_proj', 'out_proj', 'fc1', 'fc2']
# Name -> the folder of the base, and what peft.LoraConfig is given.
CASES = {
  'mbart25': ('public/mbart25', dict(r=4, lora_alpha=8, target_modules=LAYERS)),
  'm2m_100': (
    'public/m2m_100',
    dict(
      r=3, lora_alpha=5, use_rslora=True, target_modules=DENSE,
      rank_pattern={'fc1': 5, 'decoder.layers.0.self_attn.out_proj': 2},
      alpha_pattern={'fc2': 9},
    ),
  ),
  'pegasus': (
    'public/pegasus',
    dict(
      r=2, lora_alpha=4, target_modules=r'.*decoder.*\.(q_proj|fc2)',
      lora_dropout=0.1,
    ),
  ),
  # What AlexaTM is exported as; some layers only.
  'blenderbot': (
    'blenderbot_a',
    dict(
      r=4, lora_alpha=6, target_modules=[*LAYERS, *DENSE],
      layers_to_transform=[1],
    ),
  ),
  'untied': (
    'peft/untied_base',
    dict(r=4, lora_alpha=8, target_modules=['embed_tokens', 'lm_head', 'fc1']),
  ),
}  # fmt: skip


def write_untied_base() -> None:
  """Writes a folder of three matrices, embeddings and head, that differ."""
  config = transformers.BlenderbotConfig(
    vocab_size=48, d_model=16, encoder_layers=1, decoder_layers=2,
    encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=24,
    decoder_ffn_dim=24, max_position_embeddings=24, tie_word_embeddings=False,
    scale_embedding=True, init_std=0.2, pad_token_id=0, bos_token_id=1,
    eos_token_id=2, decoder_start_token_id=1, forced_eos_token_id=None,
  )  # fmt: skip
  torch.manual_seed(1)
  model = transformers.BlenderbotForConditionalGeneration(config)
  tables = (
    model.model.encoder.embed_tokens, model.model.decoder.embed_tokens,
    model.lm_head,
  )  # fmt: skip
  for table in tables:
    table.weight.data = 0.2 * torch.randn_like(table.weight)
  model.save_pretrained(FOLDER / 'untied_base')


def load_base(folder):
  """Returns the model of a folder, for evaluation."""
  return transformers.AutoModelForSeq2SeqLM.from_pretrained(
    folder, dtype=torch.float32, attn_implementation='eager'
  ).eval()


def compute_logits(model, inputs) -> np.ndarray:
  """Returns float32 logits [B, T, V]."""
  with torch.no_grad():
    out = model(
      input_ids=torch.tensor(inputs['input_ids']),
      attention_mask=torch.tensor(inputs['attention_mask']),
      decoder_input_ids=torch.tensor(inputs['decoder_input_ids']),
      use_cache=False,
    )
  return out.logits.numpy()


def draw_inputs(config, rng) -> dict[str, np.ndarray]:
  """Returns ids without padding but at the end of the last row of inputs."""
  draw = lambda *shape: rng.integers(4, config.vocab_size, shape)
  inputs = {'input_ids': draw(3, 9), 'decoder_input_ids': draw(3, 7)}
  mask = np.ones((3, 9), np.int64)
  mask[-1, 6:] = 0
  inputs['input_ids'][-1, 6:] = config.pad_token_id
  return {**inputs, 'attention_mask': mask}


def make(name: str, number: int) -> None:
  """Writes the folder and the outputs of one case."""
  base, settings = CASES[name]
  torch.manual_seed(number)
  rng = np.random.default_rng(number)
  model = load_base(HERE / base)
  inputs = draw_inputs(model.config, rng)
  plain = compute_logits(model, inputs)
  model = peft.get_peft_model(
    model, peft.LoraConfig(task_type='SEQ_2_SEQ_LM', **settings)
  ).eval()
  for key, value in model.named_parameters():
    if 'lora_' in key:
      value.data = SPREAD * torch.randn_like(value)
  folder = FOLDER / name
  shutil.rmtree(folder, ignore_errors=True)
  model.save_pretrained(folder)
  (folder / 'README.md').unlink()
  path = folder / 'adapter_config.json'
  config = json.loads(path.read_text())
  config['base_model_name_or_path'] = base
  if isinstance(config['target_modules'], list):  # a set, in no order
    config['target_modules'] = sorted(config['target_modules'])
  path.write_text(json.dumps(config, indent=1, sort_keys=True) + '\n')
  logits = compute_logits(model, inputs)
  moved = np.abs(logits - plain).max()
  assert moved > 0.1, moved  # else a reader that ignores adapters would pass
  np.savez_compressed(
    FOLDER / f'{name}.io.npz', **inputs, logits=logits[..., COLUMNS]
  )
  print(f'{name}: logits moved by {moved:.2f} of {np.abs(plain).max():.2f}')


def compare(base: str, adapters: str, stored: str) -> None:
  """Prints how far PEFT's logits are from stored ones."""
  inputs = np.load(stored)
  model = peft.PeftModel.from_pretrained(load_base(base), adapters).eval()
  logits = compute_logits(model, inputs)
  print(f'{np.abs(logits - inputs["logits"]).max():.1e}')


if __name__ == '__main__':
  torch.set_num_threads(1)
  torch.use_deterministic_algorithms(True)
  if len(sys.argv) > 1:
    compare(*sys.argv[1:])
  else:
    FOLDER.mkdir(exist_ok=True)
    write_untied_base()
    for number, name in enumerate(CASES):
      make(name, number)
