"""Contestants of benchmarks/serve.py, and the load that each is put under.

A contestant runs in a process of its own, which reads a run from standard input
(JSON lines), and answers each with a line of what it measured. What a request
takes counts from the moment it was to arrive, so that a server that falls
behind hides nothing.
"""

import json
import os
import sys
import threading
import time

import small_model
import train_step
from small_model import START, V

INPUTS, OUTPUTS = (16, 512), (8, 128)  # tokens of a request, least and most
BATCH = 32  # of the two that batch: `atm infer`'s


class Request:
  """A request: its ids, how many tokens it wants, and when it got them."""

  def __init__(self, ids: list[int], wanted: int):
    self.ids, self.wanted = ids, wanted
    self.due = self.first = self.ended = 0.0
    self.out: list[int] = []
    self.done = threading.Event()

  def end(self, ids) -> None:
    self.out = list(ids)[: self.wanted]
    self.ended = time.perf_counter()
    self.first = self.first or self.ended
    self.done.set()


def draw_requests(seed: int, count: int, lengths: str) -> list[Request]:
  """Returns requests of mixed lengths, the same for every contestant."""
  import numpy as np

  draw = np.random.default_rng(seed)

  def many(least, most):
    if lengths == 'uniform':
      return draw.integers(least, most + 1, count)
    x = draw.uniform(np.log(least), np.log(most + 1), count)
    return np.exp(x).astype(int).clip(least, most)

  sizes = zip(many(*INPUTS), many(*OUTPUTS))
  return [Request(draw.integers(3, V, s).tolist(), int(t)) for s, t in sizes]


# --- Contestants


class Batcher:
  """Threads that each take what waits, as much as a batch holds.

  With `by_length` that is the oldest request, and those nearest to its length.
  """

  def __init__(self, threads: int, batch: int, by_length: bool = False):
    self.batch, self.by_length, self.waiting = batch, by_length, []
    self.changed = threading.Condition()
    for _ in range(threads):
      threading.Thread(target=self.work, daemon=True).start()

  def submit(self, request: Request) -> None:
    with self.changed:
      self.waiting.append(request)
      self.changed.notify()

  def work(self) -> None:
    try:
      while True:
        with self.changed:
          self.changed.wait_for(lambda: self.waiting)
          taken = self.take()
        self.run(taken)
    except BaseException:
      import traceback

      traceback.print_exc()
      os._exit(1)

  def take(self) -> list[Request]:
    oldest = self.waiting[0]
    if self.by_length:
      self.waiting.sort(
        key=lambda x: (x is not oldest, abs(len(x.ids) - len(oldest.ids)))
      )
    taken, self.waiting = (
      self.waiting[: self.batch],
      self.waiting[self.batch :],
    )
    self.waiting.sort(key=lambda x: x.due)
    return taken


class Static(Batcher):
  """`Model.complete` of what waits, all of it as long as the longest."""

  def __init__(self, _):
    from atm.inference import sampling

    self.model, self.config = small_model.load_model(), sampling.Config
    super().__init__(1, BATCH)

  def run(self, taken: list[Request]) -> None:
    most = max(x.wanted for x in taken)
    config = self.config(max_tokens=most, min_tokens=most)
    made = self.model.complete(
      [x.ids for x in taken], config=config, batch_size=BATCH
    )
    for request, (one,) in zip(taken, made, strict=True):
      request.end(one.ids)


class Engine:
  """`atm.serve.Engine`; `slots` of it."""

  def __init__(self, settings: str):
    from atm.inference import sampling
    from atm.serve import engine
    from atm.serve.engine_sizes import EngineSizes

    self.config, self.requests = sampling.Config, {}
    fields = dict(pair.split('=') for pair in settings.split(',') if pair)
    sizes = EngineSizes(
      **{'slots': 32, 'queue': 10_000, 'max_output': 256, 'beam_groups': 0}
      | {name: int(value) for name, value in fields.items()}
    )
    tell = lambda line: print(line, file=sys.stderr)
    self.engine = engine.Engine(small_model.load_model(), sizes, say=tell)
    self.engine.start()

  def submit(self, request: Request) -> None:
    from atm.serve.generation_request import GenerationRequest

    n = request.wanted

    def deliver(_, update):
      if update.tokens and not request.first:
        request.first = time.perf_counter()
      if update.outputs is not None:
        assert not update.error, update.error
        request.end(update.outputs[0].ids)

    config = self.config(max_tokens=n, min_tokens=n)
    asked = GenerationRequest(tuple(request.ids), (START,), config)
    self.engine.submit([asked], deliver)


class CTranslate2(Batcher):
  """translate_batch; settings: translators x threads of each x batch.

  An `s` behind them batches requests of like lengths.
  """

  def __init__(self, settings: str):
    inter, intra, batch = map(int, settings.rstrip('s').split('x'))
    self.translator = small_model.open_translator(
      os.environ['SERVE_FOLDER'], inter, intra
    )
    self.words = small_model.list_words()
    super().__init__(inter, batch, settings.endswith('s'))

  def run(self, taken: list[Request]) -> None:
    most = max(x.wanted for x in taken)

    def tell(step) -> bool:
      request = taken[step.batch_id]
      request.first = request.first or time.perf_counter()
      # As the end token would: the batch goes on without this row.
      ends = step.step + 1 >= request.wanted
      if ends and not request.done.is_set():
        request.ended = time.perf_counter()
      return ends

    made = self.translator.translate_batch(
      [self.words[x.ids].tolist() for x in taken], beam_size=1,
      min_decoding_length=most, max_decoding_length=most,
      max_input_length=0, callback=tell,
    )  # fmt: skip
    for request, result in zip(taken, made, strict=True):
      ended = request.ended
      request.end(map(int, result.hypotheses[0]))
      request.ended = ended or request.ended  # told by a stream


CONTESTANTS = {'engine': Engine, 'static': Static, 'ctranslate2': CTranslate2}


# --- Load


def run_load(contestant, run: dict) -> dict:
  """Sends requests as they arrive; returns what was measured.

  `rate` is requests a second, 0 sends all at once; `ids` returns the outputs.
  """
  import numpy as np

  requests = draw_requests(run['seed'], run['count'], run['lengths'])
  gaps = np.random.default_rng(run['seed'] + 1).exponential(size=len(requests))
  start, cpu = time.perf_counter() + 0.05, time.process_time()
  due = start + (np.cumsum(gaps) / run['rate'] if run['rate'] else 0 * gaps)
  for request, at in zip(requests, due):
    request.due = at
    time.sleep(max(0, at - time.perf_counter()))
    contestant.submit(request)
  for request in requests:
    request.done.wait()
    assert len(request.out) == request.wanted, len(request.out)
  ended = max(x.ended for x in requests)
  tokens = sum(x.wanted for x in requests)
  percentile = lambda values, q: float(np.percentile(values, q))
  latency = [x.ended - x.due for x in requests]
  out = {
    'tokens_s': tokens / (ended - due[0]),
    'p50': percentile(latency, 50),
    'p95': percentile(latency, 95),
    'first95': percentile([x.first - x.due for x in requests], 95),
    'cpu': (time.process_time() - cpu) / tokens * 1e3,
  }
  return out | ({'ids': [x.out for x in requests]} if run.get('ids') else {})


def work(args) -> None:
  """Serves as one contestant until standard input ends."""
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
  name, _, settings = args.worker.partition(':')
  contestant = CONTESTANTS[name](settings)
  print(json.dumps('ready'), flush=True)
  for line in sys.stdin:
    print(json.dumps(run_load(contestant, json.loads(line))), flush=True)
  os._exit(0)


def environment(args, folder: str, is_ours: bool) -> dict:
  """Returns the environment of a contestant's process."""
  out = {
    **os.environ,
    'OMP_NUM_THREADS': str(args.threads),
    'GLIBC_TUNABLES': train_step.HUGE,
    'SERVE_FOLDER': folder,
    'PYTHONPATH': train_step.ROOT,
  }
  if not is_ours:
    del out['PYTHONPATH']
  return out
