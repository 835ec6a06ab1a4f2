"""Rows of an evaluation, and the unigram to beat."""

from types import SimpleNamespace

import numpy as np

from atm.train import held_out_loss

from built_rows import LENGTHS, build_parts


def test_evaluation_reads_each_row_once_and_fills_with_nothing(words, tmp_path):
  held = build_parts('udhr', 'validation', words, tmp_path)
  made = list(held_out_loss.evaluation_batches(held, words, LENGTHS, 32, 0, 5))
  owner = np.concatenate([o for o, _ in made])
  assert all(len(o) == 32 for o, _ in made)
  for i, part in enumerate(held):
    assert (owner == i).sum() == min(5, len(part.rows))
  weights = np.concatenate([b['decoder_loss_weights'] for _, b in made])
  assert (weights[owner == -1] == 0).all()
  assert (weights[owner >= 0].sum(1) > 0).all()


def test_a_unigram_model_counts_what_decoders_write(words, tmp_path):
  """Faults seen: the end of a row not counted; counts of another part."""
  held = build_parts('udhr', 'validation', words, tmp_path)
  model = SimpleNamespace(config=SimpleNamespace(vocab_size=2048, end_id=2))
  batches = list(
    held_out_loss.evaluation_batches(held, words, LENGTHS, 32, 0, 5)
  )
  held_out = SimpleNamespace(parts=held, batches=batches, model=model)
  losses = held_out_loss.unigram_loss(held, held_out)
  languages = [part for part in held if part.objective.name == 'clm']
  assert {f'eval/unigram/clm/{part.language}' for part in languages} <= set(
    losses
  )
  # Trained on what it is asked: far below the log of the vocabulary.
  assert all(0 < loss < np.log(2048) for loss in losses.values())
  one = held_out_loss.unigram_loss(languages[:1], held_out)
  assert len([name for name in one if name.count('/') == 3]) == 1


def test_sets_of_pairs_have_losses_of_their_own():
  """A set without languages is not one loss with all others of its kind."""
  part = lambda language, data_set: SimpleNamespace(
    language=language,
    data_set=data_set,
    objective=SimpleNamespace(name='pair', variant=''),
  )
  parts = [part('all', 'opus'), part('en-de', 'flores'), part('all', '')]
  assert held_out_loss._groups(parts) == [
    ('pair', 'pair/opus'),
    ('pair', 'pair/en-de', 'pair/flores'),
    ('pair', 'pair/all'),
  ]
