"""Intensities of a synthetic head: measured statistics, the scanner, noise, bias and partial volume.

Source: measured on the MS patients of Lesjak et al., Neuroinformatics 2018, doi:10.1007/s12021-017-9348-7 (30 masks, 3
patients with images), white-matter median = 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import EllipsisType

import numpy as np
import torch
from scipy import ndimage

from .anatomy import ACCENTS, CHOROID_PLEXUS, CORTEX, CSF, HORN_CAPS, LIMBIC, VENTRICLE, WM, Grid
from .noise import smooth_noise
from .pathology import Lesions

# Mean intensity per class, white-matter median = 1 (the module's sources; structures within gray matter by eye).
SEQUENCES = ("T1w", "T2w", "FLAIR")
CONTRAST = {
    "T1w": [0.0, 0.21, 0.13, 0.72, 0.74, 0.78, 0.85, 1.00, 0.70, 0.97, 0.93],
    "T2w": [0.0, 2.20, 2.60, 1.34, 1.25, 1.18, 1.20, 1.00, 1.32, 1.02, 1.10],
    "FLAIR": [0.0, 0.42, 0.33, 1.15, 1.10, 1.06, 1.05, 1.00, 1.12, 1.03, 1.06],
}
# Relative sd of the texture within a class: patches of millimeters, and voxel to voxel.
PATCHES = {
    "T1w": [0.0, 0.35, 0.25, 0.05, 0.03, 0.03, 0.03, 0.025, 0.05, 0.03, 0.03],
    "T2w": [0.0, 0.22, 0.12, 0.07, 0.04, 0.04, 0.04, 0.04, 0.06, 0.04, 0.04],
    "FLAIR": [0.0, 0.45, 0.40, 0.06, 0.045, 0.045, 0.045, 0.045, 0.055, 0.045, 0.045],
}
GRAIN = {"T1w": 0.03, "T2w": 0.05, "FLAIR": 0.045}
LESION_PATCH_MM = 5.0  # sd of the places of one contrast in a lesion that varies
LESION_RANGE = {"T1w": (0.90, 0.58), "T2w": (1.28, 2.15), "FLAIR": (1.26, 1.53)}


@dataclass(frozen=True)
class Scanner:
    """How a scanner and protocol change the ideal contrast. Pairs are ranges a subject draws from.

    Attributes:
        gamma: exponent on intensities, white matter staying at 1.
        contrast_jitter: relative sd of each class's mean between subjects.
        csf: factor on CSF and ventricles.
        lesion: factor on the contrast between lesion and white matter.
        lesion_t1w: that of T1w, if it is drawn apart: 1 is the contrast of the most severe lesion, whatever the
            severity, 0 is white matter; None for `lesion` and severity in T1w too. White-matter lesions only.
        lesion_variation: relative sd of the contrast from lesion to lesion and inside of large ones; every sequence has
            its own.
        bright: factor on what is bright in healthy people (:func:`bright_structures`).
        blur_mm: sd of the point-spread function.
        slice_blur_mm: what thick slices add to it along one axis.
        noise: sd of the Rician noise, white matter = 1.
        bias: sd of the log of the residual bias field.
        texture: factor on the texture within tissues.
    """

    gamma: tuple[float, float] = (0.95, 1.05)
    contrast_jitter: float = 0.025
    csf: tuple[float, float] = (0.7, 1.3)
    lesion: tuple[float, float] = (0.9, 1.1)
    lesion_t1w: tuple[float, float] | None = None
    lesion_variation: float = 0.0
    bright: tuple[float, float] = (1.0, 1.0)
    blur_mm: tuple[float, float] = (0.4, 0.7)
    slice_blur_mm: tuple[float, float] = (0.0, 0.0)
    noise: tuple[float, float] = (0.025, 0.05)
    bias: tuple[float, float] = (0.02, 0.05)
    texture: tuple[float, float] = (0.8, 1.2)


SCANNERS = {
    "A": Scanner(),
    # a second site: a flatter contrast, much softer, noisier, stronger shading; its faint lesions stand out from white
    # matter as much as gray matter does on A, so that what it teaches is wrong there
    "B": Scanner(
        gamma=(0.55, 0.65),
        csf=(0.7, 1.2),
        lesion=(0.8, 1.0),
        blur_mm=(1.7, 2.2),
        noise=(0.10, 0.13),
        bias=(0.15, 0.25),
    ),
    # no scanner in particular: for networks that must carry over to scans nobody has seen
    "mixed": Scanner(
        gamma=(0.75, 1.35),
        contrast_jitter=0.05,
        csf=(0.5, 2.0),
        lesion=(0.7, 1.25),
        blur_mm=(0.2, 1.0),
        slice_blur_mm=(0.0, 1.2),
        noise=(0.01, 0.08),
        bias=(0.02, 0.15),
        texture=(0.6, 2.0),
    ),
}
# what scans of other centers showed: T1w says little of lesions, or much, whatever FLAIR says; slices are thick;
# healthy places are as bright as faint lesions
SCANNERS["varied"] = replace(
    SCANNERS["mixed"],
    slice_blur_mm=(0.0, 2.5),
    lesion_t1w=(0.0, 1.15),
    lesion_variation=0.25,
    bright=(0.5, 1.8),
)


def scalp_of(brain: torch.Tensor, fine: Grid) -> torch.Tensor:
    """Simple head around the brain: 0 air, 1 CSF gap and skull (dark), 2 scalp (bright)."""
    distance = torch.from_numpy(ndimage.distance_transform_edt(~brain.numpy(), sampling=fine.spacing))
    return ((distance > 0) & (distance <= 12)).int() + ((distance > 6.5) & (distance <= 12)).int()


_FOCAL = {
    2: {"T1w": 0.70, "T2w": 1.65, "FLAIR": 1.38},
    3: {"T1w": 0.42, "T2w": 2.40, "FLAIR": 0.85},
    4: {"T1w": 0.82, "T2w": 1.80, "FLAIR": 1.45},
    5: {"T1w": 0.30, "T2w": 2.60, "FLAIR": 0.50},
}
_GLIOSIS = {"T1w": 0.70, "T2w": 1.80, "FLAIR": 1.42}


def bright_structures(classes, accents, distance, fine, rng) -> tuple[torch.Tensor, torch.Tensor]:
    """Gain on FLAIR and mask of choroid plexus: what is bright in healthy people, more in some than in others.

    The ependyma lines the ventricles, caps sit on their horns, and white matter fades from there outwards; all of it is
    what a network takes for periventricular lesions if it has never seen it.
    """
    uneven = (0.6 + 0.5 * smooth_noise(rng, fine.shape, 4.0 / fine.spacing)).clamp(0, 1.5)
    solid = (classes != 0) & (classes != CSF) & (classes != VENTRICLE)
    largest = torch.zeros(max(ACCENTS) + 1)
    for value, (gain, _) in ACCENTS.items():
        largest[value] = float(gain * rng.uniform(0.1, 1))
    gain = largest[accents.long()]
    gain[(accents == HORN_CAPS) & (distance > rng.uniform(2.5, 5))] = 0
    gain[(accents == LIMBIC) & (classes != CORTEX)] = 0
    halo = float(rng.uniform(0, 0.12)) * torch.exp(-distance / 5.0)
    gain = torch.maximum(gain, halo * (classes == WM))
    lining = (distance > 0) & (distance < rng.uniform(0.6, 2.4))
    gain[lining] = gain[lining].clamp(min=float(rng.uniform(0.05, 0.5)))
    plexus = (accents == CHOROID_PLEXUS) & (classes == VENTRICLE) & (uneven > rng.uniform(0.3, 0.8))
    return gain * uneven * solid, plexus


def render(
    classes, brain, bright, lesions, head, scanner, sequences, fine, coarse, to_scan, rng
) -> dict[str, torch.Tensor]:
    """Images on the grid of the scan from classes and lesions on the fine grid."""
    # the same in every sequence: where tissue is a little different, and what brain extraction left at the surface
    patches = 0.8 * smooth_noise(rng, fine.shape, 2.8 / fine.spacing)
    patches += 0.6 * smooth_noise(rng, fine.shape, 7.0 / fine.spacing)
    grain = smooth_noise(rng, fine.shape, 0.8 / fine.spacing)
    residue = _surface_residue(brain, fine, rng)
    shading = smooth_noise(rng, coarse.shape, 45.0 / coarse.spacing)
    noise_sd, bias_sd, gamma = (rng.uniform(*r) for r in (scanner.noise, scanner.bias, scanner.gamma))
    texture = rng.uniform(*scanner.texture)
    csf, lesion_contrast = rng.uniform(*scanner.csf), rng.uniform(*scanner.lesion)
    mask = to_scan(brain.float()) >= 0.5
    style_rng = rng.spawn(1)[0]  # of its own: what it draws changes nothing else
    contrasts = lesion_contrasts(lesion_contrast, scanner, sequences, fine, style_rng)
    gain, plexus = bright
    gain = gain * float(style_rng.uniform(*scanner.bright))
    plexus_tone = {"T1w": 0.6, "T2w": 1.7, "FLAIR": float(rng.uniform(0.8, 1.8))}

    images = {}
    for name in sequences:
        means = torch.tensor(CONTRAST[name])
        jitter = torch.from_numpy(rng.normal(1, scanner.contrast_jitter, len(means)).astype(np.float32))
        means = means * jitter / jitter[WM]
        means[[CSF, VENTRICLE]] *= csf if name != "T2w" else 1.0
        patch_sd = torch.tensor(PATCHES[name])
        image = means[classes] * (1 + texture * (patch_sd[classes] * patches + GRAIN[name] * grain)).clamp(min=0)
        image = image * (1 + gain * {"T1w": 0.0, "T2w": 0.5, "FLAIR": 1.0}[name])
        image = torch.where(plexus, plexus_tone[name] * (1 + 0.2 * patches), image)
        _paint(image, name, lesions, contrasts[name], grain, patches)
        if residue is not None:
            image = torch.where(residue > 0, residue * (0.6 if name == "T1w" else 1.0), image)
        if head is not None:
            scalp_tone = torch.tensor([0.0, 0.12, 1.2 if name == "T1w" else 0.9])
            image = torch.where(brain, image, scalp_tone[head] * (1 + 0.15 * patches))
        image = to_scan(image).clamp(min=0) ** gamma
        blur = np.full(3, rng.uniform(*scanner.blur_mm))
        blur[rng.integers(3)] += rng.uniform(*scanner.slice_blur_mm)
        image = torch.from_numpy(ndimage.gaussian_filter(image.numpy(), blur / coarse.spacing))
        image = image * torch.exp(bias_sd * shading)
        real, imaginary = (torch.from_numpy(rng.standard_normal(image.shape, dtype=np.float32)) for _ in range(2))
        image = torch.hypot(image + noise_sd * real, noise_sd * imaginary)
        images[name] = image if head is not None else image * mask
    return images


@dataclass(frozen=True)
class LesionContrast:
    """Contrast of white-matter lesions in one sequence.

    Attributes:
        factor: on the contrast between lesion and white matter.
        severity: replaces that of the lesion; None keeps it.
        uneven: (X, Y, Z) around 1, a further factor; None for none.
    """

    factor: float
    severity: float | None = None
    uneven: torch.Tensor | None = None

    def tone(self, name: str, severity: torch.Tensor, where: torch.Tensor | EllipsisType = ...) -> torch.Tensor:
        """Intensity of white-matter lesions, white matter = 1.

        Args:
            name: of the sequence.
            severity: of the voxels, (N,); or (X, Y, Z), all of them.
            where: (X, Y, Z) bool, the N voxels.
        """
        mild, severe = LESION_RANGE[name]
        severity = severity if self.severity is None else torch.full_like(severity, self.severity)
        value = 1 + self.factor * (mild + (severe - mild) * severity - 1)
        return value if self.uneven is None else 1 + (value - 1) * self.uneven[where]


def lesion_contrasts(
    factor: float, style: Scanner, sequences: Sequence[str], fine: Grid, rng: np.random.Generator
) -> dict[str, LesionContrast]:
    """Sequence -> contrast of lesions; T1w has its own if ``style`` says so, see :class:`Scanner`."""
    found = {}
    for name in sequences:
        apart = style.lesion_t1w if name == "T1w" else None
        uneven = None
        if style.lesion_variation:
            uneven = 1 + style.lesion_variation * smooth_noise(rng, fine.shape, LESION_PATCH_MM / fine.spacing)
            uneven = uneven.clamp(min=0)
        own = (factor, None) if apart is None else (float(rng.uniform(*apart)), 1.0)
        found[name] = LesionContrast(*own, uneven)
    return found


def _paint(image, name, lesions: Lesions, contrast: LesionContrast, grain, patches) -> None:
    """Blend lesions into an image, in place."""
    where = lesions.membership > 0
    member, severity, kind = (a[where] for a in (lesions.membership, lesions.severity, lesions.kind))
    value = contrast.tone(name, severity, where)
    for number, tones in _FOCAL.items():
        value[kind == number] = 1 + contrast.factor * (torch.tensor(tones[name]) - 1)
    value[(kind == 5) & (severity == 0)] = 1 + contrast.factor * (torch.tensor(_GLIOSIS[name]) - 1)
    value = value * (1 + 0.07 * grain[where] + 0.05 * patches[where])
    image[where] += member * (value - image[where])


def _surface_residue(brain: torch.Tensor, fine: Grid, rng: np.random.Generator) -> torch.Tensor | None:
    """Bright remnants of dura and vessels at the surface, in some subjects: what brain extraction leaves behind."""
    if rng.random() < 0.4:
        return None
    inside = torch.from_numpy(ndimage.gaussian_filter(brain.float().numpy(), 2.0 / fine.spacing))
    spots = smooth_noise(rng, fine.shape, 6.0 / fine.spacing) > rng.uniform(1.5, 2.5)
    return (brain & (inside < rng.uniform(0.6, 0.75)) & spots) * float(rng.uniform(0.9, 1.7))
