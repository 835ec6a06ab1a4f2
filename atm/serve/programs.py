"""The programs of an engine: compilation, memory, step times and calls."""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.experimental.layout import Format, Layout
from jax.sharding import NamedSharding, PartitionSpec

from atm.inference import api, generate
from atm.model import quantized
from atm.model.transformer import AlexaTM
from atm.parallel.distributed import count_cores
from atm.serve import banks as banks_lib
from atm.serve import slots as slots_lib
from atm.serve.engine_sizes import EngineSizes
from atm.serve.program_shapes import ProgramShapes
from atm.serve.slots import Row, SlotState, Steps
from atm.serve.step_times import StepTimes

LANE_ROWS = 16  # with fewer, two lanes are no faster than one


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


class Programs(ProgramShapes):
  """Compiled programs of a model, and the slots' states that they change.

  Attributes:
    params: of `prepare_engine_params`.
    count: programs that were compiled; no more are after `compile`.
    times: of steps, in each window.
  """

  # What is compiled; groups of beams have functions of their own.
  admit_function = staticmethod(slots_lib.admit)
  step_function = staticmethod(slots_lib.take_steps)

  def __init__(self, model: api.Model, sizes: EngineSizes, params: dict):
    super().__init__(model, sizes)
    self.params = params
    self.net = AlexaTM(model.config)
    self.count = 0
    self._admit: dict[tuple[int, int], jax.stages.Compiled] = {}
    self._decode: dict[tuple[int, int, int], jax.stages.Compiled] = {}
    self._move: dict[tuple, jax.stages.Compiled] = {}
    self.times = StepTimes(sizes.most_steps)

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
    sizes = dataclasses.replace(self.sizes, slots=self.bank_rows)
    return lambda params: slots_lib.empty_state(
      self.net, params, sizes, self.in_blocks
    )

  @functools.cached_property
  def abstract_state(self) -> SlotState:
    """The state of a bank as shapes with shardings."""
    with self.model._use():
      state = jax.eval_shape(self._empty, self.params)
    return jax.tree.map(
      lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
      state,
      self._shardings(state),
    )

  @property
  def abstract_states(self) -> list[SlotState]:
    """The states of all banks as shapes with shardings."""
    return [self.abstract_state] * self.banks

  def allocate(self) -> list[SlotState]:
    """Returns the empty states of all banks."""
    placed = self._shardings(self.abstract_state)
    with self.model._use():
      make = jax.jit(self._empty, out_shardings=placed)
      return [make(self.params) for _ in range(self.banks)]

  @property
  def _abstract_row(self):
    """What an admission writes, as shapes."""
    row = self.abstract_state.row
    return row.replace(history=row.history.replace(written=None))

  def _array(self, *shape: int, kind=np.int32):
    return jax.ShapeDtypeStruct(shape, kind, sharding=self.whole)

  def _trace(self, function, state, *args) -> jax.stages.Traced:
    """Traces function(params, state, *args) -> (state, Steps or None)."""
    # Not the shapes' `sharding`, which has no layouts.
    several = isinstance(state, list)
    place = self._shardings
    out = [*map(place, state)] if several else place(state), self.whole
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
    R, array, row = self.bank_rows, self._array, self._abstract_row

    def run(params, state, *args):
      return self.admit_function(self.net, params, state, *args), None

    return self._trace(
      run, self.abstract_state, array(B, S), array(B), array(), array(R),
      array(R), row,
    )  # fmt: skip

  def trace_decode(self, window: tuple[int, int, int]) -> jax.stages.Traced:
    """Traces the program that takes steps in a window."""
    s, array, banks = self.sizes, self._array, self.count_banks(window)

    def run(params, states, *args):
      state, steps = self.step_function(
        self.net, params, banks_lib.join_states(states), *args, s, window
      )
      return banks_lib.part_state(state, banks), steps

    stops = array(s.stop_states, self.model.config.vocab_size)
    is_open = array(banks * self.bank_rows, kind=bool)
    states = self.abstract_states[:banks]
    return self._trace(run, states, stops, is_open, array())

  def trace_move(self) -> jax.stages.Traced:
    """Traces the program that moves a row to another bank."""
    state, array = self.abstract_state, self._array
    move = jax.jit(banks_lib.move_row, donate_argnums=0)
    with self.model._use():
      return move.trace(state, state, array(), array())

  def compile(self, say: Callable) -> None:
    """Compiles all programs."""
    shapes = [(self._admit, x, self.trace_admit) for x in self.batches]
    step = lambda *window: self.trace_decode(window)
    shapes += [(self._decode, x, step) for x in self.windows]
    if self.banks > 1:
      shapes.append((self._move, (), self.trace_move))
    total, start = len(shapes), time.perf_counter()
    for i, (programs, shape, trace) in enumerate(shapes, 1):
      programs[shape] = self._compile(trace(*shape))
      if i % 8 == 0 or i == total:
        seconds = time.perf_counter() - start
        say(f'compiled {i} of {total} programs in {seconds:.1f} s')

  @property
  def temporary_bytes(self) -> int:
    """The most that a program takes of a device beside its arguments."""
    compiled = {**self._admit, **self._decode, **self._move}.values()
    sizes = [x.memory_analysis().temp_size_in_bytes for x in compiled]
    return max(sizes, default=0)

  def time_steps(self, states: list, stops) -> None:
    """Times each window's steps; changes the list of states."""

    def take(steps: int, window) -> None:
      banks = range(self.count_banks(window))
      is_open = np.zeros(len(banks) * self.bank_rows, bool)
      self.decode(states, banks, stops, is_open, steps, window)

    for window in self.windows:
      self.times.measure(take, window)

  # --- Calls

  def admit(self, state, tokens, lengths, inputs, slots, rows: list[Row]):
    """Runs `slots.admit`; the shape of tokens is one of `batches`.

    `inputs` and `slots` are lists, an entry for each of `rows`.
    """
    R, count = self.bank_rows, len(rows)
    spread = lambda values, fill: np.array(
      [*values, *[fill] * (R - count)], np.int32
    )
    state, _ = self._admit[tokens.shape](
      self.params, state, tokens, lengths, np.int32(count), spread(inputs, 0),
      spread(slots, R), slots_lib.fill_rows(rows, R),
    )  # fmt: skip
    return state

  def move(self, states: list, slot: int, target: int) -> None:
    """Runs `banks.move_row` for slots of two of all banks' states."""
    bank, row = divmod(slot, self.bank_rows)
    to, place = divmod(target, self.bank_rows)
    states[to] = self._move[()](
      states[to], states[bank], np.int32(row), np.int32(place)
    )

  def decode(
    self, states: list, banks: Sequence[int], stops, is_open, limit: int, window
  ) -> Steps:
    """Runs `slots.take_steps`, and brings what it tells to the host.

    Args:
      states: of all banks; those of `banks` are replaced.
      banks: which take steps, as many as the window has.
      stops, is_open, limit, window: see `slots.take_steps`.
    """
    taken, steps = self._decode[window](
      self.params, [states[bank] for bank in banks], stops, is_open,
      np.int32(limit),
    )  # fmt: skip
    for bank, state in zip(banks, taken, strict=True):
      states[bank] = state
    return jax.device_get(steps)
