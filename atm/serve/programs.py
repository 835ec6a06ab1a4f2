"""The programs of an engine: shapes, compilation, memory and step times."""

import functools
import itertools
import math
import time
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental.layout import Format, Layout
from jax.sharding import NamedSharding, PartitionSpec

from atm.inference import api, generate
from atm.model import cache_blocks, quantized
from atm.model.transformer import AlexaTM
from atm.parallel.distributed import count_cores
from atm.serve import slots as slots_lib
from atm.serve.engine_sizes import EngineSizes
from atm.serve.slots import Row, SlotState, Steps
from atm.serve.step_times import StepTimes

# A call of the encoder reads all weights: as long as so many positions take.
CALL_POSITIONS = 32
# Of the caches, by a call on an accelerator.
MOST_COPIED = 0.25
LANE_ROWS = 16  # with fewer, two lanes are no faster than one


def list_lengths(most: int, least: int = 32) -> list[int]:
  """Returns padded lengths up to `most`: powers of two, and 1.5 times these.

  A text is padded by a fifth on average; with powers of two alone it would be
  by a third.
  """
  lengths, n = [], least
  while n < most:
    lengths += [n] if n * 3 // 2 >= most else [n, n * 3 // 2]
    n *= 2
  return [*lengths, most]


def list_windows(most: int, factor: int, count: int, least: int) -> list[int]:
  """Returns up to `count` sizes up to `most`, each `factor` times another.

  None is below `least`, but for `most` itself.
  """
  sizes = {-(-most // factor**i) for i in range(count)}
  return sorted(n for n in sizes if n >= least or n == most)


def share_of_copies(window: tuple[int, int, int], sizes: EngineSizes) -> float:
  """Returns the share of the caches that a call in a window copies first."""
  rows, T, S = window
  few = rows < sizes.slots
  parts = [(T, sizes.max_output), (S, sizes.max_input)]
  copied = sum(rows * n for n, most in parts if few or n < most)
  return copied / (sizes.slots * (sizes.max_output + sizes.max_input))


def count_lanes(mesh, slots: int) -> int:
  """Returns how many lanes share so many slots: on one CPU its cores have one.

  A program of few rows keeps two threads busy for three quarters of the time;
  two programs, each of half of the rows, all of it.
  """
  if mesh.size > 1 or mesh.devices.flat[0].platform != 'cpu':
    return 1
  return max(1, min(count_cores(), slots // LANE_ROWS))


def arrange_for_tpu(cache):
  """Returns the places of a `layers.KVCache`, with layouts for steps on a TPU.

  Each row writes at a position of its own: XLA lays positions next to rows for
  that. An argument in another layout is copied into this one and back by every
  call, which takes the memory of a second cache.
  """
  layout = lambda place, *axes: Format(Layout(axes), place)
  return cache.replace(
    self_keys=layout(cache.self_keys, 0, 3, 1, 2),
    self_values=layout(cache.self_values, 0, 2, 1, 3),
  )


def prepare_engine_params(model: api.Model) -> dict:
  """Returns the parameters that all programs read: where they come from."""
  with model._use():
    return generate.unstack_encoder(AlexaTM(model.config), model._decode_params)


class Programs:
  """Compiled programs of a model, and the slots' state that they change.

  Attributes:
    sizes: of `EngineSizes.fit`.
    params: of `prepare_engine_params`.
    count: programs that were compiled; no more are after `compile`.
    times: of steps, in each window.
  """

  # What is compiled; groups of beams have functions of their own.
  admit_function = staticmethod(slots_lib.admit)
  step_function = staticmethod(slots_lib.take_steps)

  def __init__(self, model: api.Model, sizes: EngineSizes, params: dict):
    self.model, self.sizes, self.params = model, sizes, params
    self.net = AlexaTM(model.config)
    self.count = 0
    self._admit: dict[tuple[int, int], jax.stages.Compiled] = {}
    self._decode: dict[tuple[int, int, int], jax.stages.Compiled] = {}
    self.times = StepTimes(sizes.most_steps)
    self.shards = math.prod(
      model.mesh.shape[a] for a in model.rules.mesh_axes('batch')
    )

  @property
  def rows(self) -> int:
    """How many slots there are."""
    return self.sizes.slots

  @property
  def platform(self) -> str:
    """Of the devices: 'cpu', 'gpu' or 'tpu'."""
    return self.model.mesh.devices.flat[0].platform

  @property
  def in_blocks(self) -> bool:
    """Whether caches are in blocks: on one CPU."""
    return self.platform == 'cpu' and self.model.mesh.size == 1

  # --- Shapes

  @functools.cached_property
  def batches(self) -> list[tuple[int, int]]:
    """(B, S) of encoder batches: one input, or several read at a time."""
    shapes = set()
    for S in list_lengths(self.sizes.max_input):
      most = max(1, min(self.sizes.slots, self.sizes.admit_tokens // S))
      for B in (1, 1 << (most.bit_length() - 1)):
        shapes.add((-(-B // self.shards) * self.shards, S))
    return sorted(shapes, key=lambda shape: shape[::-1])

  @functools.cached_property
  def windows(self) -> list[tuple[int, int, int]]:
    """(rows, T, S) that `slots.take_steps` is compiled for."""
    s = self.sizes
    if self.in_blocks:
      sums = itertools.accumulate(cache_blocks.split_rows(s.slots))
      # Each twice as many rows as the one before, for each is compiled; two
      # rows take nearly as long as four.
      rows = [n for n in sums if n == s.slots or (n != 2 and n & (n - 1) == 0)]
      return [(n, s.max_output, s.max_input) for n in rows]
    rows = list_windows(s.slots, 4, 2, 1) if self.shards == 1 else [s.slots]
    T = list_windows(s.max_output, 4, 2, 64)
    S = list_windows(s.max_input, 2, 3, 64)
    found = [(r, t, n) for r in rows for t in T for n in S]
    if self.platform == 'cpu':
      return found
    # Memory of accelerators is short: it is to hold slots.
    return [w for w in found if share_of_copies(w, s) <= MOST_COPIED]

  def find_batch(self, lengths: list[int]) -> tuple[int, int]:
    """Returns (B, S) in which the last of these lengths are read together.

    Args:
      lengths: of inputs, ascending; the last B of them go into the batch.
    """
    bucket = lambda n: next(S for _, S in self.batches if S >= n)
    S = bucket(lengths[-1])
    few, most = (f(B for B, n in self.batches if n == S) for f in (min, max))
    apart = sum(bucket(n) + CALL_POSITIONS for n in lengths[-most:])
    together = most * S + CALL_POSITIONS
    return (most if together <= apart else few), S

  def find_window(self, rows: int, T: int, S: int) -> tuple[int, int, int]:
    """Returns the fastest window with room for rows, T and S."""
    fits = lambda w: w[0] >= rows and w[1] >= T and w[2] >= S
    return min(filter(fits, self.windows), key=self.times.estimate)

  # --- Compilation

  @property
  def whole(self) -> NamedSharding:
    """The sharding of an array that every device has."""
    return NamedSharding(self.model.mesh, PartitionSpec())

  def _shardings(self, state):
    """Returns shardings of a state: caches by the rules, the rest whole."""
    whole = jax.tree.map(lambda x: self.whole, state)
    return whole.replace(caches=self.place_caches(state.caches))

  def place_caches(self, caches: list) -> list:
    """Returns where caches are, by the rules."""
    rules = self.model.rules.spec('batch', 'heads', None, None)
    place = NamedSharding(self.model.mesh, rules)
    placed = [jax.tree.map(lambda x: place, cache) for cache in caches]
    if self.platform == 'tpu':
      return [arrange_for_tpu(cache) for cache in placed]
    return placed

  @functools.cached_property
  def _empty(self):
    """Returns a function of parameters that makes an empty state."""
    return lambda params: slots_lib.empty_state(
      self.net, params, self.sizes, self.in_blocks
    )

  @functools.cached_property
  def abstract_state(self) -> SlotState:
    """The state as shapes with shardings."""
    with self.model._use():
      state = jax.eval_shape(self._empty, self.params)
    return jax.tree.map(
      lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
      state,
      self._shardings(state),
    )

  def allocate(self) -> SlotState:
    """Returns an empty state."""
    placed = self._shardings(self.abstract_state)
    with self.model._use():
      return jax.jit(self._empty, out_shardings=placed)(self.params)

  @property
  def _abstract_row(self):
    """What an admission writes, as shapes."""
    row = self.abstract_state.row
    return row.replace(history=row.history.replace(written=None))

  def _array(self, *shape: int, kind=np.int32):
    return jax.ShapeDtypeStruct(shape, kind, sharding=self.whole)

  def _trace(self, function, *args) -> jax.stages.Traced:
    """Traces function(params, state, *args) -> (state, Steps or None)."""
    state = self.abstract_state
    out = self._shardings(state), self.whole
    # Parameters that it does not read are in memory, too.
    jitted = jax.jit(
      function, donate_argnums=1, out_shardings=out, keep_unused=True
    )
    with self.model._use():
      return jitted.trace(self.params, state, *args)

  def _compile(self, traced: jax.stages.Traced) -> jax.stages.Compiled:
    with self.model._use():
      options = quantized.list_options(self.params)
      compiled = traced.lower().compile(compiler_options=options or None)
    self.count += 1
    return compiled

  def trace_admit(self, B: int, S: int) -> jax.stages.Traced:
    """Traces the program that admits a batch; `atm plan` compiles it, too."""
    R, array, row = self.rows, self._array, self._abstract_row

    def run(params, state, *args):
      return self.admit_function(self.net, params, state, *args), None

    return self._trace(
      run, array(B, S), array(B), array(), array(R), array(R), row
    )

  def trace_decode(self, window: tuple[int, int, int]) -> jax.stages.Traced:
    """Traces the program that takes steps in a window."""
    s, array = self.sizes, self._array

    def run(params, state, *args):
      return self.step_function(self.net, params, state, *args, s, window)

    stops = array(s.stop_states, self.model.config.vocab_size)
    return self._trace(run, stops, array(self.rows, kind=bool), array())

  def compile(self, say: Callable) -> None:
    """Compiles all programs."""
    total = len(self.batches) + len(self.windows)
    start = time.perf_counter()

    def tell(done: int) -> None:
      if done % 8 == 0 or done == total:
        seconds = time.perf_counter() - start
        say(f'compiled {done} of {total} programs in {seconds:.1f} s')

    for i, shape in enumerate(self.batches):
      self._admit[shape] = self._compile(self.trace_admit(*shape))
      tell(i + 1)
    for i, window in enumerate(self.windows):
      self._decode[window] = self._compile(self.trace_decode(window))
      tell(len(self.batches) + i + 1)

  @property
  def temporary_bytes(self) -> int:
    """The most that a program takes of a device beside its arguments."""
    programs = [*self._admit.values(), *self._decode.values()]
    sizes = [x.memory_analysis().temp_size_in_bytes for x in programs]
    return max(sizes, default=0)

  def time_steps(self, state, stops):
    """Times each window's steps; returns the state, which calls take."""
    none = np.zeros(self.rows, bool)

    def take(steps: int, window) -> None:
      nonlocal state
      state, _ = self.decode(state, stops, none, steps, window)

    for window in self.windows:
      self.times.measure(take, window)
    return state

  # --- Calls

  def admit(self, state, tokens, lengths, inputs, slots, rows: list[Row]):
    """Runs `slots.admit`; the shape of tokens is one of `batches`.

    `inputs` and `slots` are lists, an entry for each of `rows`.
    """
    R, count = self.rows, len(rows)
    spread = lambda values, fill: np.array(
      [*values, *[fill] * (R - count)], np.int32
    )
    state, _ = self._admit[tokens.shape](
      self.params, state, tokens, lengths, np.int32(count), spread(inputs, 0),
      spread(slots, R), slots_lib.fill_rows(rows, R),
    )  # fmt: skip
    return state

  def decode(
    self, state, stops, is_open, limit: int, window
  ) -> tuple[SlotState, Steps]:
    """Runs `slots.take_steps`, and brings what it tells to the host."""
    state, steps = self._decode[window](
      self.params, state, stops, is_open, np.int32(limit)
    )
    return state, jax.device_get(steps)
