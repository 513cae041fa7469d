"""Where things live: common/ is what packages carry, scripts are thin, and functions are short."""

from __future__ import annotations

import ast
import zipfile
from pathlib import PurePosixPath

import pytest
from bundle_tools import BUNDLES, ROOT

from release.packaging import package_bundle

SCRIPT_LINES = 60
FUNCTION_LINES = 70


def test_every_file_of_common_is_in_a_package(tmp_path):
    carried = set()
    for bundle in BUNDLES:
        with zipfile.ZipFile(package_bundle(bundle.name, tmp_path)) as archive:
            names = [PurePosixPath(name).parts for name in archive.namelist()]
        carried |= {"/".join(parts[2:]) for parts in names if parts[1:3] == (bundle.name, "common")}
    files = (path for path in (ROOT / "common").rglob("*") if path.is_file() and path.suffix != ".pyc")
    there = {path.relative_to(ROOT).as_posix() for path in files}
    assert there - carried == set()


def docstring_lines(node: ast.AST) -> int:
    """Lines of the docstring of a module, a class or a function."""
    return 0 if ast.get_docstring(node) is None else node.body[0].end_lineno - node.body[0].lineno + 1


def lines_of_functions(text: str) -> list[tuple[str, int]]:
    """Name and lines of each function, its own docstring not counted."""
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    return [(node.name, node.end_lineno - node.lineno + 1 - docstring_lines(node)) for node in functions]


def test_docstrings_are_not_counted():
    text = '"""A module\n\nof two."""\nx = 1\n\ndef f():\n    """One\n\n    more."""\n    return x\n'
    assert lines_of_functions(text) == [("f", 2)]


@pytest.mark.parametrize("script", sorted((ROOT / "scripts").glob("*.py")), ids=lambda path: path.name)
def test_a_script_is_a_thin_command_line_on_its_room(script):
    assert len(script.read_text(encoding="utf-8").splitlines()) <= SCRIPT_LINES


def test_no_function_is_long():
    files = [path for folder in ("common", "scripts", "bundles") for path in (ROOT / folder).rglob("*.py")]
    found = {path.relative_to(ROOT).as_posix(): lines_of_functions(path.read_text(encoding="utf-8")) for path in files}
    assert sum(map(len, found.values())) > 1000
    long = [(path, *one) for path, functions in found.items() for one in functions if one[1] > FUNCTION_LINES]
    assert long == []
