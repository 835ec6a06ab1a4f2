"""One stack through a cache; an encoder-decoder is in transformer_test."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from atm.model.transformer import AlexaTM

from conftest import batch, tiny
from small_models import PUBLIC, init


@pytest.fixture(params=['decoder_only', 'prefix_lm'])
def kind(request):
  return request.param


def one_stack_config(kind, **changes):
  return tiny(**{'architecture': kind, 'encoder_layers': 0, **changes})


def apply(config, *args, method=None, **named):
  variables = {'params': init(config)}
  return AlexaTM(config).apply(variables, *args, method=method, **named)


@pytest.mark.parametrize('changes', [{}, PUBLIC['mbart'], PUBLIC['pegasus']])
def test_cached_equals_uncached(kind, changes, rng):
  """Tokens one by one behind padded prompts, and targets scored."""
  fits = {'ties': 'decoder_head', 'encoder_position_offset': 0}
  config = one_stack_config(kind, **({**changes, **fits} if changes else {}))
  rows = {k: jnp.asarray(v) for k, v in batch(rng, 3, 7, 5).items()}
  source, tokens = rows['encoder_segment_ids'], rows['decoder_input_tokens']
  rows['encoder_input_tokens'] = jnp.where(
    source > 0, rows['encoder_input_tokens'], config.pad_id
  )
  want = apply(
    config, rows['encoder_input_tokens'], tokens, None, source,
    rows['decoder_segment_ids'], enable_dropout=False,
  )  # fmt: skip
  encoded = apply(
    config, rows['encoder_input_tokens'], source, enable_dropout=False,
    method='encode',
  )  # fmt: skip
  caches = apply(config, encoded, 5, source, method='empty_cache')
  read = rows['decoder_segment_ids'] > 0
  for t in range(5):
    at = jnp.full((3, 1), t)
    logits, caches = apply(
      config, tokens[:, t : t + 1], at, caches, source, method='decode_cached'
    )
    np.testing.assert_allclose(
      logits[read[:, t], 0], want[read[:, t], t], atol=1e-4
    )
  rows['decoder_positions'] = jnp.broadcast_to(jnp.arange(5), (3, 5))
  logs, _ = apply(config, rows, method='log_probabilities')
  sums = apply(config, rows, False, method='loss')
  total = -(logs * rows['decoder_loss_weights']).sum(-1)
  np.testing.assert_allclose(total, sums['loss'], rtol=1e-5)


def test_t5x_decodes(kind, rng):
  config = one_stack_config(kind)
  tokens, targets = rng.integers(3, 96, (2, 6)), rng.integers(3, 96, (2, 4))
  want = apply(config, tokens, targets, enable_dropout=False)
  net, params = AlexaTM(config), {'params': init(config)}
  encoded = net.apply(params, tokens, enable_dropout=False, method=net.encode)
  decode = functools.partial(
    net.apply, method=net.decode, mutable=['cache'], decode=True,
    enable_dropout=False,
  )  # fmt: skip
  _, cache = decode(params, encoded, tokens, targets)
  for t in range(4):
    logits, cache = decode(
      {**params, **cache}, encoded, tokens, targets[:, t : t + 1]
    )
    np.testing.assert_allclose(logits[:, 0], want[:, t], atol=1e-4)
