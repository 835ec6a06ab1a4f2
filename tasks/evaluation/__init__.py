"""Evaluation tasks: the paper's benchmarks and the questions they ask.

Begin with `registry.py`, which lists them; `datasets.py` says where their files
come from, `multiple_choice.py` and `generation.py` write the questions.
"""
