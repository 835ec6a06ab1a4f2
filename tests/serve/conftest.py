"""An engine; a service whose engine is a fake, and a client of it."""

import pytest

from atm.serve import engine as engine_module
from atm.serve.engine import Engine, EngineSizes
from atm.serve.service import Service
from serve.fake_engine import FakeEngine

from small_models import make_ending_model, untrained


@pytest.fixture(scope='session')
def byte_model(byte_words):
  """An untrained model whose tokens can be bytes of characters."""
  return untrained(byte_words)


@pytest.fixture(scope='session')
def ending_model(byte_words):
  """An untrained model that ends about half of its outputs."""
  return make_ending_model(byte_words, positions=48)


@pytest.fixture(scope='session')
def engine(ending_model):
  """An engine of two lanes of few slots; tests leave it without requests."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(
      engine_module, 'count_lanes', lambda mesh, slots: max(1, slots // 4)
    )
    engine = Engine(ending_model, EngineSizes(slots=8), say=lambda text: None)
    engine.start()
    yield engine
    engine.close()


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
