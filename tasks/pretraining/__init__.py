"""seqio tasks of text to pre-train and fine-tune on.

Begin with `tasks.py`, which registers them; `sources.py` reads folders and
TFDS, `text_forms.py` and `decontaminate.py` change the text.
"""
