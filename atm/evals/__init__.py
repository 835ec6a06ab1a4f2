"""Evaluation: tasks and questions, a model's answers, metrics, comparisons.

May import `atm.inference`, `atm.train` and what these may import. Begin with
`runner.py`, then `predict.py` (answers) and `metrics.py`.
"""
