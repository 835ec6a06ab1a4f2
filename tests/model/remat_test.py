"""What remat keeps, and that it changes neither loss nor gradient."""

import functools

import pytest

from atm.model import attention
from atm.model import remat as remat_lib

from conftest import batch
from model_gradients import SMALL, assert_close, loss_and_gradients
from small_models import EVERY

splash_interpreted = functools.partial(
  attention.splash_attention, interpret=True
)


@pytest.mark.parametrize('way', ['einsum', 'rows', 'splash'])
def test_remat_changes_nothing_but_what_is_kept(
  rng, monkeypatch, one_device, way
):
  """Products, counted in the program; 'full' keeps no feed-forward's inside."""
  monkeypatch.setattr(attention, 'splash_attention', splash_interpreted)
  rows = batch(rng, 2, 12, 10)
  products, inside = {}, {}
  for remat in remat_lib.REMAT:
    program = loss_and_gradients(
      one_device, rows, run=False, remat=remat, attention=way, **SMALL
    )
    text = str(program)
    products[remat] = text.count('dot_general')
    # [L, B, S, F] or [L, B S, F], kept by layer
    inside[remat] = any(f'f32[2,{n},64]' in text for n in ('2,12', '24'))
    offloaded = any(f'f32<host>[2,{n},64]' in text for n in ('2,12', '24'))
    assert offloaded == (remat == 'offload_widened')
  scores = 3 if way == 'einsum' else 0  # of three attentions, not kept
  assert products['outputs'] == products['dots'] == products['none'] + scores
  assert products['dots'] < products['save_attention'] < products['full']
  # Queries, keys and values of each attention, and the first of the encoder's
  # and the decoder's feed-forward.
  more = products['offload_widened'] - products['save_attention']
  assert more == 3 * 3 - 2
  assert products['save_attended'] == products['save_widened'] + 2
  # Less attention's last product, before each feed-forward.
  assert products['save_widened'] == products['offload_widened'] - 2
  kept = ('none', 'outputs', 'dots', 'save_widened')
  assert inside == {remat: remat in kept for remat in inside}


@pytest.mark.parametrize(
  'remat', [name for name in remat_lib.REMAT if name != 'none']
)
@pytest.mark.parametrize(
  'model', [{}, pytest.param(EVERY, marks=pytest.mark.slow)]
)
def test_remat_changes_neither_loss_nor_gradient(rng, one_device, model, remat):
  rows = batch(rng, 2, 12, 10)
  changes = dict(attention='rows', **SMALL, **model)
  got = loss_and_gradients(one_device, rows, remat=remat, **changes)
  assert_close(got, loss_and_gradients(one_device, rows, **changes))
