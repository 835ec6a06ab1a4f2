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

import train_step
from train_step import D, F, H, L, V

START, END, POSITIONS = 1, 2, 512
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


def make_params(seed: int = 0) -> dict:
  """Returns random parameters of the model, as numpy arrays by name."""
  import numpy as np

  draw = np.random.default_rng(seed)
  normal = lambda *shape: (0.02 * draw.standard_normal(shape)).astype('f')
  dense = lambda a, b: {'kernel': normal(L, a, b), 'bias': normal(L, b)}
  norm = lambda *n: {'scale': 1 + normal(*n, D), 'bias': normal(*n, D)}
  attention = lambda: {x: dense(D, D) for x in ('query', 'key', 'value', 'out')}
  feed = lambda: {'up': dense(D, F), 'down': dense(F, D)}
  encoder = dict(attention_norm=norm(L), attention=attention())
  decoder = dict(self_attention_norm=norm(L), self_attention=attention())
  decoder |= dict(cross_attention_norm=norm(L), cross_attention=attention())
  for layers in encoder, decoder:
    layers |= dict(feed_forward_norm=norm(L), feed_forward=feed())
  return dict(
    encoder_embedding=normal(V, D),
    encoder_positions=normal(POSITIONS, D),
    decoder_positions=normal(POSITIONS, D),
    encoder=dict(layers=encoder, norm=norm()),
    decoder=dict(layers=decoder, norm=norm()),
  )


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


def load_model():
  """Returns our `Model` with the parameters of `make_params`."""
  import jax

  from atm.inference import api
  from atm.model import config as config_lib
  from atm.parallel import distributed, sharding, xla_options
  from atm.parallel import mesh as mesh_lib

  xla_options.set_flags()
  xla_options.set_compilation_cache()
  distributed.start_jax(cpu_devices=1)
  config = config_lib.ModelConfig(
    vocab_size=V, d_model=D, encoder_layers=L, decoder_layers=L,
    encoder_heads=H, decoder_heads=H, encoder_ff=F, decoder_ff=F,
    positions=POSITIONS, dtype='float32', ties='all', unroll=L,
    pad_id=0, start_id=START, end_id=END,
  )  # fmt: skip
  mesh = mesh_lib.make_mesh()
  params = jax.tree.map(jax.numpy.asarray, make_params())
  return api.Model(config, params, None, mesh, sharding.Rules(), 0)


class Static(Batcher):
  """`Model.complete` of what waits, all of it as long as the longest."""

  def __init__(self, _):
    from atm.inference import sampling

    self.model, self.config = load_model(), sampling.Config
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
    self.engine = engine.Engine(load_model(), sizes, say=tell)
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
    import ctranslate2
    import numpy as np

    inter, intra, batch = map(int, settings.rstrip('s').split('x'))
    folder = os.path.join(os.environ['SERVE_FOLDER'], 'ctranslate2')
    if not os.path.exists(folder):
      convert(folder)
    self.translator = ctranslate2.Translator(
      folder, compute_type='float32', inter_threads=inter, intra_threads=intra
    )
    self.words = np.array([str(i) for i in range(V)], object)
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


def convert(folder: str) -> None:
  """Writes the parameters in CTranslate2's format of this architecture."""
  from ctranslate2.specs import common_spec, transformer_spec

  params = make_params()
  spec = transformer_spec.TransformerSpec.from_config(
    (L, L), H, pre_norm=True, activation=common_spec.Activation.GELU
  )
  import numpy as np

  def set_norm(to, norm, *i):
    to.gamma, to.beta = norm['scale'][i], norm['bias'][i]

  def set_linear(to, i, *parts):
    to.weight = np.concatenate([x['kernel'][i].T for x in parts])
    to.bias = np.concatenate([x['bias'][i] for x in parts])

  def set_attention(to, x, i, crosses=False):
    inward = [x[name] for name in ('query', 'key', 'value')]
    for at, parts in enumerate(
      (inward[:1], inward[1:]) if crosses else (inward,)
    ):
      set_linear(to.linear[at], i, *parts)
    set_linear(to.linear[-1], i, x['out'])

  for name in ('encoder', 'decoder'):
    to, stack = getattr(spec, name), params[name]
    embeddings = to.embeddings
    for one in embeddings if isinstance(embeddings, list) else [embeddings]:
      one.weight = params['encoder_embedding']
    to.position_encodings.encodings = params[f'{name}_positions']
    to.scale_embeddings = False
    set_norm(to.layer_norm, stack['norm'])
    layers = stack['layers']
    own = 'attention' if name == 'encoder' else 'self_attention'
    for i, layer in enumerate(to.layer):
      set_attention(layer.self_attention, layers[own], i)
      set_norm(layer.self_attention.layer_norm, layers[f'{own}_norm'], i)
      if name == 'decoder':
        set_attention(layer.attention, layers['cross_attention'], i, True)
        norm = layers['cross_attention_norm']
        set_norm(layer.attention.layer_norm, norm, i)
      set_linear(layer.ffn.linear_0, i, layers['feed_forward']['up'])
      set_linear(layer.ffn.linear_1, i, layers['feed_forward']['down'])
      set_norm(layer.ffn.layer_norm, layers['feed_forward_norm'], i)
  spec.decoder.projection.weight = params['encoder_embedding']
  words = [str(i) for i in range(V)]
  spec.register_source_vocabulary(words)
  spec.register_target_vocabulary(words)
  config = spec.config
  config.bos_token = config.decoder_start_token = str(START)
  config.eos_token, config.unk_token = str(END), '0'
  spec.validate()
  spec.optimize()
  os.makedirs(folder)
  spec.save(folder)


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
