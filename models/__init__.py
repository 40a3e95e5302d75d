"""The network and the average of its weights. They do not know schedules, devices or files."""
