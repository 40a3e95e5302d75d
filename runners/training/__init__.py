"""Training a network as a run on disk."""
