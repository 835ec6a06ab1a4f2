"""Finds out what a TPU pod will do with a run, by compiling for it.

May import `atm.train` and `atm.inference` and all that they may import. Begin
with `command.py`, then `train_plan.py`; `hlo.py` parses compiled programs.
"""
