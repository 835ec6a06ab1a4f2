"""The paper's prompts as methods of a model."""


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
