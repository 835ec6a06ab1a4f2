"""Low-rank adapters: which matrices, how they begin, what they change."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from atm.model import lora, parameters
from atm.model.lora import LoraConfig
from atm.model.transformer import AlexaTM

from conftest import tiny

EVERY = LoraConfig(rank=4, targets=('kernel', 'embedding', 'lm_head'))


def init_boxed(config: LoraConfig):
  """Returns boxed parameters of a tiny model, and boxed adapters."""
  boxed = parameters.init_params(AlexaTM(tiny()), 0)
  return boxed, lora.init_adapters(boxed, config, jax.random.key(1))


def fill(adapters: dict, seed: int = 2) -> dict:
  """Returns adapters whose halves that are zeros have numbers, too."""
  leaves, tree = jax.tree.flatten(adapters)
  keys = jax.random.split(jax.random.key(seed), len(leaves))
  return tree.unflatten(
    [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys)]
  )


def test_adapters_begin_as_no_change_and_lie_as_their_matrices():
  """Faults: a product that is not 0, wrong axes, one key for all."""
  boxed, adapters = init_boxed(EVERY)
  query = adapters['encoder']['layers']['attention']['query']['kernel']
  assert query['a'].names == ('layers', 'embed', None)
  assert query['b'].names == ('layers', None, 'heads')
  assert query['a'].value.shape == (2, 32, 4)
  head = adapters['lm_head']
  assert [head['a'].names, head['b'].names] == [
    ('vocab', None),
    (None, 'embed'),
  ]
  params, adapters = nn.unbox(boxed), nn.unbox(adapters)
  merged = lora.merge(params, adapters, EVERY)
  jax.tree.map(np.testing.assert_array_equal, merged, params)
  drawn = [x for x in jax.tree.leaves(adapters) if x.any()]
  assert 2 * len(drawn) == len(jax.tree.leaves(adapters))
  assert len({float(x.ravel()[0]) for x in drawn}) == len(drawn)


def test_merging_adds_the_scaled_product_to_adapted_matrices_alone():
  """Faults: the other scale, the wrong order, other parameters changed."""
  for rslora, scale in (False, 32 / 4), (True, 32 / 2):
    config = LoraConfig(rank=4, targets=('decoder.*value',), rslora=rslora)
    params, adapters = map(nn.unbox, init_boxed(config))
    adapters = fill(adapters)
    paths = ['/'.join(path) for path in lora.flatten_adapters(adapters)]
    assert paths == [
      f'decoder/layers/{kind}_attention/value/kernel' for kind in
      ('cross', 'self')
    ]  # fmt: skip
    merged = lora.merge(params, adapters, config)
    of = lambda tree: tree['decoder']['layers']['self_attention']['value']
    a, b = (np.float64(of(adapters)['kernel'][name]) for name in 'ab')
    want = of(params)['kernel'] + scale * np.einsum('lir,lro->lio', a, b)
    np.testing.assert_allclose(of(merged)['kernel'], want, atol=1e-6)
    assert merged['lm_head'] is params['lm_head']


def test_patterns_and_adapters_that_fit_nothing_are_refused():
  """Fault: a misspelt pattern that adapts nothing in silence."""
  with pytest.raises(ValueError, match="'q_proj' is found in no path"):
    init_boxed(LoraConfig(rank=4, targets=('kernel', 'q_proj')))
  with pytest.raises(ValueError, match='no regular expression'):
    LoraConfig(rank=4, targets=('(',))
  params, adapters = map(nn.unbox, init_boxed(EVERY))
  other = {**params, 'lm_head': params['lm_head'][:64]}
  with pytest.raises(ValueError, match=r'lm_head is \[64, 32\]'):
    lora.merge(other, adapters, EVERY)
  del other['lm_head']
  with pytest.raises(ValueError, match='lm_head, which an adapter changes'):
    lora.merge(other, adapters, EVERY)
