"""Reports for a person: HTML pages, their charts, and closing summaries.

May import every room but `atm.cli`. Begin with `render.py`, which all pages
share; then one module a page, `train_page.py` first.
"""
