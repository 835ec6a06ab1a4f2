"""Draws docs/rooms.svg: the rooms of atm/ and which imports which.

python docs/rooms.py

The import statements are the only input, and texts 'atm.room.module:name', of
what is imported later. A room stands above all rooms that it
imports. Arrows implied by a longer path are pale.
"""

from __future__ import annotations

import ast
import os
import re

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
WIDTH, BOX, HEIGHT, ROW = 760, 128, 34, 78  # pixels
# Modules that all rooms share; drawn as the ground, without arrows.
GROUND = ('messages', 'storage', 'fileio')


def imports() -> dict[str, set[str]]:
  """Returns room -> rooms that it imports, late imports included."""
  rooms: dict[str, set[str]] = {}
  for folder, _, names in sorted(os.walk(f'{ROOT}/atm')):
    for name in sorted(n for n in names if n.endswith('.py')):
      path = os.path.join(folder, name)
      room = os.path.relpath(path, f'{ROOT}/atm').split(os.sep)[0]
      room = room.removesuffix('.py')
      if room in ('__init__', '__main__'):
        continue
      with open(path, encoding='utf-8') as f:
        tree = ast.parse(f.read())
      imported = rooms.setdefault(room, set())
      for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
          parts = node.module.split('.')
          if parts == ['atm']:
            imported.update(alias.name for alias in node.names)
          elif parts[0] == 'atm':
            imported.add(parts[1])
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
          if late := re.fullmatch(r'atm\.(\w+)\.[\w.]+:\w+', node.value):
            imported.add(late[1])
  return {
    room: {other for other in imported if other in rooms and other != room}
    for room, imported in rooms.items()
  }


def compute_floor(room: str, arrows: dict[str, set[str]]) -> int:
  """Returns 0 for the ground, else one more than the highest room imported."""
  if room in GROUND:
    return 0
  return 1 + max((compute_floor(r, arrows) for r in arrows[room]), default=0)


def is_implied(a: str, b: str, arrows: dict[str, set[str]]) -> bool:
  """Tells whether `a` reaches `b` through a third room, too."""

  def reaches(room):
    return b in arrows[room] or any(map(reaches, arrows[room]))

  return any(reaches(room) for room in arrows[a] - {b})


def draw(arrows: dict[str, set[str]]) -> str:
  """Returns the picture as SVG."""
  floors: dict[int, list[str]] = {}
  for room in sorted(arrows):
    if room not in GROUND:
      floors.setdefault(compute_floor(room, arrows), []).append(room)
  top = max(floors)
  centers = {}
  for floor, rooms in floors.items():
    gap = WIDTH / len(rooms)
    for i, room in enumerate(rooms):
      # Odd floors lean aside, so that no arrow runs through a box.
      lean = 0 if len(rooms) > 1 else (60 if floor % 2 else -60)
      centers[room] = (gap * (i + 0.5) + lean, ROW * (top - floor) + 30)
  height = ROW * top + 70
  lines, boxes = {True: [], False: []}, []
  for room, (x, y) in centers.items():
    for other in sorted(arrows[room] - set(GROUND)):
      to_x, to_y = centers[other]
      pale = is_implied(room, other, arrows)
      bend = (to_y - y) / 2
      lines[pale].append(
        f'<path class="{"pale" if pale else "arrow"}" '
        f'd="M{x:g} {y + HEIGHT / 2:g} C{x:g} {y + bend:g} {to_x:g} '
        f'{to_y - bend:g} {to_x:g} {to_y - HEIGHT / 2 - 7:g}"/>'
      )
    boxes.append(
      f'<rect x="{x - BOX / 2:g}" y="{y - HEIGHT / 2:g}" width="{BOX}" '
      f'height="{HEIGHT}" rx="6"/><text x="{x:g}" y="{y + 5:g}">{room}</text>'
    )
  ground = ' and '.join(GROUND)
  boxes.append(
    f'<rect x="10" y="{height - 44}" width="{WIDTH - 20}" height="{HEIGHT}" '
    f'rx="6"/><text x="{WIDTH / 2:g}" y="{height - 22}">{ground}, '
    'which all rooms share</text>'
  )
  return '\n'.join(
    [
      f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"'
      f' width="{WIDTH}" height="{height}">',
      '<style>text{font:15px sans-serif;text-anchor:middle;fill:#222}'
      'rect{fill:#eef3f8;stroke:#4a6a8a}path{fill:none;stroke-width:1.5;'
      'marker-end:url(#head)}.arrow{stroke:#4a6a8a}.pale{stroke:#c9d3dd;'
      'stroke-width:1}</style>',
      '<defs><marker id="head" viewBox="0 0 8 8" refX="2" refY="4" '
      'markerWidth="7" markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" '
      'style="fill:#4a6a8a;stroke:none"/></marker></defs>',
      f'<rect width="{WIDTH}" height="{height}" '
      'style="fill:#fff;stroke:none"/>',
      *lines[True],
      *lines[False],
      *boxes,
      '</svg>',
      '',
    ]
  )


if __name__ == '__main__':
  with open(f'{ROOT}/docs/rooms.svg', 'w', encoding='utf-8') as file:
    file.write(draw(imports()))
