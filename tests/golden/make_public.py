"""Writes public/: tiny models of the public classes and their outputs.

mBART-25 and 50, M2M-100, NLLB-200 and Pegasus, in folders as transformers
writes them. Every parameter is drawn anew, greedy outputs hang on the input and
end at many lengths, and ids that no tokenizer has are never chosen.
Deterministic by seeds and on one thread; downloads nothing. Needs the extra:

  pip install -e '.[hf]'
  python tests/golden/make_public.py

Shapes: B batch, S inputs, T targets, P positions, V vocabulary, D model.
"""

import copy
import dataclasses
from typing import NamedTuple

import make_hf
import numpy as np
import torch
import transformers
from make_hf import HERE
from torch import nn

FOLDER = HERE / 'public'

# What the references hold of logits, by ids, and of the gradients of matrices,
# by rows. The matrix of the vocabulary has the rows of ids in use besides.
COLUMNS = slice(None, None, 8)
ROWS = slice(None, None, 4)
FULL_TAIL = 4  # target positions of the rows that fill the position table

POSITION_SCALE = 8.0  # of learned positions
CONSTANT = 4.0  # of one coordinate of the decoder's last state
NEVER = -40.0  # logit of ids that are not chosen

FAIRSEQ = dict(
  pad_token_id=1,
  bos_token_id=0,
  eos_token_id=2,
  dropout=0.1,
  init_std=0.02,
)


class Scales(NamedTuple):
  """Chosen with the seeds, so that outputs end at many lengths and differ."""

  attention: float
  feed_forward: float
  logits: float
  end_bias: float  # added to the logit of the end
  embeddings: float = 1.0


@dataclasses.dataclass(frozen=True)
class Public:
  """A tiny model.

  Attributes:
    kind: name of its class.
    config: arguments of its configuration.
    generation: fields of generation_config.json besides the special ids.
    tokens: ids that its tokenizer has; the others are never chosen.
    language: id of a language code, which targets name; None without.
    scales: how its parameters are scaled.
    ignored: whether labels are ignored in the middle of targets.
    seed: of all that is random.
  """

  kind: str
  config: dict
  generation: dict
  tokens: int
  language: int | None
  scales: Scales
  ignored: bool
  seed: int


PUBLIC = {
  'mbart25': Public(
    'MBart',
    dict(
      FAIRSEQ,
      vocab_size=597,
      d_model=32,
      max_position_embeddings=40,
      encoder_layers=1,
      decoder_layers=2,
      encoder_attention_heads=4,
      decoder_attention_heads=2,
      encoder_ffn_dim=56,
      decoder_ffn_dim=40,
      activation_function='gelu',
      scale_embedding=True,
      forced_eos_token_id=2,
    ),
    dict(num_beams=5, max_length=32),
    tokens=597,
    language=573,
    scales=Scales(8.0, 1.0, 3.0, 5.0),
    ignored=False,
    seed=518,
  ),
  'mbart50': Public(
    'MBart',
    dict(
      FAIRSEQ,
      vocab_size=603,
      d_model=24,
      max_position_embeddings=36,
      encoder_layers=2,
      decoder_layers=1,
      encoder_attention_heads=3,
      decoder_attention_heads=4,
      encoder_ffn_dim=40,
      decoder_ffn_dim=64,
      activation_function='relu',
      activation_dropout=0.05,
      scale_embedding=False,
      decoder_start_token_id=2,
      forced_eos_token_id=2,
    ),
    dict(
      num_beams=4,
      max_length=24,
      early_stopping=True,
      forced_bos_token_id=547,
      forced_eos_token_id=2,
    ),
    tokens=597,
    language=546,
    scales=Scales(8.0, 1.0, 3.0, 4.0),
    ignored=False,
    seed=137,
  ),
  'm2m_100': Public(
    'M2M100',
    dict(
      FAIRSEQ,
      vocab_size=590,
      d_model=24,
      max_position_embeddings=38,
      encoder_layers=2,
      decoder_layers=1,
      encoder_attention_heads=4,
      decoder_attention_heads=6,
      encoder_ffn_dim=64,
      decoder_ffn_dim=48,
      activation_function='relu',
      attention_dropout=0.1,
      encoder_layerdrop=0.05,
      decoder_layerdrop=0.05,
      scale_embedding=True,
      decoder_start_token_id=2,
    ),
    dict(
      num_beams=5,
      max_length=28,
      early_stopping=True,
      forced_bos_token_id=500,
    ),
    tokens=582,
    language=506,
    scales=Scales(3.0, 2.0, 6.0, 4.0, 0.5),
    ignored=True,
    seed=429,
  ),
  'nllb': Public(
    'M2M100',
    dict(
      FAIRSEQ,
      vocab_size=776,
      d_model=24,
      max_position_embeddings=44,
      encoder_layers=1,
      decoder_layers=2,
      encoder_attention_heads=2,
      decoder_attention_heads=3,
      encoder_ffn_dim=48,
      decoder_ffn_dim=40,
      activation_function='relu',
      attention_dropout=0.1,
      encoder_layerdrop=0.0,
      decoder_layerdrop=0.0,
      scale_embedding=False,
      decoder_start_token_id=2,
    ),
    dict(max_length=30, no_repeat_ngram_size=3),
    tokens=774,
    language=612,
    scales=Scales(5.0, 3.0, 3.0, 5.0),
    ignored=False,
    seed=753,
  ),
  'pegasus': Public(
    'Pegasus',
    dict(
      vocab_size=563,
      d_model=20,
      max_position_embeddings=34,
      encoder_layers=2,
      decoder_layers=2,
      encoder_attention_heads=5,
      decoder_attention_heads=2,
      encoder_ffn_dim=40,
      decoder_ffn_dim=48,
      activation_function='relu',
      attention_dropout=0.1,
      activation_dropout=0.1,
      dropout=0.1,
      scale_embedding=True,
      pad_token_id=0,
      bos_token_id=None,
      eos_token_id=1,
      decoder_start_token_id=0,
      forced_eos_token_id=1,
    ),
    dict(
      num_beams=8,
      max_length=26,
      length_penalty=0.6,
      forced_eos_token_id=1,
      no_repeat_ngram_size=2,
    ),
    tokens=563,
    language=None,
    scales=Scales(5.0, 4.0, 4.0 / 0.7, 5.0, 0.7),
    ignored=True,
    seed=241,
  ),
}


def random_model(public: Public) -> nn.Module:
  """A model whose tokens hang on the input and end by chance."""
  config = getattr(transformers, f'{public.kind}Config')(
    attn_implementation='eager', **public.config
  )
  make = getattr(transformers, f'{public.kind}ForConditionalGeneration')
  model = make(config).eval()
  tables = [
    side.embed_positions for side in [model.model.encoder, model.model.decoder]
  ]
  learned = public.kind == 'MBart'
  kept = [] if learned else [copy.deepcopy(x.state_dict()) for x in tables]
  make_hf.randomise(model, public.seed)
  for table, state in zip(tables, kept):  # sinusoidal ones stay as they are
    table.load_state_dict(state)
  rng, scales = np.random.default_rng(public.seed + 1), public.scales
  embeddings, decoder = model.model.shared.weight, model.model.decoder
  # The head is tied to the embeddings: without the signs, a token would be its
  # own likeliest successor.
  signs = torch.from_numpy(rng.choice([-1.0, 1.0], config.d_model))
  decoder.layer_norm.weight.mul_(scales.logits * signs)
  embeddings.mul_(scales.embeddings)
  if learned:
    decoder.embed_positions.weight.mul_(POSITION_SCALE)
  else:  # what all positions have in common would outweigh the tokens
    common = tables[1](*position_arguments(public, config)).mean(dim=(0, 1))
    decoder.layers[0].self_attn.out_proj.bias.sub_(common)
  for layer in decoder.layers:
    for attention in [layer.self_attn, layer.encoder_attn]:
      attention.q_proj.weight.mul_(scales.attention)
      attention.out_proj.weight.mul_(scales.attention)
    layer.fc1.weight.mul_(scales.feed_forward)
    layer.fc2.weight.mul_(scales.feed_forward)
  # Not all classes have a bias of logits. One coordinate of the last state is
  # nearly constant, so that the embeddings' is such a bias.
  decoder.layer_norm.weight[0], decoder.layer_norm.bias[0] = 0.01, CONSTANT
  embeddings[:, 0] *= 0.1
  embeddings[config.eos_token_id, 0] = scales.end_bias / CONSTANT
  embeddings[public.tokens :, 0] = NEVER / CONSTANT
  embeddings[config.pad_token_id, 0] = NEVER / CONSTANT
  return model


def position_arguments(public: Public, config) -> tuple:
  """Arguments with which a table of positions gives its first rows."""
  ids = torch.full((1, make_hf.NEW_TOKENS), config.eos_token_id)
  if public.kind == 'M2M100':
    return (ids,)
  return (ids.shape, 0, torch.arange(make_hf.NEW_TOKENS)[None])


def random_batch(public: Public, config):
  """input_ids, attention_mask [B, S], labels [B, T], and full rows [1, P]."""
  rng = np.random.default_rng(public.seed + 2)
  ids = range(4, public.tokens)
  pad, end = config.pad_token_id, config.eos_token_id
  source = make_hf.ragged(rng, [9, 4, 7], ids, pad)
  mask = (source != pad).astype(np.int64)
  labels = make_hf.ragged(rng, [4, 7, 6], ids, -100)
  frame = [end] if public.language is None else [end, public.language]
  wraps = config.decoder_start_token_id is None  # mBART-25
  for row in labels:
    length = (row != -100).sum()
    if wraps:
      row[length - 2 : length] = frame
    else:
      row[length - 1], row[: len(frame) - 1] = end, frame[1:]
  if public.ignored:
    labels[1, 2] = labels[2, 4] = -100
  P = config.max_position_embeddings
  full = rng.choice(ids, (1, P)), rng.choice(ids, (1, P))
  batch = {'input_ids': source, 'attention_mask': mask, 'labels': labels}
  full = {'input_ids': full[0], 'decoder_input_ids': full[1]}
  return [
    {key: torch.from_numpy(value) for key, value in arrays.items()}
    for arrays in [batch, full]
  ]


def shift(config, labels: torch.Tensor) -> torch.Tensor:
  """The decoder's inputs [B, T], by the rule of the model's class."""
  rows = labels.clone()
  rows[:, 1:] = labels[:, :-1]
  if config.decoder_start_token_id is None:  # the last of the row goes around
    last = (labels != -100).sum(dim=1, keepdim=True) - 1
    rows[:, :1] = labels.gather(1, last)
  else:
    rows[:, 0] = config.decoder_start_token_id
  return rows.masked_fill(rows == -100, config.pad_token_id)


def decoder_inputs(public: Public, model, labels) -> torch.Tensor:
  """`shift`, and that the class computes its loss of the same."""
  config = model.config
  ids = shift(config, labels)
  if public.kind != 'MBart':
    return ids
  # transformers wraps around for all of mBART; a batch of mBART-50 begins with
  # the end, which data collators put there.
  if config.decoder_start_token_id is None:
    same = model.prepare_decoder_input_ids_from_labels(labels)
    assert torch.equal(ids, same)
  return ids


def cached_steps(model, source, mask, targets) -> torch.Tensor:
  """Logits [B, T, V], a target at a time through the cache."""
  encoded = model.model.encoder(source, attention_mask=mask)
  cache, steps = None, []
  for t in range(targets.shape[1]):
    out = model(
      encoder_outputs=encoded,
      attention_mask=mask,
      decoder_input_ids=targets[:, t : t + 1],
      cache=cache,
      use_cache=True,
    )
    cache = out.cache
    steps.append(out.logits)
  return torch.cat(steps, dim=1)


def check_outputs(name: str, public: Public, model) -> None:
  """Prints how much greedy outputs hang on the inputs, and asserts it."""
  config = model.config
  rng = np.random.default_rng(public.seed + 3)
  source = make_hf.ragged(
    rng, rng.integers(2, 14, 100), range(4, public.tokens), config.pad_token_id
  )
  source = torch.from_numpy(source)
  start = config.decoder_start_token_id
  settings = make_hf.generation_config(
    config, decoder_start_token_id=public.language if start is None else start
  )
  kept, model.generation_config = model.generation_config, settings
  ids = model.generate(
    source,
    attention_mask=(source != config.pad_token_id).long(),
    generation_config=settings,
  )[:, 1:].numpy()
  model.generation_config = kept
  assert ids.max() < public.tokens
  ended = (ids == config.eos_token_id).any(axis=1)
  ends = np.where(ended, (ids == config.eos_token_id).argmax(axis=1), 99)
  distinct, lengths = len(np.unique(ids, axis=0)), len(set(ends.tolist()))
  print(
    f'{name}: ended {ended.mean():.2f} at {lengths} lengths,'
    f' {distinct} outputs of 100,'
    f' {len(np.unique(ids))} ids in use,'
    f' {np.mean([len(set(x)) for x in ids.tolist()]):.1f} a row'
  )
  assert 0.3 < ended.mean() < 0.95 and lengths > 8 and distinct > 60, name


def write(name: str, public: Public) -> None:
  """Writes NAME/, NAME.io.npz and NAME.grads.npz."""
  model = random_model(public)
  config = model.config
  model.generation_config = transformers.GenerationConfig(
    **{
      key: getattr(config, key, None)
      for key in [
        'pad_token_id',
        'bos_token_id',
        'eos_token_id',
        'decoder_start_token_id',
      ]
    },
    **public.generation,
  )
  model.save_pretrained(FOLDER / name, safe_serialization=True)
  check_outputs(name, public, model)

  batch, full = random_batch(public, config)
  source, mask, labels = batch.values()
  shifted = decoder_inputs(public, model, labels)
  inputs = dict(
    input_ids=source, attention_mask=mask, decoder_input_ids=shifted
  )
  out = model(**inputs, labels=labels, output_hidden_states=True)
  chosen = torch.gather(
    out.logits.log_softmax(-1), 2, labels.clamp(min=0)[..., None]
  )[..., 0]
  logprobs = torch.where(labels == -100, 0.0, chosen)
  torch.testing.assert_close(-logprobs.sum() / (labels != -100).sum(), out.loss)
  plain = torch.where(labels == -100, labels[:, :1], labels)
  steps = shift(config, plain)  # without padding, which a cache counts

  # The lookups give the row of the pad id no gradient (padding_idx).
  for module in model.modules():
    if isinstance(module, nn.Embedding):
      module.padding_idx = None
  grads = make_hf.gradients(model, **inputs, labels=labels)
  shared = grads['model.shared.weight']
  grads = {k: v[ROWS] if v.ndim > 1 else v for k, v in grads.items()}
  ids = np.unique(np.concatenate([x.flatten() for x in inputs.values()]))
  np.savez_compressed(
    FOLDER / f'{name}.grads.npz', used_ids=ids, used_rows=shared[ids], **grads
  )
  # Long rows add up what float32 rounds, here as there.
  double = copy.deepcopy(model).double()
  make_hf.save(
    f'public/{name}.io.npz',
    **batch,
    decoder_input_ids=shifted,
    encoder_last_hidden_state=out.encoder_last_hidden_state,
    decoder_last_hidden_state=out.decoder_hidden_states[-1],
    logits=out.logits[..., COLUMNS],
    logits_no_masks=model(source, decoder_input_ids=shifted).logits[
      ..., COLUMNS
    ],
    step_ids=steps,
    logits_cached_steps=cached_steps(model, source, mask, steps)[..., COLUMNS],
    full_input_ids=full['input_ids'],
    full_decoder_input_ids=full['decoder_input_ids'],
    full_logits=double(**full).logits[:, -FULL_TAIL:, COLUMNS].float(),
    loss=out.loss,
    token_logprobs=logprobs,
  )


def main() -> None:
  torch.set_num_threads(1)
  torch.set_grad_enabled(False)
  transformers.logging.set_verbosity_error()
  transformers.logging.disable_progress_bar()
  FOLDER.mkdir(exist_ok=True)
  for name, public in PUBLIC.items():
    write(name, public)


if __name__ == '__main__':
  main()
