"""Prompts are written as the authors write them, and answers found again."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atm.data import languages
from atm.inference import prompts
from atm.inference.prompts import TEMPLATES, build_prompt, extract_answer

# For each template: two examples, the query of each as it must be written, and
# what stands between shots.
GOLDEN = {
  'summary': (
    dict(document='It rained.', summary='Rain'),
    dict(document='Es schneite.', summary='Schnee'),
    'Article: It rained. ==> Short summary:',
    'Article: Es schneite. ==> Short summary:',
    ' <br><br><br> ',
  ),
  'translation': (
    dict(sentence='Guten Tag.', language='English', translation='Hello.'),
    dict(sentence='नमस्ते।', language='mr', translation='नमस्कार.'),
    'Sentence: Guten Tag.; Translation in English:',
    'Sentence: नमस्ते।; Translation in Marathi:',
    '; ',
  ),
  'data_to_text': (
    dict(data='name[Aromi], area[city]', text='Aromi is in the city.'),
    dict(data='name[{data}], food[%s]', text='Odd {text}.'),
    'name[Aromi], area[city] ==> sentence describing the place:',
    'name[{data}], food[%s] ==> sentence describing the place:',
    ' ; ',
  ),
  'squadv2': (
    dict(context='Tea is hot.', question='What is hot?', answer='Tea'),
    dict(context='Who is Ada?', question='Who asks?', answer='nobody'),
    'Context: Tea is hot. Question: What is the last word in the passage? '
    'Answer: hot; Question: What is hot? Answer:',
    'Context: Who is Ada? Question: What is the last word in the passage? '
    'Answer: Ada; Question: Who asks? Answer:',
    '; ',
  ),
  'nli': (
    dict(premise='He sleeps.', hypothesis='he is awake', answer='False'),
    dict(premise='She runs.', hypothesis='she is late', answer='Neither'),
    'Context: He sleeps. <br> '
    'Question: Is this passage written in English? <br> '
    'Answer (True, False, or Neither): True <br> '
    'Question: Is this passage written in French? <br> '
    'Answer (True, False, or Neither): False <br> '
    'Question: he is awake <br> Answer (True, False, or Neither):',
    'Context: She runs. <br> '
    'Question: Is this passage written in English? <br> '
    'Answer (True, False, or Neither): True <br> '
    'Question: Is this passage written in French? <br> '
    'Answer (True, False, or Neither): False <br> '
    'Question: she is late <br> Answer (True, False, or Neither):',
    ' <br> ',
  ),
}
names = pytest.mark.parametrize('name', TEMPLATES)
# Any text, and texts of what prompts themselves are made of.
parts = [t.cue for t in TEMPLATES.values()]
parts += [
  'Translation in English:',
  ';',
  '<br>',
  '{',
  '}',
  ' ',
  '\n',
  'a',
  '語',
]
texts = (
  st.text(max_size=30)
  | st.lists(st.sampled_from(parts), max_size=6).map(''.join)
).filter(str.strip)


@names
def test_prompts_are_written_as_the_authors_write_them(name):
  """Faults seen: shots reversed, or without what stands between; no space
  before an answer; another delimiter; a dummy answer changed; the last word
  with its question mark; a code not made a name.
  """
  first, second, query, other, between = GOLDEN[name]
  template = prompts.find_template(name)
  answers = first[template.answer], second[template.answer]
  assert build_prompt(template, first) == query
  one = f'{query} {answers[0]}{between}{other}'
  assert build_prompt(template, second, [first]) == one
  two = f'{query} {answers[0]}{between}{other} {answers[1]}{between}{query}'
  assert build_prompt(template, first, [first, second]) == two


def test_the_papers_shapes():
  summary = build_prompt(
    prompts.SUMMARY,
    {'document': 'B'},
    [{'document': 'A', 'summary': 'a'}],
  )
  assert summary == (
    'Article: A ==> Short summary: a <br><br><br> Article: B ==> Short summary:'
  )
  shot = {'sentence': 'Un', 'language': 'de', 'translation': 'Eins'}
  query = {'sentence': 'Deux', 'language': 'German'}
  assert build_prompt(prompts.TRANSLATION, query, [shot]) == (
    'Sentence: Un; Translation in German: Eins; '
    'Sentence: Deux; Translation in German:'
  )
  assert prompts.NLI.choices == ('True', 'False', 'Neither')


def test_fields_are_on_one_line():
  """Fault seen: only the ends stripped."""
  query = {'document': ' One.\n\n Two\tthree. \u3000四。\n'}
  written = 'Article: One. Two three. 四。 ==> Short summary:'
  assert build_prompt(prompts.SUMMARY, query) == written


def test_an_answer_given_with_a_query_is_not_written():
  """Fault seen: written where there is one."""
  query = {'document': 'It rained.', 'summary': 'secret'}
  assert 'secret' not in build_prompt(prompts.SUMMARY, query)


def test_what_is_wrong_with_an_example_is_said():
  """Faults seen: unknown fields pass; blank ones; bytes."""
  summary = prompts.SUMMARY
  with pytest.raises(ValueError, match="'documnt'. Did you mean 'document'?"):
    build_prompt(summary, {'documnt': 'x'})
  lacks = "'summary' of template 'summary' is None.* fields: document, summary"
  with pytest.raises(ValueError, match=lacks):
    build_prompt(summary, {'document': 'x'}, [{'document': 'x'}])
  for blank in ('', ' \n', None, b'x', 3):
    with pytest.raises(ValueError, match="field 'document'.*: expected text"):
      build_prompt(summary, {'document': blank})
  with pytest.raises(ValueError, match="'last_word'"):
    build_prompt(
      prompts.SQUADV2, {'context': 'x', 'question': 'y', 'last_word': 'z'}
    )


def test_unknown_names_get_the_nearest():
  """Faults seen: the name, the mode or the language unchecked."""
  with pytest.raises(ValueError, match="'sumary'. Did you mean 'summary'?"):
    prompts.find_template('sumary')
  with pytest.raises(ValueError, match="'german'. Did you mean 'German'?"):
    languages.check_language('german')
  with pytest.raises(ValueError, match="'denoising'. Did you mean 'denoise'?"):
    extract_answer(prompts.SUMMARY, '', 'denoising')
  query = {'sentence': 'x', 'language': 'Klingon'}
  with pytest.raises(ValueError, match="language = 'Klingon'"):
    build_prompt(prompts.TRANSLATION, query)


# --- Answers


def example(template, draw):
  """Random fields of an example; languages are real ones."""
  fields = {name: draw(texts) for name in template.fields}
  if 'language' in fields:
    fields['language'] = draw(st.sampled_from(sorted(languages.LANGUAGES)))
  return fields


def expected(template, text):
  """What can be had of an answer: its first line, up to the delimiter."""
  return ' '.join(text.split()).split(template.cut)[0].strip()


@names
@given(data=st.data(), k=st.integers(0, 2))
def test_an_answer_is_found_again_in_both_modes(name, data, k):
  """Whatever the texts: an answer with the delimiter in it is cut there.

  Faults seen: behind the first cue; the last; split at all cues; a cue without
  its language; not cut, cut at the last delimiter, at another template's; not
  stripped; the output's or the prompt's whitespace kept.
  """
  template = prompts.find_template(name)
  shots = [
    {**example(template, data.draw), template.answer: data.draw(texts)}
    for _ in range(k)
  ]
  query = example(template, data.draw)
  text = data.draw(texts)
  asked = build_prompt(template, query, shots)
  behind = template.between + build_prompt(
    template, query
  )  # a model that goes on
  assert extract_answer(template, f' {text}{behind}') == expected(
    template, text
  )
  whole = f'{asked} {text}{behind}'.replace(' ', '  ')
  for same in (asked, asked.replace(' ', ' \n')):
    found = extract_answer(template, whole, 'denoise', same)
    assert found == expected(template, text)


@names
def test_the_answer_of_a_shot_is_not_taken_for_the_querys(name):
  """Fault seen: what stands behind the last of too few cues is taken."""
  first, second, *_ = GOLDEN[name]
  template = prompts.find_template(name)
  # Both in one language, so that both have the same cue.
  shot = {**first, **({'language': 'mr'} if 'language' in first else {})}
  asked = build_prompt(template, second, [shot])
  good = extract_answer(template, asked + ' good', 'denoise', asked)
  assert good == 'good'
  assert extract_answer(template, asked, 'denoise', asked) == ''
  assert extract_answer(template, asked[:-1], 'denoise', asked) == ''
  assert extract_answer(template, '', 'denoise', asked) == ''


def test_cues_and_delimiters_are_found_as_a_tokenizer_writes_them():
  """Faults seen: no answer behind a full-width cue; a document that holds the
  cue in other characters counts as none, and its rest as the answer."""
  japanese = prompts.Template(
    'x', '文書：{document}；', '要約：', 'summary', '；', '；'
  )
  asked = build_prompt(japanese, {'document': '雨が降った'})
  for write in (str, lambda text: unicodedata.normalize('NFKC', text)):
    output = write(asked + ' 雨；文書：')
    assert extract_answer(japanese, output, 'denoise', asked) == '雨'
    assert extract_answer(japanese, write('雨；文書：')) == '雨'
  odd = build_prompt(prompts.SUMMARY, {'document': 'Short ｓummary： no'})
  output = unicodedata.normalize('NFKC', odd + ' good <br>')
  assert extract_answer(prompts.SUMMARY, output, 'denoise', odd) == 'good'


def test_an_answer_is_cut_out_of_a_prompt_that_changed_a_little():
  asked = build_prompt(
    prompts.TRANSLATION, {'sentence': 'Un deux', 'language': 'en'}
  )
  output = 'Sentence: Un, deux ; Translation in English: One two; Sentence: x'
  assert (
    extract_answer(prompts.TRANSLATION, output, 'denoise', asked) == 'One two'
  )
  other = output.replace('English', 'French')
  assert extract_answer(prompts.TRANSLATION, other, 'denoise', asked) == ''


def test_denoising_needs_the_prompt():
  """Fault seen: a prompt of another template passes."""
  with pytest.raises(ValueError, match="expected one of template 'summary'"):
    extract_answer(prompts.SUMMARY, 'x', 'denoise')


def test_an_answer_ends_at_the_delimiter():
  assert extract_answer(prompts.TRANSLATION, ' a; b; c') == 'a'
  assert extract_answer(prompts.TRANSLATION, ' ein Satz.\n') == 'ein Satz.'
  assert (
    extract_answer(prompts.SUMMARY, ' a; b <br><br><br> Article:') == 'a; b'
  )
  assert extract_answer(prompts.NLI, ' True <br> Question: x') == 'True'
  assert extract_answer(prompts.SUMMARY, '<br> a') == ''


# --- Documents and shots


def cut(text, limit):
  """cut_document where each character is a token."""
  return prompts.cut_document(text, list, ''.join, limit)


@pytest.mark.parametrize(
  'whole, rest',
  [
    ('Tea is hot.', ' Ice is c'),  # en, de, es, fr, it, pt, mr, ta, te
    ('“Is it?”', ' he as'),
    ('(It is!)', ' Pi is 3.14 a'),
    ('Yes…', ' I met J. Sm'),
    ('お茶は熱い。', '氷は'),
    ('「熱い！」', '氷は'),
    ('熱い!', '氷は'),
    ('चाय गरम है।', ' बर्फ'),
    ('هل هو حار؟', ' نعم'),
    ('یہ گرم ہے۔', ' برف'),
  ],
)
def test_a_cut_document_loses_the_sentence_that_broke(whole, rest):
  """Faults seen: a full stop needs no space; an initial ends a sentence; what
  closes is lost; no danda, no Arabic marks, no full stop in Japanese; the last
  sentence lost though whole.
  """
  text = whole + rest + ' and so on. The end.'
  assert cut(text, len(whole + rest)) == whole
  assert cut(text, len(whole)) == whole


def test_a_document_is_cut_only_where_it_is_too_long():
  """Faults seen: one of `limit` tokens is cut; a token too many is kept; 512
  for 550; nothing left where no sentence ends.
  """
  text = ' An a.  b\n c'
  assert cut(text, len(text)) == text
  assert cut('no sentence ends', 5) == 'no se'
  ids = []
  prompts.cut_document('x' * 600, list, lambda kept: ids.extend(kept) or '')
  assert len(ids) == 550


def test_a_cut_document_goes_through_a_tokenizer(words):
  """Fault seen: only the first sentence is kept."""
  text = 'Everyone has the right to life. ' * 200
  kept = prompts.cut_document(text, words.encode, words.decode)
  assert kept.endswith(' life.') and text.startswith(kept)
  assert len(words.encode(kept)) <= 550 < len(words.encode(kept + text[:70]))


def test_shots_are_the_first_short_documents():
  """Faults seen: 192 words pass; characters counted; too few pass."""
  long, short = 'word ' * 192, 'word ' * 191
  documents = [{'document': text} for text in (long, short, long, 'a', 'b')]
  assert prompts.choose_shots(iter(documents)) == [documents[1]]
  assert prompts.choose_shots(documents, 2) == [documents[1], documents[3]]
  assert prompts.choose_shots(documents, 0) == []
  with pytest.raises(ValueError, match='k = 4: 3 of the examples'):
    prompts.choose_shots(documents, 4)


def test_arguments_are_named():
  """Fault seen: AttributeErrors, of None say."""
  summary = prompts.SUMMARY
  for call, name in (
    (lambda: prompts.extract_answer(summary, None), 'output'),
    (lambda: prompts.extract_answer(summary, 'a', 'denoise', 5), 'prompt'),
    (lambda: prompts.extract_answer('summary', 'a'), 'template'),
    (lambda: prompts.build_prompt('summary', {}), 'template'),
    (lambda: prompts.build_prompt(summary, 'x'), 'a query'),
    (lambda: prompts.build_prompt(summary, {'document': 'x'}, 5), 'shots'),
    (lambda: prompts.cut_document(b'x', list, list), 'text'),
    (lambda: prompts.cut_document('x', list, list, 0), 'limit'),
    (lambda: prompts.choose_shots([{'document': 'x'}], -1), 'k'),
    (lambda: prompts.choose_shots([{'document': 'x'}], 1, 'y'), "'y' of an"),
    (lambda: prompts.choose_shots(['x']), 'an example'),
  ):
    with pytest.raises(ValueError, match=f'^{name} .*expected'):
      call()
