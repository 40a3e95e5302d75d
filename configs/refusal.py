"""How the program says no: one sentence, and exit code 2."""

from difflib import get_close_matches


class Refusal(ValueError):
    """A user's mistake, told in one sentence: what was wrong, the value, what would be right.

    main.py prints it and ends with exit code 2. Any other ValueError is a bug and keeps its traceback.
    """


def nearest(word: str, choices: list[str]) -> str:
    """`; did you mean 'x'?`, or nothing where no choice is near."""
    near = get_close_matches(str(word), choices, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
