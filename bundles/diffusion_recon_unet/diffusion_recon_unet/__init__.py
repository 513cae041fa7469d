"""Anomalies from a diffusion model's healthy reconstruction and a U-Net, fused (Behrendt et al., MIDL 2024)."""
