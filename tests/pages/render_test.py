"""Templates: all escape, none guesses, and a page is written whole."""

import itertools
import os
import re

import jinja2
import numpy as np
import pytest

from atm.pages import render, train_summary

from synthetic import EVIL, Page

HERE = os.path.dirname(render.__file__)
# The others are Markdown, which has filters of its own.
TEMPLATES = sorted(
  name for name in os.listdir(f'{HERE}/templates') if '.html' in name
)


@pytest.mark.parametrize('name', TEMPLATES)
def test_templates_compile_and_trust_no_text(name):
  """Nothing is marked as safe: `plots.draw_svg` marks what is."""
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


def test_signs_in_texts_are_explained_where_there_are_any():
  """Fault seen: '⁇' for unknown characters, which looks like two of '?'."""
  assert render.explain_signs(['a ?? b', '']) == []
  ((sign, meaning),) = render.explain_signs(['a', 'b ⁇'])
  assert sign == '⁇' and 'vocabulary lacks' in meaning


def test_colours_that_tell_apart_differ_for_the_colour_blind():
  """Faults seen: blue and violet lines, green and red differences."""
  with open(f'{HERE}/style.css', encoding='utf-8') as f:
    sheet = f.read()
  light, dark = (
    dict(re.findall(r'--(denoise|clm|pair|paper): (#\w+)', part))
    for part in sheet.split('prefers-color-scheme')[:2]
  )
  for colours in (light, dark):
    paper = colours.pop('paper')
    for one, other in itertools.combinations(colours.values(), 2):
      assert least_distance(one, other) > 20
    assert all(contrast(colour, paper) > 4.5 for colour in colours.values())
  assert train_summary.PNG_COLOURS == light


# Linear RGB as the colour-blind see it (Machado et al., 2009, severity 1).
SEEN_AS = [
  np.eye(3),
  [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
   [-0.003882, -0.048116, 1.051998]],
  [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
   [-0.011820, 0.042940, 0.968881]],
  [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
   [0.004733, 0.691367, 0.303900]],
]  # fmt: skip
TO_XYZ = [
  [0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]
]  # fmt: skip


def linear_rgb(colour):
  values = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
  return np.array([
    v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values
  ])  # fmt: skip


def least_distance(one, other):
  """The least distance in CIELAB of two colours, over kinds of vision."""

  def lab(colour, vision):
    xyz = TO_XYZ @ np.clip(vision @ linear_rgb(colour), 0, 1)
    xyz = xyz / [0.9505, 1, 1.089]
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])

  return min(
    np.linalg.norm(lab(one, np.array(v)) - lab(other, np.array(v)))
    for v in SEEN_AS
  )


def contrast(one, other):
  dark, light = sorted(TO_XYZ[1] @ linear_rgb(c) + 0.05 for c in (one, other))
  return light / dark


def test_groups_stand_in_the_order_of_their_first_items():
  groups = render.group_by(['b1', 'a1', 'b2'], lambda item: item[0])
  assert list(groups.items()) == [('b', ['b1', 'b2']), ('a', ['a1'])]
