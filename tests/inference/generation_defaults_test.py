"""What a generation_config.json becomes, and what of it is told."""

import logging
import re
import types

import pytest

from atm.inference.generation_defaults import (
  check_own_settings,
  convert_defaults,
  fill_settings,
  read_defaults,
  read_forced_bos,
)
from atm.inference.sampling import Config

from conftest import tiny

MODEL = tiny()


def convert(**content) -> tuple[dict, list[str]]:
  return convert_defaults(content, 'm/generation_config.json', MODEL)


@pytest.mark.parametrize(
  'content, options',
  [
    # As public folders have them.
    (
      dict(
        max_length=60, min_length=20, num_beams=10, length_penalty=0.65,
        no_repeat_ngram_size=3, encoder_no_repeat_ngram_size=3,
        forced_eos_token_id=2, bos_token_id=1, pad_token_id=0,
      ),
      dict(
        max_tokens=59, min_tokens=19, beams=10, length_penalty=0.65,
        no_repeat_ngram_size=3, encoder_no_repeat_ngram_size=3,
        forced_eos=True,
      ),
    ),
    (
      dict(
        max_length=200, num_beams=5, early_stopping=True, eos_token_id=2,
        decoder_start_token_id=1, forced_bos_token_id=7,
        transformers_version='4.21.0.dev0', use_cache=True, output_scores=False,
      ),
      dict(max_tokens=199, beams=5, early_stopping=True),
    ),
    (
      dict(max_length=9, max_new_tokens=5, min_length=3, min_new_tokens=0),
      dict(max_tokens=5, min_tokens=0),
    ),
    (dict(min_length=0, max_length=None), dict(min_tokens=0)),
    (dict(do_sample=True), dict(temperature=1.0, top_k=50)),
    (
      dict(do_sample=True, temperature=0.6, top_k=0, top_p=0.9),
      dict(temperature=0.6, top_k=0, top_p=0.9),
    ),
    (dict(do_sample=False, temperature=0.6), {}),
    (
      dict(bad_words_ids=[[3], [4, 5]], suppress_tokens=[6]),
      dict(banned=[[3], [4, 5], [6]]),
    ),
    (
      dict(
        num_return_sequences=1, typical_p=1.0, exponential_decay=None,
        guidance_scale=None, renormalize_logits=False, eta_cutoff=0.0,
      ),
      {},
    ),
  ],
)  # fmt: skip
def test_settings_that_there_are(content, options):
  found, left = convert(**content)
  assert found == options and not left
  named = {name: x for name, x in found.items() if name != 'banned'}
  assert Config(**named).list_given() == named


@pytest.mark.parametrize(
  'content, left',
  [
    (dict(typical_p=0.9), 'typical_p = 0.9'),
    (dict(exponential_decay_length_penalty=[5, 1.1]), 'exponential_'),
    (dict(eos_token_id=[2, 5]), r'eos_token_id = \[2, 5\]'),
    (dict(forced_eos_token_id=9), 'forced_eos_token_id = 9'),
    (dict(decoder_start_token_id=9), 'decoder_start_token_id = 9'),
    (dict(num_return_sequences=2), 'num_return_sequences = 2'),
    (dict(num_beams=2, do_sample=True), 'do_sample with num_beams = 2'),
    (dict(suppress_tokens=[2]), 'suppress_tokens with the end token 2'),
    (dict(of_a_later_version='x'), "of_a_later_version = 'x'"),
  ],
)
def test_settings_that_there_are_not_are_named(caplog, content, left):
  source = types.SimpleNamespace(
    generation_path='m/generation_config.json', generation_config=content,
    config=MODEL,
  )  # fmt: skip
  with caplog.at_level(logging.WARNING):
    options = read_defaults(source)
  (line,) = caplog.messages
  assert line.startswith('m/generation_config.json: not supported, left out: ')
  assert re.search(left, line)
  assert not options.get('temperature')


@pytest.mark.parametrize(
  'content',
  [
    dict(num_beams=0), dict(num_beams='x'), dict(max_length=1),
    dict(max_new_tokens=0), dict(min_length=-1), dict(early_stopping='no'),
    dict(do_sample=1), dict(do_sample=True, temperature='x'),
    dict(bad_words_ids=3), dict(bad_words_ids=[[96]]),
    dict(suppress_tokens='x'), dict(no_repeat_ngram_size=2.5),
    dict(repetition_penalty=float('nan')), dict(length_penalty=[1]),
  ],
)  # fmt: skip
def test_wrong_values_name_file_and_setting(content):
  with pytest.raises(ValueError) as e:
    convert(**content)
  text = str(e.value)
  assert text.startswith('m/generation_config.json: ')
  assert [*content][-1] in text and len(text) < 500 and '\n' not in text


def test_a_forced_token_is_an_id_of_the_model():
  """Of a folder without a tokenizer, whose languages have no names."""

  def read(value):
    said = {'forced_bos_token_id': value}
    return read_forced_bos(
      types.SimpleNamespace(
        generation_config=said, generation_path='m', config=MODEL
      )
    )

  assert read(None) is None and read(12) == 12
  for wrong in (-1, MODEL.vocab_size, 'de', [12]):
    with pytest.raises(ValueError, match='^m: forced_bos_token_id = '):
      read(wrong)


@pytest.mark.parametrize(
  'content, error',
  [
    ({'beams': 5}, "GENERATION = 'beams'.*num_beams"),
    ({'num_beams': 0}, 'GENERATION: num_beams = 0'),
    ({'num_beams': 2, 'do_sample': True}, 'not supported: do_sample with'),
    ({'suppress_tokens': [99_999]}, 'GENERATION: suppress_tokens'),
  ],
)
def test_what_a_run_keeps_with_its_model_is_checked(content, error):
  good = {'num_beams': 5, 'length_penalty': 0.6, 'max_new_tokens': 64}
  check_own_settings(good, tiny())
  with pytest.raises(ValueError, match=error):
    check_own_settings(good | content, tiny())


def test_what_counts_is_described():
  """Neither what a user set nor what changes nothing."""
  own = dict(beams=5, max_tokens=199, length_penalty=1.0)
  fill = lambda config, **more: fill_settings('m', own | more, config)[2]
  assert fill(Config()) == 'settings of m: beams 5, max_tokens 199'
  assert fill(Config(beams=1)) == 'settings of m: max_tokens 199'
  assert fill(Config(temperature=0.5)) == 'settings of m: max_tokens 199'
  assert fill(Config(beams=2, max_tokens=8)) is None
  idle = dict(length_penalty=0.6, early_stopping=True, top_k=50)
  assert fill(Config(beams=1), **idle) == 'settings of m: max_tokens 199'
  assert 'early_stopping True' in fill(Config(), **idle)
  assert 'top_k 50' in fill(Config(temperature=1.0), **idle)
  bans = fill(Config(), banned=[[3], [4]])
  assert bans == 'settings of m: beams 5, max_tokens 199, banned 2'


def test_a_user_s_bans_stand_in_place_of_the_model_s():
  own = dict(beams=5, banned=[[3]])
  line = 'settings of m: beams 5, banned 1'
  assert fill_settings('m', own, Config()) == (Config(beams=5), [[3]], line)
  given = Config(beams=1), ['x']
  assert fill_settings('m', own, *given) == (*given, None)
  assert fill_settings('m', {}, Config(), []) == (Config(), [], None)
