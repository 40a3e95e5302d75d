"""Making images: the tasks, their folders, grids of them."""
