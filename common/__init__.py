"""What the bundles share: reading, grids, transforms, metrics, engines, report, phantom."""
