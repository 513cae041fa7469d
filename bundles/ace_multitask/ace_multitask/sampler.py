"""Draws of training cases and of patch centers that do not follow the size of the data sets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch.distributed as dist
from torch.utils.data import Sampler

from common.errors import InputError

from .label_sets import LabelSets


class BalancedSampler(Sampler[int]):
    """Indices of cases, equally many of every data set, and within a data set equally many of every case.

    Draws come in blocks that hold each data set once, in random order, so a batch whose size is a multiple of the
    number of data sets is exactly mixed. Within a data set the cases come in random order, each once before any comes
    again. The draws of an epoch are a function of seed and epoch; the ranks of a distributed training share them out.

    Args:
        datasets: name of the data set of each case.
        length: draws in an epoch over all ranks; rounded up so that all ranks draw equally often.
        seed: any nonnegative integer.
        rank, world_size: of a distributed training; None to ask ``torch.distributed``.

    Raises:
        InputError: if there is no case, or ``length`` is below 1.
        ValueError: if ``rank`` is not below ``world_size``.
    """

    def __init__(
        self,
        datasets: Sequence[str],
        length: int,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        distributed = dist.is_available() and dist.is_initialized()
        self.rank = rank if rank is not None else dist.get_rank() if distributed else 0
        self.world_size = world_size if world_size is not None else dist.get_world_size() if distributed else 1
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank is {self.rank}, expected 0 or above and below the world size {self.world_size}")
        if not datasets:
            raise InputError("there is no case to draw from, expected at least one")
        if length < 1:
            raise InputError(f"the sampler is to draw {length} cases per epoch, expected 1 or more")
        names = np.asarray(datasets)
        self.members = [np.flatnonzero(names == name) for name in dict.fromkeys(datasets)]
        self.length = -(-length // self.world_size)
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose draws come next; :class:`common.engines.EpochSeed` does it in a training."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng([self.seed, self.epoch])
        blocks = -(-self.length // len(self.members)) * self.world_size
        columns = [_repeated_permutations(members, blocks, rng) for members in self.members]
        table = rng.permuted(np.stack(columns, axis=1), axis=1)
        return iter(table[self.rank :: self.world_size].ravel()[: self.length].tolist())


def _repeated_permutations(members: np.ndarray, length: int, rng: np.random.Generator) -> np.ndarray:
    repeats = -(-length // len(members))
    return np.concatenate([rng.permutation(members) for _ in range(repeats)])[:length]


def crop_ratios(label_sets: LabelSets, background: float = 1 / 3, dataset_name: str | None = None) -> list[float]:
    """How often a patch is centered on a voxel of each code, for ``RandCropByLabelClassesd`` over codes.

    Within a data set all foreground classes are drawn equally often. Where value 0 covers classes that other data sets
    label, as in the lesion set, it gets the share ``background``; where it is background alone, and for ignored values,
    the ratio is 0.

    Args:
        label_sets: the table.
        background: share of the patches on the 0 of such a data set, at least 0 and below 1.
        dataset_name: ratios of the codes of ``label_sets.single(dataset_name)``, but by what the whole table says of
            its 0.

    Returns:
        One ratio per code; the sum over the codes of a data set is 1, or 0 if it has no foreground.

    Raises:
        InputError: if ``background`` is no such share.
    """
    if not 0 <= background < 1:
        raise InputError(f"background is {background}, expected a share of at least 0 and below 1")
    ratios = [0.0] * len(label_sets.allowed)
    full = label_sets.allowed.all(1).tolist()
    for name in label_sets.datasets:
        codes = {value: label_sets.code_of[name, value] for value in label_sets.values(name)}
        foreground: dict[tuple[bool, ...], list[int]] = {}  # values may stand for the same classes
        for value, code in codes.items():
            if value and not full[code]:
                foreground.setdefault(tuple(label_sets.allowed[code].tolist()), []).append(code)
        rest = background if not full[codes[0]] and label_sets.allowed[codes[0]].sum() > 1 else 0.0
        ratios[codes[0]] = rest
        for same in foreground.values():
            for code in same:
                ratios[code] = (1 - rest) / len(foreground) / len(same)
    if dataset_name is not None:
        values = label_sets.values(dataset_name)
        return ratios[:1] + [ratios[label_sets.code_of[dataset_name, value]] for value in values]
    return ratios
