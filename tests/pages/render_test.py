"""Templates: all escape, none guesses, and a page is written whole."""

import os
import re

import jinja2
import pytest

from atm.pages import render

from synthetic import EVIL, Page

HERE = os.path.dirname(render.__file__)
TEMPLATES = sorted(os.listdir(f'{HERE}/templates'))


@pytest.mark.parametrize('name', TEMPLATES)
def test_templates_compile_and_trust_no_text(name):
  """Nothing is marked as safe: `figures.draw_svg` marks what is."""
  environment = render.environment()
  assert environment.autoescape is True
  environment.get_template(name)
  source, _, _ = environment.loader.get_source(environment, name)
  assert not re.search(r'\|\s*safe\b|autoescape|Markup|<script|http', source)


def test_the_frame_escapes_and_holds_the_one_style_sheet():
  page = render.render('page', {'name': EVIL, 'kind': 'a test'})
  read = Page(page)
  assert 'script' not in {tag for tag, _ in read.elements}
  assert read.text.count(EVIL) == 2  # the title and the heading
  with open(f'{HERE}/style.css', encoding='utf-8') as f:
    assert f.read().strip() in page


def test_a_name_that_is_not_given_is_an_error_and_changes_no_page(tmp_path):
  path = str(tmp_path / 'a.html')
  render.write_page(path, 'page', {'name': 'a', 'kind': 'b'})
  with pytest.raises(jinja2.UndefinedError, match='kind'):
    render.write_page(path, 'page', {'name': 'c'})
  with open(path, encoding='utf-8') as f:
    assert '<title>a: b</title>' in f.read()
  assert os.listdir(tmp_path) == ['a.html']


def test_groups_stand_in_the_order_of_their_first_items():
  groups = render.group_by(['b1', 'a1', 'b2'], lambda item: item[0])
  assert list(groups.items()) == [('b', ['b1', 'b2']), ('a', ['a1'])]
