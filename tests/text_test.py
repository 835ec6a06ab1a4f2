import pytest

from atm_tasks.text import spoken


@pytest.mark.parametrize(
  'written, expected',
  [
    ('Hello, World!', 'hello world'),
    ("It's 3.5 -- or so?", 'it s 3 5 or so'),
    ('¿Qué? «Sí»', 'qué sí'),
    ('सभी मनुष्यों को, गौरव।', 'सभी मनुष्यों को गौरव'),
    ('すべての人間は、自由。', 'すべての人間は 自由'),
    ('ÜBER Straße', 'über straße'),
    ('...', ''),
  ],
)
def test_spoken_form(written, expected):
  assert spoken(written) == expected
  assert spoken(spoken(written)) == spoken(written)
