"""Text to batches: vocabulary, objectives, rows of tokens, and their order.

A batch is a pure function of (seed, step). May import `atm.messages` and
`atm.fileio` only. Begin with `objectives.py` (what an example is), then
`batches.py` (which rows a step reads). `cache.py` builds the rows:
`cache_shards.py` lists its units of work, `cache_worker.py` makes one.
"""
