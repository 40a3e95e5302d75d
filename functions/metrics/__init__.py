"""How far images are from a reference, by the features of a network: FID and its kin. Knows no data set and no sampler."""
