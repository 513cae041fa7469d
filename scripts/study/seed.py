"""What the experiments share: one seed's folder, and scores that are kept."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path


class SeedStudy(ABC):
    """All arms of one seed. It goes to the processes that train, so it holds nothing but names.

    Args:
        folder: everything of this seed.
        seed: of subjects and trainings.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.seed = seed
        self.data = folder / "data"

    @abstractmethod
    def run(self, pool: Executor) -> dict[str, dict[str, float]]:
        """Arm -> scores; arms are trained by the processes of the pool."""

    def once(self, arm: str, work: Callable[..., dict[str, float]], *arguments) -> dict[str, float]:
        """What ``work`` returns, kept in a file: an arm that is done is not run again."""
        path = self.folder / arm / "scores.json"
        if path.is_file():
            return json.loads(path.read_text())
        scores = work(*arguments)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}")
        partial.write_text(json.dumps(scores, indent=2) + "\n")
        partial.replace(path)
        return scores
