"""The checks of the model zoo's own verification, on a packaged bundle and without the network.

The code of the bundle runs in a process of its own that does not know the repository: a package that only works beside
it fails. That process may do whatever its user may, so verify only what comes from somebody you trust.
"""

from __future__ import annotations

import hashlib
import json
import re
import stat
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import jsonschema
import yaml

from catalog import bundle_names, describe
from common.errors import InputError
from common.files import read_json

from .packaging import LARGE, PERSONAL_PATH, REQUIRED_FILES

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = read_json(Path(__file__).with_name("metadata_schema.json"))
MAX_UNPACKED = 2 * 1024**3  # bytes of all files of a zip; a bundle has a few MB of code and its weights
# what names a licence for the Hub, and a sentence that only its whole text has
LICENSES = {
    "Apache License": "END OF TERMS AND CONDITIONS",
    "MIT License": "The above copyright notice and this permission notice",
}
# headings of the zoo's readme template and of the Hub's model card; its description is what stands below the title
SECTIONS = ("Authors", "Tags", "Intended use", "Data", "Performance", "System", "Limitations", "Citation", "License")
# what reading a file raises that is missing, or not in the form that is expected of it
UNEXPECTED = (OSError, ValueError, LookupError, TypeError, AttributeError, yaml.YAMLError)
HASHES = ("md5", "sha1", "sha256", "sha512")


class Result(NamedTuple):
    """What a check found: sentences on what is wrong, or why it was left out."""

    check: str
    failures: list[str]
    skipped: str | None = None

    def __str__(self) -> str:
        state = "FAILED " if self.failures else "skipped" if self.skipped else "ok     "
        return f"{state} {self.check}: {'; '.join(self.failures) or self.skipped}".removesuffix(": None")


def verify_bundle(
    path: str | Path,
    datalist_file: str | Path | None = None,
    model_info: str | Path | None = None,
    use_trace: bool | None = None,
) -> list[Result]:
    """Results of all checks, in the order in which they are made; a failure stops none of the others.

    Args:
        path: zip of ``package_bundle.py``, or the folder that it unpacks to.
        datalist_file: cases for the sections ``training`` and ``validation``, which the properties of ``train.json``
            cannot be checked without.
        model_info: ``models/model_info.json`` of the zoo, which lists what was released.
        use_trace: TorchScript is made by trace and not by script; by default as the description of the bundle of this
            name says, and by script if there is none.

    Raises:
        InputError: if there is nothing at ``path`` that could be a package, or the zip is not safe to unpack.
    """
    with opened(path) as package:
        release = _checked(check_release, package, model_info) if model_info else _left_out("release", "model_info")
        code = _code_results(package, datalist_file, use_trace)
        return [*(_checked(check, package) for check in CHECKS), release, *code]


@contextmanager
def opened(path: str | Path) -> Iterator[Path]:
    """Folder of a package, for as long as it is used: itself, or unpacked from a zip."""
    path = Path(path).resolve()
    if path.parent == ROOT / "bundles":
        raise InputError(f"{path} is a bundle in the repository, expected a package of it: see package_bundle.py")
    if path.is_dir():
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        yield unpack(path, Path(folder))


def unpack(path: Path, folder: Path) -> Path:
    """Unpack a zip into a folder and return the one folder in it; refuses it before anything is written.

    Raises:
        InputError: if it is no zip, or an entry would land elsewhere, is a link, encrypted or there twice, or there is
            more than one folder at its top, or more than ``MAX_UNPACKED`` bytes would be written.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            for entry in entries:
                _refuse_entry(path.name, entry)
            tops = {entry.filename.split("/")[0] for entry in entries}
            if len(tops) != 1 or not all("/" in entry.filename for entry in entries):
                found = ", ".join(sorted(tops)) or "nothing"
                raise InputError(f"{path.name} has {found} at its top, expected one folder")
            names = [entry.filename for entry in entries]
            if len(set(names)) < len(names):
                raise InputError(f"{path.name} has two entries of the same name")
            size = sum(entry.file_size for entry in entries)  # more than it says, zipfile does not unpack
            if size > MAX_UNPACKED:
                raise InputError(f"{path.name} unpacks to {size} bytes, expected at most {MAX_UNPACKED}")
            archive.extractall(folder)
    except (OSError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error) as e:
        raise InputError(f"cannot unpack {path}: {e}") from e
    return folder / tops.pop()


def _refuse_entry(name: str, entry: zipfile.ZipInfo) -> None:
    parts = entry.filename.split("/")
    if entry.filename.startswith("/") or {".", ".."} & set(parts) or re.search(r"\\|^\w:", entry.filename):
        raise InputError(f"{name} has an entry '{entry.filename}', which would land outside of the folder")
    if stat.S_ISLNK(entry.external_attr >> 16):
        raise InputError(f"{name} has a symbolic link '{entry.filename}', expected files only")
    if entry.flag_bits & 1:
        raise InputError(f"{name} has an encrypted entry '{entry.filename}'")


def _checked(check: Callable[..., Iterator[str]], package: Path, *arguments: object) -> Result:
    result = Result(check.__name__.removeprefix("check_"), [])
    try:
        for failure in check(package, *arguments):
            result.failures.append(failure)
    except UNEXPECTED as e:
        result.failures.append(" ".join(f"{type(e).__name__}: {e}".split()))
    return result


def _left_out(name: str, option: str) -> Result:
    return Result(name, [], f"needs --{option}")


def check_files(package: Path) -> Iterator[str]:
    """Required files are there, or to be downloaded; no links, no results of runs, no personal path in a text."""
    listed = {entry.get("path") for entry in _large_files(package)}
    for file in (*REQUIRED_FILES, "docs/data_license.txt"):
        if not (package / file).is_file() and file not in listed:
            yield f"{file} is missing"
    for path in sorted(package.rglob("*")):
        name = path.relative_to(package).as_posix()
        if path.is_symlink():
            yield f"{name} is a symbolic link"
        elif path.is_file() and path.suffix != ".pt":
            found = PERSONAL_PATH.search(path.read_bytes().decode(errors="ignore"))
            if found:
                yield f"{name} holds the personal path '{found.group()}'"


def check_sizes(package: Path) -> Iterator[str]:
    """Files above 25 MB are named in ``large_files.yml``, and what it names is what is there."""
    entries = _large_files(package)
    for entry in entries:
        path, kind, value = entry.get("path"), entry.get("hash_type"), entry.get("hash_val")
        if not path or not str(entry.get("url", "")).startswith("https://"):
            yield f"{entry} of large_files needs a path and a url that begins with https://"
            continue
        if not (package / path).resolve().is_relative_to(package.resolve()):
            yield f"'{path}' of large_files leads out of the bundle"
        elif kind not in HASHES or not value:
            yield f"{path} of large_files needs a hash_val, and a hash_type of {', '.join(HASHES)}"
        elif (package / path).is_file() and hashlib.new(kind, (package / path).read_bytes()).hexdigest() != value:
            yield f"{path} is not the file that large_files names: its {kind} differs"
    listed = {entry.get("path") for entry in entries}
    for path in sorted(package.rglob("*")):
        name = path.relative_to(package).as_posix()
        if path.is_file() and path.stat().st_size > LARGE and name not in listed:
            yield f"{name} has {path.stat().st_size / 1e6:.0f} MB, above 25 MB: make a large_files.yml for the zoo"


def check_license(package: Path) -> Iterator[str]:
    """The whole text of a licence that the Hub knows."""
    text = (package / "LICENSE").read_text(encoding="utf-8")
    if not any(name in text and sentence in text for name, sentence in LICENSES.items()):
        yield f"LICENSE has the whole text of none of: {', '.join(LICENSES)}"


def check_version(package: Path) -> Iterator[str]:
    """A version that the changelog explains."""
    metadata = _metadata(package)
    if metadata["version"] not in metadata["changelog"]:
        yield f"version {metadata['version']} is no key of the changelog"


def check_metadata(package: Path) -> Iterator[str]:
    """``metadata.json`` meets the schema of the zoo, and has its tensors where MONAI and MONAI Label look."""
    metadata = _metadata(package)
    errors = list(jsonschema.Draft202012Validator(SCHEMA).iter_errors(metadata))
    yield from sorted(f"{'.'.join(map(str, e.path)) or 'metadata.json'}: {e.message}" for e in errors)
    if errors:
        return
    if "optional_packages_version" in metadata:
        yield "optional_packages_version is deprecated, use required_packages_version"
    tensors = metadata["network_data_format"]
    for side, expected in (("inputs", "image"), ("outputs", "pred")):
        if next(iter(tensors[side]), None) != expected:
            yield f"the first of {side} must be '{expected}'"
    channels = tensors["outputs"]["pred"]["channel_def"]
    if channels["0"].lower() != "background" or len(channels) < 2:
        yield f"channel_def of pred must name 0 the background and another class, found {channels}"


def check_card(package: Path) -> Iterator[str]:
    """``docs/README.md`` says what the templates of the zoo and the Hub ask, wherever the Hub shows it."""
    text = (package / "docs" / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)  # '#' begins comments there
    if not re.match(r"# \S.*\n+[^#\s]", text):
        yield "expected a title, then the description, and nothing above: the Hub puts its own header there"
    headings = " ".join(re.findall(r"^#+ (.*)", text, re.MULTILINE)).lower()
    missing = [section for section in SECTIONS if not re.search(rf"\b{section.lower()}\b", headings)]
    if missing:
        yield f"no heading has the words: {', '.join(missing)}"
    for link in re.findall(r"\]\((?!\w+:|#)([^)]+)\)", text):
        yield f"the link to '{link}' breaks on the Hub, which shows the card at another place"


def check_release(package: Path, model_info: str | Path) -> Iterator[str]:
    """The version was not released before."""
    release = f"{package.name}_v{_metadata(package)['version']}"
    if release in read_json(model_info):
        yield f"{release} was released before: give it a new version"


CHECKS = (check_files, check_sizes, check_license, check_version, check_metadata, check_card)


def _metadata(package: Path) -> dict:
    return read_json(package / "configs" / "metadata.json")


def _large_files(package: Path) -> list[dict]:
    """Entries of ``large_files.yml``; none if there is no such file."""
    files = [package / f"large_files.{suffix}" for suffix in ("yml", "yaml", "json")]
    return [entry for file in files if file.is_file() for entry in yaml.safe_load(file.read_text())["large_files"]]


def _code_results(package: Path, datalist_file: str | Path | None, use_trace: bool | None) -> list[Result]:
    if use_trace is None:
        use_trace = package.name in bundle_names() and describe(package.name).exporter == "trace"
    checks = {"inference_properties": {}, "shapes": {}}
    left_out = []
    if datalist_file:
        checks["train_properties"] = {"datalist_file": str(Path(datalist_file).resolve())}
    else:
        left_out.append(_left_out("train_properties", "datalist_file"))
    if (package / "models" / "model.pt").is_file():
        checks |= {"weights": {}, "torchscript": {"use_trace": use_trace}}
    else:
        left_out += [Result(name, [], "there is no models/model.pt") for name in ("weights", "torchscript")]
    with tempfile.TemporaryDirectory() as folder:
        return run_in_own_process(package, checks, Path(folder)) + left_out


def run_in_own_process(package: Path, checks: dict[str, dict], output_dir: Path) -> list[Result]:
    """Results of checks of ``bundle_process.py``, which run with the code of the package and nothing else of ours.

    Args:
        package: folder of the package.
        checks: name of a check -> its arguments.
        output_dir: existing folder for the files that checks write.
    """
    job = {"package": str(package.resolve()), "output_dir": str(output_dir.resolve()), "checks": checks}
    command = [sys.executable, "-I", "-B", str(Path(__file__).resolve().with_name("bundle_process.py"))]
    done = subprocess.run(
        command, input=json.dumps(job), cwd=output_dir, capture_output=True, text=True, check=False, errors="replace"
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    results = [Result(line["check"], [line["failure"]] if line["failure"] else []) for line in found]
    ended = f"the process ended before with exit code {done.returncode}: {' '.join(done.stderr.split())[-300:]}"
    return results + [Result(name, [ended]) for name in list(checks)[len(results) :]]
