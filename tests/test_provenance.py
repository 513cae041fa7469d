"""Every bundle says of each result where it comes from, and replaces none that was made in another way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from bundle_tools import BUNDLES, ROOT, SMALL, Finished, metadata, read_json, save_case, save_datalist
from packaging.version import Version

from common.engines.evaluator import has_bfloat16
from common.files import sha256_of


@pytest.fixture
def run(bundle, infer, tmp_path) -> Callable[..., Finished]:
    """Runs ``inference.json`` on one small head."""
    datalist = save_datalist(tmp_path, [save_case(bundle, tmp_path / "head.nii.gz", shape=SMALL)])
    return lambda **options: infer(tmp_path / "out", datalist_file=datalist, **options)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def change(file: Path, **entries: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


def assert_refused(done: Finished, *words: str) -> None:
    assert done.code == 1, done.output[-3000:]
    assert len(done.errors) == 1
    for word in (*words, "expected --overwrite true to replace it, or another --output_dir"):
        assert word in done.errors[0]


def test_each_result_says_where_it_comes_from_and_the_same_run_replaces_it(bundle, run, tmp_path):
    done = run()
    assert done.code == 0, done.output[-3000:]
    results = sorted((tmp_path / "out").glob("*.nii.gz"))
    records = [path.with_name(path.name.replace(".nii.gz", ".json")) for path in results]
    assert sorted((tmp_path / "out").glob("head*.json")) == records
    record = read_json(tmp_path / "out" / "head_seg.json")
    config = read_json(bundle / "configs" / "inference.json")
    assert (record["bundle"], record["version"]) == (bundle.name, metadata(bundle)["version"])
    assert record["weights"] == [{"name": "model.pt", "sha256": sha256_of(bundle / "models" / "model.pt")}]
    images = record["inputs"]["image"]
    first = images[0] if isinstance(images, list) else images
    assert first == {"name": "head.nii.gz", "sha256": sha256_of(tmp_path / "head.nii.gz")}
    assert record["options"]["spacing"] == config["spacing"]
    assert record["overrides"] == []
    assert record["sha256"] == sha256_of(tmp_path / "out" / "head_seg.nii.gz")
    if "threshold" in config:
        assert record["threshold"] == {"value": config["threshold"], "source": config["threshold_source"]}
    assert record["labels"] == metadata(bundle)["network_data_format"]["outputs"]["pred"]["channel_def"]
    in_bfloat16 = has_bfloat16(torch.device("cpu")) if config["amp"] == "auto" else config["amp"]
    assert record["precision"] == ("bfloat16" if in_bfloat16 else "float32")
    assert record["device"] == "cpu"
    assert isinstance(record["seconds"], float)
    assert {Version(record["versions"][name]).major for name in ("python", "monai", "torch", "numpy")} <= {1, 2, 3}
    for path in records:
        assert not any(str(place) in path.read_text() for place in (tmp_path, ROOT, Path.home()))

    before = content(tmp_path / "out")
    done = run(num_workers=1, keep_going=True, overwrite="true")  # nothing of which changes a voxel
    assert done.code == 0, done.output[-3000:]
    after = content(tmp_path / "out")
    assert {n: b for n, b in after.items() if n.endswith("gz")} == {n: b for n, b in before.items() if n.endswith("gz")}


def test_a_cohort_goes_on_with_the_cases_that_are_not_done(bundle, infer, tmp_path):
    cases = [save_case(bundle, tmp_path / f"head{n}.nii.gz", seed=n, shape=SMALL) for n in range(2)]
    out, datalist = tmp_path / "out", save_datalist(tmp_path, cases)
    assert infer(out, datalist_file=datalist).code == 0
    whole = content(out)
    (out / "head0_seg.nii.gz").unlink()
    half = out / "head1_seg.json"
    half.write_text(json.dumps({key: value for key, value in read_json(half).items() if key != "sha256"}))
    times = {path.name: path.stat().st_mtime_ns for path in out.glob("head*.nii.gz")}
    done = infer(out, datalist_file=datalist)
    assert (done.code, "are done" in done.output) == (0, False), done.output[-3000:]
    assert all((out / name).stat().st_mtime_ns > before for name, before in times.items())

    (out / "head0_seg.nii.gz").unlink()
    times = {path.name: path.stat().st_mtime_ns for path in out.glob("head1*")}
    done = infer(out, datalist_file=datalist)
    assert (done.code, "1 of 2 cases are done" in done.output) == (0, True), done.output[-3000:]
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("head1*")} == times
    done = infer(out, datalist_file=datalist)
    assert (done.code, "2 of 2 cases are done" in done.output) == (0, True), done.output[-3000:]
    after = content(out)
    assert {n: b for n, b in after.items() if n.endswith(("gz", "tsv"))} == {
        n: b for n, b in whole.items() if n.endswith(("gz", "tsv"))
    }


def test_shards_of_a_job_array_and_workers_make_what_one_run_makes(bundle, infer, tmp_path):
    cases = [save_case(bundle, tmp_path / f"head{n}.nii.gz", seed=n, shape=SMALL) for n in range(3)]
    datalist = save_datalist(tmp_path, cases)
    for shard, heads in (("1/2", ("head0", "head2")), ("2/2", ("head1",))):
        done = infer(tmp_path / "out", datalist_file=datalist, shard=shard)
        assert done.code == 0, done.output[-3000:]
        table = (tmp_path / "out" / "volumes.tsv").read_text().splitlines()[1:]
        assert sorted(line.split("\t")[0] for line in table) == list(heads)
    done = infer(tmp_path / "out", datalist_file=datalist)
    assert (done.code, "3 of 3 cases are done" in done.output) == (0, True), done.output[-3000:]
    done = infer(tmp_path / "side", datalist_file=datalist, workers=2)
    assert (done.code, "case 3 of 3 done" in done.output) == (0, True), done.output[-3000:]
    together, side = content(tmp_path / "out"), content(tmp_path / "side")
    assert {n: b for n, b in side.items() if n.endswith(("gz", "tsv"))} == {
        n: b for n, b in together.items() if n.endswith(("gz", "tsv"))
    }
    done = infer(tmp_path / "out", datalist_file=datalist, shard="4/4")
    assert done.code == 1
    assert "shard is 4/4 of 3 cases, expected at most as many shards as cases" in done.errors[0]


def test_a_result_that_was_made_in_another_way_is_kept_unless_the_user_says_so(bundle, run, tmp_path):
    assert run().code == 0
    record, mask = tmp_path / "out" / "head_seg.json", tmp_path / "out" / "head_seg.nii.gz"
    version, before = metadata(bundle)["version"], content(tmp_path / "out")
    done = run(spacing=3.5)
    assert_refused(done, "head_", f"was made by {bundle.name} {version} in another way: spacing is [3.5, 3.5, 3.5]")
    assert content(tmp_path / "out") == before

    change(record, bundle="another_bundle")
    assert_refused(run(), f"{mask} was made by another_bundle {version}")
    change(record, **json.loads(before[record.name]))
    mask.write_bytes(before[mask.name] + b"a correction")
    assert_refused(run(), f"{mask} was changed after {bundle.name} {version} made it")
    record.unlink()
    assert_refused(run(), f"{mask} is there without head_seg.json, which would say who made it")
    assert mask.read_bytes() == before[mask.name] + b"a correction"
    assert run(overwrite="true").code == 0
    assert content(tmp_path / "out").keys() == before.keys()
    assert mask.read_bytes() == before[mask.name]


@pytest.mark.parametrize("bundle", [b for b in BUNDLES if b.name == "uad_autoencoder"], indirect=True)
def test_two_bundles_do_not_share_a_table_and_a_page(run, tmp_path):
    assert run().code == 0
    out = tmp_path / "out"
    for file in sorted(out.glob("head_*")):  # of another sequence, so that no name is the same
        file.rename(out / file.name.replace("head_", "other_"))
    change(out / "other_seg.json", bundle="another_bundle", version="1.2.3")
    before = content(out)
    assert_refused(run(), f"{out / 'other_seg.nii.gz'} and the page beside it were made by another_bundle 1.2.3")
    assert content(out) == before
    assert run(overwrite="true").code == 0
    assert content(out)["other_seg.nii.gz"] == before["other_seg.nii.gz"]


def test_other_scans_under_the_same_names_are_refused(bundle, run, tmp_path):
    assert run().code == 0
    save_case(bundle, tmp_path / "head.nii.gz", seed=1, shape=SMALL)
    assert_refused(run(), "input 1 is head.nii.gz (", "that file has head.nii.gz (")


@pytest.mark.parametrize("bundle", [b for b in BUNDLES if b.name == "uad_autoencoder"], indirect=True)
def test_a_threshold_that_a_user_gives_does_not_keep_the_reason_of_the_shipped_one(run, tmp_path):
    assert run(threshold=0.25).code == 0
    record = read_json(tmp_path / "out" / "head_seg.json")
    assert record["threshold"] == {"value": 0.25, "source": "given with the run"}
    assert record["overrides"] == ["threshold"]
    assert "given with the run" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert run(threshold=0.25, threshold_source="by eye", overwrite="true").code == 0
    assert read_json(tmp_path / "out" / "head_seg.json")["threshold"]["source"] == "by eye"
