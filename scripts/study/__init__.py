"""Small-scale experiments, one module per bundle: its arms, its claims, and how one seed of them is run."""
