"""DeepAtlas: registration and segmentation networks that teach each other, from few label maps."""
