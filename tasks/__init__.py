"""seqio tasks and mixtures of atm; importing this package registers them.

  udhr           the shipped text: the Declaration of Human Rights, 12 languages
  text           any folder of LANG.txt and LANG.jsonl, after
                 `configure(text_dir=...)`

Each is a mixture of denoising and CLM, 80 : 20, over tasks named
`udhr_en_denoise`, `udhr_en_clm`, ... The vocabulary is named once, by
`configure(vocabulary=...)`, before a task's tokens are read.

The folder is tasks/, the import name `atm_tasks`.
"""

from atm_tasks import pretrain
from atm_tasks.text import spoken

__all__ = ['configure', 'spoken', 'pretrain']


def configure(
  vocabulary: str | None = None,
  text_dir: str | None = None,
  held_out: float = 0.01,
) -> None:
  """Names what the tasks read.

  Args:
    vocabulary: a SentencePiece model file; read when tokens are first needed.
    text_dir: a folder of LANG.txt (a document or paragraph a line) and
      LANG.jsonl (an object with a `text` field a line), registered as the
      mixture `text`.
    held_out: share of text_dir's lines in its `validation` split.

  Raises:
    ValueError: text_dir is no such folder, or `held_out` no share.
  """
  if vocabulary is not None:
    pretrain.VOCABULARY.use(vocabulary)
  if text_dir is not None:
    pretrain.register_folder('text', text_dir, held_out)


# What a gin file that imports this package may bind.
GIN = (configure, spoken)

pretrain.register_udhr('udhr')
