"""Prometheus metrics of a server, with the names of vLLM's dashboards.

`vllm:` becomes `atm:`; what a name means is the same. No label has a value that
a client chose: neither a prompt nor a path.
"""

import bisect
import collections
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence

import prometheus_client
from prometheus_client import exposition
from prometheus_client import metrics_core as families

from atm.serve.observer import Observer

MODEL = 'model_name'
# vLLM's names of how a request ended, by ours, see `RequestOutput.reason`.
FINISHED_REASONS = {
  'stop': 'stop', 'length': 'length', 'cancelled': 'abort',
  'timeout': 'timeout', 'error': 'error',
}  # fmt: skip
TOKEN_SECONDS = (
  0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3,
  0.5, 0.75, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
FIRST_TOKEN_SECONDS = (
  0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5,
  5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0,
)  # fmt: skip
REQUEST_SECONDS = (
  0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0,
  15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
)  # fmt: skip
TOKENS = tuple(n * 10**k for k in range(4) for n in (1, 2, 5))
CALL_TOKENS = (1, *(2**k for k in range(3, 15)))
# name -> (meaning, upper ends of its buckets), of a request or a token.
HISTOGRAMS = {
  'time_to_first_token_seconds': (
    "From a request's submission to its first token.", FIRST_TOKEN_SECONDS,
  ),
  'inter_token_latency_seconds': (
    'Between two tokens of an output; those that one call of the device '
    'brought share its time equally.', TOKEN_SECONDS,
  ),
  'e2e_request_latency_seconds': (
    "From a request's submission to its end.", REQUEST_SECONDS,
  ),
  'request_queue_time_seconds': (
    "From a request's submission to its admission.", REQUEST_SECONDS,
  ),
  'request_prefill_time_seconds': (
    "From a request's admission to its first token.", REQUEST_SECONDS,
  ),
  'request_decode_time_seconds': (
    "From a request's first token to its last.", REQUEST_SECONDS,
  ),
  'request_inference_time_seconds': (
    "From a request's admission to its last token.", REQUEST_SECONDS,
  ),
  'request_prompt_tokens': (
    'Encoder ids of a request, with its prefix.', TOKENS,
  ),
  'request_generation_tokens': (
    'Tokens that a request got, in all its outputs.', TOKENS,
  ),
  'iteration_tokens_total': (
    'Tokens that one call of the device read and wrote.', CALL_TOKENS,
  ),
}  # fmt: skip
# name -> (meaning, its labels but the model's name).
COUNTERS = {
  'prompt_tokens': ('Encoder ids and prefixes read.', ()),
  'generation_tokens': ('Tokens generated.', ()),
  'request_success': ('Requests that ended.', ('finished_reason',)),
  'device_calls': ('Calls of the device.', ('kind',)),
  'device_call_seconds': ('Time in calls of the device.', ('kind',)),
}
RESPONSES = 'method', 'handler', 'status'
# name -> (meaning, attribute of the engine's `stats()`).
GAUGES = {
  'num_requests_running': ('Requests that have rows.', 'running'),
  'num_requests_waiting': ('Requests that wait for rows.', 'waiting'),
  'kv_cache_usage_perc': (
    "Share of the decoder's own caches in use, 1 is all.", 'cache_usage',
  ),
  'cross_kv_cache_usage_perc': (
    'Share of the caches of encoded inputs in use, 1 is all.', 'cross_usage',
  ),
  'slots': ('Rows that can decode together.', 'slots'),
  'slots_used': ('Rows in use.', 'used_slots'),
}  # fmt: skip


class Histogram:
  """Counts values by buckets; several equal ones cost as much as one.

  That of prometheus_client takes them one by one, which would be a part of the
  time of a small model's call.

  Attributes:
    ends: the upper ends of the buckets; the last has none.
    counts: of each bucket.
    total: of all values.
  """

  def __init__(self, ends: Sequence[float]):
    self.ends = ends
    self.counts = [0] * (len(ends) + 1)
    self.total = 0.0

  def observe(self, value: float, times: int = 1) -> None:
    """Adds a value, so many times; one thread at a time."""
    self.counts[bisect.bisect_left(self.ends, value)] += times
    self.total += value * times

  def list_buckets(self) -> list[tuple[str, int]]:
    """Returns (upper end, how many values are at most that) of each bucket."""
    ends = [*map(str, map(float, self.ends)), '+Inf']
    return [*zip(ends, itertools.accumulate(self.counts), strict=True)]


class Metrics(Observer):
  """What a server has done and what it does now, for Prometheus.

  Threads of the engine and that of HTTP write, and any may read.

  Attributes:
    model_name: label of all that is not the process's.
    registry: of this server alone.
    stats: returns the engine's `EngineStats`; None while there is no engine.
  """

  def __init__(self, model_name: str):
    self.model_name = model_name
    self.registry = prometheus_client.CollectorRegistry()
    self.stats: Callable | None = None
    self._histograms = {
      name: Histogram(ends) for name, (_, ends) in HISTOGRAMS.items()
    }
    number = lambda: collections.defaultdict(float)
    self._counts = {name: number() for name in COUNTERS}
    self._responses = number()
    for name in ('prompt_tokens', 'generation_tokens'):
      self._counts[name][()] = 0
    for reason in FINISHED_REASONS.values():  # a rate needs its first value
      self._counts['request_success'][reason,] = 0
    self._lock = threading.Lock()  # `+=` of two threads may lose one
    # Tokens of each thread since its last call of the device.
    self._iterations = number()
    self.registry.register(self)
    for collector in (
      prometheus_client.ProcessCollector,
      prometheus_client.PlatformCollector,
      prometheus_client.GCCollector,
    ):
      collector(registry=self.registry)

  def request_admitted(self, queue_seconds: float, prompt_tokens: int) -> None:
    with self._lock:
      self._histograms['request_queue_time_seconds'].observe(queue_seconds)
      self._counts['prompt_tokens'][()] += prompt_tokens
      self._iterations[threading.get_ident()] += prompt_tokens

  def first_token(self, seconds: float) -> None:
    with self._lock:
      self._histograms['time_to_first_token_seconds'].observe(seconds)

  def tokens(self, count: int, seconds: float) -> None:
    latency = self._histograms['inter_token_latency_seconds']
    with self._lock:
      latency.observe(seconds / count, count)
      self._counts['generation_tokens'][()] += count
      self._iterations[threading.get_ident()] += count

  def request_ended(
    self,
    reason: str,
    seconds: float,
    prompt_tokens: int,
    generated_tokens: int,
    prefill_seconds: float | None = None,
    decode_seconds: float | None = None,
  ) -> None:
    values = {
      'e2e_request_latency_seconds': seconds,
      'request_prompt_tokens': prompt_tokens,
      'request_generation_tokens': generated_tokens,
    }
    if prefill_seconds is not None:
      values |= {
        'request_prefill_time_seconds': prefill_seconds,
        'request_decode_time_seconds': decode_seconds,
        'request_inference_time_seconds': prefill_seconds + decode_seconds,
      }
    reason = FINISHED_REASONS.get(reason, 'error')
    with self._lock:
      self._counts['request_success'][reason,] += 1
      for name, value in values.items():
        self._histograms[name].observe(value)

  def device_call(
    self, kind: str, seconds: float, rows: int, steps: int
  ) -> None:
    with self._lock:
      self._counts['device_calls'][kind,] += 1
      self._counts['device_call_seconds'][kind,] += seconds
      tokens = self._iterations.pop(threading.get_ident(), 0)
      self._histograms['iteration_tokens_total'].observe(tokens)

  def response(self, method: str, handler: str, status: int) -> None:
    """Counts an HTTP request that was answered.

    Args:
      method: of a few.
      handler: the route that answered, `/v1/models/{model}`, never the path.
      status: its status.
    """
    with self._lock:
      self._responses[method, handler, str(status)] += 1

  def format(self, accept: str = '') -> tuple[bytes, str]:
    """Returns all metrics, and their content type, for an Accept header."""
    encode, content_type = exposition.choose_encoder(accept)
    return encode(self.registry), content_type

  def collect(self) -> Iterator[families.Metric]:
    """Yields all but the process's own, for the registry."""
    stats = self.stats() if self.stats else None
    own = (MODEL,), (self.model_name,)
    for name, (meaning, attribute) in GAUGES.items():
      value = getattr(stats, attribute) if stats else 0
      family = families.GaugeMetricFamily(f'atm:{name}', meaning, labels=own[0])
      family.add_metric(own[1], value)
      yield family
    for name, (meaning, labels) in COUNTERS.items():
      family = families.CounterMetricFamily(
        f'atm:{name}', meaning, labels=(MODEL, *labels)
      )
      for values, count in [*self._counts[name].items()]:
        family.add_metric((self.model_name, *values), count)
      yield family
    for name, (meaning, _) in HISTOGRAMS.items():
      histogram = self._histograms[name]
      family = families.HistogramMetricFamily(
        f'atm:{name}', meaning, labels=own[0]
      )
      family.add_metric(own[1], histogram.list_buckets(), histogram.total)
      yield family
    family = families.CounterMetricFamily(
      'http_requests', 'HTTP requests answered.', labels=RESPONSES
    )
    for values, count in [*self._responses.items()]:
      family.add_metric(values, count)
    yield family
