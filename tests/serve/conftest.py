"""A service whose engine is a fake, and a client of it."""

import pytest

from atm.serve.service import Service
from serve.fake_engine import FakeEngine

from small_models import untrained


@pytest.fixture(scope='session')
def byte_model(byte_words):
  """An untrained model whose tokens can be bytes of characters."""
  return untrained(byte_words)


@pytest.fixture
def service(byte_model):
  """A service that is ready, of a fake engine."""
  engine = FakeEngine(byte_model)
  return Service(byte_model, engine, 'tiny', phase='ready')


@pytest.fixture
def client(service):
  """A client in the same process."""
  from starlette.testclient import TestClient

  from atm.serve.app import create_app

  return TestClient(create_app(service), raise_server_exceptions=False)
