"""Segmentation auto-encoder: anatomy from unlabelled scans and one unpaired atlas (Yu et al., MIDL 2020)."""
