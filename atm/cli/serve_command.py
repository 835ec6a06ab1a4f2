"""`atm serve`: answers HTTP until a signal, then finishes what runs."""

import dataclasses
import gc
import importlib
import os
import time
from collections.abc import Callable
from functools import partial

import jax

from atm.cli import interrupts
from atm.inference import api
from atm.messages import (
  check_number,
  check_text,
  check_texts,
  missing_extra,
)
from atm.serve import engine as engine_lib
from atm.serve import engine_memory
from atm.serve.request_limits import RequestLimits

KEY_VARIABLE = 'ATM_API_KEY'
_TICK = 0.1  # seconds between two looks at whether all is well


def check_api_key(name: str, value) -> str | None:
  """Returns a key that a header can hold, or None; no error tells a key."""
  if value is None:
    return None
  if not isinstance(value, str):
    kind = type(value).__name__
    raise ValueError(f'{name} is of type {kind}: expected a text, or None')
  if not value or not value.isascii() or not value.isprintable() or (
    ' ' in value
  ):  # fmt: skip
    raise ValueError(
      f'{name}: expected visible ASCII characters without spaces, which a '
      'header can hold, or None'
    )
  return str(value)


@dataclasses.dataclass
class ServeCommand(api.ModelSource):
  """Serves a model by HTTP until SIGTERM or SIGINT, see docs/serving.md.

  Attributes:
    host: the address to listen at; others than this machine's own need a key.
    port: 0 takes a free one, which is printed.
    name: what requests call the model; None: the last part of MODEL_DIR, and
      behind a + that of ADAPTER.
    api_key: what requests must bear; None: the ATM_API_KEY of the environment,
      or nothing. It is never printed.
    is_open: True says that anybody who reaches the address may use the model.
    allowed_origins: other sites whose pages may ask, '*' for all.
    sizes: what decodes together.
    limits: what a request may ask for.
    drain_seconds: that requests have to end, once a signal came.
    say: prints a line.
  """

  host: str = '127.0.0.1'
  port: int = 8000
  name: str | None = None
  api_key: str | None = dataclasses.field(default=None, repr=False)
  is_open: bool = False
  allowed_origins: tuple[str, ...] = ()
  sizes: engine_lib.EngineSizes = engine_lib.EngineSizes()
  limits: RequestLimits = RequestLimits()
  drain_seconds: float = 30.0
  say: Callable[[str], None] = print

  checks = api.ModelSource.checks | {
    'host': partial(check_text, 'HOST', empty=False),
    'port': partial(check_number, 'PORT', least=0, most=2**16 - 1),
    'name': partial(check_text, 'MODEL_NAME', optional=True, empty=False),
    'api_key': partial(check_api_key, 'API_KEY'),
    'allowed_origins': partial(check_texts, 'ALLOWED_ORIGINS', empty=False),
    'drain_seconds': partial(
      check_number, 'DRAIN_SECONDS', least=0, whole=False
    ),
  }

  def run(self) -> None:
    """Serves until a signal comes and all requests are answered.

    Raises:
      ValueError: it cannot listen, or the model cannot be served.
      Exception: what ended the engine.
    """
    _check_http()
    from atm.serve import access_log, app, http_server, metrics, service

    if jax.process_count() > 1:
      raise ValueError(
        f'serve runs in one process, and these are {jax.process_count()}: '
        'leave out sharding.start.*, or start one server on each machine'
      )
    self.open().config.check_encoder('atm serve')
    key = self.api_key or check_api_key(
      KEY_VARIABLE, os.environ.get(KEY_VARIABLE)
    )
    http_server.check_exposure(self.host, key, self.is_open)
    name = self.served_name
    meter = metrics.Metrics(name)
    served = service.Service(
      None, None, name, self.limits, key, self.allowed_origins, meter
    )
    with http_server.listen(self.host, self.port) as sock:
      log = access_log.AccessLog(app.create_app(served), meter)
      server = http_server.HttpServer(log, sock)
      server.start()
      url = http_server.format_url(sock)
      self.say(f'{url} answers probes while {self.title} is read')
      try:
        self._serve(served, server, log, url)
      finally:
        server.stop()

  @property
  def served_name(self) -> str:
    """What requests call the model."""
    folders = [self.model_dir, *([self.adapter] if self.adapter else [])]
    paths = (os.path.abspath(os.path.normpath(x)) for x in folders)
    return self.name or '+'.join(map(os.path.basename, paths))

  def load(self, at_step: int | None = None) -> api.Model:
    """Reads the model; raises ValueError where memory has no room for it."""
    source = self.open()
    while source.adapter is not None:
      source = source.base  # as it is on disk
    folder = os.path.join(source.directory, 'checkpoints')
    # Training saves float32; other folders may have half as much.
    width = 4 if os.path.isdir(folder) else 2
    width = 1 if source.weights == 'int8' else width
    engine_memory.check_weights(
      source.config, self.make_mesh(), self.rules, width
    )
    return super().load(at_step)

  def _serve(self, service, server, log, url: str) -> None:
    """Loads the model, answers until a signal comes, and drains."""
    start = time.monotonic()
    # Tracing programs makes so many objects that looking for garbage among
    # them, and among those of JAX, is a tenth of a start.
    usual = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(50_000)
    model = self.load()
    if model.vocabulary is None:
      raise ValueError(
        f'{self.model_dir!r} has no tokenizer: expected one to serve texts'
      )
    engine = engine_lib.Engine(model, self.sizes, service.metrics, self.say)
    try:
      engine.start()
      gc.collect()
      gc.freeze()  # nor are requests to wait for that
      gc.set_threshold(*usual)
      with interrupts.note_signals() as signals:
        service.model, service.engine = model, engine
        service.metrics.stats = engine.stats
        service.phase = 'ready'
        self.say(
          f'{url} serves {service.name!r}, step {model.step:,}, '
          f'{engine.sizes.slots} slots, ready in '
          f'{time.monotonic() - start:.1f} s'
        )
        while not signals and engine.failure is None and server.is_alive():
          time.sleep(_TICK)
        service.phase = 'draining'
        for failure in (engine.failure, server.failure):
          if failure is not None:
            raise failure
        self._drain(engine, log)
    finally:
      engine.close()

  def _drain(self, engine: engine_lib.Engine, log) -> None:
    """Lets requests end, those that still run after a while at once."""
    stats = engine.stats()
    self.say(
      f'draining: {stats.running} requests run and {stats.waiting} wait, for '
      f'at most {self.drain_seconds:g} s; a second signal ends them at once'
    )
    whole = engine.drain(self.drain_seconds)
    # The last tokens may be on their way to clients.
    deadline = time.monotonic() + 5
    while log.open_requests and time.monotonic() < deadline:
      time.sleep(_TICK / 10)
    self.say('stopped' if whole else 'stopped; some requests were cut')


def _check_http() -> None:
  """Raises ValueError unless what the extra `serve` brings can be imported."""
  for name in ('fastapi', 'prometheus_client', 'pydantic', 'uvicorn'):
    try:
      importlib.import_module(name)
    except ModuleNotFoundError as e:
      text = f'no module {e.name!r}: serve answers HTTP'
      raise ValueError(missing_extra(text, 'serve')) from e
