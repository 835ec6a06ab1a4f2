"""UL2's denoisers: their rates, spans and modes, whatever the row."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import atm_tasks
from atm.data import counter_rng, inspection, objectives, task_registry, ul2
from atm.data.packing import SpecialIds
from atm.train import held_out_loss

IDS = SpecialIds(pad=0, bos=1, eos=2, clm=5, doc=6, mask=4)
seeds = st.integers(0, 2**63)
denoisers = pytest.mark.parametrize(
  'denoiser', ul2.DENOISERS, ids=lambda x: x.variant
)


def test_the_seven_of_the_paper():
  kinds = [kind for kind, _ in ul2.list_denoisers(False)]
  assert [kind.variant for kind in kinds] == [
    'r3_15', 'r8_15', 'x3_50', 'x8_50', 'x64_15', 'x64_50', 's',
  ]  # fmt: skip
  assert [kind.name for kind in kinds] == ['denoise'] * 6 + ['clm']
  shares = [share for _, share in ul2.list_denoisers(True)]
  assert shares == [1 / 7] * 7
  assert ul2.list_denoisers(True)[-1][0] == ul2.Ul2Clm(packs=True)
  # Rows of other objectives are not theirs.
  assert ul2.DENOISERS[0] != objectives.Denoise()
  assert len({repr(kind) for kind in kinds}) == 7


def read_row(denoiser, n: int, seed: int, S: int, T: int):
  """Returns (what the encoder reads, what the decoder writes) of a row."""
  tokens = np.arange(100, 100 + n, dtype=np.int32)[None]
  key = counter_rng.make_key(seed)[None]
  batch = denoiser.examples(tokens, np.array([n]), key, IDS, S, T)
  source = batch['encoder_input_tokens'][batch['encoder_segment_ids'] > 0]
  target = batch['decoder_target_tokens'][batch['decoder_loss_weights'] > 0]
  return list(source), list(target)


@denoisers
@given(n=st.integers(4, 200), seed=seeds)
def test_a_row_has_its_mode_and_share(denoiser, n, seed):
  source, target = read_row(denoiser, n, seed, n + 3, n + 1)
  text = list(range(100, 100 + n))
  assert target == [*text, IDS.eos]
  head = [IDS.bos, IDS.mask] if denoiser.extreme else [IDS.bos]
  assert source[: len(head)] == head and source[-1] == IDS.eos
  kept = source[len(head) : -1]
  assert len(kept) == n - int(np.floor(n * denoiser.density + 0.5))
  assert kept == sorted({*kept} & {*text})
  # The same row is the same, wherever it is read.
  assert read_row(denoiser, n, seed, n + 9, n + 7) == (source, target)


@denoisers
def test_spans_have_their_mean_length(denoiser):
  B, n = 100, 4000
  key, length = counter_rng.make_key(3, np.arange(B)), np.full(B, n)
  spans, dropped = inspection.measure_spans(denoiser, key, length)
  assert set(dropped) == {round(n * denoiser.density)}
  # The last span of a row is cut; at half of the tokens spans often touch.
  longest = denoiser.mean_span * (2.5 if denoiser.density == 0.5 else 1.1)
  assert 0.85 * denoiser.mean_span < spans.mean() < longest


@given(n=st.integers(4, 300), seed=seeds, ends=st.booleans())
def test_the_last_quarter_is_written(n, seed, ends):
  tokens = np.arange(100, 100 + n, dtype=np.int32)[None]
  if ends:
    tokens = np.concatenate([tokens, [[IDS.eos]]], axis=1)
  batch = ul2.Ul2Clm().examples(
    tokens, np.array([tokens.shape[1]]), counter_rng.make_key(seed)[None], IDS,
    n + 3, n + 1,
  )  # fmt: skip
  source = batch['encoder_input_tokens'][batch['encoder_segment_ids'] > 0]
  assert list(source[:2]) == [IDS.bos, IDS.clm]
  assert len(source) - 3 == round(0.75 * n)


@given(S=st.integers(9, 300), T=st.integers(9, 300), seed=seeds)
def test_every_row_of_the_greatest_length_fits(S, T, seed):
  for kind, _ in ul2.list_denoisers(False):
    n = kind.row_length(S, T)
    tokens = np.arange(100, 100 + n, dtype=np.int32)[None]
    key = counter_rng.make_key(seed)[None]
    batch = kind.examples(tokens, np.array([n]), key, IDS, S, T)
    assert batch['encoder_input_tokens'].shape == (1, S)


def test_a_vocabulary_without_a_mode_token_is_refused():
  ids = dataclasses.replace(IDS, mask=None)
  assert ul2.DENOISERS[0].head(ids) == (IDS.bos,)
  with pytest.raises(ValueError, match=r'the vocabulary has no \[MASK\]'):
    ul2.DENOISERS[-1].head(ids)


# --- As a mixture


def test_any_text_has_the_mixture(tmp_path):
  for language in ('en', 'de'):
    text = f'One text of {language}.\nAnother one.\n'
    (tmp_path / f'{language}.txt').write_text(text)
  mixing = atm_tasks.Mixing(in_context=0.3, language_power=0.0)
  try:
    atm_tasks.configure(text_dir=str(tmp_path), mixing=mixing)
    mixture = task_registry.find_task('text_ul2')
    rates = {task.name: mixture.get_rate(task) for task in mixture.tasks}
  finally:
    atm_tasks.configure()
  assert len(rates) == 7 * (2 + 3) and sum(rates.values()) == pytest.approx(1)
  for name in ('x64_50_denoise', 's_clm', 'r3_15_denoise'):
    assert rates[f'text_de_{name}'] == pytest.approx(0.7 / 14)
    assert rates[f'in_context_edits_{name}'] == pytest.approx(0.3 / 21)


def test_held_out_losses_are_by_denoiser():
  @dataclasses.dataclass
  class Part:
    objective: object
    language: str = 'en'
    data_set: str = ''

  kinds = [kind for kind, _ in ul2.list_denoisers(False)]
  groups = held_out_loss._groups([Part(k) for k in (*kinds, objectives.CLM())])
  assert groups[4] == ('denoise', 'denoise/en', 'denoise/x64_15')
  assert groups[6:] == [('clm', 'clm/en', 'clm/s'), ('clm', 'clm/en')]
