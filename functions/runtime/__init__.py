"""How it runs: devices, processes, threads, compilation, progress."""
