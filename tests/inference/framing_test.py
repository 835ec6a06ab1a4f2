"""Texts and ids as the model reads them."""

import numpy as np
import pytest

from atm.inference import framing as framing_lib
from atm.inference import prompts
from atm.inference.framing import Framing
from atm.model.config import ModelConfig


def test_padding_on_either_side_changes_nothing(model, rng):
  """Fault seen: only behind the ids."""
  pad = [model.config.pad_id]
  row = list(map(int, rng.integers(7, 2048, 9)))
  padded = [row, pad * 3 + row, row + pad * 4, pad + row + pad]
  alone = model.generate([row], max_tokens=12)
  assert model.generate(padded, max_tokens=12) == alone * 4
  total, _ = model.score(padded, [row] * 4)
  np.testing.assert_allclose(total, total[0], rtol=1e-6)


def test_modes_put_the_marker(model):
  v = model.vocabulary
  text = 'born free'
  assert model.encode(text, 'denoise') == [v.bos_id, *v.encode(text), v.eos_id]
  assert model.encode(text, 'clm')[:2] == [v.bos_id, v.clm_id]
  for mode in prompts.MODES:
    by_ids = model.generate([model.encode(text, mode)])[0]
    assert model.generate([text], mode=mode) == [v.decode(by_ids)]


@pytest.mark.parametrize(
  'arguments, message',
  [
    (dict(inputs=['a'], mode='cml'), "Did you mean 'clm'"),
    (
      dict(inputs=['a'], max_tokens=0),
      'max_tokens = 0: expected a whole',
    ),
    (dict(inputs=[[1] * 65]), 'input 0 has 65 tokens'),
    (dict(inputs=[[1], []]), 'input 1 has 0 tokens'),
    (dict(inputs='one string'), r'expected a list. Did you mean'),
    (dict(inputs=[b'ab']), r"input 0 = b'ab': expected a text, or a list"),
  ],
)
def test_generate_errors(model, arguments, message):
  with pytest.raises(ValueError, match=message):
    model.generate(**arguments)


@pytest.fixture(scope='module')
def framing(words):
  return Framing(ModelConfig(vocab_size=words.size, positions=16), words)


def test_prefixes_follow_the_start_token(framing):
  """Fault seen: no start token before a prefix."""
  start, words = framing.config.start_id, framing.vocabulary
  assert framing.prefixes(None, 2) == [[start], [start]]
  prefixes = framing.prefixes(['Every', [7, 8]], 2)
  assert prefixes == [[start, *words.encode('Every')], [start, 7, 8]]


def test_a_text_is_banned_behind_a_space_and_without_one(framing):
  """Faults seen: only as behind a space; the end token banned alone."""
  words = framing.vocabulary
  banned = framing.banned(['has', [5, 6], [framing.config.end_id], []])
  assert banned == [words.encode('has'), words.inside('has'), [5, 6]]


def test_targets_keep_their_padding_and_end(framing):
  """Fault seen: padding of targets stripped."""
  pad, end = framing.config.pad_id, framing.config.end_id
  assert framing.targets([[pad, 7, pad]]) == [[pad, 7, pad]]
  assert framing.inputs([[pad, 7, pad], [pad, pad]], 'clm') == [[7], [pad]]
  assert framing.targets(['has'])[0][-1] == end


@pytest.mark.parametrize('mode, head', [('clm', 2), ('denoise', 1)])
def test_long_inputs_are_cut_inside_their_frame(framing, mode, head):
  """Given ids too, framed or bare; targets lose what is at the end."""
  words, P = framing.vocabulary, framing.config.positions
  text = 'All human beings are born free and equal in dignity and rights.'
  (whole,) = framing.frame_all([text], mode)
  body, room = whole[head:-1], P - head - 1
  for given in ([text], [whole]):
    rows = framing.frame_all(given, mode)
    for side, kept in (('start', body[-room:]), ('end', body[:room])):
      (row,), (cut,) = framing.fit(rows, side)
      assert row == [*whole[:head], *kept, words.eos_id] and len(row) == P
      assert cut == len(whole) - P
    with pytest.raises(ValueError) as e:
      framing.inputs(['a', *given, *given * 4], mode)
    long = f'has {len(whole)} tokens'
    assert str(e.value).startswith(f'input 1 {long}, input 2 {long}')
    assert (
      "and 2 more: expected 1 to Config.positions = 16. truncate='start'"
      in (str(e.value))
    )
  bare = [*range(40, 60)]
  assert framing.inputs([bare], mode, 'start') == [bare[-P:]]
  target = [*words.encode(text), framing.config.end_id]
  assert framing.targets([text], None, 'start') == [target[-P:]]
  assert framing.targets([text], None, 'end') == [target[:P]]
  assert Framing(framing.config, None).inputs([whole], mode, 'end') == [
    whole[:P]
  ]


def test_stops_are_looked_for_as_outputs_spell_them(framing, caplog):
  """Faults seen: '；' never found; a newline found at every space; nothing said
  of a string that no output can hold, or a warning of one that it can."""
  framing_lib._warn_of_stop.cache_clear()
  stops = framing.stops
  assert stops([';', '…', '；']) == (';', '…', '...', '；')
  assert stops(('ﬁ', ' the ', '  ')) == ('ﬁ', 'fi', ' the ', '  ')
  assert stops(['a\u00a0b']) == ('a\u00a0b', 'a b')
  assert stops([]) == () and not caplog.messages
  assert stops(['\n', 'a\tb', '\u3000', ';']) == ('\n', 'a\tb', '\u3000', ';')
  assert stops(['漢字']) == ('漢字',)
  first, second, third, fourth = caplog.messages
  stops(['漢字'])  # which is said once
  assert first == (
    "stop = '\\n' is in no output of this tokenizer, which has spaces for line "
    'breaks'
  )
  assert "'a\\tb'" in second and "'\\u3000' is in no output" in third
  assert fourth == "stop = '漢字' is in no output of this tokenizer"


@pytest.mark.parametrize(
  'stop, message',
  [
    (';', 'stop = .;.: expected a tuple of texts. Did you mean'),
    ([';', ''], r'stop\[1\] = .*not empty'),
    ([None], r'stop\[0\] = None: expected a text'),
    (None, 'stop = None: expected a tuple'),
    (['\ud800'], 'half of a surrogate'),
    (['a'] * 10 + ['…' * 331], 'has 1,003 bytes: expected at most 1,000'),
  ],
)
def test_what_is_no_list_of_stop_strings_is_refused(framing, stop, message):
  with pytest.raises(ValueError, match=message):
    framing.stops(stop)


@pytest.mark.parametrize('kind', ['words', 'byte_words'])
def test_a_program_stops_where_the_text_has_a_stop(request, kind, rng):
  """As soon as what is generated shows one, behind any prefix; never else.

  Faults seen: a space found that decoding drops; a stop found that began in the
  prefix; one of several bytes not found."""
  words = request.getfixturevalue(kind)
  framing = Framing(ModelConfig(vocab_size=words.size + 9, positions=16), words)
  common = words.encode('a; text <br>、。一つ') + [
    0,
    words.unk_id,
    words.clm_id,
  ]
  ids_of = lambda n: rng.choice(common, n).tolist()
  stops_of = [[';'], [' '], ['a'], ['<br>', 'b'], ['t;'], ['、'], ['つ', '一'],
              [' ⁇'], [' a', 'xt ']]  # fmt: skip
  table = framing.stop_table(('a',))
  assert (table[:, words.size :] == np.arange(len(table))[:, None])[:2].all()
  found = 0
  for _ in range(600):
    stops = framing.stops(stops_of[rng.integers(len(stops_of))])
    table = framing.stop_table(stops)
    prefix, ids = ids_of(rng.integers(0, 3)), ids_of(rng.integers(1, 9))
    state = int((table[0, prefix] > 0).any())
    for n in range(1, len(ids) + 1):
      state = table[state, ids[n - 1]]
      text = words.decode_parts(prefix, ids[:n])[1]
      has = any(stop in text for stop in stops)
      assert (state == len(table) - 1) == has, (stops, prefix, ids[:n])
      found += has
      if has:
        break
  assert found > 100


def test_a_model_without_a_tokenizer_reads_ids_alone():
  bare = Framing(ModelConfig(vocab_size=96), None)
  assert bare.inputs([[3, 4]], 'clm') == [[3, 4]]
  assert bare.stop_table(()) is None
  for wrong, message in (
    (lambda: bare.inputs(['a'], 'clm'), 'no tokenizer: give input 0 as ids'),
    (lambda: bare.prefixes(['a'], 1), 'no tokenizer: give prefix 0 as ids'),
    (lambda: bare.stops(['a']), 'no tokenizer: stop strings need one'),
    (lambda: bare.inputs([[3], [96]], 'clm'), 'input 1 has the id 96'),
  ):
    with pytest.raises(ValueError, match=message):
      wrong()


def test_a_forced_token_begins_outputs_of_a_model_without_tokenizer():
  """As transformers: it counts as written, and a prefix takes its place."""
  config = ModelConfig(
    vocab_size=32, d_model=8, encoder_heads=2, decoder_heads=2
  )
  framing = Framing(config, None, 12)
  starts = framing.prefixes(None, 2)
  assert starts == [[config.start_id, 12]] * 2
  assert framing.list_forced(starts, None, [None, None]) == [1, 1]
  given = framing.prefixes([[17], []], 2)
  assert given == [[config.start_id, 17], [config.start_id]]
  assert framing.list_forced(given, None, [None, None]) == [0, 0]
