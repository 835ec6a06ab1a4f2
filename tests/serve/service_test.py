"""A service takes requests when it is ready."""

import pytest

from atm.serve.api_error import ApiError
from atm.serve.service import Service


def test_requests_are_taken_when_it_is_ready(service):
  service.check_ready()
  for phase in ('starting', 'draining'):
    service.phase = phase
    with pytest.raises(ApiError, match=f'the server is {phase}') as caught:
      service.check_ready()
    assert caught.value.status == 503
    assert int(caught.value.headers['retry-after']) > 0
  service.phase = 'ready'
  service.engine.failure = RuntimeError('no memory')
  assert service.state == 'failed'
  with pytest.raises(ApiError, match='failed'):
    service.check_ready()


def test_no_key_is_shown():
  assert 'secret' not in repr(Service(None, None, 'tiny', api_key='secret'))
