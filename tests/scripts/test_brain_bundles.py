"""One command for all scripts: what it lists, what it hands on, and what it says where it cannot."""

from __future__ import annotations

import fnmatch
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from bundle_tools import BUNDLES, ROOT, SMALL, read_json, save_case

import brain_bundles

SCRIPTS = sorted(path.stem for path in (ROOT / "scripts").glob("*.py"))


@pytest.fixture
def kept(monkeypatch) -> None:
    """The words and the path of this process are as before, after a subcommand ran in it."""
    monkeypatch.setattr(sys, "argv", [*sys.argv])
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)


def test_help_lists_every_script_with_a_line_and_imports_nothing_heavy():
    code = (
        "import sys, brain_bundles\nbrain_bundles.main(['--help'])\n"
        "print({'torch', 'numpy', 'fire', 'common'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "scripts", capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    listed = dict(line.split(maxsplit=1) for line in lines if line.startswith("  "))
    assert list(listed) == ["run", *SCRIPTS]
    assert listed["advise"] == "Which method fits the data"
    assert max(map(len, lines)) <= 120
    assert lines[-1] == "set()"


def test_a_subcommand_does_what_its_script_does(kept, tmp_path, capsys):
    for seed, case in enumerate("ab"):
        save_case(BUNDLES[-1], tmp_path / f"{case}_FLAIR.nii.gz", seed=seed, shape=SMALL)
    words = ["--dataset_dir", str(tmp_path), "--sequences", "FLAIR"]
    script = [sys.executable, "scripts/make_datalist.py", str(tmp_path / "script.json"), *words]
    done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, check=True)
    brain_bundles.main(["make-datalist", str(tmp_path / "command.json"), *words])
    assert read_json(tmp_path / "command.json") == read_json(tmp_path / "script.json")
    assert capsys.readouterr().out.replace("command.json", "script.json") == done.stdout


def test_help_of_a_subcommand_names_the_command_that_was_given(kept, capsys):
    brain_bundles.main(["advise", "--help"])
    assert capsys.readouterr().out.startswith("brain-bundles advise DATALIST_FILE [--option value ...]")


def test_run_hands_the_configs_of_a_bundle_to_monai_from_any_folder(kept, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    called = []
    monkeypatch.setattr("runpy.run_module", lambda name, **options: called.append((name, [*sys.argv])))
    brain_bundles.main(["run", "uad_autoencoder", "--dataset_dir", "scans"])
    brain_bundles.main(["run", "uad_autoencoder", "inference", "evaluate.json", "--bundle_root=elsewhere"])
    (_, one), (_, two) = called
    assert {name for name, _ in called} == {"monai.bundle"}
    assert one[1:3] == two[1:3] == ["run", "--config_file"]
    assert Path(one[3]).resolve() == ROOT / "bundles" / "uad_autoencoder" / "configs" / "inference.json"
    assert one[4] == "--bundle_root"
    assert Path(one[5]).resolve() == ROOT / "bundles" / "uad_autoencoder"
    assert one[6:] == ["--dataset_dir", "scans"]
    assert two[3].startswith("['")
    assert two[3].endswith("evaluate.json']")
    assert two[4:] == ["--bundle_root=elsewhere"]


def test_run_takes_a_layer_of_the_users_own_and_refuses_one_that_is_broken(kept, tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr("runpy.run_module", lambda name, **options: called.append([*sys.argv]))
    layer = tmp_path / "mine.json"
    layer.write_text('{"threshold": 0.4}')
    brain_bundles.main(["run", "uad_autoencoder", "inference", str(layer)])
    assert called[0][3].endswith(f"'{layer}']")
    layer.write_text("{")
    with pytest.raises(SystemExit, match=r"^error: .*mine\.json is no JSON"):
        brain_bundles.main(["run", "uad_autoencoder", "inference", str(layer)])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["advice"], "'advice' is no subcommand, expected one of run, advise, "),
        (["run", "uad"], "'uad' is no bundle, expected one of ace_multitask, "),
        (["run", "--device", "cpu"], "'--device' is no bundle"),
        (["run", "uad_autoencoder", "metadata"], "'metadata' is no config of uad_autoencoder and no file, expected "),
        (["run", "uad_autoencoder", "inference", "nowhere.json"], "'nowhere.json' is no config of uad_autoencoder"),
    ],
)
def test_what_there_is_not_is_answered_by_what_there_is(words, sentence):
    with pytest.raises(SystemExit, match=f"^error: {sentence}"):
        brain_bundles.main(words)


def test_a_command_without_its_repository_says_how_to_install_it(tmp_path):
    shutil.copytree(ROOT / "scripts" / "brain_bundles", tmp_path / "lib" / "site-packages" / "brain_bundles")
    code = "import brain_bundles; brain_bundles.main(['--help'])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path / "lib" / "site-packages",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: brain-bundles was installed without its repository")
    assert "expected pip install -e . in a clone of it" in done.stderr
    assert not done.stdout


def test_versions_of_the_command_and_of_the_collection_are_one():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    released = next(
        line.split()[1].strip("[]")
        for line in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("## [") and "Unreleased" not in line
    )
    assert f'\nversion = "{released}"\n' in project


def test_the_container_is_made_of_what_is_here_and_keeps_the_weights():
    text = (ROOT / ".ci" / "Dockerfile").read_text(encoding="utf-8")
    sources = [name for line in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE) for name in line.split()]
    assert [name for name in sources if not (ROOT / name).exists()] == []
    assert 'ENTRYPOINT ["brain-bundles"]' in text
    assert text.rindex("USER 1000") > text.rindex("RUN ")
    version = re.search(r"^ARG TORCH=(.*)$", text, re.MULTILINE)[1]
    assert f"torch=={version} " in (ROOT / "README.md").read_text(encoding="utf-8")
    optional = re.search(r"'\^\((.*)\)'", text)[1].split("|")
    wanted = (ROOT / "requirements-dev.txt").read_text(encoding="utf-8").splitlines()
    assert [name for name in optional if not any(line.startswith(name) for line in wanted)] == []
    ignored = [line for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
    kept = ["README.md", "LICENSE", *(path.relative_to(ROOT).as_posix() for path in ROOT.glob("bundles/*/models/*"))]
    assert len(kept) > len(BUNDLES)
    assert [(name, pattern) for name in kept for pattern in ignored if fnmatch.fnmatch(name, f"{pattern}*")] == []
