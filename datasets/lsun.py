"""LSUN (Yu et al. 2015): an LMDB of encoded images for each category and split, as lsun.org packs them."""

from pathlib import Path

from configs import DataConfig
from configs.refusal import Refusal
from datasets.lmdb_files import LmdbValues, is_lmdb, keys_of
from datasets.pictures import Pictures

SIZES = {"bedroom": (3_033_042, 300), "church_outdoor": (126_227, 300)}
TEST_SPLIT = "the LMDB {root}/{category}_val_lmdb would be one"
SCENES = ["bedroom", "bridge", "church_outdoor", "classroom", "conference_room", "dining_room", "kitchen",
          "living_room", "restaurant", "tower"]  # fmt: skip
OBJECTS = ["airplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
           "dining_table", "dog", "horse", "motorbike", "person", "potted_plant", "sheep", "sofa", "train",
           "tv-monitor"]  # fmt: skip


def read(data: DataConfig, root: Path, train: bool) -> Pictures | None:
    """All images of the category, in the order of their keys. Objects have no split."""
    category = str(data.category)
    names = [f"{category}_train_lmdb", category] if train else [f"{category}_val_lmdb"]
    path = next((root / name for name in names if is_lmdb(root / name)), None)
    if path is None:
        if category not in SCENES + OBJECTS:
            raise Refusal(f"data.category is {category!r}; LSUN has {', '.join(SCENES + OBJECTS)}")
        if train:
            put = f"put the unpacked folder {category if category in OBJECTS else names[0]}"
            raise Refusal(f"LSUN's {category} is not in {root}: {put} with its data.mdb there")
        return None
    if not len(keys := keys_of(path)):
        raise Refusal(f"{path} holds no images")
    return Pictures(LmdbValues(path, keys), data.shape, background=data.background).check_some(
        2, data.on_error
    )  # each may be a seek in 43 GB
