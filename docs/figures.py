"""Draws figures of the documents again, from the raw metrics beside them.

  python docs/figures.py    # or: make figures

docs/results.csv has the held-out losses of docs/results.md, and becomes
docs/results.png.

Of each docs/study/NAME.jsonl, which `benchmarks/study.py collect` writes, come
NAME.html, the page of `atm compare`, NAME-loss.png, NAME-shots.png and
NAME-flops.png, and NAME-tables.txt, the page's tables and sentences in
Markdown. The same metrics give the same bytes.
"""

import csv
import glob
import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def draw(path: str) -> list[str]:
  """Draws all figures of a file of metrics; returns their paths."""
  from atm.pages import arm_records, arms_page

  name = os.path.splitext(path)[0]
  runs = arm_records.read_arm_file(path)
  arms_page.compare_arms(path, f'{name}.html')
  paths = [f'{name}.html', f'{name}-tables.txt']
  with open(paths[-1], 'w', encoding='utf-8') as f:
    f.write(arms_page.format_markdown(runs))
  for kind, png in arms_page.draw_figures(runs).items():
    paths.append(f'{name}-{kind}.png')
    with open(paths[-1], 'wb') as f:
      f.write(png)
  return paths


def draw_losses(path: str) -> str:
  """Draws held-out losses by positions; returns the path of the PNG."""
  from atm.pages import plots

  with open(path) as f:
    rows = list(csv.DictReader(f))
  million = [int(row['positions']) / 1e6 for row in rows]
  # Rows of another length begin where one stands twice.
  begins = [a for a, b in zip(million, million[1:]) if a == b]

  def plot(axes, colours):
    for name in ('denoise', 'clm'):
      losses = [float(row[name]) for row in rows]
      colour = colours[plots.COLOURS[name]]
      axes.plot(million, losses, color=colour, label=name, marker='.')
    for x in begins:
      axes.axvline(x, color=colours[plots.INK], alpha=0.3, linewidth=1)

  lengths = ', '.join(dict.fromkeys(row['row_tokens'] for row in rows))
  panel = plots.Panel(
    f'held-out loss, rows of {lengths} tokens', plot, 'million positions',
    'nats a token',
  )  # fmt: skip
  png = f'{os.path.splitext(path)[0]}.png'
  with open(png, 'wb') as f:
    f.write(plots.draw_png([panel]))
  return png


def main(folder: str) -> int:
  """Draws the figures of all files of a folder; returns the exit status."""
  files = sorted(glob.glob(f'{folder}/*.jsonl'))
  for path in files:
    print('\n'.join(draw(path)))
  if not files:
    print(f'{folder} has no metrics: see docs/study.md', file=sys.stderr)
  return 0 if files else 1


if __name__ == '__main__':
  sys.path.insert(0, ROOT)
  print(draw_losses(f'{ROOT}/docs/results.csv'))
  if os.path.isdir(f'{ROOT}/docs/study'):  # there once the study has been run
    sys.exit(main(f'{ROOT}/docs/study'))
