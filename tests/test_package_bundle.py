"""Packaging, on a toy repository with one bundle that needs no network and no MONAI."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from bundle_tools import ROOT
from monai.bundle import ConfigParser, download_large_files

from common.errors import InputError
from release.packaging import package_bundle

TOY = {
    "common/__init__.py": '"""Shared."""\n',
    "common/words.py": "from .text import join\n\n\ndef greet(who):\n    return join('hello', who)\n",
    "common/text/__init__.py": "from .joining import join\n",
    "common/text/joining.py": "from ..settings import SEPARATOR\n\n\ndef join(*a):\n    return SEPARATOR.join(a)\n",
    "common/settings.py": "SEPARATOR = ' '\nTEMPLATE = 'page.html'\n",
    "common/page.html": "<p>hello</p>\n",
    "common/numbers.py": "def double(x):\n    from .rounding import half\n\n    return half(4 * x)\n",
    "common/rounding.py": "def half(x):\n    return x / 2\n",
    "common/unreached.py": "raise ImportError('nobody needs this')\n",
    "bundles/toy/LICENSE": "Apache License, Version 2.0\n",
    "bundles/toy/docs/README.md": "# Toy\n\nIn the repository: `--bundle_root bundles/toy`\n",
    "bundles/toy/models/model.pt": "\x80weights\x00",
    "bundles/toy/configs/metadata.json": '{"version": "0.2.0", "changelog": {"0.2.0": "second", "0.1.0": "first"}}\n',
    "bundles/toy/configs/inference.json": '{\n  "bundle_root": "bundles/toy",\n\n'
    '  "answer": {"_target_":  "common.numbers.double", "x":21},\n  "text": "common sense: @home"\n}\n',
    "bundles/toy/configs/layer.json": '{"answer#_target_": "common.numbers.double"}\n',
    "bundles/toy/toy/__init__.py": "",
    "bundles/toy/toy/voice.py": '"""Says it, with common.words."""\r\n\r\nfrom common.words import greet\r\n\r\n\r\n'
    "def speak():\r\n    from common.numbers import double\r\n\r\n    return greet(str(double(1)))\r\n",
}
COMMON_IN_PACKAGE = {
    "__init__.py",
    "numbers.py",
    "page.html",
    "rounding.py",
    "settings.py",
    "text/__init__.py",
    "text/joining.py",
    "words.py",
}


@pytest.fixture
def toy(tmp_path):
    """Root of a repository with the bundle ``toy``."""
    for name, text in TOY.items():
        write(tmp_path / "repository" / name, text)
    return tmp_path / "repository"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode("latin-1"))


def package(root: Path) -> dict[str, str]:
    """Contents of the package of ``toy``, by entry."""
    with zipfile.ZipFile(package_bundle("toy", root.parent / "out", root=root)) as archive:
        return {name: archive.read(name).decode("latin-1") for name in archive.namelist()}


def test_the_zip_is_called_by_name_and_version_and_has_one_top_folder(toy):
    path = package_bundle("toy", toy / "out", root=toy)
    assert path == toy / "out" / "toy_v0.2.0.zip"
    names = zipfile.ZipFile(path).namelist()
    assert {name.split("/")[0] for name in names} == {"toy"}
    assert names == sorted(names)


def test_only_the_reached_modules_of_common_are_in_the_package_with_the_files_they_name(toy):
    prefix = "toy/toy/common/"
    contents = package(toy)
    assert {name.removeprefix(prefix) for name in contents if name.startswith(prefix)} == COMMON_IN_PACKAGE
    assert contents[prefix + "numbers.py"] == TOY["common/numbers.py"]


def test_three_texts_change_and_every_other_byte_stays(toy):
    contents = package(toy)
    for name, text in TOY.items():
        if name.startswith("bundles/toy/"):
            expected = (
                text.replace('"_target_":  "common.', '"_target_":  "toy.common.')
                .replace('"answer#_target_": "common.', '"answer#_target_": "toy.common.')
                .replace("from common.", "from toy.common.")
                .replace('"bundle_root": "bundles/toy"', '"bundle_root": "."')
            )
            assert contents[name.removeprefix("bundles/")] == expected


def test_the_same_files_give_the_same_bytes_whatever_their_dates(toy):
    first = package_bundle("toy", toy / "first", root=toy).read_bytes()
    for path in toy.rglob("*"):
        os.utime(path, (1e9, 1e9))
    (toy / "bundles/toy/LICENSE").chmod(0o600)
    assert package_bundle("toy", toy / "second", root=toy).read_bytes() == first


def test_results_data_caches_and_hidden_files_stay_out(toy):
    left_out = ("eval/a.json", "runs/a.pt", "data/a.nii.gz", "mlruns/0/meta.yaml", "mlruns.db", "large_files.yml")
    left_out += ("toy/__pycache__/voice.cpython-311.pyc", ".DS_Store", "configs/.inference.json.swp")
    before = set(package(toy))
    for name in left_out:
        write(toy / "bundles/toy" / name, "x")
    write(toy / "bundles/toy/toy/data/atlas.csv", "a folder of this name inside the package is code")
    assert set(package(toy)) == before | {"toy/toy/data/atlas.csv"}


def zoo_package(root: Path, address: str) -> Path:
    """Folder of the form for a pull request to the model zoo, unpacked."""
    path = package_bundle("toy", root.parent / "out", address, root=root)
    assert path.name == "toy_v0.2.0_zoo.zip"
    zipfile.ZipFile(path).extractall(root.parent / "zoo")
    return root.parent / "zoo" / "toy"


def test_the_form_for_the_model_zoo_has_a_list_in_the_place_of_weights_and_large_files(toy, monkeypatch):
    monkeypatch.setitem(package_bundle.__globals__, "LARGE", 400)
    write(toy / "bundles/toy/toy/table.csv", "x" * 401)
    write(toy / "bundles/toy/models/stage1.pt", "y")
    whole = {name.removeprefix("toy/") for name in package(toy)}
    form = zoo_package(toy, "https://example.org/toy/")
    large = {"models/model.pt", "models/stage1.pt", "toy/table.csv"}
    found = {path.relative_to(form).as_posix() for path in form.rglob("*") if path.is_file()}
    assert found == whole - large | {"large_files.yml"}
    entries = ConfigParser.load_config_file(form / "large_files.yml")["large_files"]
    assert [entry["path"] for entry in entries] == sorted(large)
    assert entries[1] == {
        "path": "models/stage1.pt",
        "url": "https://example.org/toy/models/stage1.pt",
        "hash_val": hashlib.sha256(b"y").hexdigest(),
        "hash_type": "sha256",
    }


def test_monai_downloads_what_the_list_names_and_refuses_another_file(toy, monkeypatch):
    asked = []

    def download(url: str, target: Path, progress: bool = True) -> None:
        asked.append(url)
        Path(target).write_bytes((toy / "bundles/toy/models/model.pt").read_bytes())

    monkeypatch.setattr("monai.apps.utils._download_with_progress", download)
    form = zoo_package(toy, "https://example.org/toy")
    download_large_files(str(form))
    assert asked == ["https://example.org/toy/models/model.pt"]
    assert (form / "models/model.pt").read_bytes() == (toy / "bundles/toy/models/model.pt").read_bytes()
    (form / "models/model.pt").write_bytes(b"another")
    with pytest.raises(ValueError, match="hash check of existing file failed"):
        download_large_files(str(form))


def test_the_form_for_the_model_zoo_is_reproducible_and_the_package_stays_as_it_was(toy):
    before = package_bundle("toy", toy / "out", root=toy)
    package_bytes = before.read_bytes()
    first, second = (package_bundle("toy", toy / name, "https://example.org", root=toy) for name in ("out", "again"))
    assert first.read_bytes() == second.read_bytes()
    assert before.read_bytes() == package_bytes


@pytest.mark.parametrize("address", ["example.org", "http://example.org", "https://", "https://a b", True])
def test_an_address_that_is_none_is_refused(toy, address):
    with pytest.raises(InputError, match=f"^large_files is '{address}', expected an address that begins with https://"):
        package_bundle("toy", toy / "out", address, root=toy)


def test_the_package_works_where_the_repository_does_not_exist(toy, tmp_path):
    zipfile.ZipFile(package_bundle("toy", tmp_path / "out", root=toy)).extractall(tmp_path / "alone")
    toy.rename(tmp_path / "gone")
    code = "from toy.voice import speak; import sys; print(speak(), 'common' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "alone/toy", env={}, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["hello", "2.0", "False"]


def test_what_all_bundles_share_is_in_the_package_of_each(toy):
    (toy / "bundles/toy/LICENSE").unlink()
    write(toy / "LICENSE", "of the repository")
    assert package(toy)["toy/LICENSE"] == "of the repository"
    write(toy / "bundles/toy/LICENSE", "of the bundle")
    assert package(toy)["toy/LICENSE"] == "of the bundle"


@pytest.mark.parametrize("file", ["LICENSE", "docs/README.md", "models/model.pt", "configs/inference.json"])
def test_a_missing_required_file_is_refused_by_its_name(toy, file):
    (toy / "bundles/toy" / file).unlink()
    with pytest.raises(InputError, match=f"^bundle toy has no {file}, "):
        package(toy)


REFUSED = {
    "an import of the whole of common": ("toy/voice.py", "import common\n", "line 1: expected 'from common"),
    "an import of a module as common.x": (
        "toy/voice.py",
        "\nimport common.words as w\n",
        "line 2: expected 'from common",
    ),
    "a module taken from common": ("toy/voice.py", "from common import words\n", "line 1: expected 'from common"),
    "an import behind a semicolon": ("toy/voice.py", "a = 1; from common.words import greet\n", "on a line of its own"),
    "a module named in a string": ("toy/voice.py", "NAME = 'common.words.greet'\n", "'common.words.greet' in a string"),
    "a folder of the repository": ("toy/voice.py", "P = 'bundles/toy/models'\n", "no folder 'bundles/toy/models'"),
    "code of another bundle": ("toy/voice.py", "from other.voice import speak\n", "has no 'other.voice.speak'"),
    "code of scripts": ("toy/voice.py", "from scripts.a import b\n", "has no 'scripts.a.b'"),
    "a missing module of common": (
        "toy/voice.py",
        "from common.wrods import greet\n",
        "common.wrods.greet, and common/",
    ),
    "common in an expression": ("configs/a.json", '{"a": "$common.words.greet(1)"}', r"the expression '\$common"),
    "an import of common in a config": ("configs/a.json", '{"imports": ["$import common.words"]}', "the expression"),
    "a from-import in a config": ("configs/a.json", '{"imports": ["$from common.words import a"]}', "the expression"),
    "a module that is no target": ("configs/a.json", '{"f": "common.words.greet"}', "'common.words.greet' under 'f'"),
    "a target in another bundle": ("configs/a.json", '{"a": {"_target_": "other.voice.X"}}', "has no 'other.voice.X'"),
    "a missing target": ("configs/a.json", '{"a": {"_target_": "common.nothing"}}', "common.nothing, and common/"),
    "a second path to the bundle": (
        "configs/a.json",
        '{"w": "bundles/toy/models/model.pt"}',
        "under 'w', use @bundle_root",
    ),
    "another bundle's root": ("configs/a.json", '{"bundle_root": "bundles/other"}', "under 'bundle_root'"),
    "a broken config": ("configs/a.json", '{"a": 1,}', "configs/a.json is not JSON"),
    "weights that MONAI Label would prefer": ("models/ae.pt", "x", "models/ae.pt"),
    "a top folder called scripts": ("scripts/run.py", "", "its own 'scripts'"),
    "a module called common": ("toy/common.py", "", "its own 'common.py'"),
    "a personal path": ("docs/README.md", "data in /home/jane/scans\n", "personal path '/home/jane"),
    "a version that is no key of the changelog": (
        "configs/metadata.json",
        '{"version": "0.3.0", "changelog": {"0.2.0": ""}}',
        "version '0.3.0'",
    ),
    "a version of two numbers": ("configs/metadata.json", '{"version": "1.0", "changelog": {"1.0": ""}}', "N.N.N"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_would_not_work_alone_is_refused_with_one_sentence_and_no_zip(toy, what):
    file, text, sentence = REFUSED[what]
    write(toy / "bundles/other/other/voice.py", "")
    write(toy / "bundles/toy" / file, text)
    with pytest.raises(InputError, match=sentence) as error:
        package(toy)
    assert "\n" not in str(error.value)
    assert not (toy.parent / "out").exists()


@pytest.mark.parametrize("text", ["from common.words import greet\n", "import common.words\n", "from ... import x\n"])
def test_common_must_import_relatively(toy, text):
    write(toy / "common/text/joining.py", text)
    with pytest.raises(InputError, match=r"^common/text/joining.py, line 1: "):
        package(toy)


def test_a_link_is_refused(toy):
    (toy / "bundles/toy/models/link.bin").symlink_to(toy / "bundles/toy/LICENSE")
    with pytest.raises(InputError, match="symbolic link"):
        package(toy)


def test_the_place_of_the_repository_is_a_personal_path(toy):
    write(toy / "bundles/toy/docs/notes.md", f"trained in {toy}/runs\n")
    with pytest.raises(InputError, match=f"^toy/docs/notes.md holds the personal path '{toy}'"):
        package(toy)


def test_an_address_on_the_web_is_no_personal_path(toy):
    write(toy / "bundles/toy/docs/README.md", "https://example.org/home/page and ~/home/x\n")
    assert "example.org" in package(toy)["toy/docs/README.md"]


def test_an_earlier_zip_survives_a_failure_and_is_replaced_by_success(toy):
    path = package_bundle("toy", toy / "out", root=toy)
    before = path.read_bytes()
    write(toy / "bundles/toy/toy/voice.py", "import common\n")
    with pytest.raises(InputError):
        package_bundle("toy", toy / "out", root=toy)
    assert path.read_bytes() == before
    write(toy / "bundles/toy/toy/voice.py", "")
    assert package_bundle("toy", toy / "out", root=toy).read_bytes() != before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_an_output_that_is_a_file_is_named(toy):
    with pytest.raises(InputError, match=r"LICENSE.* cannot be written \("):
        package_bundle("toy", toy / "bundles/toy/LICENSE", root=toy)


def test_the_command_prints_one_sentence_for_an_unknown_bundle(tmp_path):
    command = [sys.executable, "scripts/package_bundle.py", "no_such_bundle", "--output_dir", tmp_path / "out"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: bundle is 'no_such_bundle', expected ace_multitask, ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
