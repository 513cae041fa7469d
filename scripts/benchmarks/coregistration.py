"""How far off the scans of a person lie whose headers disagree, after ``prepare_data.py`` has brought them together."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from common.errors import InputError
from common.options import types as t

if TYPE_CHECKING:
    from preparation.volume import Volume

    Pair = tuple[str, Volume, Volume]  # name, fixed and moving scan

PHANTOM_MM = 3.0
THICKNESS = (1, 3)  # slices of a phantom's FLAIR, in voxels


def coregistration(
    datalist_file: t.File | None = None,
    sequences: t.Names = ("T1w", "FLAIR"),
    shifts: t.Levels = (0, 40, 80),
    turns: t.Levels = (0, 20, 40),
    seeds: t.Seeds = (3,),
) -> None:
    """Move the header of one sequence of scans that fit, bring it back, and say how far off it then is.

    Errors are mean distances in the head of the fixed scan, mm: of what the headers say, of plain SimpleITK from the
    moments of both scans, and of what ``prepare_data.py`` finds; then how it judges that, and the seconds it took. At
    the end, how many are right (to the largest edge of a voxel of both), off and warned of, off and not, right and
    warned of.

    Args:
        datalist_file: JSON of cases whose sequences fit; by default phantoms, with and without the head around the
            brain, with thin and with thick slices.
        sequences: two, the fixed one first.
        shifts: of the header, mm, each with each turn; directions and axes are drawn.
        turns: of the header, degrees.
        seeds: of the phantoms.
    """
    from preparation.coregistration import coregister
    from preparation.registration import head_mask, require_simpleitk

    require_simpleitk()
    if len(sequences) != 2:
        raise InputError(f"sequences are {', '.join(sequences)}, expected two, the fixed one first")
    pairs = _phantoms(seeds, sequences) if datalist_file is None else _pairs_of(datalist_file, sequences)
    counts: dict[tuple[bool, bool], int] = dict.fromkeys(itertools.product((True, False), repeat=2), 0)
    errors, plain = [], []
    print(f"{'scans':28s}  shift  turn  headers  moments  found  blur  rival  seconds  warning")
    for name, fixed, moving in pairs:
        points = _world(fixed, np.argwhere(head_mask(fixed))[::97])
        largest = max(fixed.spacing.max(), moving.spacing.max())
        for seed, (shift, turn) in enumerate(itertools.product(shifts, turns)):
            moved, motion = with_moved_header(moving, shift, turn, seed)
            start = time.perf_counter()
            match = coregister(fixed, moved)
            seconds = time.perf_counter() - start
            true = _apply(motion, points)
            ways = (np.eye(4), _from_moments(fixed, moved), match.way)
            by_headers, by_moments, found = (np.linalg.norm(_apply(way, points) - true, axis=1).mean() for way in ways)
            counts[found <= largest, match.doubt is None] += 1
            errors.append(found)
            plain.append(by_moments)
            numbers = f"{by_headers:7.1f}  {by_moments:7.1f}  {found:5.1f}  {match.blur:4.2f}  {match.rival:5.2f}"
            print(f"{name:28s}  {shift:5d}  {turn:4d}  {numbers}  {seconds:7.1f}  {match.doubt or ''}", flush=True)
    print(
        f"of {len(errors)}: {counts[True, True]} right, {counts[False, False]} off and warned of, "
        f"{counts[False, True]} off and not, {counts[True, False]} right and warned of"
    )
    for name, values in (("found", errors), ("moments", plain)):
        print(
            f"{name}: median {np.median(values):.2f} mm, 95 % {np.percentile(values, 95):.2f}, most {max(values):.2f}"
        )


def with_moved_header(scan: Volume, shift_mm: float, turn_deg: float, seed: int) -> tuple[Volume, np.ndarray]:
    """A scan whose header has moved, in the order of its new axes, and the motion of its world, about its middle."""
    from scipy.spatial.transform import Rotation

    from preparation.volume import Volume

    shift, axis = np.random.default_rng(seed).standard_normal((2, 3))
    motion = np.eye(4)
    motion[:3, :3] = Rotation.from_rotvec(np.radians(turn_deg) * axis / np.linalg.norm(axis)).as_matrix()
    middle = _world(scan, np.array(scan.values.shape) / 2)
    motion[:3, 3] = middle - motion[:3, :3] @ middle + shift_mm * shift / np.linalg.norm(shift)
    return Volume(scan.values, motion @ scan.affine).to_ras(), motion


def _phantoms(seeds: tuple[int, ...], sequences: tuple[str, ...]) -> Iterator[Pair]:
    from phantom import Grid, make_subject
    from preparation.volume import Volume

    affine = np.diag([PHANTOM_MM] * 3 + [1.0])
    affine[:3, 3] = [-99, -132, -99]
    grid = Grid((66, 72, 66), affine)
    for seed in seeds:
        head = make_subject(seed, scalp=True, grid=grid, sequences=sequences, fine_mm=PHANTOM_MM)
        for stripped, thickness in itertools.product((False, True), THICKNESS):
            inside = head.brain_mask if stripped else 1
            fixed, moving = (Volume(1000 * head.images[sequence] * inside, affine) for sequence in sequences)
            thick = affine @ np.diag([1, 1, thickness, 1.0])
            kind = f"phantom {seed}, {'brain' if stripped else 'head'}, {PHANTOM_MM * thickness:g} mm"
            yield kind, fixed, moving.on_grid((66, 72, 66 // thickness), thick)


def _pairs_of(datalist_file: str, sequences: tuple[str, ...]) -> Iterator[Pair]:
    from common.data import Datalist
    from common.scans import read_scan
    from preparation.volume import Volume

    for case in Datalist(datalist_file).cases(sequences):
        scans = [(values, image.affine) for values, image in map(read_scan, case["image"])]
        yield case["name"], *(Volume(values.clip(min=0), affine).to_ras() for values, affine in scans)


def _from_moments(fixed: Volume, moving: Volume) -> np.ndarray:
    """Where SimpleITK ends from the moments of both scans, by mutual information on copies of 3 mm."""
    import SimpleITK as sitk

    from preparation.registration import WORKING_MM, execute, matrix_of, padded, registration_method, to_itk

    fixed, moving = (scan.isotropic(WORKING_MM) for scan in (fixed, moving))
    moments = sitk.CenteredTransformInitializerFilter.MOMENTS
    start = sitk.CenteredTransformInitializer(to_itk(fixed), to_itk(moving), sitk.Euler3DTransform(), moments)
    transform = sitk.Euler3DTransform(start)
    try:
        execute(registration_method((4, 2, 1), (6.0, 3.0, 1.5)), fixed, padded(moving), transform)
    except InputError:  # they do not meet: it stays where it began
        return matrix_of(sitk.Euler3DTransform(start))
    return matrix_of(transform)


def _world(scan: Volume, voxels: np.ndarray) -> np.ndarray:
    return _apply(scan.affine, voxels)


def _apply(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ matrix[:3, :3].T + matrix[:3, 3]
