"""The page of a server: what its text holds, and in a browser what it does."""

import base64
import hashlib
import re

from atm.data import languages
from atm.serve import page


def test_the_page_needs_no_other_file_and_writes_no_markup():
  text = page.page()
  addresses = {*re.findall(r'https?://[^\s\'"]+', text)}
  assert addresses == {'http://www.w3.org/2000/svg'}  # a name, never asked
  writers = 'innerHTML', 'outerHTML', 'insertAdjacent', 'document.write'
  assert not [x for x in (*writers, 'eval(', ' style="') if x in text]
  assert not re.search(r' on\w+="|\burl\(|@import|<script .*src=', text)


def test_only_its_own_script_and_style_run():
  policy, text = page.page_policy(), page.page()
  (script,) = re.findall(r'<script>(.*?)</script>', text, re.S)
  digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
  assert f"script-src 'sha256-{digest}';" in policy
  assert policy.startswith("default-src 'none';") and 'unsafe' not in policy


def test_it_has_examples_in_every_language_of_the_paper():
  (table,) = re.findall(r'^const TEXTS = {\n(.*?)^};', page.page(), re.M | re.S)
  assert {*re.findall(r'^  (\w\w): \[', table, re.M)} == {*languages.LANGUAGES}
