"""How the program says no: one sentence, and exit code 2."""

import reprlib
from difflib import get_close_matches

LONGEST = 80  # characters of a value in a sentence
WHOLE = 1000  # of a sentence
_short = reprlib.Repr()  # of containers a few items: YAML's aliases can make one whose repr never ends
_short.maxstring = _short.maxother = 2 * LONGEST


class Refusal(ValueError):
    """A user's mistake, told in one sentence: what was wrong, the value, what would be right.

    main.py prints it and ends with exit code 2. Any other ValueError is a bug and keeps its traceback.
    Whatever a name or a value in it holds, it is one line of at most 1,000 characters.
    """

    def __init__(self, sentence: str):
        super().__init__(short(sentence, WHOLE))


def nearest(word: object, choices: list[str]) -> str:
    """`; did you mean 'x'?`, or nothing where no choice is near."""
    near = get_close_matches(str(word)[:LONGEST], choices, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def quoted(value: object) -> str:
    """A value as Python writes it, at most 80 characters long."""
    if isinstance(value, int) and value.bit_length() > 10_000:  # Python writes no number of 5,000 digits
        return f"a number of about {int(value.bit_length() * 0.30103):,} digits"
    return short(_short.repr(value))


def short(text: str, most: int = LONGEST) -> str:
    """Text on one line, at most `most` characters long."""
    text = one_line(text[: most + 1])
    return text if len(text) <= most else f"{text[: most - 3]}..."


def one_line(text: str) -> str:
    """With line breaks and other characters that a terminal would act on escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
