"""Anomaly detection by a spatial auto-encoder whose output trains a lesion U-Net (Baur et al., MIDL 2019)."""
