"""Weights on disk: Orbax checkpoints with checksums, Hugging Face folders.

Saves and restores dicts of trees and knows nothing of training. May import
`atm.model`, `atm.data`, `atm.parallel`. Begin with `manager.py` (saving) and
`reader.py` (restoring), then `pretrained.py` (opening any trained model).
"""
