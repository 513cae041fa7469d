"""Configs of bundles, run from Python."""
