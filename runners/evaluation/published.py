"""The FIDs that arXiv 2010.02502 published, by what they were made with: Table 1, and Table 3 for LSUN."""

from configs import Config
from configs.options import Options

NOISY = "σ̂"
_TABLE_1_STEPS, _TABLE_3_STEPS = (10, 20, 50, 100, 1000), (10, 20, 50, 100)

_Table = dict[float | str, tuple[float, ...]]

_CIFAR10: _Table = {
    0.0: (13.36, 6.84, 4.67, 4.16, 4.04),
    0.2: (14.04, 7.11, 4.77, 4.25, 4.09),
    0.5: (16.66, 8.35, 5.25, 4.46, 4.29),
    1.0: (41.07, 18.36, 8.01, 5.78, 4.73),
    NOISY: (367.43, 133.37, 32.72, 9.99, 3.17),
}
_CELEBA: _Table = {
    0.0: (17.33, 13.73, 9.17, 6.53, 3.51),
    0.2: (17.66, 14.11, 9.51, 6.79, 3.64),
    0.5: (19.86, 16.06, 11.01, 8.09, 4.28),
    1.0: (33.12, 26.03, 18.48, 13.93, 5.98),
    NOISY: (299.71, 183.83, 71.71, 45.20, 3.26),
}
_BEDROOM: _Table = {0.0: (16.95, 8.89, 6.75, 6.62), 1.0: (42.78, 22.77, 10.81, 6.81)}
_CHURCH: _Table = {0.0: (19.45, 12.47, 10.84, 10.58), 1.0: (51.56, 23.37, 11.16, 8.27)}

# The data, the spacing of the steps, the image size, the steps and the table.
_TABLES: list[tuple[str, str, int, tuple[int, ...], _Table]] = [
    ("CIFAR10", "quad", 32, _TABLE_1_STEPS, _CIFAR10),
    ("CELEBA", "uniform", 64, _TABLE_1_STEPS, _CELEBA),
    ("bedroom", "uniform", 256, _TABLE_3_STEPS, _BEDROOM),
    ("church_outdoor", "uniform", 256, _TABLE_3_STEPS, _CHURCH),
]


def published_fid(config: Config, options: Options) -> float | None:
    """The paper's FID for the data, steps, spacing and sampler of `options`; None where it has none."""
    data = config.data
    name = data.name
    row = NOISY if options.sample_type == "ddpm_noisy" else options.eta
    for of, skip_type, size, steps, table in _TABLES:
        same = (name, options.skip_type, data.image_size) == (of, skip_type, size)
        if same and row in table and options.timesteps in steps:
            return table[row][steps.index(options.timesteps)]
    return None
