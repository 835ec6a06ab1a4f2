"""A training run: its settings, folder, inputs, state, update, loop and logs.

May import `atm.checkpoint` and all that it may import; not `atm.inference`.
Begin with `trainer.py`, the story of a run, and `config.py`, its settings; then
`loop.py` and `step.py`.
"""
