"""Writes the files beside it anew; needs torch, which the tests do not.

  python tests/testdata/torch/make.py

Made with torch 2.13.0; again, all but legacy.bin (which holds addresses of
memory) come out the same to the byte. `expected.npz` holds FILE/KEY -> the
values, bfloat16 as the uint16 of its bits.
"""

import collections
import os

import numpy as np
import torch

HERE = os.path.dirname(os.path.abspath(__file__))
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
INTS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def dtypes() -> collections.OrderedDict:
  """Every dtype, with its extreme values."""
  made = collections.OrderedDict()
  for dtype in FLOATS:
    limits = torch.finfo(dtype)
    values = [0.1, -0.0, limits.max, limits.tiny, float('-inf'), float('nan')]
    made[str(dtype)[6:]] = torch.tensor(values, dtype=dtype).reshape(2, 3)
  for dtype in INTS:
    limits = torch.iinfo(dtype)
    made[str(dtype)[6:]] = torch.tensor([limits.min, 1, limits.max]).to(dtype)
  made['bool'] = torch.tensor([[True], [False], [True]])
  return made


def views() -> collections.OrderedDict:
  """Offsets, strides and storages in every relation."""
  base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
  half = torch.arange(6).to(torch.bfloat16).reshape(2, 3)
  return collections.OrderedDict(
    base=base,
    same=base,
    row=base[2],
    block=base[1:3, 2:5],
    every_other=base[::2, 1::3],
    transposed=base.T,
    transposed_bfloat16=half.T,
    permuted=torch.arange(24).reshape(2, 3, 4).permute(2, 0, 1),
    flat=base.view(-1)[5:17],
    zero_dim=torch.tensor(1.5),
    zero_dim_of_base=base[3, 4],
    expanded_one=torch.arange(3).expand(1, -1),
    empty=torch.zeros(0),
    empty_rows=torch.zeros(0, 3, dtype=torch.int32),
    empty_of_base=base[4:],
    parameter=torch.nn.Parameter(torch.tensor([1.0, 2.0])),
    frozen=torch.nn.Parameter(base[1], requires_grad=False),
  )


def module() -> torch.nn.Module:
  return torch.nn.Sequential(
    collections.OrderedDict(
      embed=torch.nn.Embedding(5, 3),
      dense=torch.nn.Linear(3, 2),
      norm=torch.nn.BatchNorm1d(2),
    )
  )


class Twice(torch.nn.Module):
  def forward(self, x):
    return 2 * x


def main():
  torch.manual_seed(0)
  state = module().state_dict()
  cut = {k: v for k, v in state.items() if k.startswith('dense')}
  files = {'dtypes': dtypes(), 'views': views(), 'module': state}
  expected = {}
  path = lambda name: os.path.join(HERE, f'{name}.bin')
  for name, tensors in files.items():
    torch.save(tensors, path(name))
  for protocol in (2, 4):
    name = f'protocol{protocol}'
    files[name] = cut
    torch.save(cut, path(name), pickle_protocol=protocol)
  for name, tensors in files.items():
    for key, value in tensors.items():
      value = value.detach()
      bits = value.dtype == torch.bfloat16
      array = (value.view(torch.int16) if bits else value).numpy()
      expected[f'{name}/{key}'] = array.view(np.uint16) if bits else array
  np.savez_compressed(os.path.join(HERE, 'expected.npz'), **expected)
  torch.save(cut, path('legacy'), _use_new_zipfile_serialization=False)
  torch.jit.script(Twice()).save(path('script'))


if __name__ == '__main__':
  main()
