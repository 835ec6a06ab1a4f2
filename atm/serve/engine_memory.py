"""Memory that an engine takes of each device, and sizes that fit."""

from collections.abc import Sequence

from atm.model.config import ModelConfig
from atm.model.parameters import abstract_params
from atm.model.transformer import AlexaTM
from atm.parallel.device_memory import (
  count_free_bytes,
  device_bytes,
  format_bytes,
)
from atm.parallel.sharding import Rules
from atm.serve.engine_sizes import EngineSizes
from atm.serve.programs import Programs


def check_weights(config: ModelConfig, mesh, rules: Rules, width: int) -> None:
  """Raises ValueError where a model's parameters alone do not fit.

  Args:
    config: the model's.
    mesh, rules: where they are to be.
    width: bytes of a number, as it was saved.
  """
  params = abstract_params(AlexaTM(config), mesh, rules)
  need, free = device_bytes(params) * width // 4, count_free_bytes(mesh)
  if free is None or need <= free:
    return
  raise ValueError(
    f'the parameters take {format_bytes(need)} of each device, which have '
    f'{format_bytes(free)} free: {-(-need // max(1, free))} times as many '
    'devices would hold them, split by mesh.tensor, or devices with more memory'
  )


class EngineMemory:
  """Bytes of an engine's state and programs; of each device.

  Attributes:
    free: what a device has left, before the state is allocated.
  """

  def __init__(self, sizes: EngineSizes, sets: Sequence[Programs]):
    self._sizes, self._sets = sizes, sets
    mesh = sets[0].model.mesh
    self.params = device_bytes(sets[0].params)
    self.state = sum(device_bytes(x.abstract_states) for x in sets)
    self.stops = 4 * sizes.stop_states * sets[0].model.config.vocab_size
    self.free = count_free_bytes(mesh)

  @property
  def temporaries(self) -> int:
    """What programs take beside; 0 before they are compiled."""
    sizes = [x.temporary_bytes for x in self._sets]
    # Lanes in threads of their own run at the same time.
    return sum(sizes) if self._sets[0].in_blocks else max(sizes)

  @property
  def needed(self) -> int:
    """What the engine adds to the parameters."""
    return self.state + self.stops + self.temporaries

  def describe(self) -> str:
    """Returns a line that states the memory of each device."""
    free = 'not known' if self.free is None else format_bytes(self.free)
    return (
      f'memory of each device: {format_bytes(self.params)} parameters, '
      f'{format_bytes(self.state)} for {self._sizes.slots} slots and '
      f'{self._sizes.beam_groups} x {self._sizes.beams} beams, '
      f'{format_bytes(self.stops)} stop strings, '
      f'{format_bytes(self.temporaries)} temporaries; free before the last '
      f'three: {free}'
    )

  def check(self) -> None:
    """Raises ValueError where the devices have less, and says what fits."""
    if self.free is None or self.needed <= self.free:
      return
    s = self._sizes
    raise ValueError(
      f'SLOTS = {s.slots}, BEAM_GROUPS = {s.beam_groups}, MAX_INPUT = '
      f'{s.max_input}, MAX_OUTPUT = {s.max_output} need '
      f'{format_bytes(self.needed)} of each device beside the parameters, '
      f'which leave {format_bytes(self.free)}: {self.advise()}'
    )

  def advise(self) -> str:
    """Returns what would fit."""
    # All of the state grows with slots and groups, but for a small part.
    left = self.free - self.stops - self.temporaries
    share = left / self.state
    shards = self._sets[0].shards
    slots = int(self._sizes.slots * share) // shards * shards
    groups = int(self._sizes.beam_groups * share)
    if slots and groups:
      return f'SLOTS = {slots} and BEAM_GROUPS = {groups} would fit'
    fits = self._sizes.slots / shards * share  # of one slot's positions
    if fits > 1 / 64:
      part = next(2**i for i in range(7) if fits * 2**i >= 1)
      return (
        f'SLOTS = {shards}, BEAM_GROUPS = 1, MAX_INPUT = '
        f'{self._sizes.max_input // part} and MAX_OUTPUT = '
        f'{self._sizes.max_output // part} would fit'
      )
    return (
      "no sizes fit; WEIGHTS = 'bfloat16' has half of float32's parameters, "
      "'int8' a quarter, and more devices by mesh.tensor split them"
    )
