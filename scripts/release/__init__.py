"""A release of a bundle: its package, the checks and exports of it."""
