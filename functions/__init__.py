"""The numerics, the files and the weights: each module knows one thing and none knows the runners."""
