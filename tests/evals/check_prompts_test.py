"""Prompts of `atm check`: which texts a model is compared on."""

import numpy as np

from atm.data.input_format import InputFormat
from atm.evals import check_prompts
from tests.model_languages import M2M_100, MBART25, NLLB

import conftest


def test_a_model_reads_the_sentences_of_its_languages():
  texts = check_prompts.choose_texts(NLLB)
  computed = [x for x in texts if x[3]]
  assert len(computed) == len(check_prompts.SENTENCES)
  assert computed[0][:3] == (
    check_prompts.SENTENCES['en'], 'eng_Latn', 'deu_Latn'
  )  # fmt: skip
  sources, targets = [x[1] for x in computed], [x[2] for x in computed]
  assert sorted(sources) == sorted(targets)  # each once
  assert all(a != b for a, b in zip(sources, targets))
  ids_alone = [x for x in texts if not x[3]]
  assert [x[0] for x in ids_alone] == [*check_prompts.SPECIAL_TEXTS]
  assert {x[1:3] for x in ids_alone} == {('eng_Latn', 'deu_Latn')}
  assert ('ta' in M2M_100) and ('ta_IN' not in MBART25)
  tamil = check_prompts.SENTENCES['ta']
  assert tamil in [x[0] for x in check_prompts.choose_texts(M2M_100)]
  assert tamil not in [x[0] for x in check_prompts.choose_texts(MBART25)]


def test_a_model_without_languages_reads_all():
  texts = check_prompts.choose_texts(())
  assert {x[1:3] for x in texts} == {(None, None)}
  assert len(texts) == 24 and sum(x[3] for x in texts) == 12


def test_prompts_without_a_tokenizer_are_ids_that_fit():
  config = conftest.tiny(vocab_size=40, positions=9)
  prompts = check_prompts.list_prompts(config, None, limit=3)
  assert sum(p.computed for p in prompts) == 3
  special = {config.pad_id, config.start_id, config.end_id}
  for prompt in prompts:
    *ids, end = prompt.ids
    assert prompt.text is prompt.source is None and end == config.end_id
    assert 1 <= len(ids) < 9 and max(ids) < 40 and not special & {*ids}
  assert len({tuple(p.ids) for p in prompts}) == len(prompts)


class Letters:
  """A tokenizer of letters, with two languages."""

  languages = {'en': 1, 'de': 2}
  input_format = InputFormat('m2m_100', eos_id=0, languages=languages)

  def encode(self, text):
    return [3 + ord(c) % 7 for c in text]


def test_sentences_are_shortened_to_the_positions():
  config = conftest.tiny(positions=20)
  prompts = check_prompts.list_prompts(config, Letters())
  lengths = np.array([len(p.ids) for p in prompts if p.computed])
  assert lengths.max() <= 20 and lengths.min() > 8
  first = prompts[0]
  assert first.ids[0] == 1 and first.ids[-1] == 0 and first.target == 'de'
  assert check_prompts.SENTENCES['en'].startswith(first.text)
  long = [p for p in prompts if not p.computed]
  assert [p.text for p in long] == [*check_prompts.SPECIAL_TEXTS]  # as they are
