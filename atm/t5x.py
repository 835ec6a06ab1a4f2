"""AlexaTM for t5x, which is not needed to import this: see docs/t5x.md.

t5x builds its own module, optimizer and loop; what it asks of a module is its
calls, which the model has, and the logical axes of its parameters, in a
collection of their own and by t5x's names.
"""

import flax.linen as nn
import jax
from flax.linen import partitioning

from atm.model import config, transformer

# Our logical axes -> names that both of t5x's standard rules know, those of its
# partitioner and those of its Adafactor.
NAMES = {'position': 'relpos_buckets', 'vector': 'embed'}


class AlexaTM(transformer.AlexaTM):
  """The model, whose `init` gives t5x's `params_axes` beside `params`."""

  @nn.nowrap
  def init(self, *arguments, **named) -> dict:
    """Returns `transformer.AlexaTM.init`'s variables, boxes as `params_axes`.

    Returns:
      {'params': nested arrays, 'params_axes': nested AxisMetadata, by the
      parameters' names with `_axes` behind}, and other collections.
    """
    variables = super().init(*arguments, **named)
    boxed = variables['params']
    return {**variables, 'params': nn.unbox(boxed), 'params_axes': axes(boxed)}


def axes(boxed: dict) -> dict:
  """Returns the `params_axes` that t5x reads partitions off, of boxes."""
  is_box = lambda x: isinstance(x, nn.LogicallyPartitioned)
  found = {}
  for path, box in jax.tree_util.tree_flatten_with_path(boxed, is_box)[0]:
    *folders, name = (key.key for key in path)
    here = found
    for folder in folders:
      here = here.setdefault(folder, {})
    names = tuple(NAMES.get(axis, axis) for axis in box.names)
    here[f'{name}_axes'] = partitioning.AxisMetadata(names)
  return found


def feature_converter(*arguments, bos_id=config.ModelConfig.start_id, **named):
  """Builds seqio's `EncDecFeatureConverter` for decoder inputs that begin with
  `<s>`, as ours do; takes its arguments."""
  import seqio  # takes seconds: TensorFlow

  return seqio.EncDecFeatureConverter(*arguments, bos_id=bos_id, **named)
