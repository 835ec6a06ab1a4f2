"""Beam search; its choices are compared in generate_test."""

import dataclasses

import jax.numpy as jnp

from atm.inference import beam_search, sampling
from atm.parallel import mesh as mesh_lib


def test_beams_on_any_mesh(model):
  mesh = mesh_lib.make_mesh(data=2, fsdp=2, tensor=2)
  texts = ['Everyone has', 'Jeder', 'सभी', 'よって']
  config = sampling.Config(max_tokens=8, beams=3, results=2)
  other = dataclasses.replace(model, mesh=mesh)
  for got, want in zip(
    other.complete(texts, config=config), model.complete(texts, config=config)
  ):
    assert [x.ids for x in got] == [x.ids for x in want]


def test_beams_are_gathered_by_input():
  """Fault seen: beams of another input."""
  ids = jnp.arange(12).reshape(2, 3, 2)
  index = jnp.array([[2, 0], [1, 1]])
  got = beam_search._gather_beams({'ids': ids}, index)['ids']
  assert got.tolist() == [[[4, 5], [0, 1]], [[8, 9], [8, 9]]]
  flat = beam_search._flatten_beams(ids)
  assert flat.shape == (6, 2)
  assert (beam_search._unflatten_beams(flat, 3) == ids).all()
