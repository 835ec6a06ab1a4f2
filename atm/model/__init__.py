"""The encoder-decoder in Flax linen, its loss, and what its parameters are.

May import `atm.parallel`; knows neither data nor optimizer. Begin with
`config.py`, then `transformer.py`: tables are in `embeddings.py`, what a stack
is made of in `layers.py` and `attention.py`.
"""

from atm.model.config import ModelConfig as Config

__all__ = ['Config']
