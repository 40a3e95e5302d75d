"""LSUN (Yu et al. 2015): an LMDB of encoded images a category and split, as lsun.org packs them."""

from pathlib import Path

from configs import DataConfig
from configs.refusal import Refusal
from datasets.key_index import keys_of
from datasets.lmdb_files import is_lmdb
from datasets.pictures import Pictures, sound
from datasets.sources import LmdbValues

SCENES = ["bedroom", "bridge", "church_outdoor", "classroom", "conference_room", "dining_room", "kitchen", "living_room",
          "restaurant", "tower"]  # fmt: skip
OBJECTS = ["airplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "dining_table", "dog", "horse",
           "motorbike", "person", "potted_plant", "sheep", "sofa", "train", "tv-monitor"]  # fmt: skip
CHECKED_AT_START = 2  # each may be a seek in a file of 43 GB


def read(data: DataConfig, root: Path, train: bool) -> Pictures | None:
    """All images of the category in LMDB's order, which is its keys'; no test split where its LMDB is not there."""
    category = str(data.category)
    path = root / f"{category}_{'train' if train else 'val'}_lmdb"
    if train and not is_lmdb(path) and is_lmdb(root / category):
        path = root / category  # how the objects, which have no split, unpack
    if not is_lmdb(path):
        if category not in SCENES + OBJECTS:
            raise Refusal(
                f"data.category is {category!r}; LSUN has {', '.join(SCENES)}, and of objects {', '.join(OBJECTS)}"
            )
        if train:
            name = category if category in OBJECTS else path.name
            raise Refusal(
                f"LSUN's {category} is not in {root}: put the unpacked folder {name} with its data.mdb there"
            )
        return None
    keys = keys_of(path)
    if not len(keys):
        raise Refusal(f"{path} holds no images")
    return sound(Pictures(LmdbValues(path, keys), data), CHECKED_AT_START)
