"""What encoder and decoder read around a text, as transformers has it."""

import pytest

from atm.data.input_format import FORMATS, InputFormat

CODES = {'de_DE': 30, 'en_XX': 31}
TEXT = [7, 8, 9]


def make(name: str, **named) -> InputFormat:
  languages = {} if name in ('alexatm', 'plain') else CODES
  return InputFormat(name, eos_id=2, languages=languages, **named)


# transformers' input_ids of a source in de_DE, and of a target in en_XX its
# labels and, shifted by the model, decoder_input_ids; its generation begins
# with decoder_start_token_id, 5 here, and forced_bos_token_id.
FRAMES = {
  'plain': ([7, 8, 9, 2], [7, 8, 9, 2], [5, 7, 8, 9], [5]),
  'mbart': ([7, 8, 9, 2, 30], [7, 8, 9, 2, 31], [31, 7, 8, 9, 2], [31]),
  'mbart50': ([30, 7, 8, 9, 2], [31, 7, 8, 9, 2], [5, 31, 7, 8, 9], [5, 31]),
  'm2m_100': ([30, 7, 8, 9, 2], [31, 7, 8, 9, 2], [5, 31, 7, 8, 9], [5, 31]),
  'nllb': ([30, 7, 8, 9, 2], [31, 7, 8, 9, 2], [5, 31, 7, 8, 9], [5, 31]),
  'nllb_legacy': (
    [7, 8, 9, 2, 30], [31, 7, 8, 9, 2], [5, 31, 7, 8, 9], [5, 31],
  ),
}  # fmt: skip


@pytest.mark.parametrize('name', FRAMES)
def test_frames_of_public_models(name):
  inputs, labels, reads, start = FRAMES[name]
  form = make(name)
  source, target = ('de_DE', 'en_XX') if form.has_languages else (None, None)
  assert form.frame(TEXT, source) == inputs
  assert form.labels(TEXT, target) == labels
  assert form.decoder_inputs(TEXT, 5, target) == reads
  assert form.decoder_start(5, target) == start
  assert form.decoder_start(5) == [5]
  assert form.forced == len(start) - 1
  folder = make(name, source='de_DE', target='en_XX')
  assert folder.frame(TEXT) == inputs
  assert folder.labels(TEXT) == labels
  assert folder.decoder_start(5) == start


def test_frames_of_pretraining():
  form = make('alexatm', bos_id=1, clm_id=4)
  assert form.frame(TEXT) == form.frame(TEXT, mode='clm') == [1, 4, *TEXT, 2]
  pegasus = make('plain', clm_id=4)  # with a marker; it has no `<s>`
  assert pegasus.frame(TEXT) == [4, *TEXT, 2]
  assert pegasus.frame(TEXT, mode='denoise') == [*TEXT, 2]
  assert form.frame(TEXT, mode='denoise') == [1, *TEXT, 2]
  assert form.labels(TEXT) == [*TEXT, 2]
  assert form.decoder_inputs(TEXT, 5) == [5, *TEXT]
  assert make('alexatm', bos_id=1).frame(TEXT) == [1, *TEXT, 2]
  # Markers added to a public model's vocabulary make its own frame the second.
  added = make('mbart50', bos_id=1, clm_id=4)
  assert added.frame(TEXT) == [1, 4, *TEXT, 2]
  assert added.frame(TEXT, 'de_DE') == [30, *TEXT, 2]


def test_every_format_has_a_frame():
  assert {*FORMATS} == {*FRAMES, 'alexatm'}


@pytest.mark.parametrize(
  'call, message',
  [
    (lambda: make('plain').frame(TEXT, 'de'), 'reads and writes no language'),
    (lambda: make('plain').labels(TEXT, 'de'), 'reads and writes no language'),
    (lambda: make('nllb').frame(TEXT), 'source = None: expected one of'),
    (lambda: make('nllb').frame(TEXT, 'de_DF'), "mean 'de_DE'"),
    (lambda: make('nllb').labels(TEXT, 5), 'target = 5: expected one of'),
    (lambda: make('nllb').frame(TEXT, mode='clm'), r'needs \[CLM\]'),
    (lambda: make('nllb', bos_id=1).frame(TEXT, mode='clm'), r'needs \[CLM\]'),
    (lambda: make('nllb').frame(TEXT, mode='x'), "mode = 'x'"),
    (lambda: make('nlbb'), "mean 'nllb'"),
    (lambda: InputFormat('nllb', 2), 'needs languages'),
  ],
)
def test_what_a_format_has_not_is_refused(call, message):
  with pytest.raises(ValueError, match=message) as e:
    call()
  assert '\n' not in str(e.value) and len(str(e.value)) < 500
