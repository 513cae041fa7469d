"""Spatial transforms that MONAI lacks or that need a cure."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from monai.transforms import Spacingd


class ResampleSpacingd(Spacingd):
    """Spacingd that leaves alone what is no metadata.

    MONAI 1.6 updates every item whose name begins with ``<key>_`` after resampling, and fails on ``image_path`` and the
    like, which MONAI Label and our own lists put there as text. ``Invertd`` undoes it as it undoes Spacingd.
    """

    def __call__(self, data: Mapping[Hashable, Any], lazy: bool | None = None) -> dict[Hashable, Any]:
        prefixes = tuple(f"{key}_" for key in self.keys)
        kept = {
            name: item
            for name, item in data.items()
            if name not in self.keys and str(name).startswith(prefixes) and not isinstance(item, dict)
        }
        rest = {name: item for name, item in data.items() if name not in kept}
        return {**super().__call__(rest, lazy=lazy), **kept}
