"""Hooks of mkdocs: pages that are made of files outside docs/; docstrings."""

import json
import os
import posixpath
import re

import griffe
from mkdocs.structure.files import File, InclusionLevel

# Of the checkout -> of the site.
PAGES = {
  'README.md': 'index.md',
  'CHANGELOG.md': 'changelog.md',
  'CONTRIBUTING.md': 'contributing.md',
  'docs/quickstart.ipynb': 'quickstart.md',
}
SOURCES = {page: path for path, page in PAGES.items()}
# An entry for several names of Args or Attributes, with its further lines.
ENTRY = re.compile(r'^( +)(\w+(?:, \w+)+):(.*\n?(?:\1 +.*\n?)*)', re.M)
LINK = re.compile(r'\[([^][]*)\]\(([^\s()#:]+)')  # [TEXT](LINK#anchor)


def on_files(files, config):
  """Adds the documents of the checkout's root, and all files linked to."""
  root = os.path.dirname(config.config_file_path)
  for path, page in PAGES.items():
    with open(os.path.join(root, path), encoding='utf-8') as f:
      text = f.read()
    text = format_notebook(text) if path.endswith('.ipynb') else text
    files.append(File.generated(config, page, content=text))
  linked = {
    find_target(page.src_uri, link)
    for page in files.documentation_pages()
    for _, link in LINK.findall(page.content_string)
  }
  for path in sorted(linked):
    page, source = name_page(path), os.path.join(root, path)
    if files.get_file_from_path(page) or not os.path.isfile(source):
      continue
    with open(source, encoding='utf-8') as f:
      text = f'# {path}\n\n````python\n{f.read()}````\n'
    hidden = InclusionLevel.NOT_IN_NAV
    files.append(File.generated(config, page, content=text, inclusion=hidden))
  return files


def on_page_markdown(markdown, page, config, files):
  """Returns a page's text with links between files as links between pages.

  A link whose text is a document's path shows the document's title instead.
  """

  def relink(match: re.Match) -> str:
    text, link = match.groups()
    name = name_page(find_target(page.file.src_uri, link))
    target = files.get_file_from_path(name)
    if not target:
      return match[0]  # mkdocs tells that it leads nowhere
    if text == link and link.endswith('.md'):
      text = re.search(r'^# (.*)$', target.content_string, re.M)[1]
    here = posixpath.dirname(page.file.src_uri)
    return f'[{text}]({posixpath.relpath(name, here)}'

  return LINK.sub(relink, markdown)


def format_notebook(text: str) -> str:
  """Returns a notebook's cells, without their outputs, as Markdown."""
  parts = []
  for cell in json.loads(text)['cells']:
    source = ''.join(cell['source'])
    if cell['cell_type'] == 'code':
      shell = source.startswith('%%bash\n')
      language = 'bash' if shell else 'python'
      source = f'```{language}\n{source.removeprefix("%%bash").strip()}\n```'
    parts.append(source)
  return '\n\n'.join(parts)


def find_target(page: str, link: str) -> str:
  """Returns the path in the checkout that a page's file links to."""
  source = SOURCES.get(page, f'docs/{page}')
  return posixpath.normpath(posixpath.join(posixpath.dirname(source), link))


def name_page(path: str) -> str:
  """Returns the page of the site that shows a file of the checkout."""
  if path in PAGES or not path.startswith('docs/'):
    return PAGES.get(path, f'files/{path}.md')
  return path.removeprefix('docs/')


class SplitNames(griffe.Extension):
  """Gives each of the names that share an entry of a docstring one of its own.

  The reference looks types and defaults up by name.
  """

  def on_object(self, *, obj, **_):
    """Changes the docstring of a module, class or function."""
    if obj.docstring:
      obj.docstring.value = ENTRY.sub(split_entry, obj.docstring.value)


def split_entry(match: re.Match) -> str:
  """Returns entries of the same text, one for each name."""
  indent, names, text = match.groups()
  text = text.rstrip('\n') + '\n'
  return ''.join(f'{indent}{name}:{text}' for name in names.split(', '))
