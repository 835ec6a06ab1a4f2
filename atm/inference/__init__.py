"""A trained model's answers: greedy, sampled and beam decoding, likelihoods.

May import `atm.checkpoint` and all that it may import; not `atm.train`. Begin
with `api.py` (`atm.load` and `Model`), then `generate.py` and `sampling.py`.
"""
