"""The command `atm`: arguments, gin files, and what each run does.

May import everything; nothing imports it. Begin with `main.py`; `gin_config.py`
is the only module that knows gin, `commands.py` has a function a run.
"""
