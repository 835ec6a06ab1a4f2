"""The page at `/` of a server: one file, which asks that server alone."""

import base64
import functools
import hashlib
import os


def _read(ending: str) -> str:
  """Returns the text of page.ENDING, which lies beside this module."""
  path = os.path.join(os.path.dirname(__file__), f'page.{ending}')
  with open(path, encoding='utf-8') as f:
    return f.read()


@functools.cache
def page() -> str:
  """Returns the page's HTML, the same for every model and address."""
  text = _read('html')
  for tag, ending in (('style', 'css'), ('script', 'js')):
    text = text.replace(f'<{tag}></{tag}>', f'<{tag}>{_read(ending)}</{tag}>')
  return text


@functools.cache
def page_policy() -> str:
  """Returns the page's Content-Security-Policy, to be sent as that header.

  Only the page's own script and style run, known by their hashes; it may ask
  the server that it came from, and be shown in no other page.
  """
  digests = (hashlib.sha256(_read(x).encode()).digest() for x in ('js', 'css'))
  script, style = (base64.b64encode(x).decode() for x in digests)
  return (
    f"default-src 'none'; script-src 'sha256-{script}'; "
    f"style-src 'sha256-{style}'; img-src data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
  )
