"""Devices and processes: the mesh, sharding rules, start-up of several hosts.

May import `atm.messages` and `atm.fileio` only. Begin with `mesh.py` (how
devices become axes), then `sharding.py` (how logical axes become mesh axes).
"""
