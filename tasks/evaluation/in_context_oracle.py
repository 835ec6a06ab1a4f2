"""Solves generated episodes from their prompts alone: the best that one can do.

  python -m atm_tasks.evaluation.in_context_oracle

prints its scores by task and number of shots, of the split `test`: exact match
of what it would write, and accuracy of what it would choose. It knows how
episodes are drawn, see `episodes`, but of one episode only its prompt. Where
several answers agree with the shots, it takes the first of them.
"""

import itertools
from collections.abc import Iterator, Sequence

from atm_tasks.episodes import (
  INVENTED_WORDS,
  RULES,
  WORD_CLASSES,
  Example,
  choose_template,
)
from atm_tasks.evaluation import registry

SHOTS = (1, 2, 4)


def read_prompt(family: str, prompt: str) -> tuple[list[Example], str]:
  """Returns (the shots, the query) of a prompt of a family."""
  template = choose_template(family)
  *lines, last = prompt.split(template.between)
  between = f' {template.cue} ' if template.cue else ' '
  shots = [tuple(line.split(between)) for line in lines]
  return shots, last.removesuffix(between.rstrip())


def list_recalls(shots: Sequence[Example], query: str) -> Iterator[str]:
  """Yields the value of a key; all words where no shot has the key."""
  known = dict(shots)
  yield from [known[query]] if query in known else INVENTED_WORDS


def list_translations(shots: Sequence[Example], query: str) -> Iterator[str]:
  """Yields the translations that agree with the shots.

  The vowel of a word tells its class, so any shot tells the order of classes.
  """
  order, lexicon = (0, 1), {}
  for source, target in shots:
    by_class = {find_class(word): word for word in target.split()}
    order = [*by_class]
    lexicon |= {w: by_class[find_class(w)] for w in source.split()}
  by_class = {find_class(word): word for word in query.split()}
  known = {*lexicon.values()}
  words = [
    [lexicon[by_class[c]]]
    if by_class[c] in lexicon
    else [word for word in WORD_CLASSES[c] if word not in known]
    for c in order
  ]
  yield from map(' '.join, itertools.product(*words))


def find_class(word: str) -> int:
  """Returns the index into WORD_CLASSES of a word."""
  return 0 if word in WORD_CLASSES[0] else 1


def list_edited(shots: Sequence[Example], query: str) -> Iterator[str]:
  """Yields the query edited by each rule that all shots agree with."""
  # A word that the rule brings stands in every edited text.
  edited = [set(target.split()) for _, target in shots] or [set(INVENTED_WORDS)]
  words = sorted(set.intersection(*edited))
  for rule in RULES.values():
    for old, new in itertools.product(
      query.split(), words or [INVENTED_WORDS[0]]
    ):
      texts = [*(source for source, _ in shots), query]
      *seen, answer = (' '.join(rule(x.split(), old, new)) for x in texts)
      if seen == [target for _, target in shots]:
        yield answer


ANSWERS = {
  'recall': list_recalls,
  'mapping': list_translations,
  'edits': list_edited,
}


def solve(family: str, prompt: str) -> str:
  """Returns the first answer that agrees with the shots of a prompt."""
  return next(ANSWERS[family](*read_prompt(family, prompt)), '')


def choose_pair(family: str, pairs: Sequence[tuple[str, str]]) -> int:
  """Returns the index of the first choice that agrees with the shots.

  `pairs` are those of `task.Question`, of a task in 'clm'.
  """
  answers = {*ANSWERS[family](*read_prompt(family, pairs[0][0]))}
  cut = choose_template(family).cut
  agree = [text.removesuffix(cut) in answers for _, text in pairs]
  return agree.index(True)


def measure(family: str, shots: int) -> tuple[float, float]:
  """Returns (exact match of `solve`, accuracy of `choose_pair`), in percent."""
  name = f'in_context_{family}'
  asked, chosen = (
    task.make_questions(None)
    for task in registry.suite([name, f'{name}_choice'], shots=shots)
  )
  exact = [solve(family, q.prompt) == q.truth for q in asked]
  right = [choose_pair(family, q.pairs) == q.truth for q in chosen]
  return 100 * sum(exact) / len(exact), 100 * sum(right) / len(right)


def print_scores() -> None:
  """Prints a table of the scores of all families."""
  print('family    shots  exact match  accuracy of choices')
  for family, shots in itertools.product(ANSWERS, SHOTS):
    exact, accuracy = measure(family, shots)
    print(f'{family:8}  {shots:5}  {exact:11.1f}  {accuracy:19.1f}')


if __name__ == '__main__':
  print_scores()
