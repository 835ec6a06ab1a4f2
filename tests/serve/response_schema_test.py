"""Bodies of responses are documented."""

import pydantic

from atm.serve import response_schema


def test_every_field_is_described():
  for kind in vars(response_schema).values():
    if isinstance(kind, type) and issubclass(kind, pydantic.BaseModel):
      for name, field in kind.model_fields.items():
        assert field.description, (kind, name)
