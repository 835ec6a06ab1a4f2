"""Runs trained models: greedy, sampled and beam decoding, log-likelihoods.

May import `atm.checkpoint` and all that it may import; not `atm.train`. Begin
with `api.py` (`atm.load` and `Model`). A text goes through `framing.py` to ids,
`bucketing.py` to arrays, `generate.py` or `beam_search.py`, whose tokens
`sampling.py` chooses, and `outputs.py` back to text.
"""
