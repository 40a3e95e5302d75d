"""Keys that configs of programs related to upstream's have, and that decide nothing in this one.

dpm-solver, DDRM, DDNM, SDEdit, DiffPure and Fast-DDPM. A key that would decide something there has the only
value that means the same here; any other is refused.
"""

from collections.abc import Mapping
from typing import Any

from configs.refusal import Refusal, quoted

SECTIONS = {"classifier", "time_travel", "sampling_inter"}
KEYS = {
    "data": {
        "num_classes", "out_of_dist", "subset_1k", "train_dataroot", "val_dataroot", "sample_dataroot",
    },
    "model": {
        "model_type", "is_upsampling", "ckpt_dir", "image_size", "num_channels", "num_heads",
        "num_head_channels", "num_heads_upsample", "use_fp16", "use_scale_shift_norm", "resblock_updown",
        "use_new_attention_order", "use_checkpoint", "learn_sigma", "class_cond", "attention_resolutions",
        "channel_mult", "model_channels",
    },
    "sampling": {
        "total_N", "fid_stats_dir", "fid_total_samples", "fid_batch_size", "cond_class", "classifier_scale",
    },
}  # fmt: skip
MUST_BE: dict[tuple[str, str], tuple[Any, ...]] = {
    ("model", "model_type"): ("ddpm",),
    ("model", "is_upsampling"): (False,),
    ("model", "learn_sigma"): (False,),
    ("model", "class_cond"): (False,),
    ("model", "use_scale_shift_norm"): (False,),
    ("model", "resblock_updown"): (False,),
    ("sampling", "cond_class"): (False,),
}
SPELLINGS = {"CelebA_HQ": "CELEBA_HQ", "CelebA": "CELEBA"}  # of data sets


def without_foreign_keys(tree: Mapping) -> tuple[dict[Any, Any], list[str]]:
    """The config without these keys, and their names. Raises Refusal where one asks for another network."""
    ours: dict[Any, Any] = {name: section for name, section in tree.items() if name not in SECTIONS}
    ignored = [str(name) for name in tree if name in SECTIONS]
    for name, keys in KEYS.items():
        section = ours.get(name)
        if not isinstance(section, Mapping):
            continue
        for key in (key for key in section if key in keys):
            right = MUST_BE.get((name, key))
            if right and section[key] not in right:
                is_ = f"{name}.{key} is {quoted(section[key])}"
                raise Refusal(f"{is_}, which is another network than this program's; it must be {right[0]}")
            ignored.append(f"{name}.{key}")
        ours[name] = {key: value for key, value in section.items() if key not in keys}
    data = ours.get("data")
    if isinstance(data, dict) and isinstance(data.get("dataset"), str):
        data["dataset"] = SPELLINGS.get(data["dataset"], data["dataset"])
    return ours, ignored
