"""The page at /docs: the OpenAPI schema as HTML, without script or network."""

import base64
import hashlib
import html

_STYLE = """
:root { color-scheme: light dark; --line: light-dark(#e4e1db, #33373e);
  --soft: light-dark(#5b626c, #a4abb5); --card: light-dark(#f4f2ee, #1d2025) }
body { margin: 0 auto; max-width: 60rem; padding: 1rem 1.25rem 4rem;
  background: light-dark(#fcfbf9, #16181c); color: light-dark(#1f2328, #e4e3df);
  font: 1rem/1.5 system-ui, 'Noto Sans', sans-serif; overflow-wrap: anywhere }
code { font-size: .9em; background: var(--card); padding: .1em .3em;
  border-radius: .25em }
section { border-top: 1px solid var(--line); margin-top: 1.5rem }
table { border-collapse: collapse; width: 100%; display: block;
  overflow-x: auto }
th, td { text-align: start; vertical-align: top;
  padding: .35rem .75rem .35rem 0; border-bottom: 1px solid var(--line) }
td:nth-child(2) { color: var(--soft); min-width: 8rem }
td:last-child { min-width: 16rem }
.tag { color: var(--soft) }
"""
_DIGEST = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
API_POLICY = (
  f"default-src 'none'; style-src 'sha256-{_DIGEST}'; base-uri 'none'; "
  "form-action 'none'; frame-ancestors 'none'"
)


def render_schema(schema: dict) -> str:
  """Returns an OpenAPI schema as a page of HTML."""
  title = html.escape(f'{schema["info"]["title"]} {schema["info"]["version"]}')
  parts = [
    f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
    f'<meta name="viewport" content="width=device-width"><title>{title}</title>'
    f'<style>{_STYLE}</style></head><body><h1>{title}</h1>'
    '<p>Bodies are JSON. With an API key, requests bear the header '
    '<code>Authorization: Bearer KEY</code>. The schema itself: '
    '<a href="openapi.json">openapi.json</a>.</p>'
  ]
  for path, methods in schema['paths'].items():
    for method, about in methods.items():
      parts.append(_render_path(method, path, about))
  for name, kind in sorted(schema['components']['schemas'].items()):
    parts.append(_render_kind(name, kind))
  return ''.join([*parts, '</body></html>'])


def _render_path(method: str, path: str, about: dict) -> str:
  """Returns a section about a path."""
  text = html.escape(about.get('description', ''))
  read = about.get('requestBody', {})
  answers = [
    f'{html.escape(status)}: {types}'
    for status, answer in about.get('responses', {}).items()
    if (types := _name_types(answer))
  ]
  return (
    f'<section><h2><code>{method.upper()} {html.escape(path)}</code></h2>'
    f'<p>{text}</p><p class="tag">'
    + (f'Reads {_name_types(read)}. ' if read else '')
    + (f'Answers {", ".join(answers)}.' if answers else '')
    + '</p></section>'
  )


def _name_types(holder: dict) -> str:
  """Returns the types of a body, with links to them."""
  return ' or '.join(
    f'{_name_type(x["schema"])} ({html.escape(media)})'
    for media, x in holder.get('content', {}).items()
    if x.get('schema')
  )


def _render_kind(name: str, kind: dict) -> str:
  """Returns a section about a kind of object, with a table of its fields."""
  required = kind.get('required', ())
  lines = [
    f'<tr><td><code>{html.escape(field)}</code></td><td>{_name_type(about)}'
    f'{", required" if field in required else ""}</td>'
    f'<td>{html.escape(about.get("description", ""))}</td></tr>'
    for field, about in kind.get('properties', {}).items()
  ]
  text = html.escape(kind.get('description', ''))
  name = html.escape(name)
  return (
    f'<section id="{name}"><h2>{name}</h2><p>{text}</p>'
    '<table><thead><tr><th>Field</th><th>Type</th><th>Meaning</th></tr></thead>'
    f'<tbody>{"".join(lines)}</tbody></table></section>'
  )


def _name_type(about: dict) -> str:
  """Returns the name of a field's type."""
  if '$ref' in about:
    name = html.escape(about['$ref'].rpartition('/')[2])
    return f'<a href="#{name}">{name}</a>'
  for word in ('anyOf', 'oneOf'):
    if word in about:
      return ' or '.join(map(_name_type, about[word]))
  if 'enum' in about:
    return ' or '.join(html.escape(repr(x)) for x in about['enum'])
  if 'const' in about:
    return html.escape(repr(about['const']))
  if about.get('type') == 'array':
    return f'list of {_name_type(about.get("items", {}))}'
  return html.escape(about.get('type', 'anything'))
