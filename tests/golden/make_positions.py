"""Writes public/positions.npz: rows of the computed position tables.

What transformers' modules of Pegasus and M2M-100 look up, for widths that are
even and odd. Deterministic; downloads nothing. Needs the extra:

  pip install -e '.[hf]'
  python tests/golden/make_positions.py
"""

import numpy as np
import torch
from make_hf import HERE
from transformers.models.m2m_100 import modeling_m2m_100
from transformers.models.pegasus import modeling_pegasus

WIDTHS = 32, 9
PAD_ID = 1
ROWS = [*range(6), 511, 1022, 1023]  # of Pegasus
# Padding behind, in front, and between.
IDS = [[5, 7, 5, 6, 1, 1], [1, 1, 5, 7, 6, 6], [5, 1, 7, 1, 1, 6]]
CACHED = 1000  # tokens read before a row of IDS


def main() -> None:
  """Writes the file."""
  arrays = {'rows': ROWS, 'ids': IDS, 'pad_id': PAD_ID, 'cached': CACHED}
  for width in WIDTHS:
    table = modeling_pegasus.PegasusSinusoidalPositionalEmbedding(1024, width)
    arrays[f'pegasus_{width}'] = table.create_weight()[ROWS].numpy()
    module = modeling_m2m_100.M2M100SinusoidalPositionalEmbedding(
      1024, width, PAD_ID
    )
    for name, length in (('m2m_100', 0), ('m2m_100_cached', CACHED)):
      found = module(torch.tensor(IDS), cache_length=length)
      arrays[f'{name}_{width}'] = found.numpy()
  np.savez_compressed(HERE / 'public' / 'positions.npz', **arrays)


if __name__ == '__main__':
  main()
