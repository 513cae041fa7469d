"""Data sets of MONAI over cases: failures stay sentences, caches end with their program, slices of volumes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from monai.data import CacheDataset, Dataset, MetaTensor
from monai.transforms import Compose
from tqdm import tqdm

from ..errors import InputError, find_input_error, is_out_of_memory
from ..scans import stem
from .names import images_of


class ScanDataset(Dataset):
    """MONAI's Dataset whose InputError stays one sentence on its way through transforms and worker processes.

    Args:
        data: cases.
        transform: what is applied to a case.
        keep_going: a case that raises InputError becomes ``{"failure": sentence, "name": name}`` and stops nothing.

    Raises:
        InputError: on access to a case that cannot be used, or does not fit into the memory, if ``keep_going`` is
            False.
    """

    def __init__(
        self, data: Sequence[dict[str, Any]], transform: Callable | None = None, keep_going: bool = False
    ) -> None:
        super().__init__(data, transform)
        self.keep_going = keep_going

    def _transform(self, index: int) -> Any:
        try:
            return super()._transform(index)
        except Exception as e:
            case = self.data[index]
            error = find_input_error(e)
            if error is None and is_out_of_memory(e):
                error = InputError(f"{images_of(case)[0]} does not fit into the memory, expected a smaller image")
            if error is None:
                raise
            if self.keep_going:
                return {"failure": str(error), "name": case.get("name") or stem(images_of(case)[0])}
            raise InputError(str(error)) from e


class CachedScans(CacheDataset):
    """MONAI's CacheDataset for steps that are shared, and whose threads have ended when it fails.

    A Compose among the steps, as those that training and validation begin with, counts as the steps in it. MONAI takes
    it for random, and caches nothing from there on.

    MONAI's threads go on in the background, and if the program ends while one of them aligns an atlas, it ends by a
    crash.

    Args:
        data: cases.
        transform: of a case; all before its first random step is cached.
        num_workers: threads that fill the cache.
        kwargs: further arguments of CacheDataset.
    """

    def __init__(
        self, data: Sequence[dict[str, Any]], transform: Callable, num_workers: int = 2, **kwargs: Any
    ) -> None:
        steps = transform.flatten() if type(transform) is Compose else transform
        super().__init__(data, steps, num_workers=num_workers, **kwargs)

    def _fill_cache(self, indices: Sequence[int] | None = None) -> list[Any]:
        indices = range(self.cache_num) if indices is None else indices
        pool = ThreadPoolExecutor(self.num_workers or 1)
        try:
            loaded = pool.map(self._load_cache_item, indices)
            return list(tqdm(loaded, desc="loading", unit=" case", total=len(indices), disable=None))
        finally:
            pool.shutdown(cancel_futures=True)


class BrainSlices(torch.utils.data.Dataset):
    """All axial slices of some volumes that show brain, in memory at half precision.

    Args:
        dataset: items with ``image`` (C, X, Y, Z), all of one in-plane size, 0 outside the brain.
        min_area: smallest share of brain pixels in a slice that is kept.
        every: keep one of so many neighboring slices; they differ little at 1 mm.
        transform: applied to the item of a slice, ``{"image": (C, X, Y)}``.

    Attributes:
        slices: (N, C, X, Y), float16.
        volumes: (N,), position in ``dataset`` of the volume that each slice is from.

    Raises:
        ValueError: if no slice is left.
    """

    def __init__(
        self,
        dataset: torch.utils.data.Dataset,
        min_area: float = 0.01,
        every: int = 1,
        transform: Callable | None = None,
    ) -> None:
        self.transform = transform
        slices, volumes = [], []
        for number, item in enumerate(tqdm(dataset, desc="reading volumes", unit=" volume", disable=None)):
            image = item["image"].as_tensor() if isinstance(item["image"], MetaTensor) else item["image"]
            keep = (image != 0).any(dim=0).float().mean(dim=(0, 1)) > min_area
            slices.append(image[..., keep][..., ::every].movedim(-1, 0).half())
            volumes.append(torch.full((len(slices[-1]),), number))
        self.slices = torch.cat(slices) if slices else torch.zeros(0)
        self.volumes = torch.cat(volumes) if volumes else torch.zeros(0, dtype=torch.long)
        if len(self.slices) == 0:
            raise ValueError(f"no slice with more than {min_area:.0%} brain in {len(slices)} volumes; expected some")

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, index: int) -> dict:
        item = {"image": self.slices[index].float()}
        return self.transform(item) if self.transform is not None else item
