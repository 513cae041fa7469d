"""A BIDS data set goes in, derivatives with their names and records come out."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from bundle_tools import BUNDLES, SMALL, load_script, make_head, read_json, save_nifti

from common.errors import InputError
from derivatives import write_derivatives

UAD, ACE = (next(bundle for bundle in BUNDLES if bundle.name == name) for name in ("uad_autoencoder", "ace_multitask"))
KINDS = ("mask", "probseg")


@pytest.fixture
def bids(tmp_path) -> Path:
    """Two participants, one of them seen twice, T1w and FLAIR."""
    for seed, place in enumerate(("sub-01/ses-1", "sub-01/ses-2", "sub-02")):
        head = make_head(seed, shape=SMALL)
        prefix = tmp_path / "bids" / place / "anat" / place.replace("/", "_")
        for sequence in ("T1w", "FLAIR"):
            save_nifti(Path(f"{prefix}_{sequence}.nii.gz"), head.image, head.affine)
        save_nifti(Path(f"{prefix}_desc-brain_mask.nii.gz"), head.brain, head.affine)
    return tmp_path / "bids"


def errors_of_validator(folder: Path) -> list[str]:
    """What the validator of BIDS calls an error, the program of its own wheel, which asks nobody on the network."""
    program = Path(sys.executable).with_name("bids-validator-deno")
    command = [program, "--json", "--ignoreWarnings", folder]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return [
        f"{issue['code']} {issue.get('subCode')} {issue.get('location')}"
        for issue in json.loads(found.stdout)["issues"]["issues"]
        if issue["severity"] == "error"
    ]


def written(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_masks_and_maps_have_the_names_of_derivatives(bids, tmp_path, monkeypatch):
    out = tmp_path / "out"
    arguments = [bids, out, "participant", "--participant_label", "01", "--bundle", UAD.name, "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["bids_app.py", *map(str, arguments)])
    script = load_script("bids_app")
    script.run_command(script.main)
    anat = [f"sub-01/ses-{n}/anat/sub-01_ses-{n}_space-orig_label-lesion_{kind}" for n in (1, 2) for kind in KINDS]
    of_all = {"dataset_description.json", ".bidsignore", "volumes.tsv", "report.html"}
    views = {name for name in written(out) if name.startswith("views/")}
    assert views == set(re.findall(r'href="(views/[^"]*)"', (out / "report.html").read_text()))
    assert len(views) == 2
    assert written(out) == of_all | views | {f"{name}.{ending}" for name in anat for ending in ("nii.gz", "json")}
    source = nib.load(bids / "sub-01" / "ses-1" / "anat" / "sub-01_ses-1_FLAIR.nii.gz")
    for name in anat[:2]:
        image = nib.load(out / f"{name}.nii.gz")
        np.testing.assert_allclose(image.affine, source.affine, atol=1e-4)
    # the names of the validator's own messages: with "views/" it finds a folder that is no part of BIDS
    assert (out / ".bidsignore").read_text().split() == ["volumes.tsv", "report.html", "views"]
    record = read_json(out / f"{anat[0]}.json")
    assert record["Sources"] == [
        f"bids:raw:sub-01/ses-1/anat/sub-01_ses-1_{name}.nii.gz" for name in ("FLAIR", "desc-brain_mask")
    ]
    assert record["SpatialReference"] == record["Sources"][0]
    assert record["bundle"] == UAD.name
    description = read_json(out / "dataset_description.json")
    assert description["DatasetType"] == "derivative"
    assert description["DatasetLinks"] == {"raw": "../bids"}
    assert [maker["Name"] for maker in description["GeneratedBy"]] == [UAD.name]
    assert not any(str(tmp_path) in path.read_text() for path in out.rglob("*.json"))
    assert errors_of_validator(out) == []


def test_several_labels_are_one_segmentation_with_a_table_of_their_names(bids, tmp_path):
    made = write_derivatives(bids, tmp_path / "out", ACE, ["02"], device="cpu", mirror=False)
    names = [path.relative_to(tmp_path / "out").as_posix() for path in made]
    assert names == [f"sub-02/anat/sub-02_space-orig_{name}.nii.gz" for name in ("dseg", "label-lesion_probseg")]
    table = (tmp_path / "out" / "dseg.tsv").read_text()
    assert table == "index\tname\n1\tCSF\n2\tGM\n3\tWM\n4\tlesion\n"
    assert errors_of_validator(tmp_path / "out") == []
    made[0].rename(made[0].with_name("sub-02_segmentation.nii.gz"))
    assert errors_of_validator(tmp_path / "out") != []


def test_what_is_there_is_kept_and_other_bundles_stay_named(bids, tmp_path):
    out = tmp_path / "out"
    there = save_nifti(
        out / "sub-02" / "anat" / "sub-02_space-orig_label-lesion_mask.nii.gz", np.ones(SMALL, np.uint8), np.eye(4)
    )
    (out / "dataset_description.json").write_text(json.dumps({"GeneratedBy": [{"Name": "another"}]}))
    before = there.read_bytes()
    with pytest.raises(InputError, match=r"label-lesion_mask\.nii\.gz is there already, expected --overwrite true"):
        write_derivatives(bids, out, UAD, device="cpu")
    with pytest.raises(InputError, match=r"sub-03 has no scan in .*, expected some of sub-01, sub-02"):
        write_derivatives(bids, out, UAD, ["03"], device="cpu")
    assert written(out) == {there.relative_to(out).as_posix(), "dataset_description.json"}
    assert there.read_bytes() == before
    write_derivatives(bids, out, UAD, ["sub-02"], overwrite=True, device="cpu")
    assert there.read_bytes() != before
    makers = read_json(out / "dataset_description.json")["GeneratedBy"]
    assert [maker["Name"] for maker in makers] == ["another", UAD.name]


def test_a_case_that_fails_leaves_the_derivatives_of_the_others(bids, tmp_path):
    broken = bids / "sub-01" / "ses-1" / "anat" / "sub-01_ses-1_FLAIR.nii.gz"
    broken.write_bytes(broken.read_bytes()[:-2000])
    with pytest.raises(RuntimeError):
        write_derivatives(bids, tmp_path / "out", UAD, keep_going=True, device="cpu")
    masks = {path.name for path in (tmp_path / "out").rglob("*_mask.nii.gz")}
    assert masks == {f"{name}_space-orig_label-lesion_mask.nii.gz" for name in ("sub-01_ses-2", "sub-02")}
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".run")]


TABLES = {
    "participants.tsv": "participant_id\tage\tnote\nsub-01\t034\t=1+1\nsub-02\tn/a\tä\nsub-03\t50\t\n",
    "participants.json": '{"age": {"Units": "year"}}',
    "sessions.json": '{"delay": {"Units": "day"}}',
    "sub-01/sub-01_sessions.tsv": "session_id\tdelay\nses-1\t0\nses-2\t90\nses-3\t180\n",
    "sub-03/sub-03_sessions.tsv": "session_id\tdelay\nses-1\t0\n",
}


def test_what_is_known_of_participants_and_sessions_comes_along(bids, tmp_path):
    for name, text in TABLES.items():
        (bids / name).parent.mkdir(exist_ok=True)
        (bids / name).write_text(text, encoding="utf-8")
    out = tmp_path / "out"
    write_derivatives(bids, out, UAD, ["01"], device="cpu")
    table = out / "participants.tsv"
    assert table.read_text() == "participant_id\tage\tnote\nsub-01\t034\t=1+1\n"
    assert (out / "sub-01" / "sub-01_sessions.tsv").read_text() == "session_id\tdelay\nses-1\t0\nses-2\t90\n"
    assert errors_of_validator(out) == []
    assert {name for name in written(out) if "participants" in name or "sessions" in name} == {*TABLES} - {
        "sub-03/sub-03_sessions.tsv"
    }
    table.write_text(f"{table.read_text()}sub-99\t60\tof another data set\n")
    write_derivatives(bids, out, UAD, ["02"], device="cpu")
    names = [line.split("\t")[0] for line in table.read_text().splitlines()]
    assert names == ["participant_id", "sub-01", "sub-02", "sub-99"]
    table.write_text("participant_id\tgroup\nsub-01\ta\n")
    write_derivatives(bids, out, UAD, ["02"], overwrite=True, device="cpu")
    assert table.read_text() == "participant_id\tgroup\nsub-01\ta\n"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            b"age,participant_id\n",
            "participants.tsv begins with 'age,participant_id', expected the column",
        ),
        (b"", "participants.tsv begins with '', expected the column participant_id"),
        (b"participant_id\n\xff\xfe", "participants.tsv is no text in UTF-8, expected"),
    ],
)
def test_a_table_of_participants_that_is_none_is_refused_before_anything_runs(bids, tmp_path, content, sentence):
    (bids / "participants.tsv").write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        write_derivatives(bids, tmp_path / "out", UAD, device="cpu")
    assert not (tmp_path / "out").exists()
