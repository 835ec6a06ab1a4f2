"""Bodies of requests: which values have which types."""

import pydantic
import pytest

from atm.serve.request_schema import CompletionRequest


@pytest.mark.parametrize(
  'prompt', ['', 'a', ['a', ''], [1, 2], [[1], [2, 3]], ['\ud800']]
)
def test_prompts_are_taken_as_they_are(prompt):
  assert CompletionRequest.model_validate({'prompt': prompt}).prompt == prompt


@pytest.mark.parametrize(
  'prompt', [None, 1, True, [], [True], [1, 'a'], [[]], [['a']], {}, [1.0]]
)
def test_other_prompts_are_refused(prompt):
  with pytest.raises(pydantic.ValidationError, match='expected a text'):
    CompletionRequest.model_validate({'prompt': prompt})


def test_every_field_is_described():
  schema = CompletionRequest.model_json_schema()
  kinds = [schema, *schema['$defs'].values()]
  for kind in kinds:
    assert kind['additionalProperties'] is False
    for name, field in kind['properties'].items():
      assert field.get('description'), name


def test_a_field_that_changes_nothing_is_taken_with_its_neutral_value_alone():
  read = lambda **x: CompletionRequest.model_validate({'prompt': '', **x})
  read(frequency_penalty=0, suffix='', skip_special_tokens=True)
  for wrong in (
    dict(frequency_penalty=0.5), dict(frequency_penalty=False),
    dict(suffix='a'), dict(skip_special_tokens=False), dict(logit_bias={'': 1}),
  ):  # fmt: skip
    with pytest.raises(pydantic.ValidationError, match='leave it out'):
      read(**wrong)
