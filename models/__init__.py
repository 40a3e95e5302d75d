"""The network and its average: they know no schedule, no device and no file."""
