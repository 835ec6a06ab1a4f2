"""Weights on disk: Orbax checkpoints with checksums, Hugging Face folders.

May import `atm.model`, `atm.data`, `atm.parallel`. Begin with `manager.py`
(saving and restoring), then `pretrained.py` (opening any trained model).
"""
