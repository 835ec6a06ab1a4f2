"""Questions to a model, and metrics of its answers with their uncertainty.

May import `atm.inference` and all that it may import, and `atm.train`; knows no
page. Begin with `runner.py`, then `predict.py` (answers) and `metrics.py`.
"""
