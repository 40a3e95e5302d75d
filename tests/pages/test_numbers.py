"""Every number in a table of results stands in a JSON file of the repository that its section links to."""

import json
import re
from pathlib import Path

import pytest
from support.program import ROOT

from runners.evaluation.published import FIDS

PAGES = [
    ROOT / "README.md",
    ROOT / "docs" / "results.md",
    ROOT / "docs" / "performance.md",
    *ROOT.glob("models/pretrained/*.md"),
]


NUMBER = re.compile(r"(?<![\w.])(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?%?")


# The numbers of these sections are those of the tables above them, or say what the network is.
OF_WORDS = ["What is done, and why", "fashion_mnist.fp16.safetensors"]


def sections(text: str) -> dict[str, str]:
    parts = re.split(
        r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), flags=re.MULTILINE
    )
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def in_tables(section: str) -> list[str]:
    """The numbers of all cells but the first of a row, which names it, and the heads."""
    rows = [line.strip("| ").split("|")[1:] for line in section.splitlines() if line.startswith("|")]
    heads = [k for k, row in enumerate(rows) if row and set(row[0]) <= set("-: ")]
    body = [row for k, row in enumerate(rows) if k not in heads and k + 1 not in heads]
    return [
        number
        for row in body
        for cell in row
        for number in NUMBER.findall(re.sub(r"`[^`]*`|\]\([^)]*\)", "", cell))
    ]


def numbers_of(content: object) -> list[float]:
    match content:
        case dict():
            return [n for value in content.values() for n in numbers_of(value)]
        case list():
            return [n for value in content for n in numbers_of(value)]
        case str():
            return [
                float(n.rstrip("%").replace(",", "")) / (100 if n.endswith("%") else 1)
                for n in NUMBER.findall(content)
            ]
        case bool() | None:
            return []
        case _:
            return [float(content)]  # type: ignore[arg-type]


def is_among(number: str, known: list[float]) -> bool:
    """Rounded to as many digits as the page gives; signs are left to the reader."""
    plain = number.rstrip("%").replace(",", "")
    decimals = len(plain.partition(".")[2])
    factor = 100 if number.endswith("%") else 1
    return any(abs(abs(value) * factor - float(plain)) <= 0.501 * 10**-decimals for value in known)


def of_pages() -> list:
    pages = [*PAGES, ROOT / "docs" / "solvers.md", ROOT / "docs" / "training.md"]
    found = [(page, title, text) for page in pages for title, text in sections(page.read_text()).items()]
    numeric = [
        (page, title, text) for page, title, text in found if ".json)" in text and title not in OF_WORDS
    ]
    return [pytest.param(page, text, id=f"{page.name}: {title}") for page, title, text in numeric]


@pytest.mark.parametrize("page, section", of_pages())
def test_each_number_is_in_the_file_beside_it(page: Path, section: str):
    files = [page.parent / link for link in re.findall(r"\]\(([^)]+\.json)\)", section)]
    known = [n for file in files for n in numbers_of(json.loads(file.read_text()))]
    if "paper" in section:
        known += [fid for row in FIDS["CIFAR10", 32, "quad"].values() for fid in row]
    assert [number for number in in_tables(section) if not is_among(number, known)] == []


def test_pages_of_results_have_no_table_without_its_file():
    for page in PAGES[1:]:
        for title, text in sections(page.read_text()).items():
            assert ".json)" in text or title in OF_WORDS or not in_tables(text), f"{page.name}: {title}"


def test_a_wrong_number_is_seen():
    table = "| a | b |\n|---|---|\n| S = 5 | 1.25 ± 0.1, 7%, 12,345, `9` |\n"
    assert in_tables(table) == ["1.25", "0.1", "7%", "12,345"]
    known = numbers_of({"a": [1.2549, {"b": 0.0949}], "c": "0.07", "d": 12345, "e": True, "f": None})
    assert all(is_among(number, known) for number in in_tables(table))
    assert not any(is_among(number, known) for number in ("1.26", "1.2", "0.10", "8%", "12,346"))


def test_tables_of_the_benchmarks_are_what_their_json_says():
    """The Markdown that a benchmark writes beside its JSON."""
    found = sorted((ROOT / "docs" / "benchmarks").glob("*.md"))
    assert len(found) >= 5
    for page in found:
        known = numbers_of(json.loads(page.with_suffix(".json").read_text()))
        assert [number for number in in_tables(page.read_text()) if not is_among(number, known)] == [], (
            page.name
        )
