"""The programs of an engine's groups of beams."""

import functools

import jax

from atm.serve import beam_slots, slots
from atm.serve.program_shapes import list_windows
from atm.serve.programs import Programs


class BeamPrograms(Programs):
  """Compiled programs for beam search; see Programs.

  There are fewer than for rows, for what costs in a step is the choice of
  tokens: one input is read at a time, and padded more.
  """

  admit_function = staticmethod(beam_slots.admit_groups)
  step_function = staticmethod(beam_slots.take_group_steps)

  def _split(self) -> tuple[int, int]:
    """Returns `banks` and `bank_rows`: one, with all groups."""
    return 1, self.sizes.beam_groups

  @functools.cached_property
  def batches(self) -> list[tuple[int, int]]:
    """(B, S) of encoder batches: one input."""
    lengths = list_windows(self.sizes.max_input, 2, 3, 64)
    return [(self.shards, S) for S in lengths]

  @functools.cached_property
  def windows(self) -> list[tuple[int, int, int]]:
    """(groups, T, S) that `beam_slots.take_group_steps` is compiled for."""
    G, T, S = self.rows, self.sizes.max_output, self.sizes.max_input
    if self.platform != 'cpu':
      return [(G, T, S)]
    few = lambda most: list_windows(most, 4, 2, 64)
    return [(G, t, s) for t in few(T) for s in few(S)]

  @functools.cached_property
  def _empty(self):
    """Returns a function of parameters that makes an empty state."""
    return lambda params: beam_slots.empty_groups(self.net, params, self.sizes)

  def _shardings(self, state):
    """Returns shardings of a state: caches by the rules, the rest whole."""
    whole = jax.tree.map(lambda x: self.whole, state)
    caches = self.place_caches(state.search.caches)
    return whole.replace(search=whole.search.replace(caches=caches))

  @functools.cached_property
  def _abstract_row(self):
    """What an admission writes, as shapes."""
    row = beam_slots.empty_row(self.model.config.pad_id, self.sizes)
    return jax.tree.map(
      lambda x: self._array(*x.shape, kind=x.dtype),
      slots.fill_rows([row], self.rows),
    )

  def read_beams(self, state: beam_slots.GroupState, with_top: bool) -> dict:
    """Brings what `beam_slots.collect_beams` reads of all groups."""
    names = 'finished', 'full', 'running'
    parts = {x: getattr(state.search, x) for x in names}
    if with_top:
      parts |= dict(top_ids=state.top_ids, top_logs=state.top_logs)
    return jax.device_get(parts)
