"""Thresholds from labels, and labels from predictions."""
