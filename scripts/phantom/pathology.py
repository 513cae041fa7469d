"""Lesions painted over a synthetic anatomy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

from common.geometry import rotation_matrix

from .anatomy import BRAIN_STEM, CEREBELLAR_WM, CORTEX, CSF, VENTRICLE, WM, Grid
from .noise import smooth_noise

MS = ("ms", "ms_confluent")  # of the measured loads, and those with large confluent lesions only


@dataclass(frozen=True)
class Lesions:
    """What is painted over the anatomy, per fine voxel.

    membership and severity lie in [0, 1]; kind is 1 white-matter lesion, 2 solid mass, 3 its dead core, 4 oedema,
    5 defect (severity 1) and its border (severity 0).
    """

    membership: torch.Tensor
    severity: torch.Tensor
    kind: torch.Tensor
    centers_mm: list[list[float]]

    @classmethod
    def draw(cls, pathology, classes, distance, world, fine, rng, drawn=None) -> Lesions:
        """Lesions of a pathology; ``drawn``, the share of lesion in fine voxels, replaces the invented ones of MS."""
        empty = torch.zeros(fine.shape)
        lesions = cls(empty, empty.clone(), torch.zeros(fine.shape, dtype=torch.uint8), [])
        if pathology in MS:
            support = _lesion_support(classes, fine)
            if drawn is not None:
                lesions._add_drawn(drawn, support, world, fine, rng)
            else:
                volumes = ms_lesion_volumes(rng, confluent=pathology == "ms_confluent")
                lesions._add_ms(volumes, classes, distance, support, world, fine, rng)
        elif pathology == "tumour":
            lesions._add_mass(classes, distance, world, fine, rng)
        elif pathology == "infarct":
            lesions._add_defect(classes, world, fine, rng)
        return lesions

    def _add_drawn(self, drawn, support, world, fine, rng) -> None:
        """Lesions of a mask that somebody drew, some of them left out so that loads differ."""
        drawn = drawn * support
        labels, count = ndimage.label(drawn.numpy() > 0.5, structure=np.ones((3, 3, 3)))
        kept = np.append(False, rng.random(count) < rng.uniform(0.3, 1.0))
        volumes = np.bincount(labels.ravel(), minlength=count + 1) * float(np.prod(fine.spacing))
        severity = np.array([_severity(max(volume, 1.0), rng) for volume in volumes])
        near = ndimage.maximum_filter(labels, 3)  # the soft border belongs to a lesion too
        member = torch.sigmoid((drawn - 0.5) / 0.15) * torch.from_numpy(kept[near])
        self.membership[...] = member * support
        self.severity[...] = torch.from_numpy(severity[near].astype(np.float32))
        self.kind[self.membership > 0.02] = 1
        for center in ndimage.center_of_mass(labels > 0, labels, np.flatnonzero(kept)):
            at = world[(slice(None), *np.rint(center).astype(int))]
            self.centers_mm.append([round(float(v), 1) for v in at])

    def _add_ms(self, volumes, classes, distance, support, world, fine, rng) -> None:
        """White-matter lesions; load, number, size and shape as measured (see :func:`ms_lesion_volumes`)."""
        cerebral = torch.nonzero(classes == WM)
        below = torch.nonzero((classes == BRAIN_STEM) | (classes == CEREBELLAR_WM))
        near = torch.exp(-distance[tuple(cerebral.T)] / 8.0).double().numpy()
        near = (near / near.sum()).cumsum()
        for volume in volumes:
            place = rng.random()
            if place < 0.75:
                center = cerebral[min(np.searchsorted(near, rng.random()), len(near) - 1)]
            elif place < 0.95 or len(below) == 0:
                center = cerebral[rng.integers(len(cerebral))]
            else:
                center = below[rng.integers(len(below))]
            severity = _severity(volume, rng)
            at = world[(slice(None), *center)].numpy()
            # a large lesion is confluent: pieces that follow the ventricles' wall around its center
            pieces = max(1, int(volume / 600))
            reach = 1.3 * (3 * volume / (4 * np.pi)) ** (1 / 3)
            for piece in range(pieces):
                if piece:
                    others = cerebral[np.searchsorted(near, rng.random(40)).clip(max=len(near) - 1)]
                    away = np.linalg.norm(world[(slice(None), *others.T)].numpy().T - at, axis=1)
                    weight = np.exp(-0.5 * (away / reach) ** 2) + 1e-9
                    center = others[rng.choice(len(others), p=weight / weight.sum())]
                self._add_ellipsoid(
                    world[(slice(None), *center)].numpy(), 1.6 * volume / pieces, severity, support, world, fine, rng
                )
            self.centers_mm.append([round(float(v), 1) for v in at])

    def _add_ellipsoid(self, center_mm, volume, severity, support, world, fine, rng) -> None:
        """A ragged ellipsoid of about ``volume`` mm3, cut to where lesions can be."""
        middle, short = np.clip(rng.normal(0.61, 0.17), 0.3, 1), np.clip(rng.normal(0.45, 0.15), 0.25, 1)
        short = min(short, middle)
        longest = (3 * volume / (4 * np.pi * middle * short)) ** (1 / 3)
        radii = longest * np.array([1, middle, short])
        axes = rotation_matrix(rng.uniform(0, np.pi, 3)) / radii[:, None]
        box = _box_around(center_mm, 1.4 * longest + 1, fine)
        if box is None:
            return
        offset = world[(slice(None), *box)] - torch.as_tensor(center_mm, dtype=torch.float32).reshape(3, 1, 1, 1)
        radius = (torch.as_tensor(axes, dtype=torch.float32) @ offset.reshape(3, -1)).square().sum(0).sqrt()
        radius = radius.reshape(offset.shape[1:])
        ragged = smooth_noise(rng, radius.shape, max(0.3 * longest, 1.0) / fine.spacing)
        edge = 0.4 / radii.mean()  # mm of soft border, relative
        member = torch.sigmoid((1 - radius + 0.13 * ragged) / edge) * support[box]
        grown = member > self.membership[box]
        self.severity[box][grown] = float(severity)
        self.membership[box][grown] = member[grown]
        self.kind[box][member > 0.02] = 1

    def _add_mass(self, classes, distance, world, fine, rng) -> None:
        """A tumour-like mass: dead core, solid rim, oedema in the white matter around it."""
        inner = torch.nonzero((classes == WM) & (distance > 8))
        center = inner[rng.integers(len(inner))]
        at = world[(slice(None), *center)].numpy()
        radius_mm = rng.uniform(8, 20)
        radius = self._ragged_radius(at, radius_mm * rng.uniform(0.8, 1.25, 3), world, fine, rng)
        brain = classes != 0
        fluid = (classes == VENTRICLE) | (classes == CSF)
        white = classes == WM
        for kind, mask in (
            (4, white & (radius < rng.uniform(1.3, 1.8))),
            (2, brain & (radius < 1)),
            (3, brain & (radius < rng.uniform(0.4, 0.65))),
        ):
            mask = mask & ~(fluid & (radius > 0.9))
            self.kind[mask] = kind
            self.membership[mask] = 1.0
            self.severity[mask] = float(rng.uniform(0.6, 1.0))
        self.centers_mm.append([round(float(v), 1) for v in at])

    def _add_defect(self, classes, world, fine, rng) -> None:
        """An old infarct: a cortical defect filled with fluid, a gliotic border of severity 0."""
        cortex = torch.nonzero(classes == CORTEX)
        at = world[(slice(None), *cortex[rng.integers(len(cortex))])].numpy()
        radius = self._ragged_radius(at, rng.uniform(10, 26) * rng.uniform(0.7, 1.3, 3), world, fine, rng)
        mask = (classes != 0) & (classes != VENTRICLE) & (radius < 1)
        self.kind[mask] = 5
        self.membership[mask] = 1.0
        self.severity[mask & (radius < 0.8)] = 1.0
        self.centers_mm.append([round(float(v), 1) for v in at])

    @staticmethod
    def _ragged_radius(center_mm, radii_mm, world, fine, rng) -> torch.Tensor:
        offset = (world - torch.as_tensor(center_mm, dtype=torch.float32).reshape(3, 1, 1, 1)) / torch.as_tensor(
            radii_mm, dtype=torch.float32
        ).reshape(3, 1, 1, 1)
        return offset.square().sum(0).sqrt() + 0.12 * smooth_noise(rng, fine.shape, 5.0 / fine.spacing)


def _lesion_support(classes: torch.Tensor, fine: Grid) -> torch.Tensor:
    """Where white-matter lesions may be: white matter and the voxels that touch it, but no fluid."""
    white = (classes == WM) | (classes == CEREBELLAR_WM) | (classes == BRAIN_STEM)
    near = torch.from_numpy(ndimage.gaussian_filter(white.float().numpy(), 0.8 / fine.spacing)) > 0.4
    return near & (classes != 0)


def _severity(volume_mm3: float, rng: np.random.Generator) -> float:
    """Small lesions are mild, large ones marked."""
    return float(np.clip(0.2 + 0.3 * np.log10(volume_mm3 / 10) + rng.normal(0, 0.15), 0, 1))


def ms_lesion_volumes(rng: np.random.Generator, confluent: bool = False) -> np.ndarray:
    """Volumes in mm3 of one patient's white-matter lesions, largest last.

    Total load is log-normal (log-mean 2.11, log-sd 1.5, in ml), the number of lesions follows from it
    (log count = 3.15 + 0.46 log load, residual sd 0.61), single lesions are log-normal (log-mean 3.2, log-sd 1.42) and
    the largest ones make up the load, as in 30 masks of MS patients (Lesjak et al., Neuroinformatics 2018,
    doi:10.1007/s12021-017-9348-7).

    Confluent, it is the upper end of that: 10 to 60 ml, two to five lesions holding 60 to 90 % of it.
    """
    if confluent:
        load_mm3 = 1000 * np.exp(rng.uniform(np.log(10), np.log(60)))
        share = rng.uniform(0.6, 0.9)
        large = share * load_mm3 * rng.dirichlet(np.full(rng.integers(2, 6), 3.0))
        small = np.exp(rng.normal(3.2, 1.42, rng.integers(20, 80))).clip(4, 2500)
        small *= (1 - share) * load_mm3 / small.sum()
        return np.sort(np.concatenate([small, large]))
    load_mm3 = 1000 * np.exp(np.clip(rng.normal(2.11, 1.3), -0.4, 3.9))
    count = int(np.clip(np.exp(3.15 + 0.46 * np.log(load_mm3 / 1000) + rng.normal(0, 0.5)), 5, 300))
    volumes = np.sort(np.exp(rng.normal(3.2, 1.42, count)).clip(4, 25000))
    missing = load_mm3 - volumes.sum()
    if missing > 0:  # the rest sits in the few largest
        few = min(count, 1 + int(load_mm3 / 12000))
        volumes[-few:] += missing * rng.dirichlet(np.full(few, 2.0))
    else:
        volumes *= max(load_mm3 / volumes.sum(), 0.3)
    return np.sort(volumes.clip(3, None))


def _box_around(center_mm: np.ndarray, reach_mm: float, fine: Grid) -> tuple[slice, ...] | None:
    center = (np.linalg.inv(fine.affine) @ [*center_mm, 1])[:3]
    half = reach_mm / fine.spacing
    start = np.maximum(np.floor(center - half), 0).astype(int)
    stop = np.minimum(np.ceil(center + half) + 1, fine.shape).astype(int)
    return tuple(slice(a, b) for a, b in zip(start, stop, strict=True)) if (stop > start).all() else None
