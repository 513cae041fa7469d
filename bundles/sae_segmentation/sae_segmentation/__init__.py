"""Segmentation auto-encoder: anatomy from unlabeled scans and one unpaired atlas (Yu et al., MIDL 2020)."""
