"""How good the preparation of raw scans is."""

from __future__ import annotations

import tempfile
import time

import numpy as np

from common.options import types as t


def preparation(seeds: t.Seeds = (1, 2, 3), scanners: t.Names = ("A", "mixed"), spacing: t.Positive = 2.0) -> None:
    """How well brains are found in phantom heads with scalp, each sequence alone, and how long it takes.

    Dice with the true mask of the template's brain after the affine map, and of the mask that is written, by the
    template and, of T1w, by deepbet if it is installed; volume of that mask as a share of the true one; mean distance
    in the brain of the affine map to the template from the one nearest to the true, bent one.

    Args:
        seeds: of the phantoms.
        scanners: of them.
        spacing: voxel size of the heads, mm.
    """
    import nibabel as nib

    from phantom import SEQUENCES, Grid, make_subject
    from preparation import Settings, prepare_case, read_record
    from preparation.brain import deepbet_is_installed
    from preparation.registration import require_simpleitk, template, template_to_scan
    from preparation.volume import Volume

    require_simpleitk()
    affine = np.diag([spacing] * 3 + [1.0])
    affine[:3, 3] = [-100, -140, -110]
    grid = Grid(tuple(int(mm / spacing) for mm in (200, 240, 220)), affine)
    ways = [(sequence, "template") for sequence in SEQUENCES]
    ways += [("T1w", "deepbet")] if deepbet_is_installed() else []
    print("scanner seed sequence  mask by   Dice affine  Dice mask  volume  map, mm  seconds")
    for scanner, seed in ((scanner, seed) for scanner in scanners for seed in seeds):
        head = make_subject(seed, scanner=scanner, grid=grid, scalp=True, fine_mm=spacing)
        inside = np.argwhere(head.brain_mask)
        world = np.c_[nib.affines.apply_affine(affine, inside), np.ones(len(inside))]
        bent = world[:, :3] + head.displacement[tuple(inside.T)]
        true = world @ np.linalg.lstsq(world, bent, rcond=None)[0]
        for sequence, extraction in ways:
            scan = Volume(1000 * head.images[sequence], affine)
            to_template = np.linalg.inv(template_to_scan(scan))
            plain = template()[1].on_grid(grid.shape, affine, to_template).values > 0.5
            with tempfile.TemporaryDirectory() as folder:
                nib.save(nib.Nifti1Image(scan.values.astype(np.float32), affine), f"{folder}/raw.nii.gz")
                start = time.perf_counter()
                settings = Settings((sequence,), brain_extraction=extraction)
                path = prepare_case({"image": f"{folder}/raw.nii.gz", "name": "x"}, folder, settings)
                seconds = time.perf_counter() - start
                record = read_record(path)
                mask = np.asarray(nib.load(path.parent / record["item"]["brain_mask"]).dataobj) > 0
            dice = [2 * (m & (head.brain_mask > 0)).sum() / (m.sum() + len(inside)) for m in (plain, mask)]
            off = np.linalg.norm(world @ np.array(record["to_template"])[:3].T - true, axis=1).mean()
            print(
                f"{scanner:7s} {seed:4d} {sequence:8s}  {extraction:8s}  {dice[0]:11.3f}  {dice[1]:9.3f}  "
                f"{mask.sum() / len(inside):6.3f}  {off:7.2f}  {seconds:7.0f}",
                flush=True,
            )
