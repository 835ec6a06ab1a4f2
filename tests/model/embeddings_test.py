"""Tables of a model: which are stored, and which are computed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atm.model import embeddings, parameters
from atm.model.config import ModelConfig
from atm.model.transformer import AlexaTM

import goldens
from conftest import tiny
from small_models import PUBLIC


@pytest.fixture(scope='module')
def table_rows():
  """Rows of transformers' tables."""
  return dict(np.load(f'{goldens.HERE}/public/positions.npz'))


@pytest.mark.parametrize(
  'ties, tables',
  [
    ('none', {'encoder_embedding', 'decoder_embedding', 'lm_head'}),
    ('embeddings', {'encoder_embedding', 'lm_head'}),
    ('decoder_head', {'encoder_embedding', 'decoder_embedding'}),
    ('encoder_head', {'encoder_embedding', 'decoder_embedding'}),
    ('all', {'encoder_embedding'}),
  ],
)
def test_a_tied_matrix_is_stored_once(ties, tables):
  """Fault seen: an LM head beside the embedding it is tied to."""
  net = AlexaTM(tiny(ties=ties))
  made = jax.eval_shape(lambda: parameters.init_params(net, 0))
  three = {'encoder_embedding', 'decoder_embedding', 'lm_head'}
  assert three & set(made) == tables


@pytest.mark.parametrize('name', PUBLIC)
def test_tables_of_positions_are_stored_where_they_are_learned(name):
  config = tiny(**PUBLIC[name])
  made = jax.eval_shape(lambda: parameters.init_params(AlexaTM(config), 0))
  shapes = {
    stack: made[f'{stack}_positions'].value.shape
    for stack in ('encoder', 'decoder')
    if f'{stack}_positions' in made
  }
  rows = (config.positions + 2, config.d_model)
  both = {'encoder': rows, 'decoder': rows}
  assert shapes == (both if name == 'mbart' else {})


@pytest.mark.parametrize('width', [32, 9])
def test_sinusoids_are_those_of_the_papers_formula(table_rows, width):
  """In float64, far beyond the positions of a model.

  Fault seen: angles in float32, wrong by 3e-5 at 1,000 positions.
  """
  rows = jnp.array([*range(40), 1023, 4095, 100_000])
  out = jax.jit(embeddings.sinusoids, static_argnums=(1, 2))(rows, width, False)
  steps = np.arange((width + 1) // 2)
  angles = np.asarray(rows)[:, None] * 10_000.0 ** (-2 * steps / width)
  want = np.concatenate([np.sin(angles), np.cos(angles)], 1)[:, :width]
  np.testing.assert_allclose(out, want, atol=1e-6)
  theirs = table_rows[f'pegasus_{width}']
  ours = embeddings.sinusoids(jnp.asarray(table_rows['rows']), width, False)
  np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize('width', [32, 9])
@pytest.mark.parametrize('stack', ['encoder', 'decoder'])
def test_fairseqs_positions_count_what_is_not_padding(table_rows, width, stack):
  """Faults seen: padding counted; its row not of zeros; no column of zeros
  behind an odd width."""
  ids, pad_id = table_rows['ids'], int(table_rows['pad_id'])
  config = ModelConfig(
    vocab_size=8, d_model=width, encoder_heads=1, decoder_heads=1,
    pad_id=pad_id, position_offset=pad_id + 1, dtype='float32',
    encoder_position_offset=pad_id + 1, positions=1024,
    position_embedding='sinusoidal_fairseq',
  )  # fmt: skip
  tables = AlexaTM(config).bind({'params': {
    'encoder_embedding': jnp.zeros((8, width)),
    'decoder_embedding': jnp.zeros((8, width)),
    'lm_head': jnp.zeros((8, width)),
  }})  # fmt: skip
  look_up = {
    'encoder': lambda *given: tables.embed_source(*given, None),
    'decoder': tables.embed_target,
  }[stack]
  close = lambda x, name: np.testing.assert_allclose(
    x, table_rows[f'{name}_{width}'], atol=1e-6
  )
  close(look_up(ids, None), 'm2m_100')
  counted = np.cumsum(ids != pad_id, axis=1) - 1
  close(look_up(ids, counted), 'm2m_100')
  close(look_up(ids, counted + table_rows['cached']), 'm2m_100_cached')
