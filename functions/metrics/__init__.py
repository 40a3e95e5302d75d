"""How far images are from a reference, by the features of a network. It knows no data set and no sampler."""
