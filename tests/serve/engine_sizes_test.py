"""Room is of a model and a mesh; a wrong size is named."""

import pytest

from atm.parallel import mesh as mesh_lib
from atm.parallel.sharding import Rules
from atm.serve.engine_sizes import EngineSizes

from conftest import tiny


def test_sizes_fit_the_model_and_divide_by_the_mesh():
  mesh = mesh_lib.make_mesh(data=2, fsdp=2, tensor=2)
  sizes = EngineSizes(slots=5, max_input=1000).fit(tiny(), mesh, Rules())
  assert sizes.slots == 8 and sizes.max_input == sizes.max_output == 48
  assert sizes.banned == (16, 8)
  few = EngineSizes(max_output=4, top=200).fit(tiny(), mesh, Rules())
  assert few.banned == (16, 4) and few.top == 96


@pytest.mark.parametrize(
  ('name', 'value', 'says'),
  [
    ('slots', 0, 'SLOTS = 0'),
    ('queue', 2.5, 'QUEUE = 2.5'),
    ('banned', (3,), 'BANNED_SIZES'),
  ],
)
def test_a_wrong_size_is_named(name, value, says):
  with pytest.raises(ValueError, match=says):
    EngineSizes(**{name: value})
