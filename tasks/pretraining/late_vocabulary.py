"""A vocabulary whose file is named after tasks are registered."""

from atm.data.vocabulary import Vocabulary, open_vocabulary


class LateVocabulary:
  """A vocabulary, of any tokenizer, that is opened when it is first needed.

  Attributes:
    path: its file or folder; '': none is named yet.
  """

  def __init__(self, path: str = ''):
    self.path = path
    self._words: Vocabulary | None = None

  def use(self, path: str) -> None:
    """Names the file or folder, which is opened when it is first needed."""
    self.path, self._words = path, None

  @property
  def words(self) -> Vocabulary:
    """The vocabulary; raises ValueError where none is named yet."""
    if self._words is None:
      self._words = open_vocabulary(self.get_path())
    return self._words

  def get_path(self) -> str:
    """Returns the path; raises ValueError where none is named yet."""
    if not self.path:
      raise ValueError(
        'no vocabulary is named yet: call atm_tasks.configure(vocabulary=...)'
      )
    return self.path
