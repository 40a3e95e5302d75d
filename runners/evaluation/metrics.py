"""The metrics of a folder of images, computed from their bytes as they are made."""

import json
import logging
import math
import platform
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from configs import Config
from configs.options import Options
from configs.refusal import Refusal
from functions.disk import files, images, manifest
from functions.metrics import frechet, scores
from functions.metrics.extractor import Extractor, load_extractor
from functions.metrics.frechet import Moments
from functions.runtime import distributed
from runners.evaluation import neighbours, reference
from runners.evaluation.reference import Reference

# Below this many images a metric has no value, and below twice its groups FID has no interval.
FEWEST = {"fid": 2, "is": scores.IS_SPLITS, "kid": 2, "pr": scores.PR_NEIGHBOURS + 1, "nn": 1}
USUAL_N = 50_000
LIBRARIES = ("torch-fidelity", "numpy", "scipy", "pillow")


class Evaluator:
    """The metrics that a command asks for, with the extractor and the reference that all cells of a grid share.

    Raises Refusal where they are not there, or can't serve the metrics.
    """

    def __init__(self, options: Options, config: Config, device: torch.device):
        for metric in options.metrics:
            if options.num_samples < FEWEST[metric]:
                raise Refusal(
                    f"--metrics {metric} needs at least {FEWEST[metric]} images; --num_samples is {options.num_samples}"
                )
        path = None if options.features is None else Path(options.features)
        self.metrics = options.metrics
        self.extractor = load_extractor(path, config.data.image_size, device)
        if "is" in self.metrics and not self.extractor.classes:
            raise Refusal(
                f"--metrics is needs the classes of Inception; --features {options.features} has none"
            )
        self.source = reference.find(options, config, self.extractor.dim)
        self.folder = Path(options.exp, "fid_stats")
        self.config = config

    @cached_property
    def reference(self) -> Reference:
        """Computed once; every rank must ask for it."""
        return reference.compute(
            self.source, self.metrics, self.extractor, self.folder, self.config.data.num_workers
        )

    def samples(self, n: int, batch_size: int, folder: Path, shape: tuple[int, int, int]) -> "Samples":
        """For the features of n images (c, h, w). The reference is computed first: what is wrong with it shows early."""
        _ = self.reference
        return Samples(self.extractor, self.metrics, n, batch_size, folder, shape)

    def decides(self, num_samples: int) -> dict[str, Any]:
        """What the numbers depend on besides the images."""
        return {
            "num_samples": num_samples,
            "reference": {"name": self.source.name, "hash": self.source.hash, "num_images": self.source.n},
            "extractor": {
                "name": self.extractor.name,
                "hash": self.extractor.hash,
                "dim": self.extractor.dim,
            },
        }

    def scores(self, samples: "Samples") -> dict[str, Any]:
        """The value of each metric as plain JSON values. Every rank must ask."""
        samples.sum_over_ranks()
        results: dict[str, Any] = {}
        if "fid" in self.metrics:
            assert self.reference.gaussian is not None
            results["fid"] = frechet.fid(samples.groups, self.reference.gaussian)._asdict()
        if samples.logits is not None:
            results["is"] = scores.inception_score(samples.logits)._asdict()
        if samples.features is not None and self.reference.features is not None:
            kept = samples.features, self.reference.features
            if "kid" in self.metrics:
                size = scores.kid_subset_size(*map(len, kept))
                results["kid"] = {**scores.kernel_distance(*kept)._asdict(), "subset_size": size}
            if "pr" in self.metrics:
                results["pr"] = scores.precision_recall(*kept)._asdict()
        return results


class Samples:
    """The features of n images, keyed by the images' numbers: neither order nor ranks nor restarts change them.

    Features are computed for aligned batches, as the images are, from `folder` where it has some of them already.
    """

    def __init__(
        self,
        extractor: Extractor,
        metrics: Sequence[str],
        n: int,
        batch_size: int,
        folder: Path,
        shape: tuple[int, int, int],
    ):
        self.extractor, self.n, self.batch_size, self.folder, self.shape = (
            extractor,
            n,
            batch_size,
            folder,
            shape,
        )
        self.seen = torch.zeros(n, dtype=torch.int32)
        count = 0 if "fid" not in metrics else frechet.GROUPS if n >= 2 * frechet.GROUPS else 1
        self.groups = [Moments(extractor.dim, extractor.device) for _ in range(count)]
        self.features = torch.zeros(n, extractor.dim) if {"kid", "pr"} & set(metrics) else None
        self.logits = torch.zeros(n, extractor.classes) if "is" in metrics else None
        self.examined = torch.zeros(
            min(n, neighbours.EXAMINED) if "nn" in metrics else 0, *shape, dtype=torch.uint8
        )

    def read(self, batches: Iterable[int]) -> None:
        """Take the aligned batches of these numbers from the folder."""
        for k in batches:
            whole = self._batch(k)
            self._take(whole, torch.stack([self._read(i) for i in whole]))

    def add(self, indices: Sequence[int], batch: Tensor) -> None:
        """Take images of one aligned batch, uint8 (b, c, h, w) on any device; the folder has the others of it."""
        whole = self._batch(indices[0] // self.batch_size)
        if len(indices) < len(whole):
            fresh = dict(zip(indices, batch.cpu(), strict=True))
            batch = torch.stack([fresh[i] if i in fresh else self._read(i) for i in whole])
        self._take(whole, batch)

    def sum_over_ranks(self) -> None:
        """Bring the ranks' shares together. Raises Refusal where images are missing."""
        device = self.extractor.device
        for kept in (self.seen, self.features, self.logits, self.examined):
            if kept is not None:
                distributed.sum_over_ranks(kept, device)
        for group in self.groups:
            group.sum_over_ranks()
        there = int((self.seen == 1).sum())
        if there < self.n:
            raise Refusal(
                f"{self.n} images were asked for and there are features of {there}; there is no number for fewer"
            )

    def _batch(self, k: int) -> range:
        return range(k * self.batch_size, min((k + 1) * self.batch_size, self.n))

    def _read(self, i: int) -> Tensor:
        return images.read_png(self.folder / f"{i}.png", self.shape)

    def _take(self, whole: range, batch: Tensor) -> None:
        features, logits = self.extractor(batch)
        rows = slice(whole.start, whole.stop)
        self.seen[rows] += 1
        if self.features is not None:
            self.features[rows] = features.cpu()
        if self.logits is not None and logits is not None:
            self.logits[rows] = logits.cpu()
        if self.groups:
            groups = torch.tensor([i * len(self.groups) // self.n for i in whole])
            for g in groups.unique().tolist():
                self.groups[g].add(features[groups == g])
        shown = self.examined[rows]
        shown.copy_(batch[: len(shown)])


def measure(evaluator: Evaluator, samples: Samples, decides: dict[str, Any], began: float) -> dict[str, Any]:
    """The scores with all that decides them, also in {folder}.metrics.json beside the folder; every rank must ask."""
    results = evaluator.scores(samples)
    if "nn" in evaluator.metrics:
        sheet = samples.folder.with_name(f"{samples.folder.name}.nn.png")
        dataset, features = evaluator.source.images, evaluator.reference.features
        assert dataset is not None and features is not None
        results["nn"] = neighbours.examine(samples.examined, dataset, features, evaluator.extractor, sheet)
    measured = {
        **evaluator.decides(samples.n),
        "metrics": results,
        "device": str(evaluator.extractor.device),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - began, 1),
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            **{name: version(name) for name in LIBRARIES},
        },
    }
    if distributed.is_main():
        _store(path_of(samples.folder), decides, measured)
    return measured


def path_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.metrics.json")


def stored(
    folder: Path, decides: dict[str, Any], evaluator: Evaluator, num_samples: int
) -> dict[str, Any] | None:
    """The measurement of the same images by the same metrics, reference and extractor, if there is one."""
    of = evaluator.decides(num_samples)
    content = _read(path_of(folder))
    if content is None or content["decides"] != decides:
        return None
    measurements = [m for m in content["measurements"] if all(m[key] == of[key] for key in of)]
    there = next((m for m in measurements if set(evaluator.metrics) <= set(m["metrics"])), None)
    return there and there | {"metrics": {name: there["metrics"][name] for name in evaluator.metrics}}


def check(folder: Path, decides: dict[str, Any]) -> None:
    """Raise Refusal where the numbers of other images have the folder's name."""
    content = _read(path_of(folder))
    if content is not None and content["decides"] != decides:
        raise Refusal(
            f"{path_of(folder)} holds the numbers of other images: {manifest.first_difference(content['decides'], decides)}; "
            "name another folder with -i"
        )


def _store(path: Path, decides: dict[str, Any], measured: dict[str, Any]) -> None:
    """Add a measurement; it takes the place of one of the same N, reference and extractor, whose other metrics it keeps."""
    content = _read(path)
    others = content["measurements"] if content is not None and content["decides"] == decides else []
    same = ("num_samples", "reference", "extractor")
    for old in [m for m in others if all(m[key] == measured[key] for key in same)]:
        measured = measured | {"metrics": old["metrics"] | measured["metrics"]}
        others.remove(old)
    content = {"decides": decides, "measurements": [*others, measured]}
    files.write_text(path, json.dumps(content, indent=1) + "\n")


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        content = None
    if (
        not isinstance(content, dict)
        or not isinstance(content.get("measurements"), list)
        or "decides" not in content
    ):
        logging.warning(f"{path} is damaged and is written anew")
        return None
    return content


def numbers(measured: dict[str, Any]) -> dict[str, float]:
    """The metrics as one number each; the nearest neighbours' is the median distance over the typical one."""
    results, found = measured["metrics"], {}
    if "fid" in results:
        found["fid"] = results["fid"]["value"]
    if "is" in results:
        found["is"] = results["is"]["mean"]
    if "kid" in results:
        found["kid"] = results["kid"]["mean"]
    if "pr" in results:
        found |= {"precision": results["pr"]["precision"], "recall": results["pr"]["recall"]}
    for space, match in results.get("nn", {}).items():
        found[f"nn, {space}"] = match["median"] / match["typical"] if match["typical"] else math.inf
    return found


def print_table(measured: dict[str, Any], published: float | None) -> None:
    """A row for each number: its value and interval or spread, N, the reference, the extractor, and what to bear in mind."""
    results, rows = measured["metrics"], []
    spreads = {"fid": "half_width", "is": "std", "kid": "std"}
    for name, value in numbers(measured).items():
        metric = {"precision": "pr", "recall": "pr"}.get(name, name.split(",")[0])
        spread = results[name][spreads[name]] if name in spreads else None
        text = f"{value:.4g}" + (f" ± {spread:.2g}" if spread is not None else "")
        note = notes(measured, metric)
        if name == "fid" and published:
            note = f"paper {published:g}, ×{value / published:.3g}; {note}".removesuffix("; ")
        rows.append(
            [
                name,
                text,
                str(measured["num_samples"]),
                measured["reference"]["name"],
                measured["extractor"]["name"],
                note,
            ]
        )
    table = [["metric", "value", "N", "reference", "extractor", ""], *rows]
    widths = [max(len(row[k]) for row in table) for k in range(len(table[0]))]
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def notes(measured: dict[str, Any], metric: str) -> str:
    """What to bear in mind beside a value."""
    n, dim = measured["num_samples"], measured["extractor"]["dim"]
    said = []
    if metric == "fid" and n <= dim:
        said.append(f"N is not above the {dim} features: biased")
    if metric in ("fid", "is") and n != USUAL_N:
        said.append("N is not 50,000: not comparable with published values")
    if metric == "kid" and measured["metrics"]["kid"]["subset_size"] < scores.KID_SUBSET_SIZE:
        said.append(
            f"subsets of {measured['metrics']['kid']['subset_size']}, where {scores.KID_SUBSET_SIZE} are usual"
        )
    return "; ".join(said)
