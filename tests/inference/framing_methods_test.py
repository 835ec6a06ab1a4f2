"""What a model reads and writes for texts, as its methods tell it."""

import pytest


def test_ids_are_those_that_are_read_and_written(model):
  words, end = model.vocabulary, model.config.end_id
  text = 'born free'
  assert model.languages == ()
  assert model.ids([text]) == [model.encode(text)] == model.ids([text], 'clm')
  assert model.framed(words.encode(text)) == model.encode(text, 'clm')
  assert model.target_ids([text, [5, 6]]) == [
    [*words.encode(text), end],
    [5, 6],
  ]


@pytest.mark.parametrize(
  'call',
  [
    lambda model, de: model.ids(['a'], source=de),
    lambda model, de: model.target_ids(['a'], target=de),
    lambda model, de: model.encode('a', source=de),
    lambda model, de: model.framed([5], source=de),
    lambda model, de: model.generate(['a'], source=de),
    lambda model, de: model.generate(['a'], target=de),
    lambda model, de: model.complete([[5]], target=[de]),
    lambda model, de: model.stream('a', target=de),
    lambda model, de: model.score(['a'], ['b'], source=de),
    lambda model, de: model.likelihoods(['a'], ['b'], target=[de]),
  ],
)
def test_languages_are_refused_where_a_model_has_none(model, call):
  with pytest.raises(
    ValueError, match="= 'de': this model has no language codes"
  ):
    call(model, 'de')
