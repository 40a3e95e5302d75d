"""run.yml, beside a run's config.yml: where its data lie and how it runs, so that --doc alone finds them."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import yaml

from configs.door import read_text, reading
from configs.refusal import Refusal
from configs.typed import build

NAME = "run.yml"


@dataclass(frozen=True)
class RunRecord:
    """What the last start of a run used."""

    dataset: str  # the name of the data in tables: DataConfig.name
    data: str  # the data set's own folder, absolute
    seed: int
    precision: Literal["default", "fp32", "bf16"]
    device: str  # cpu, cuda or mps
    compiled: bool

    @property
    def in_words(self) -> str:
        compiled = "compiled" if self.compiled else "not compiled"
        numerics = f"precision {self.precision}, {compiled} on {self.device}"
        return f"{self.dataset} in {self.data}, seed {self.seed}, {numerics}"


def read(folder: Path) -> RunRecord | None:
    """The record in a run's folder; None where there is none. Raises Refusal where it is damaged."""
    path = folder / NAME
    if not path.is_file():
        return None
    with reading(path, "a run's record"):
        tree = yaml.safe_load(read_text(path, "a run's record", most=2**16))
        if not isinstance(tree, dict):
            raise Refusal(f"{path} is not a run's record, a mapping")
        try:
            return build(RunRecord, tree)
        except Refusal as error:
            raise Refusal(f"{path}: {error}") from None


def as_yaml(record: RunRecord) -> str:
    """What `read` reads."""
    return yaml.safe_dump(asdict(record), sort_keys=False)
