"""Where time and memory go. Machines are noisy: compare the parts of one run, not runs of different days."""
