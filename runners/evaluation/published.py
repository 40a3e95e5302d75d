"""The FIDs that arXiv 2010.02502 published: Table 1, and Table 3 for LSUN."""

from configs import Config
from configs.options import Options

STEPS = (10, 20, 50, 100, 1000)  # S of the columns; Table 3 has four
# By data set, size and spacing, a row for each sampler, by its label in configs/choices.py.
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
    ("bedroom", 256, "uniform"): {"η = 0": (16.95, 8.89, 6.75, 6.62), "η = 1": (42.78, 22.77, 10.81, 6.81)},
    ("church_outdoor", 256, "uniform"): {
        "η = 0": (19.45, 12.47, 10.84, 10.58),
        "η = 1": (51.56, 23.37, 11.16, 8.27),
    },
}


def published_fid(config: Config, options: Options) -> float | None:
    """The paper's FID for the same data, steps, spacing and sampler; None where it has none."""
    rows = FIDS.get((config.data.name, config.data.image_size, options.skip_type), {})
    return dict(zip(STEPS, rows.get(options.sampler_label, ()), strict=False)).get(options.S)
