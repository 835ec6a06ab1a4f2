"""What Prometheus reads of a server, by its own parser."""

import dataclasses
import sys
import threading

from prometheus_client import parser

from atm.serve import metrics


def read(one: metrics.Metrics) -> dict:
  """Returns (name, labels but the model's name) -> value."""
  text, content_type = one.format()
  assert content_type.startswith('text/plain')
  found = {}
  for family in parser.text_string_to_metric_families(text.decode()):
    for sample in family.samples:
      labels = {k: v for k, v in sample.labels.items() if k != 'model_name'}
      if sample.name.startswith('atm:'):
        assert sample.labels['model_name'] == 'tiny'
      key = sample.name, *sorted(labels.values())
      assert key not in found
      found[key] = sample.value
  return found


@dataclasses.dataclass
class Stats:
  running: int = 3
  waiting: int = 2
  slots: int = 16
  used_slots: int = 5
  cache_usage: float = 0.25
  cross_usage: float = 0.5


def test_each_name_of_a_dashboard_is_there_from_the_start():
  found = read(metrics.Metrics('tiny'))
  for name in (
    'atm:num_requests_running', 'atm:num_requests_waiting',
    'atm:kv_cache_usage_perc', 'atm:prompt_tokens_total',
    'atm:generation_tokens_total', 'atm:time_to_first_token_seconds_count',
    'atm:inter_token_latency_seconds_sum', 'atm:iteration_tokens_total_count',
    'atm:e2e_request_latency_seconds_count',
    'atm:request_queue_time_seconds_count', 'atm:request_prompt_tokens_sum',
    'atm:request_prefill_time_seconds_sum',
    'atm:request_decode_time_seconds_sum',
    'atm:request_inference_time_seconds_count',
    'atm:request_generation_tokens_sum',
  ):  # fmt: skip
    assert found[name,] == 0
  for reason in ('stop', 'length', 'abort', 'timeout', 'error'):
    assert found['atm:request_success_total', reason] == 0
  assert found['process_resident_memory_bytes',] > 1e6


def test_a_request_is_counted():
  one = metrics.Metrics('tiny')
  one.stats = Stats
  one.request_admitted(0.02, 7)
  one.device_call('admit', 0.01, 1, 0)
  one.first_token(0.05)
  one.tokens(4, 0.08)
  one.device_call('decode', 0.08, 1, 4)
  one.tokens(1, 0.3)
  one.request_ended('cancelled', 0.5, 7, 5)
  one.request_ended('something new', 0.5, 7, 0)
  one.response('POST', '/v1/completions', 200)
  found = read(one)
  assert found['atm:num_requests_running',] == 3
  assert found['atm:num_requests_waiting',] == 2
  assert found['atm:kv_cache_usage_perc',] == 0.25
  assert found['atm:cross_kv_cache_usage_perc',] == 0.5
  assert found['atm:slots_used',] == 5 and found['atm:slots',] == 16
  assert found['atm:prompt_tokens_total',] == 7
  assert found['atm:generation_tokens_total',] == 5
  assert found['atm:request_success_total', 'abort'] == 1
  assert found['atm:request_success_total', 'error'] == 1
  assert found['http_requests_total', '/v1/completions', '200', 'POST'] == 1
  assert found['atm:device_calls_total', 'admit'] == 1
  assert found['atm:device_call_seconds_total', 'decode'] == 0.08
  # Seven tokens were read by one call, four written by another.
  assert found['atm:iteration_tokens_total_sum',] == 11
  assert found['atm:iteration_tokens_total_count',] == 2


def test_phases_are_of_requests_that_had_a_token():
  one = metrics.Metrics('tiny')
  one.request_ended('stop', 0.9, 7, 5, 0.25, 0.5)
  one.request_ended('cancelled', 0.9, 7, 0)
  found = read(one)
  for name, value in (('prefill', 0.25), ('decode', 0.5), ('inference', 0.75)):
    name = f'atm:request_{name}_time_seconds'
    assert (found[f'{name}_count',], found[f'{name}_sum',]) == (1, value)
  assert found['atm:e2e_request_latency_seconds_count',] == 2


def test_threads_lose_no_count():
  """A lane of rows for each core tells of its work; `+=` alone lost some."""
  one = metrics.Metrics('tiny')

  def work():
    for _ in range(2000):
      one.tokens(3, 0.1)
      one.device_call('decode', 0.5, 1, 1)

  interval = sys.getswitchinterval()
  sys.setswitchinterval(1e-6)
  try:
    threads = [threading.Thread(target=work) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
  finally:
    sys.setswitchinterval(interval)
  found = read(one)
  assert found['atm:generation_tokens_total',] == 24_000
  assert found['atm:device_calls_total', 'decode'] == 8000
  assert found['atm:device_call_seconds_total', 'decode'] == 4000
  # No call counts the tokens of another thread's.
  assert found['atm:iteration_tokens_total_bucket', '1.0'] == 0
  assert found['atm:iteration_tokens_total_bucket', '8.0'] == 8000


def test_tokens_of_one_call_share_its_time():
  one = metrics.Metrics('tiny')
  one.tokens(4, 0.08)
  found = read(one)
  name = 'atm:inter_token_latency_seconds'
  assert found[f'{name}_count',] == 4 and found[f'{name}_sum',] == 0.08
  assert found[f'{name}_bucket', '0.01'] == 0
  assert found[f'{name}_bucket', '0.025'] == 4
  assert found[f'{name}_bucket', '+Inf'] == 4


def test_buckets_hold_values_up_to_their_end():
  histogram = metrics.Histogram((1, 2))
  for value in (0.5, 1, 1.5, 2, 3):
    histogram.observe(value)
  assert histogram.list_buckets() == [('1.0', 2), ('2.0', 4), ('+Inf', 5)]
  assert histogram.total == 8


def test_openmetrics_is_told_where_it_is_asked_for():
  text, content_type = metrics.Metrics('tiny').format(
    'application/openmetrics-text; version=1.0.0'
  )
  assert content_type.startswith('application/openmetrics-text')
  assert text.endswith(b'# EOF\n')
