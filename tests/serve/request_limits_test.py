"""Limits of requests are settings, by the names of gin/runs/serve.gin."""

import pytest

from atm.serve.request_limits import RequestLimits


@pytest.mark.parametrize(
  'field, name',
  [
    ('body_bytes', 'BODY_BYTES'),
    ('prompts', 'PROMPTS'),
    ('results', 'RESULTS'),
    ('tokens', 'MAX_TOKENS'),
    ('seconds', 'REQUEST_SECONDS'),
  ],
)
def test_limits_are_positive(field, name):
  with pytest.raises(ValueError, match=f'{name} = 0'):
    RequestLimits(**{field: 0})


def test_most_tokens_may_be_left_to_the_model():
  assert RequestLimits(tokens=None).tokens is None
