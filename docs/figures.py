"""Draws the figures of docs/study.md again, from the raw metrics in docs/study.

python docs/figures.py    # or: make figures

Of each docs/study/NAME.jsonl, which `benchmarks/study.py collect` writes, come
NAME.html, the page of `atm compare`, NAME-loss.png, NAME-shots.png and
NAME-flops.png, and NAME-tables.txt, the page's tables and sentences in
Markdown. The same metrics give the same bytes.
"""

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
  sys.exit(main(f'{ROOT}/docs/study'))
