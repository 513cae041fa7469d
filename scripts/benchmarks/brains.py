"""How good brain masks are in heads of real people: scans with masks, or label maps of whole heads."""

from __future__ import annotations

import glob
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from common.errors import InputError
from common.options import types as t

if TYPE_CHECKING:
    from preparation.volume import Volume

# numbers of FreeSurfer -> class of the phantom (phantom.contrast.CONTRAST); lesions are tissue, vessels are fluid
CLASSES = (
    {24: 1, 30: 1, 62: 1, 4: 2, 5: 2, 14: 2, 15: 2, 43: 2, 44: 2, 72: 2, 136: 2, 137: 2, 163: 2, 164: 2}
    | {3: 3, 42: 3, 17: 3, 53: 3, 18: 3, 54: 3, 26: 4, 58: 4, 11: 4, 50: 4, 12: 5, 51: 5, 13: 6, 52: 6, 10: 6, 49: 6}
    | {2: 7, 41: 7, 25: 7, 57: 7, 85: 7, 8: 8, 47: 8, 7: 9, 46: 9, 16: 10, 28: 10, 60: 10}
)
TISSUE_FROM = 3  # the first class that is no fluid
SEQUENCES = ("T1w", "FLAIR")
SPINAL_CORD = 212
# around the brain, as SimNIBS numbers it, less 300: gray value in these sequences by eye, white matter = 1
AROUND = {
    202: (0.9, 0.2),  # arteries
    206: (0.2, 0.3),  # eyes
    207: (0.6, 0.6),  # muscle and what has no number of its own
    208: (0.6, 0.7),  # muscles of the eyes
    209: (0.6, 1.0),  # mucosa
    211: (1.1, 0.9),  # scalp
    SPINAL_CORD: (0.9, 0.9),
    214: (0.3, 0.3),  # veins and sinuses
    215: (0.1, 0.1),  # cortical bone
    216: (0.8, 0.6),  # marrow
    230: (0.8, 0.9),  # optic nerves
}
AROUND_SD = 0.15  # of those gray values between heads, and of patches of some millimeters within them
TISSUE_SD = 0.05  # of patches in the brain
BLUR_MM, NOISE, SHADING = 0.7, 0.03, 0.1
CLOSING = 5  # voxels: fluid between gyri that are nearer than twice of this is brain


@dataclass(frozen=True)
class Head:
    """A head whose brain is known.

    Attributes:
        name: of its file.
        scans: by sequence.
        brain: (X, Y, Z) bool, what a mask should be.
        skull_inside: the same shape, the brain with all fluid around it.
        tissue: the same shape, what it must not cut off.
        around: the same shape, where it may lie.
    """

    name: str
    scans: dict[str, Volume]
    brain: np.ndarray
    skull_inside: np.ndarray
    tissue: np.ndarray
    around: np.ndarray

    def shares(self, mask: np.ndarray) -> tuple[float, float, float, float]:
        """Dice of a mask with the brain and with all inside of the skull, what it cuts off, and what lies elsewhere.

        Tissue that it cuts off is in percent of all tissue, what lies elsewhere in percent of the brain.
        """
        dice = [2 * (mask & true).sum() / (mask.sum() + true.sum()) for true in (self.brain, self.skull_inside)]
        cut, beyond = (self.tissue & ~mask).sum() / self.tissue.sum(), (mask & ~self.around).sum() / self.brain.sum()
        return *dice, 100 * cut, 100 * beyond


def ways_of(sequences: Iterable[str]) -> list[tuple[str, str]]:
    """Sequence and way to its brain mask: by the template, and of T1w by deepbet too, where it is installed."""
    from preparation.brain import deepbet_is_installed

    ways = [(sequence, "template") for sequence in sequences]
    return ways + [("T1w", "deepbet")] * (("T1w", "template") in ways and deepbet_is_installed())


def mask_by(way: str, scan: Volume) -> np.ndarray:
    """The mask that ``prepare_data.py`` makes of a scan, (X, Y, Z) bool."""
    from preparation.brain import deepbet_brain, extract_brain
    from preparation.registration import template_to_scan

    mask = deepbet_brain(scan) if way == "deepbet" else extract_brain(scan, template_to_scan(scan))
    return mask.values > 0


def brains(datalist_file: t.File | None = None, label_maps: t.Text | None = None, seed: t.Seed = 1) -> None:
    """Brain masks of ``prepare_data.py`` by the template and by deepbet, on heads whose brain is known; one of the two.

    Of each mask the Dice, the share of the brain that it cuts off, and what it holds of the head, in percent of the
    brain. In scans with masks all is counted against these. In label maps Dice is with tissue, ventricles and the fluid
    between gyri, and with all fluid inside of the skull besides, since tools differ in what they call brain. Gray and
    white matter may not be cut off; fluid and spinal cord may be in the mask or not.

    Args:
        datalist_file: JSON of T1w with the head and their brain masks (``brain_mask``).
        label_maps: pattern of label maps of whole heads in FreeSurfer's numbers, what is around the brain in those of
            SimNIBS less 300, as in the training maps of SynthSeg; T1w and FLAIR are made of them.
        seed: of gray values, shading and noise of these.

    Raises:
        InputError: if not one of the two is given, a case has no mask, or a map has another number.
    """
    from preparation.registration import require_simpleitk

    require_simpleitk()
    if (datalist_file is None) == (label_maps is None):
        raise InputError(
            f"datalist_file is {datalist_file} and label_maps is {label_maps}, expected exactly one of the two"
        )
    heads = heads_of_scans(datalist_file) if label_maps is None else heads_of_labels(label_maps, seed)
    print(f"{'head':24s}  sequence  mask by    Dice  with fluid  cut off, %  beyond, %  seconds")
    rows = defaultdict(list)
    for head in heads:
        for sequence, way in ways_of(head.scans):
            start = time.perf_counter()
            mask = mask_by(way, head.scans[sequence])
            row = (*head.shares(mask), time.perf_counter() - start)
            rows[sequence, way].append(row)
            print(_line(head.name, sequence, way, row), flush=True)
    for (sequence, way), of_way in rows.items():
        for name, pick in (("least", np.min), ("median", np.median), ("most", np.max)):
            print(_line(f"{name} of {len(of_way)}", sequence, way, pick(of_way, axis=0)))


def _line(name: str, sequence: str, way: str, row: tuple[float, ...]) -> str:
    dice, with_fluid, cut, beyond, seconds = row
    numbers = f"{dice:.3f}  {with_fluid:10.3f}  {cut:10.2f}  {beyond:9.2f}  {seconds:7.0f}"
    return f"{name:24s}  {sequence:8s}  {way:8s}  {numbers}"


def heads_of_scans(datalist_file: str) -> Iterator[Head]:
    """T1w with their brain masks."""
    from common.data import Datalist

    for case in Datalist(datalist_file).cases(("T1w",), require=("brain_mask",)):
        scan, mask = _read(case["image"]), _read(case["brain_mask"])
        yield Head(Path(case["image"]).name, {"T1w": scan}, *[mask.values > 0] * 4)


def heads_of_labels(pattern: str, seed: int) -> Iterator[Head]:
    """Heads made of label maps."""
    from scipy import ndimage

    files = sorted(glob.glob(pattern))  # noqa: PTH207  # a pattern may be absolute
    if not files:
        raise InputError(f"{pattern} is no file, and no pattern of files, expected label maps")
    for number, file in enumerate(files):
        labels = _read(file)
        unknown = set(np.unique(labels.values)) - {0, *CLASSES, *AROUND}
        if unknown:
            raise InputError(f"{file} has label {min(unknown):g}, expected those of the training maps of SynthSeg")
        classes = np.zeros(labels.values.shape, np.uint8)
        for value, its_class in CLASSES.items():
            classes[labels.values == value] = its_class
        closed = ndimage.binary_closing(np.pad(classes > 1, CLOSING), iterations=CLOSING)
        brain = ndimage.binary_fill_holes(closed[(slice(CLOSING, -CLOSING),) * 3])
        rng = np.random.default_rng((seed, number))
        scans = {sequence: scan_of_labels(labels, classes, sequence, rng) for sequence in SEQUENCES}
        skull_inside = brain | (classes > 0)
        around = skull_inside | (labels.values == SPINAL_CORD)
        yield Head(Path(file).name, scans, brain, skull_inside, classes >= TISSUE_FROM, around)


def scan_of_labels(labels: Volume, classes: np.ndarray, sequence: str, rng: np.random.Generator) -> Volume:
    """A scan of a head, white matter about 1000: tones of its parts, partial volume, shading and noise of Rice."""
    from scipy import ndimage

    from phantom.contrast import CONTRAST
    from phantom.noise import smooth_noise

    shape, spacing = classes.shape, labels.spacing
    patches, shading = (smooth_noise(rng, shape, mm / spacing).numpy() for mm in (2.8, 45.0))
    image = np.array(CONTRAST[sequence])[classes] * (1 + TISSUE_SD * patches)
    for value, tones in AROUND.items():
        part = labels.values == value
        image[part] = (
            tones[SEQUENCES.index(sequence)] * (1 + AROUND_SD * rng.standard_normal()) * (1 + AROUND_SD * patches[part])
        )
    image = ndimage.gaussian_filter(image.clip(0), BLUR_MM / spacing) * np.exp(SHADING * shading)
    real, imaginary = NOISE * rng.standard_normal((2, *shape))
    return labels.like((1000 * np.hypot(image + real, imaginary)).astype(np.float32))


def _read(path: str) -> Volume:
    """Axes in the order right, front, top."""
    from common.scans import read_scan
    from preparation.volume import Volume

    values, image = read_scan(path)
    return Volume(values, image.affine).to_ras()
