"""Before a training: what fits the data, and what it costs."""
