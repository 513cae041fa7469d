"""Ordered pairs of cases: images are kept once, and paired by their index."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from common.data import CachedScans
from common.errors import InputError


class PairDataset(Dataset):
    """Pairs of the items of a dataset of single cases.

    Args:
        cases: its items have ``image``, (1, X, Y, Z), and, if the case is labeled, ``label``, likewise.
        pairs: (moving, fixed) indices that plain numbers stand for; a sampler may give pairs of its own.

    Returns:
        Per pair ``image``, (2, X, Y, Z), the moving before the fixed one; ``label`` likewise, uint8, 0 where there is
        none; ``labeled``, two booleans; ``index``, two numbers.
    """

    def __init__(self, cases: Dataset, pairs: Sequence[tuple[int, int]] = ()) -> None:
        self.cases = cases
        self.pairs = list(pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, pair: int | tuple[int, int]) -> dict[str, Any]:
        indices = self.pairs[pair] if isinstance(pair, int) else pair
        items = [self.cases[int(i)] for i in indices]
        labels = [item.get("label") for item in items]
        return {
            "image": torch.cat([torch.as_tensor(item["image"]) for item in items]),
            "label": torch.cat(
                [
                    torch.zeros(item["image"].shape, dtype=torch.uint8) if label is None else torch.as_tensor(label)
                    for item, label in zip(items, labels, strict=True)
                ]
            ),
            "labeled": torch.tensor([label is not None for label in labels]),
            "index": torch.tensor([int(i) for i in indices]),
        }


class RingDataset(PairDataset):
    """Each case onto the next, the last onto the first: as many pairs as cases, for validation.

    Args:
        data: cases.
        transform: of a case.
        cache_rate: share of the prepared cases that is kept in memory.

    Raises:
        InputError: if there are fewer than two cases.
    """

    def __init__(self, data: Sequence[Mapping[str, Any]], transform: Callable, cache_rate: float = 1.0) -> None:
        if len(data) < 2:
            raise InputError(f"there is {len(data)} validation case, expected two or more to make pairs of")
        pairs = [(i, (i + 1) % len(data)) for i in range(len(data))]
        super().__init__(CachedScans(data, transform, cache_rate=cache_rate), pairs)


class PairSampler(Sampler[tuple[int, int]]):
    """Pairs of one block of a joint training: those of the registration steps, then those of the segmentation steps.

    Registration takes any two cases, segmentation a labeled one and any other, in either order. What an epoch draws
    is a function of seed and epoch; with several processes each takes its own share of one draw.

    Args:
        labeled: whether each case has a label.
        registration_steps: pairs of any cases in an epoch, per process.
        segmentation_steps: pairs with a labeled case in an epoch, per process.
        seed: of the draws.

    Raises:
        InputError: if there are fewer than two cases, or no labeled one although segmentation has steps.
    """

    def __init__(
        self, labeled: Sequence[bool], registration_steps: int, segmentation_steps: int, seed: int = 0
    ) -> None:
        super().__init__()
        self.labeled = np.flatnonzero(labeled)
        self.cases = len(labeled)
        if self.cases < 2:
            raise InputError(f"there is {self.cases} training case, expected two or more to make pairs of")
        if segmentation_steps > 0 and len(self.labeled) == 0:
            raise InputError(
                f"none of the {self.cases} training cases has a label, expected one or more; "
                "train_registration.json needs none"
            )
        self.steps = (registration_steps, segmentation_steps)
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that is drawn next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return sum(self.steps)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        world, rank = idist.get_world_size(), idist.get_rank()
        first = _in_turn(np.arange(self.cases), self.steps[0] * world, rng)
        pairs = np.stack([first, self._others(first, rng)], axis=1)[rank::world]
        taught = _in_turn(self.labeled, self.steps[1] * world, rng)
        with_label = np.stack([taught, self._others(taught, rng)], axis=1)
        with_label = rng.permuted(with_label, axis=1)[rank::world]
        yield from map(tuple, np.concatenate([pairs, with_label]).tolist())

    def _others(self, first: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """For each case one that it is not."""
        return (first + rng.integers(1, self.cases, len(first))) % self.cases


def _in_turn(members: np.ndarray, length: int, rng: np.random.Generator) -> np.ndarray:
    """Members in random order, each as often as the others up to one."""
    rounds = -(-length // max(len(members), 1))
    parts = [rng.permutation(members) for _ in range(rounds)]
    return np.concatenate(parts)[:length] if parts else np.zeros(0, dtype=int)


def are_labeled(cases: Sequence[Mapping[str, Any]]) -> list[bool]:
    """Whether each case of a datalist has a label."""
    return [case.get("label") is not None for case in cases]


def limit_labels(cases: Sequence[Mapping[str, Any]], number: int | None) -> list[dict[str, Any]]:
    """The cases, of which only the first ``number`` labeled ones keep their label; all for None.

    Raises:
        InputError: if there are fewer.
    """
    if number is None:
        return [dict(case) for case in cases]
    labeled = [i for i, has_label in enumerate(are_labeled(cases)) if has_label]
    if len(labeled) < number:
        raise InputError(f"{len(labeled)} training cases have a label, expected at least labeled_cases = {number}")
    kept = set(labeled[:number])
    return [{k: v for k, v in case.items() if k != "label" or i in kept} for i, case in enumerate(cases)]
