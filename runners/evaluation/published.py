"""FIDs that were published: arXiv 2010.02502's, and others' of the same weights, spacing and evaluations."""

from typing import NamedTuple

from configs import Config
from configs.choices import SAMPLERS
from configs.options import Options


class Published(NamedTuple):
    """A value, and who published it, as tables call them."""

    value: float
    source: str


STEPS = (10, 20, 50, 100, 1000)  # S of the columns
# Tables 1 and 3 of arXiv 2010.02502: by data set, size and spacing, a row for each sampler, by its label in
# configs/choices.py. LSUN's last values are in the text of appendix D.1: DDPM's own, 1000 steps.
FIDS: dict[tuple[str, int, str], dict[str, tuple[float, ...]]] = {
    ("CIFAR10", 32, "quad"): {
        "η = 0": (13.36, 6.84, 4.67, 4.16, 4.04),
        "η = 0.2": (14.04, 7.11, 4.77, 4.25, 4.09),
        "η = 0.5": (16.66, 8.35, 5.25, 4.46, 4.29),
        "η = 1": (41.07, 18.36, 8.01, 5.78, 4.73),
        "σ̂ (ddpm_noisy)": (367.43, 133.37, 32.72, 9.99, 3.17),
    },
    ("CELEBA", 64, "uniform"): {
        "η = 0": (17.33, 13.73, 9.17, 6.53, 3.51),
        "η = 0.2": (17.66, 14.11, 9.51, 6.79, 3.64),
        "η = 0.5": (19.86, 16.06, 11.01, 8.09, 4.28),
        "η = 1": (33.12, 26.03, 18.48, 13.93, 5.98),
        "σ̂ (ddpm_noisy)": (299.71, 183.83, 71.71, 45.20, 3.26),
    },
    ("bedroom", 256, "uniform"): {
        "η = 0": (16.95, 8.89, 6.75, 6.62),
        "η = 1": (42.78, 22.77, 10.81, 6.81, 6.36),
    },
    ("church_outdoor", 256, "uniform"): {
        "η = 0": (19.45, 12.47, 10.84, 10.58),
        "η = 1": (51.56, 23.37, 11.16, 8.27, 7.89),
    },
}

# By weights, spacing, label and evaluations (NFE). DPM-Solver: arXiv 2206.00927, figure 2 and table 4, by the
# published CIFAR10 weights, its own rows with the timesteps that `logSNR` gives here.
BY_WEIGHTS: dict[tuple[str, str, str, int], Published] = {
    ("ema_cifar10", "quad", "η = 0", 12): Published(11.02, "DPM-Solver"),
    ("ema_cifar10", "quad", "η = 0", 15): Published(8.92, "DPM-Solver"),
    ("ema_cifar10", "quad", "σ̂ (ddpm_noisy)", 12): Published(246.3, "DPM-Solver"),
    ("ema_cifar10", "quad", "σ̂ (ddpm_noisy)", 15): Published(197.6, "DPM-Solver"),
    ("ema_cifar10", "logSNR", "dpmsolver 3S", 12): Published(4.65, "DPM-Solver"),
}


# Table 2 of arXiv 2010.02502: CIFAR10's test set encoded and decoded in S steps, by dimension on [0, 1].
RECONSTRUCTION = {
    10: 0.014, 20: 0.0065, 50: 0.0023, 100: 0.0009, 200: 0.0004, 500: 0.0001, 1000: 0.0001
}  # fmt: skip


def find(name: str, config: Config, options: Options) -> Published | None:
    """What was published of this number, for the same data and steps."""
    return FINDERS[name](config, options) if name in FINDERS else None


def published_mse(config: Config, options: Options) -> Published | None:
    """Table 2's error of reconstruction. Which timesteps it took is not known."""
    same = config.data.name == "CIFAR10" and config.data.image_size == 32 and options.reference == "test"
    deterministic = SAMPLERS[options.sample_type].takes_eta and options.eta == 0
    value = RECONSTRUCTION.get(options.S) if same and deterministic else None
    return Published(value, "paper") if value else None


def published_fid(config: Config, options: Options) -> Published | None:
    """What was published for the same data, steps, spacing and sampler; None where nothing was.

    The paper's values are of its own networks, and stand beside any network of the same data.
    """
    record = SAMPLERS[options.sample_type]
    changed = options.denoise, options.clip_x0 not in (None, record.clip_x0), not options.lower_order_final
    if any(changed) or options.solver_type not in (None, *record.solver_types[:1]):
        return None
    data = config.data
    rows = FIDS.get((data.name, data.image_size, options.skip_type), {})
    fid = dict(zip(STEPS, rows.get(options.sampler_label, ()), strict=False)).get(options.S)
    if fid is not None:
        return Published(fid, "paper")
    if data.name != "CIFAR10" or data.image_size != 32:
        return None
    weights = "ema_cifar10" if options.use_pretrained else options.ckpt or ""
    return BY_WEIGHTS.get((weights, options.skip_type, options.sampler_label, record.evaluations(options.S)))


FINDERS = {"fid": published_fid, "mse": published_mse}  # by the name of the number
