"""Tables of a model: which are stored where some are tied."""

import jax
import pytest

from atm.model import parameters
from atm.model.transformer import AlexaTM

from conftest import tiny


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
