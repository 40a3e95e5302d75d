"""The README says what the program does."""

import re
import shlex

import pytest
from conftest import ROOT

from configs import load_config
from configs.arguments import flags, parse
from configs.options import complete

README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"^(?:python|torchrun --nproc_per_node \d) main\.py (.*?)(?:\s+#.*)?$", README, re.MULTILINE)


def test_every_flag_is_in_the_table_and_no_other():
    rows = [line.split("|")[1] for line in README.splitlines() if line.startswith("| `-")]
    assert set(re.findall(r"(?<![\w-])--?[a-z_]+", " ".join(rows))) == set(flags()) - {"-h", "--help"}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_understood(command):
    arguments = parse(shlex.split(command))
    if arguments.config not in ("mine.yml", None):
        complete(arguments, load_config(arguments.config))


def test_there_are_commands():
    assert len(COMMANDS) >= 12


def test_every_file_it_links_to_is_there():
    links = re.findall(r"\]\((?!http)([^)]+)\)", README)
    assert links and all((ROOT / link).exists() for link in links)
