"""The paper's prompts as methods of a model."""

import pytest


def test_few_shot_helpers_write_the_paper_s_prompts(model, monkeypatch):
  seen = []

  def generate(texts, mode, **options):
    seen.append((texts, mode, options))
    return [' eins ; zwei'] * len(texts)

  monkeypatch.setattr(model, 'generate', generate)
  made = model.translate(['one'], 'de', [('two', 'zwei')], max_tokens=9)
  assert made == ['eins']
  ((texts, mode, options),) = seen
  assert texts == [
    'Sentence: two; Translation in German: zwei; '
    'Sentence: one; Translation in German:'
  ]
  assert mode == 'clm' and options == {'stop': [';'], 'max_tokens': 9}
  model.summarize(['A text.'], [('Another.', 'That.')])
  assert seen[1][0] == [
    'Article: Another. ==> Short summary: That. <br><br><br> '
    'Article: A text. ==> Short summary:'
  ]


def test_a_long_prompt_keeps_its_query_and_cue(model):
  """In 'denoise' answers stand behind the cues that were read, not all.

  Faults seen: no way to ask; the answer of a cut prompt always ''.
  """
  shots = [('All human beings are born free and equal. ' * 4, 'zwei')]
  query = ['Everyone has the right to life, liberty and security. ' * 2]
  for mode in ('clm', 'denoise'):
    with pytest.raises(ValueError, match="truncate='start' or 'end' cuts"):
      model.translate(query, 'de', shots, mode)
    with pytest.raises(ValueError, match="expected 'refuse' or 'start'"):
      model.translate(query, 'de', shots, mode, truncate='end')
  seen = []

  def outputs(self, rows, mode, **options):
    seen.extend(rows)
    return ['Sentence: a; Translation in German: eins; '] * len(rows)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(type(model), 'generate', outputs)
    assert model.translate(query, 'de', shots, 'denoise') == ['eins']
    assert model.translate(['a'], 'de', [('a', 'b')], 'denoise') == ['']
  (ids,) = model.ids(seen[:1], 'denoise', truncate='start')
  text = model.vocabulary.decode(ids[1:-1])
  assert text.count('Translation in German:') == 1
  assert text.endswith('security.; Translation in German:')
