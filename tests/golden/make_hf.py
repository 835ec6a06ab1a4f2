"""Writes the Hugging Face references beside it: tiny models and their outputs.

Every parameter is drawn anew, so that no bias is zero and no scale is one.
Deterministic by seeds and on one thread; downloads nothing. Needs the extra:

  pip install -e '.[hf]'
  python tests/golden/make_hf.py

Shapes: B batch, S inputs, T targets, P positions, V vocabulary, D model.
"""

import copy
import io
import json
import pathlib

import numpy as np
import sentencepiece
import torch
import transformers
from torch import nn
from transformers.models.blenderbot import modeling_blenderbot

HERE = pathlib.Path(__file__).resolve().parent
UDHR = HERE.parents[1] / 'tasks' / 'udhr'

STD = 0.15
NEW_TOKENS = 20
BEAMS = 4

# They differ in their sizes and special ids. In b, labels in the middle are
# ignored, so pad ids stand among the decoder's inputs.
BLENDERBOTS = {
  'blenderbot_a': dict(
    d_model=32,
    vocab_size=96,
    max_position_embeddings=40,
    encoder_layers=2,
    decoder_layers=3,
    encoder_attention_heads=4,
    decoder_attention_heads=2,
    encoder_ffn_dim=64,
    decoder_ffn_dim=48,
    scale_embedding=False,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    decoder_start_token_id=1,
  ),
  'blenderbot_b': dict(
    d_model=40,
    vocab_size=101,
    max_position_embeddings=41,
    encoder_layers=3,
    decoder_layers=1,
    encoder_attention_heads=5,
    decoder_attention_heads=4,
    encoder_ffn_dim=96,
    decoder_ffn_dim=64,
    scale_embedding=True,
    pad_token_id=3,
    bos_token_id=0,
    eos_token_id=2,
    decoder_start_token_id=5,
  ),
  'blenderbot_c': dict(
    d_model=64,
    vocab_size=110,
    max_position_embeddings=37,
    encoder_layers=1,
    decoder_layers=2,
    encoder_attention_heads=4,
    decoder_attention_heads=16,
    encoder_ffn_dim=80,
    decoder_ffn_dim=96,
    scale_embedding=False,
    pad_token_id=7,
    bos_token_id=4,
    eos_token_id=9,
    decoder_start_token_id=9,
  ),
}
IGNORED_IN_THE_MIDDLE = 'blenderbot_b'

# Chosen so that some rows end before NEW_TOKENS and some do not, in greedy and
# in beam search, and that no choice hangs on rounding.
SEEDS = {'blenderbot_a': 1, 'blenderbot_b': 10, 'blenderbot_c': 1}

SPM_PIECES = 120

TEXTS = [
  'All human beings are born free and equal in dignity and rights.',
  'Alle Menschen sind frei und gleich an Würde und Rechten geboren.',
  'Everyone has the right to life, liberty and security of person.',
  'freedom',
  '  spaces   in  front, between and behind  ',
  'line\nbreak\tand tab',
  'Ｆｕｌｌ　ｗｉｄｔｈ ﬁ ½ ①',
  'unknown 日本 語 in the middle',
  'Straße, größer; 1948: "no" (yes) -- 42%',
  'ALL CAPITALS WITHOUT SENSE XYZQ',
  '日本',
  '',
]
PAIR = ('born free', 'frei geboren')
MASKED = 'born <mask> and equal'


def randomise(model: nn.Module, seed: int) -> None:
  """Draws parameters and final_logits_bias, in the order of their names."""
  rng = np.random.default_rng(seed)
  scales = {
    f'{name}.weight'
    for name, module in model.named_modules()
    if isinstance(module, nn.LayerNorm)
  }
  values = dict(model.named_parameters())  # tied ones once
  if hasattr(model, 'final_logits_bias'):
    values['final_logits_bias'] = model.final_logits_bias
  with torch.no_grad():
    for name in sorted(values):
      value = STD * rng.standard_normal(values[name].shape) + (name in scales)
      values[name].copy_(torch.from_numpy(value))


def ragged(rng, lengths, ids, pad) -> np.ndarray:
  """[B, S]: rows of random ids, right-padded."""
  rows = np.full((len(lengths), max(lengths)), pad)
  for row, length in zip(rows, lengths):
    row[:length] = rng.choice(ids, length)
  return rows


def generation_config(config, **changes) -> transformers.GenerationConfig:
  """Plain search; everything a Blenderbot would add by default is off."""
  return transformers.GenerationConfig(
    **{
      'max_new_tokens': NEW_TOKENS,
      'do_sample': False,
      'num_beams': 1,
      'num_return_sequences': 1,
      'early_stopping': False,
      'length_penalty': 1.0,
      'min_length': 0,
      'repetition_penalty': 1.0,
      'no_repeat_ngram_size': 0,
      'encoder_no_repeat_ngram_size': 0,
      'forced_bos_token_id': None,
      'forced_eos_token_id': None,
      'bad_words_ids': None,
      'use_cache': True,
      'pad_token_id': config.pad_token_id,
      'bos_token_id': config.bos_token_id,
      'eos_token_id': config.eos_token_id,
      'decoder_start_token_id': config.decoder_start_token_id,
      **changes,
    }
  )


def generate(model, source, mask, **changes):
  """The ids [rows, up to 1 + NEW_TOKENS] and, of beams, scores [rows]."""
  settings = generation_config(
    model.config,
    return_dict_in_generate=True,
    output_scores=True,
    **changes,
  )
  model.generation_config = settings  # else a None would take the default
  out = model.generate(source, attention_mask=mask, generation_config=settings)
  return out.sequences, getattr(out, 'sequences_scores', None)


def greedy_margin(model, source, mask, ids) -> float:
  """Checks greedy ids without a cache; the least lead of a chosen id."""
  config = model.config
  logits = model(source, attention_mask=mask, decoder_input_ids=ids).logits
  margins = []
  for row, scores in zip(ids.tolist(), logits):
    for t, token in enumerate(row[1:]):
      best = scores[t].topk(2)
      assert token == best.indices[0], 'greedy ids are not the arg max'
      margins.append(float(best.values[0] - best.values[1]))
      if token == config.eos_token_id:
        assert all(x == config.pad_token_id for x in row[t + 2 :])
        break
  return min(margins)


def cached_steps(model, source, mask, targets) -> torch.Tensor:
  """Logits [B, T, V], a target at a time through the cache."""
  encoded = model.model.encoder(source, attention_mask=mask)
  cache, steps = None, []
  for t in range(targets.shape[1]):
    out = model(
      encoder_outputs=encoded,
      attention_mask=mask,
      decoder_input_ids=targets[:, t : t + 1],
      past_key_values=cache,
      use_cache=True,
    )
    cache = out.past_key_values
    steps.append(out.logits)
  return torch.cat(steps, dim=1)


def gradients(model, **batch) -> dict[str, np.ndarray]:
  model.zero_grad()
  with torch.enable_grad():
    model(**batch).loss.backward()
  # Copies: the arrays would share memory that zero_grad may reuse.
  return {
    name: value.grad.numpy().copy()
    for name, value in model.named_parameters()
    if value.requires_grad  # else a table that is computed
  }


def random_blenderbot(settings: dict, seed: int) -> nn.Module:
  config = transformers.BlenderbotConfig(
    activation_function='gelu',
    encoder_no_repeat_ngram_size=0,
    forced_eos_token_id=None,
    attn_implementation='eager',
    **settings,
  )
  model = transformers.BlenderbotForConditionalGeneration(config).eval()
  randomise(model, seed)
  # A random model whose embeddings are tied repeats one token for ever, unless
  # positions outweigh tokens. Some rows are to end early, some not.
  for side in [model.model.encoder, model.model.decoder]:
    side.embed_positions.weight.mul_(4 * side.embed_tokens.embed_scale)
  model.final_logits_bias[0, config.eos_token_id] += 1
  return model


def random_batch(config, seed: int, ignored: bool):
  """input_ids, attention_mask [B, S] and labels [B, T]; full rows [2, P]."""
  rng = np.random.default_rng(seed)
  special = {
    config.pad_token_id,
    config.bos_token_id,
    config.eos_token_id,
    config.decoder_start_token_id,
  }
  ids = [x for x in range(config.vocab_size) if x not in special]
  source = ragged(rng, [11, 6, 3, 9], ids, config.pad_token_id)
  mask = (source != config.pad_token_id).astype(np.int64)
  labels = ragged(rng, [5, 8, 2, 7], ids, -100)
  for row in labels:
    row[(row != -100).sum() - 1] = config.eos_token_id
  if ignored:
    labels[1, 2] = labels[3, 0] = -100
  P = config.max_position_embeddings
  full = rng.choice(ids, (2, P)), rng.choice(ids, (2, P))
  batch = {'input_ids': source, 'attention_mask': mask, 'labels': labels}
  full = {'input_ids': full[0], 'decoder_input_ids': full[1]}
  return [
    {key: torch.from_numpy(value) for key, value in arrays.items()}
    for arrays in [batch, full]
  ]


def blenderbot(name: str, settings: dict, seed: int) -> None:
  """Writes NAME/, NAME.io.npz and NAME.grads.npz."""
  model = random_blenderbot(settings, seed)
  config = model.config
  model.generation_config = generation_config(config)
  model.save_pretrained(HERE / name, safe_serialization=True)

  batch, full = random_batch(config, seed + 1, name == IGNORED_IN_THE_MIDDLE)
  source, mask, labels = batch.values()
  shifted = modeling_blenderbot.shift_tokens_right(
    labels, config.pad_token_id, config.decoder_start_token_id
  )
  out = model(**batch, output_hidden_states=True)
  same = model(
    source, attention_mask=mask, decoder_input_ids=shifted, use_cache=False
  )
  assert torch.equal(out.logits, same.logits), 'not the shift of the loss'
  chosen = torch.gather(
    out.logits.log_softmax(-1), 2, labels.clamp(min=0)[..., None]
  )[..., 0]
  logprobs = torch.where(labels == -100, 0.0, chosen)
  torch.testing.assert_close(-logprobs.sum() / (labels != -100).sum(), out.loss)

  greedy, _ = generate(model, source, mask)
  margin = greedy_margin(model, source, mask, greedy)
  beams = dict(num_beams=BEAMS, num_return_sequences=BEAMS)
  beam, scores = generate(model, source, mask, **beams)
  # What rounding could change is no reference.
  double = copy.deepcopy(model).double()
  ends = (greedy[:, 1:] == config.eos_token_id).any(dim=1)
  assert ends.any() and not ends.all()
  gaps = -scores.reshape(-1, BEAMS).diff(dim=1)
  assert margin > 5e-3 and gaps.min() > 1e-4, (margin, gaps)
  assert torch.equal(greedy, generate(double, source, mask)[0])
  assert torch.equal(beam, generate(double, source, mask, **beams)[0])

  grads = gradients(model, **batch)
  # The lookups give the row of the pad id no gradient (padding_idx), the tied
  # head does. What the row would get without padding_idx is kept as well.
  for module in model.modules():
    if isinstance(module, nn.Embedding):
      module.padding_idx = None
  plain = gradients(model, **batch)
  pad_row = plain['model.shared.weight'][config.pad_token_id].copy()
  for key in grads:
    rest = np.arange(len(grads[key])) != (
      config.pad_token_id if key == 'model.shared.weight' else -1
    )
    np.testing.assert_array_equal(plain[key][rest], grads[key][rest])
  np.savez_compressed(HERE / f'{name}.grads.npz', **grads)

  hidden = {
    f'{side}_hidden_{n}': value
    for side in ['encoder', 'decoder']
    for n, value in enumerate(out[f'{side}_hidden_states'])
  }
  save(
    f'{name}.io.npz',
    **batch,
    decoder_input_ids=shifted,
    encoder_last_hidden_state=out.encoder_last_hidden_state,
    decoder_last_hidden_state=out.decoder_hidden_states[-1],
    **hidden,
    logits=out.logits,
    logits_cached_steps=cached_steps(model, source, mask, shifted),
    logits_no_masks=model(source, decoder_input_ids=shifted).logits,
    full_input_ids=full['input_ids'],
    full_decoder_input_ids=full['decoder_input_ids'],
    full_logits=model(**full).logits,
    loss=out.loss,
    token_logprobs=logprobs,
    pad_row_grad_without_padding_idx=torch.from_numpy(pad_row),
    greedy_ids=greedy,
    beam4_ids=beam,
    beam4_scores=scores,
  )
  print(f'{name}: loss {float(out.loss):.4f}, greedy margin {margin:.1e}')


def save(name: str, **arrays: torch.Tensor) -> None:
  np.savez_compressed(
    HERE / name, **{key: value.numpy() for key, value in arrays.items()}
  )


def sentencepiece_model(path: pathlib.Path) -> None:
  """A unigram model as XLM-R's: <unk> 0, <s> 1, </s> 2, then the pieces."""
  sentences = [
    line.split('\t', 1)[1]
    for language in ['en', 'de']
    for line in (UDHR / f'{language}.tsv').read_text('utf-8').splitlines()
  ]
  model = io.BytesIO()  # so that no path is written into the model
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(sentences),
    model_writer=model,
    model_type='unigram',
    vocab_size=SPM_PIECES,
    character_coverage=1.0,
    normalization_rule_name='nmt_nfkc',
    num_threads=1,
    minloglevel=2,
  )
  path.write_bytes(model.getvalue())


def xlmr_tokens(folder: pathlib.Path) -> int:
  """Writes xlmr_tokens.json; the number of tokens."""
  path = folder / 'sentencepiece.bpe.model'
  sentencepiece_model(path)
  tokenizer = transformers.XLMRobertaTokenizer.from_pretrained(folder)
  sp = sentencepiece.SentencePieceProcessor(model_file=str(path))
  ids = [tokenizer(text)['input_ids'] for text in TEXTS]
  for text, row in zip(TEXTS, ids):
    pieces = [x + 1 if x else 3 for x in sp.encode(text)]
    assert row == [0, *pieces, 2], (text, row, pieces)
  tokens = {
    'pieces_0_to_10': tokenizer.convert_ids_to_tokens(list(range(11))),
    'sentencepiece_0_to_10': [sp.id_to_piece(x) for x in range(11)],
    'sentencepiece_size': sp.get_piece_size(),
    'size': len(tokenizer),
    'bos': tokenizer.bos_token_id,
    'pad': tokenizer.pad_token_id,
    'eos': tokenizer.eos_token_id,
    'unk': tokenizer.unk_token_id,
    'mask': tokenizer.mask_token_id,
    'texts': TEXTS,
    'ids': ids,
    'decoded': [tokenizer.decode(x, skip_special_tokens=True) for x in ids],
    'pair': PAIR,
    'pair_ids': tokenizer(*PAIR)['input_ids'],
    'masked': MASKED,
    'masked_ids': tokenizer(MASKED)['input_ids'],
  }
  text = json.dumps(tokens, ensure_ascii=False, indent=1)
  (HERE / 'xlmr_tokens.json').write_text(text + '\n', 'utf-8')
  return len(tokenizer)


def xlmr_xl(seed: int) -> None:
  """Writes xlmr_xl/, xlmr_xl.io.npz and xlmr_tokens.json."""
  folder = HERE / 'xlmr_xl'
  folder.mkdir(exist_ok=True)
  config = transformers.XLMRobertaXLConfig(
    vocab_size=xlmr_tokens(folder),
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=128,
    max_position_embeddings=42,  # 40 of use: 0 and 1 belong to padding
    attn_implementation='eager',
  )
  model = transformers.XLMRobertaXLModel(config, add_pooling_layer=False)
  model.eval()
  randomise(model, seed)
  model.save_pretrained(folder, safe_serialization=True)

  before_norm = []
  model.encoder.LayerNorm.register_forward_pre_hook(
    lambda module, inputs: before_norm.append(inputs[0])
  )
  rng = np.random.default_rng(seed + 1)
  ids = range(4, config.vocab_size)
  source = ragged(rng, [13, 5, 9], ids, config.pad_token_id)
  for row in source:
    row[0] = config.bos_token_id
    row[(row != config.pad_token_id).sum() - 1] = config.eos_token_id
  source = torch.from_numpy(source)
  mask = (source != config.pad_token_id).long()
  out = model(source, attention_mask=mask, output_hidden_states=True)
  full = torch.from_numpy(rng.choice(ids, (2, 40)))
  # A pad id in the middle, attended: positions come from ids, not the mask.
  inner = source[:1].clone()
  inner[0, 4] = config.pad_token_id
  embeddings = model.embeddings
  save(
    'xlmr_xl.io.npz',
    input_ids=source,
    attention_mask=mask,
    position_ids=embeddings.create_position_ids_from_input_ids(
      source, config.pad_token_id
    ),
    last_hidden_state=out.last_hidden_state,
    **{f'hidden_{n}': x for n, x in enumerate(out.hidden_states)},
    last_layer_before_norm=before_norm[0],
    full_input_ids=full,
    full_last_hidden_state=model(full).last_hidden_state,
    inner_pad_input_ids=inner,
    inner_pad_position_ids=embeddings.create_position_ids_from_input_ids(
      inner, config.pad_token_id
    ),
    inner_pad_last_hidden_state=model(inner).last_hidden_state,
  )


def main() -> None:
  torch.set_num_threads(1)
  torch.set_grad_enabled(False)
  transformers.logging.set_verbosity_error()
  transformers.logging.disable_progress_bar()
  for name, settings in BLENDERBOTS.items():
    blenderbot(name, settings, SEEDS[name])
  xlmr_xl(seed=100)


if __name__ == '__main__':
  main()
