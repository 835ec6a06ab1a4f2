"""The page at `/` of a server: one file, which asks that server alone."""

import base64
import functools
import hashlib
import os
import re

_FILE = os.path.join(os.path.dirname(__file__), 'page.html')


@functools.cache
def page() -> str:
  """Returns the page's HTML, the same for every model and address."""
  with open(_FILE, encoding='utf-8') as f:
    return f.read()


@functools.cache
def page_policy() -> str:
  """Returns the page's Content-Security-Policy, to be sent as that header.

  Only the page's own script and style run, known by their hashes; it may ask
  the server that it came from, and be shown in no other page.
  """
  parts = {'script': "'none'", 'style': "'none'"}
  for tag, text in re.findall(r'<(script|style)>(.*?)</\1>', page(), re.S):
    digest = hashlib.sha256(text.encode()).digest()
    parts[tag] = f"'sha256-{base64.b64encode(digest).decode()}'"
  return (
    f"default-src 'none'; script-src {parts['script']}; "
    f"style-src {parts['style']}; img-src data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
  )
