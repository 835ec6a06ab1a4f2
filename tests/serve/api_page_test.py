"""The page of the OpenAPI schema."""

import html
import re

from atm.serve import api_page


def test_the_page_tells_every_field_and_needs_nothing_else(client):
  answer = client.get('/docs')
  assert answer.headers['content-type'].startswith('text/html')
  text, schema = answer.text, client.get('/openapi.json').json()
  for path in schema['paths']:
    assert html.escape(path) in text
  for name, kind in schema['components']['schemas'].items():
    assert f'id="{name}"' in text
    for field, about in kind.get('properties', {}).items():
      assert f'<code>{field}</code>' in text
      assert html.escape(about['description']) in text
  names = set(re.findall(r'id="(\w+)"', text))
  assert set(re.findall(r'href="#(\w+)"', text)) <= names
  assert not re.search(r'<script|https?://|url\(|@import', text)
  assert "default-src 'none'" in answer.headers['content-security-policy']


def test_what_a_schema_holds_is_no_markup():
  schema = {
    'info': {'title': '<b>', 'version': '1'},
    'paths': {'/<i>': {'get': {'description': '<u>'}}},
    'components': {'schemas': {}},
  }
  assert not re.search('<[biu]>', api_page.render_schema(schema))
