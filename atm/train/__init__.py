"""A training run: its checks, state, update, loop, logs and interruptions.

May import `atm.checkpoint` and all that it may import; not `atm.inference`.
Begin with `trainer.py`, the story of a run, then `loop.py` and `step.py`.
"""
