"""A bundle as a zip that runs alone, with the modules of ``common/`` that it reaches inside its own package.

In the repository several bundles share ``common/``. Two packages of different releases must be able to live in one
process, so each carries its own copy as ``<name>.common``. For that three texts are changed and nothing is reformatted:
the targets in configs, the imports in Python, and ``bundle_root``. What these three cannot change is refused.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

from catalog import TAKEN_NAMES
from common.errors import InputError
from common.files import write_atomically

ROOT = Path(__file__).resolve().parents[2]
# what is the same in every bundle stands once: path in a package -> path in the repository
SHARED_FILES = {
    "LICENSE": "LICENSE",
    "configs/multi_gpu_inference.json": "bundles/multi_gpu_inference.json",
}
REQUIRED_FILES = ("LICENSE", "configs/metadata.json", "configs/inference.json", "models/model.pt", "docs/README.md")
# results and data of whoever works with the bundle; what tools of the repository read; a large_files list would make a
# verification download
LEFT_OUT_AT_TOP = re.compile(r"eval|runs|data|mlruns.*|\w+\.py|large_files\..*")
LEFT_OUT_ANYWHERE = re.compile(r"__pycache__|\..*|.*\.pyc")
PERSONAL_PATH = re.compile(r"(?<![\w.~@$}-])(?:/home/|/Users/|/root/|/mnt/|[A-Za-z]:\\+Users\\+)[\w.-]*")
COMMON_NAME = re.compile(r"(?<![\w.])common(?=\.\w|\s+import\b)|\bimport\s+common\b")
LARGE = 25 * 1000**2  # bytes of a file; what is larger, the model zoo takes as an address only
FIXED_DATE = (1980, 1, 1, 0, 0, 0)


def package_bundle(name: str, output_dir: str | Path, large_files: str | None = None, root: Path = ROOT) -> Path:
    """Write ``<name>_v<version>.zip``, which has the one top folder ``<name>/``, and return its path.

    The same files give the same bytes. An earlier zip of that version is replaced, and nothing is left of a failure.

    Args:
        name: folder below ``bundles/``, and the Python package in it.
        output_dir: where the zip goes; created if it is missing.
        large_files: address below which the files of the bundle can be downloaded, as ``<address>/models/model.pt``.
            If given, the zip is ``<name>_v<version>_zoo.zip``, and weights and files above 25 MB are not in it but in
            its ``large_files.yml``, which ``monai.bundle.download_large_files`` reads.
        root: the repository, which holds ``bundles/`` and ``common/``.

    Raises:
        InputError: if a required file is missing, or something would not work outside the repository, or the address
            does not begin with ``https://``.
    """
    if large_files is not None and not re.match(r"https://\S+$", str(large_files)):
        raise InputError(f"large_files is '{large_files}', expected an address that begins with https://")
    bundle = root / "bundles" / name
    files = _files_of(bundle, root)
    version = _checked_version(bundle)
    contents, modules = {}, set()
    for entry, path in files.items():
        text = _text_of(path)
        where = path.relative_to(root).as_posix()
        if path.suffix == ".py":
            modules |= _check_python(ast.parse(_known(text, where)), where, root, bundle)
            text = re.sub(r"^([ \t]*from )common\.", rf"\1{name}.common.", text, flags=re.MULTILINE)
            _check_python(ast.parse(text), where, root, bundle, rewritten=True)
        elif path.suffix == ".json":
            text = re.sub(rf'("bundle_root"\s*:\s*)"bundles/{name}"', r'\1"."', _known(text, where))
            modules |= _check_config(text, where, root, bundle)
            text = re.sub(r'(_target_"\s*:\s*")common\.', rf"\1{name}.common.", text)
        contents[f"{name}/{entry}"] = path.read_bytes() if text is None else text.encode()
    for path in _reached_files(modules, root):
        contents[f"{name}/{name}/{path.relative_to(root).as_posix()}"] = path.read_bytes()
    for entry, data in contents.items():
        _refuse_personal_paths(entry, data, root)
    if large_files is None:
        return _write_zip(Path(output_dir) / f"{name}_v{version}.zip", contents)
    return _write_zip(Path(output_dir) / f"{name}_v{version}_zoo.zip", _listed(contents, name, large_files))


def _files_of(bundle: Path, root: Path) -> dict[str, Path]:
    """Path in the package -> file: those of the bundle, and those that it shares with the others."""
    if not bundle.is_dir():
        known = ", ".join(sorted(p.parent.parent.name for p in bundle.parent.glob("*/configs/metadata.json"))) or "none"
        raise InputError(f"there is no bundle {bundle.name} in {bundle.parent}, expected one of: {known}")
    shared = {entry: root / file for entry, file in SHARED_FILES.items() if (root / file).is_file()}
    files = shared | {path.relative_to(bundle).as_posix(): path for path in _bundle_files(bundle)}
    missing = next((file for file in REQUIRED_FILES if file not in files), None)
    if missing:
        raise InputError(f"bundle {bundle.name} has no {missing}, and a package needs {', '.join(REQUIRED_FILES)}")
    return files


def _checked_version(bundle: Path) -> str:
    """Version of a bundle, which has to be what MONAI Label and the other bundles can live with."""
    inside = [*bundle.iterdir(), *(bundle / bundle.name).glob("common*")]
    taken = next((p.name for p in inside if p.stem in TAKEN_NAMES), None)
    if taken:
        raise InputError(f"bundle {bundle.name} has its own '{taken}', a name that every bundle might use: rename it")
    shortest = min((bundle / "models").glob("*.pt"), key=lambda p: (len(p.name), p.name != "model.pt"))
    if shortest.name != "model.pt":
        raise InputError(f"MONAI Label would load models/{shortest.name}: only model.pt may have so short a name")
    file = bundle / "configs" / "metadata.json"
    metadata = _parsed(_known(_text_of(file), file.name), f"bundles/{bundle.name}/configs/metadata.json")
    version = str(metadata.get("version"))
    if not re.fullmatch(r"\d+\.\d+\.\d+", version) or version not in metadata.get("changelog", {}):
        raise InputError(f"version '{version}' of bundle {bundle.name} must be N.N.N and a key of its changelog")
    return version


def _bundle_files(bundle: Path) -> Iterator[Path]:
    """Files of a bundle that are packed, sorted."""
    for path in sorted(bundle.rglob("*")):
        parts = path.relative_to(bundle).parts
        if LEFT_OUT_AT_TOP.fullmatch(parts[0]) or any(LEFT_OUT_ANYWHERE.fullmatch(part) for part in parts):
            continue
        if path.is_symlink():
            raise InputError(f"{path} is a symbolic link, which a zip cannot carry: put the file itself there")
        if path.is_file():
            yield path


def _text_of(path: Path) -> str | None:
    """Text of a file exactly as it stands, line ends included; None if it is binary."""
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError:
        return None


def _known(text: str | None, where: str) -> str:
    if text is None:
        raise InputError(f"{where} is not UTF-8 text, so its references to common/ cannot be rewritten")
    return text


def _parsed(text: str, where: str) -> dict:
    try:
        return json.loads(text)
    except json.JSONDecodeError as e:
        raise InputError(f"{where} is not JSON: {e}") from e


def _check_python(tree: ast.AST, where: str, root: Path, bundle: Path, rewritten: bool = False) -> set[str]:
    """Names below ``common`` that a module of a bundle imports; refuses every form that the rewriting would miss."""
    found = set()
    for name, line in _absolute_imports(tree):
        if _is_outside(name, bundle):
            raise InputError(f"{where}, line {line}: a package has no '{name}', only its own code and common/")
        if name.startswith("common.") and not rewritten:
            found.add(name)
        elif name.split(".")[0] == "common":
            raise InputError(
                f"{where}, line {line}: expected 'from common.<module> import <name>' on a line of its own"
            )
    _refuse_texts(tree, where, root)
    return found


def _is_outside(name: str, bundle: Path) -> bool:
    """Whether a module lies in the repository and not in the package: another bundle, a script, a test."""
    top = name.split(".")[0]
    return top in ("scripts", "tests") or (top != bundle.name and (bundle.parent / top).is_dir())


def _absolute_imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Imported names and their lines; ``import common.x`` is cut to ``common``: only ``from`` can be rewritten."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.split(".")[0]
                yield (top if top == "common" else alias.name), node.lineno
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            for alias in node.names:
                yield (f"{node.module}.{alias.name}" if node.module != "common" else "common"), node.lineno


def _refuse_texts(tree: ast.AST, where: str, root: Path) -> None:
    """Refuse a module's name or a bundle's folder in a string: importlib and open() would look it up in vain."""
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str) or id(node) in docstrings:
            continue
        if re.match(r"common\.\w", node.value) and _is_module(node.value, root):
            raise InputError(f"{where}, line {node.lineno}: the name '{node.value}' in a string cannot be rewritten")
        if re.match(r"bundles/\w", node.value):
            raise InputError(f"{where}, line {node.lineno}: a package has no folder '{node.value}', use bundle_root")


def _check_config(text: str, where: str, root: Path, bundle: Path) -> set[str]:
    """Names below ``common`` that a config's targets need; refuses them anywhere else."""
    found = set()
    for key, value in _strings(_parsed(text, where)):
        last = key.rsplit("#", 1)[-1].rsplit("::", 1)[-1]
        if last == "_desc_":
            continue
        if last == "_target_" and value.startswith("common."):
            found.add(value)
        elif last == "_target_" and _is_outside(value, bundle):
            raise InputError(f"{where}: a package has no '{value}', only its own code and common/")
        elif value.startswith("$") and COMMON_NAME.search(value):
            raise InputError(f"{where}: common/ in the expression '{value}' cannot be rewritten, use a _target_ for it")
        elif re.match(r"common\.\w", value) and _is_module(value, root):
            raise InputError(f"{where}: '{value}' under '{key}' cannot be rewritten, only a _target_ can")
        if re.search(r"(?<![\w/.])bundles/\w", value) and not where.endswith("metadata.json"):
            raise InputError(f"{where}: a package has no folder of '{value}' under '{key}', use @bundle_root")
    return found


def _strings(config: object, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text in a config, with its key; texts in a list have the key of the list."""
    if isinstance(config, str):
        yield key, config
    elif isinstance(config, dict):
        for k, v in config.items():
            yield from _strings(v, k)
    elif isinstance(config, list):
        for v in config:
            yield from _strings(v, key)


def _module_chain(name: str, root: Path) -> list[tuple[str, Path]]:
    """Modules that importing ``name`` runs, packages first; stops where ``name`` goes on with classes and functions."""
    chain, folder, parts = [], root, name.split(".")
    for i, part in enumerate(parts):
        folder = folder / part
        file = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
        if not file.is_file():
            break
        chain.append((".".join(parts[: i + 1]), file))
    return chain


def _is_module(name: str, root: Path) -> bool:
    """Whether a name below ``common`` begins with a module of it."""
    return len(_module_chain(name, root)) > 1


def _reached_files(names: set[str], root: Path) -> list[Path]:
    """Files of ``common/`` that the given names need, followed through the relative imports, and the data they name."""
    for name in sorted(names):
        if not _is_module(name, root):
            raise InputError(f"the bundle names {name}, and common/ has no such module")
    files: dict[str, Path] = {}
    waiting = sorted(names)
    while waiting:
        for module, file in _module_chain(waiting.pop(), root):
            if module not in files:
                files[module] = file
                waiting += _relative_imports(module, file, root)
    return sorted({*files.values(), *(data for file in files.values() for data in _named_data(file))})


def _relative_imports(module: str, file: Path, root: Path) -> list[str]:
    """Absolute names of what a module of ``common/`` imports from ``common/``."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    where = file.relative_to(root).as_posix()
    for name, line in _absolute_imports(tree):
        if name.split(".")[0] == "common" or (root / "bundles" / name.split(".")[0]).is_dir():
            raise InputError(f"{where}, line {line}: common/ must import relatively, and no bundle, found '{name}'")
    _refuse_texts(tree, where, root)
    package = module.split(".") if file.name == "__init__.py" else module.split(".")[:-1]
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level > 0:
            base = package[: len(package) - node.level + 1]
            if not base:
                raise InputError(f"{where}, line {node.lineno}: this import leaves common/")
            base += node.module.split(".") if node.module else []
            found += [".".join([*base, alias.name]) for alias in node.names]
    return found


def _named_data(file: Path) -> list[Path]:
    """Files beside a module that it names in a string, for instance a template."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    texts = (n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str))
    paths = (file.parent / text for text in texts if re.fullmatch(r"\w[\w./-]*\.\w+", text) and ".." not in text)
    return [path for path in paths if path.suffix != ".py" and path.is_file()]


def _refuse_personal_paths(entry: str, data: bytes, root: Path) -> None:
    """Refuse folders of whoever made the bundle; binary files are not searched."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return
    found = PERSONAL_PATH.search(text)
    personal = found.group() if found else str(root) if f"{root}/" in text else None
    if personal:
        raise InputError(f"{entry} holds the personal path '{personal}', expected paths relative to the bundle")


def _listed(contents: dict[str, bytes], name: str, address: str) -> dict[str, bytes]:
    """Contents without weights and large files, but with a list of them for ``download_large_files`` of MONAI."""
    kept, lines = {}, ["large_files:\n"]
    for entry, data in sorted(contents.items()):
        path = entry.removeprefix(f"{name}/")
        if not re.fullmatch(r"models/.*\.(pt|ts)", path) and len(data) <= LARGE:
            kept[entry] = data
            continue
        values = {"path": path, "url": f"{address.rstrip('/')}/{path}", "hash_val": hashlib.sha256(data).hexdigest()}
        texts = [f"{key}: {json.dumps(value)}" for key, value in {**values, "hash_type": "sha256"}.items()]
        lines.append("  - " + "\n    ".join(texts) + "\n")
    return {**kept, f"{name}/large_files.yml": "".join(lines).encode()}


def _write_zip(path: Path, contents: dict[str, bytes]) -> Path:
    """Write sorted entries with a fixed date; the file appears when it is complete."""

    def write(part: Path) -> None:
        with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
            for entry, data in sorted(contents.items()):
                info = zipfile.ZipInfo(entry, FIXED_DATE)
                info.compress_type = zipfile.ZIP_DEFLATED
                info.create_system = 3  # Unix, also when packed on Windows: same bytes everywhere
                info.external_attr = 0o644 << 16
                archive.writestr(info, data)

    write_atomically(path, write)
    return path
