"""Inputs that lie, made by hypothesis from sound ones, and the promise that every reader keeps about them."""

import copy
import faulthandler
import io
import os
import resource
import signal
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from configs.refusal import Refusal

LONGEST = 1000  # characters of a sentence
SECONDS = 30  # that a case may take; the slowest sound one takes a tenth of one
MEMORY = 2 * 2**30  # bytes that a case may take beside what the process has
IN_SUITE = 2480  # cases, in all tests
SHARE = int(os.environ.get("FUZZ_CASES", IN_SUITE)) / IN_SUITE

KEYS = st.sampled_from(["", "a", "model", "num_samples", "0", "__class__", "mu"])
NUMBERS = st.one_of(
    st.sampled_from([0, -1, 1, 2**31, -(2**64), 10**400, 1e308, float("nan"), float("inf"), -0.0, 1e-320]),
    st.integers(-100, 100_000),
)  # fmt: skip
TEXTS = st.one_of(
    st.sampled_from(["", "\x00", "\n\x1b[31m", "../..", "0x10", "a" * 3000, "\u202e", "1e-4", "{}", "[["]),
    st.text(max_size=12),
)  # fmt: skip
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
ODD = st.one_of(
    SCALARS, st.lists(SCALARS, max_size=3), st.dictionaries(KEYS, SCALARS, max_size=3),
    st.lists(st.lists(SCALARS, max_size=2), max_size=2),
)  # fmt: skip


def cases(n: int) -> settings:
    """n of the suite's cases. They are the same each time; `make fuzz` draws others, and more."""
    many = SHARE > 1
    return settings(
        max_examples=max(1, round(n * SHARE)), derandomize=not many, database=None, deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],  # the search for a smaller one takes minutes
    )  # fmt: skip


class Content(bytes):
    """Of a file. Hypothesis does not print all of it; the file itself is still in the test's folder."""

    def __repr__(self) -> str:
        return f"<{len(self)} bytes>"


class Hang(BaseException):
    """A case that takes too long. No reader may catch it."""


def told(read: Callable[[], object], name: str) -> None:
    """`read()` gives its value, or says in one sentence, which holds `name`, why it does not."""
    with watched():
        try:
            read()
        except Refusal as error:
            sentence = str(error)
            assert sentence.strip() and sentence.isprintable(), repr(sentence)
            assert len(sentence) <= LONGEST and name in sentence, sentence


@contextmanager
def watched() -> Iterator[None]:
    """A case that hangs raises Hang, or ends the process where no Python runs; memory is limited."""

    def hang(number: int, frame: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(SECONDS)
    faulthandler.dump_traceback_later(4 * SECONDS, exit=True)
    limits = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (_data() + MEMORY, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, limits)
        faulthandler.cancel_dump_traceback_later()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _data() -> int:
    """The bytes of private memory that the process has mapped."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmData:")[1].split()[0]) * 1024


@st.composite
def damaged(draw, *sound: bytes) -> bytes:
    """One of the contents with a few of its bytes changed, cut, moved or doubled."""
    content = bytearray(draw(st.sampled_from(sound)))
    for _ in range(draw(st.integers(1, 3))):
        n = len(content)
        place = st.one_of(st.integers(0, min(n, 64)), st.integers(max(0, n - 64), n), st.integers(0, n))
        at, length = draw(place), draw(st.sampled_from([1, 2, 4, 8, 64, 1000]))
        match draw(st.sampled_from(["flip", "write", "cut", "drop", "zeros", "ones", "double", "insert"])):
            case "flip" if at < n:
                content[at] ^= 1 << draw(st.integers(0, 7))
            case "write":
                new = draw(st.binary(min_size=1, max_size=8))
                content[at : at + len(new)] = new
            case "cut":
                del content[at:]
            case "drop":
                del content[at : at + length]
            case "zeros":
                content[at : at + length] = bytes(length)
            case "ones":
                content[at : at + length] = b"\xff" * length
            case "double":
                content[at:at] = content[at : at + length]
            case "insert":
                content[at:at] = draw(st.binary(min_size=1, max_size=8))
    return Content(content)


@st.composite
def rezipped(draw, *sound: bytes) -> bytes:
    """A zip file with a damaged member, whose checksum is right all the same."""
    with zipfile.ZipFile(io.BytesIO(draw(st.sampled_from(sound)))) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = draw(st.sampled_from(sorted(members, key=lambda name: ("pkl" not in name, name))))
    members[name] = draw(damaged(members[name]))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return Content(file.getvalue())


@st.composite
def altered(draw, tree: object, odd: st.SearchStrategy = ODD) -> object:
    """A tree of dicts and lists with a few of its parts replaced, left out or added."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 3))):
        places = [*_places(tree)]
        if not places:
            return draw(odd)
        container, key = draw(st.sampled_from(places))
        match draw(st.sampled_from(["replace", "replace", "remove", "add"])):
            case "replace":
                container[key] = draw(odd)
            case "remove":
                del container[key]
            case "add" if isinstance(container, dict):
                container[draw(KEYS)] = draw(odd)
            case "add":
                container.insert(key, draw(odd))
    return tree


def _places(tree: object) -> Iterator[tuple]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in list(items):
        yield tree, key
        yield from _places(value)
