"""Where things live: common/ is what packages carry, and scripts are thin."""

from __future__ import annotations

import zipfile
from pathlib import PurePosixPath

from bundle_tools import BUNDLES, ROOT

from release.packaging import package_bundle


def test_every_file_of_common_is_in_a_package(tmp_path):
    carried = set()
    for bundle in BUNDLES:
        with zipfile.ZipFile(package_bundle(bundle.name, tmp_path)) as archive:
            names = [PurePosixPath(name).parts for name in archive.namelist()]
        carried |= {"/".join(parts[2:]) for parts in names if parts[1:3] == (bundle.name, "common")}
    there = {path.relative_to(ROOT).as_posix() for path in (ROOT / "common").rglob("*.py")}
    assert there - carried == set()
