"""From one file to the images of a case."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from monai.config import KeysCollection
from monai.transforms import MapTransform

from common.data import paths_beside

logger = logging.getLogger(__name__)


class ListSequencesd(MapTransform):
    """Make the path of one image, which is all that MONAI Label gives, the list of paths of its case.

    The sequence is read from the file's name, and the others are looked for beside it, see
    :func:`common.data.paths_beside`. A file whose name says no sequence is taken for the first one, with a warning.
    What is a list already stays as it is.

    Args:
        keys: keys of the paths.
        sequences: what the images of a case are, in the order of the channels.
        allow_missing_keys: do not raise if a key is missing.

    Returns:
        Under each key one path per sequence, None for a missing one.
    """

    def __init__(self, keys: KeysCollection, sequences: Sequence[str], allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.sequences = tuple(sequences)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            if isinstance(d[key], str):
                d[key] = self._listed(d[key])
        return d

    def _listed(self, path: str) -> list[str | None]:
        paths = paths_beside(path, self.sequences)
        if any(paths):
            return paths
        names = ", ".join(self.sequences)
        logger.warning("the name of %s ends in none of %s: taken for %s", path, names, self.sequences[0])
        return [path, *paths[1:]]
