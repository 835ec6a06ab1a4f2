"""Who is refused, and why first."""

import pytest

from atm.serve.access import check_model
from atm.serve.api_error import ApiError


def test_another_model_is_named_with_the_nearest(service):
  check_model(service, None)
  check_model(service, 'tiny')
  with pytest.raises(ApiError, match='Did you mean .tiny.') as caught:
    check_model(service, 'Tiny2')
  assert (caught.value.status, caught.value.param) == (404, 'model')


def test_a_key_comes_before_readiness_and_readiness_before_the_body(
  client, service
):
  service.api_key, service.phase = 'key', 'draining'
  post = lambda **headers: client.post('/tokenize', content='{', **headers)
  assert post().status_code == 401
  key = {'headers': {'authorization': 'Bearer key'}}
  assert post(**key).status_code == 503
  service.phase = 'ready'
  assert post(**key).status_code == 400
