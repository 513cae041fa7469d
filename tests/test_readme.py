"""Commands of README and docs: every file, script and option in them exists; a run takes unknown keys in silence."""

from __future__ import annotations

import ast
import inspect
import itertools
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import monai.bundle
import pytest
from bundle_tools import BUNDLES, ROOT, SMALL, load_script, read_json, save_case, save_datalist

from release.packaging import package_bundle

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# of monai.bundle run itself, and of its tracking
RUN_OPTIONS = {"config_file", "bundle_root", "tracking", "tracking_uri", "experiment_name", "run_name"}


def commands() -> list[list[str]]:
    """Words of every command line in the pages, with their variables filled in."""
    found, variables = [], {}
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    for block in re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in re.split(r"\n|&&", re.sub(r"\\\n|&&\n", " ", block)):
            for name, value in variables.items():
                line = line.replace(f"${name}", value)
            words = shlex.split(line, comments=True)
            if len(words) == 1 and "=" in words[0]:
                name, variables[name] = words[0].split("=")
            elif words:
                found.append(words)
    return found


def options(words: list[str]) -> dict[str, str]:
    """Option -> value; "True" for one without."""
    following = [*words[1:], "--"]
    return {
        word[2:]: "True" if after.startswith("--") else after
        for word, after in zip(words, following, strict=True)
        if word.startswith("--")
    }


def shown(words: list[str]) -> str:
    return " ".join(words)[:100]


@pytest.mark.parametrize("words", [w for w in commands() if "monai.bundle" in w and "run" in w], ids=shown)
def test_options_of_a_run_are_keys_of_its_configs(words):
    given = options(words[words.index("run") :])  # not those of torchrun
    files = given["config_file"]
    files = ast.literal_eval(files) if files.startswith("[") else [files]
    known = set().union(*(read_json(ROOT / file) for file in files))
    assert set(given) - known - RUN_OPTIONS == set()


@pytest.mark.parametrize(
    "words", [w for w in commands() if w[1:3] == ["-m", "monai.bundle"] and "run" not in w], ids=shown
)
def test_options_of_other_commands_of_monai_are_their_parameters(words):
    parameters = inspect.signature(getattr(monai.bundle, words[3])).parameters
    assert set(options(words)) - set(parameters) == set()


@pytest.mark.parametrize("words", [w for w in commands() if w[1:2] and w[1].startswith("scripts/")], ids=shown)
def test_options_of_a_script_are_parameters_of_its_main(words):
    script, rest = load_script(Path(words[1]).stem), words[2:]
    main = script.COMMANDS[rest.pop(0)] if hasattr(script, "COMMANDS") else script.main
    positional = list(itertools.takewhile(lambda word: not word.startswith("--"), rest))
    bound = inspect.signature(main).bind(*positional, **options(words))  # raises TypeError where they do not fit
    assert set(options(words)) <= set(bound.arguments)


@pytest.mark.slow
def test_the_python_of_the_pages_runs_for_every_bundle_in_one_process(tmp_path):
    (tmp_path / "bundles").symlink_to(ROOT / "bundles")
    (tmp_path / "common").symlink_to(ROOT / "common")
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    script = []
    for bundle in BUNDLES:
        folder = tmp_path / bundle.name
        image = save_case(bundle, folder / "scan.nii.gz", shape=SMALL)
        datalist = save_datalist(folder, [image]).relative_to(tmp_path)
        shutil.unpack_archive(package_bundle(bundle.name, tmp_path / "zips"), tmp_path / "packages")
        for text in blocks:
            text = text.replace("uad_autoencoder", bundle.name).replace("results", f"{bundle.name}/results")
            script.append(text.replace("phantom/unlabeled/datalist.json", datalist.as_posix()))
        script.append(f"assert type(network).forward and not network.training, {bundle.name!r}\n")
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(script)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert [b.name for b in BUNDLES if not (tmp_path / b.name / "results" / "scan_seg.nii.gz").is_file()] == []


def test_readme_has_the_two_commands_that_ci_takes_from_it():
    first, second = (re.search(rf"<!-- command {n} -->\n```bash\n(.*?)```", README, re.DOTALL)[1] for n in (1, 2))
    assert first.rstrip().endswith("python scripts/quickstart.py")
    assert second.rstrip().endswith("python -m pytest -n 2")


def test_links_of_the_readme_and_of_the_cards_lead_to_files():
    pages = [*PAGES, *(bundle / "docs" / "README.md" for bundle in BUNDLES)]
    links = [(page, link) for page in pages for link in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8"))]
    assert len(links) >= len(BUNDLES)
    assert [f"{page}: {link}" for page, link in links if "://" not in link and not (page.parent / link).exists()] == []


def test_every_bundle_has_a_heading_and_the_planned_ones_have_none():
    assert re.findall(r"^### `(\w+)`", README, re.MULTILINE) == [bundle.name for bundle in BUNDLES]
