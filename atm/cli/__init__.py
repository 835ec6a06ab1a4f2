"""The command `atm`: arguments, gin files, and what each run does.

May import everything; nothing imports it. Begin with `main.py`; the modules
`gin_*.py` are the only ones that know gin, from `gin_text.py`, which parses, to
`gin_config.py`, which binds; `commands.py` has a function a run.
"""
