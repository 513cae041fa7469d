"""Descriptions of bundles: all that they name exists, and what is advised is what is compared."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from bundle_tools import BUNDLES, ROOT, read_json

from catalog import Calibration, Prediction, Stage, bundle_names, describe, descriptions, refuse_unknown
from common.errors import InputError
from comparison import TARGETS, find_methods
from labels.pseudo_labels import predictor_of
from planning.commands import command_of

NAMES = [bundle.name for bundle in BUNDLES]


def earlier(step: Stage | Prediction | None) -> list[Stage | Prediction]:
    """A step and all that it needs."""
    if step is None:
        return []
    sources = [step.by] if isinstance(step, Prediction) else list(step.given.values())
    return [step, *(found for source in sources for found in earlier(source))]


def test_bundles_are_found_by_their_metadata(tmp_path):
    for name in ("b", "a"):
        (tmp_path / name / "configs").mkdir(parents=True)
        (tmp_path / name / "configs" / "metadata.json").write_text("{}")
    (tmp_path / "notes").mkdir()
    assert bundle_names(tmp_path) == ["a", "b"]
    with pytest.raises(InputError, match=r"description.py does not exist, expected the description of the bundle a"):
        describe("a", tmp_path)
    (tmp_path / "a" / "description.py").write_text("DESCRIPTION = None\n")
    with pytest.raises(InputError, match=r"description.py has no DESCRIPTION"):
        describe("a", tmp_path)
    with pytest.raises(InputError, match="bundle names 'c', expected some of a, b"):
        refuse_unknown(["a", "c"], tmp_path)


def test_a_kind_of_case_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="a stage of train names 'tall', expected some of any, unlabeled"):
        Stage(("train",), learns={"tall": 1}, validates={"any": 1})


@pytest.mark.parametrize("name", NAMES)
def test_every_config_and_entry_that_a_description_names_exists(name):
    configs = ROOT / "bundles" / name / "configs"
    found = describe(name)
    steps = [step for use in found.uses for step in use.steps]
    steps += [step for method in found.methods for step in earlier(method.trained_by)]
    own = [*found.inferences, *(method.inference for method in found.methods)]
    own += [row.inference for row in found.rows if row.bundle == name]
    stacks = {("inference", *inference.layers) for inference in own} | {
        step.configs if isinstance(step, Stage) else ("inference", *step.inference.layers) for step in steps
    }
    stacks |= {(found.registration,)} - {("",)}
    missing = [config for stack in stacks for config in stack if not (configs / f"{config}.json").is_file()]
    assert missing == []
    for inference in own:
        entries = {key for layer in ("inference", *inference.layers) for key in read_json(configs / f"{layer}.json")}
        named = {*inference.weights, *(inference.told or ()), inference.least_volume} - {""}
        assert {entry.split("#")[0] for entry in named} <= entries
    for stage in (step for step in steps if isinstance(step, Stage)):
        entries = {key for config in stage.configs for key in read_json(configs / f"{config}.json")}
        assert {*stage.given, *stage.options, *stage.datalists} <= entries
    assert {config for config in found.small if not (configs / f"{config}.json").is_file()} == set()


@pytest.mark.parametrize("name", NAMES)
def test_every_bundle_can_be_used_compared_and_scored(name):
    found = describe(name)
    assert found.uses[0].way == "as shipped"
    assert not found.uses[0].stages
    assert {method.target for method in found.methods} <= TARGETS.keys()
    assert any(method.is_shipped and not method.is_baseline for method in found.methods)
    assert sum(row.is_shipped for row in found.rows) == 1
    assert found.needs
    shown = [method.inference for method in found.methods] + [row.inference for row in found.rows if row.bundle == name]
    assert set(shown) <= set(found.inferences)


@pytest.mark.parametrize("method", find_methods().values(), ids=list(find_methods()))
def test_what_a_comparison_trains_is_what_is_advised(method):
    """The very objects; a baseline may be trained in a way that nobody is advised to use."""
    advised = [step for use in describe(method.bundle).uses for step in use.steps]
    if not method.is_baseline:
        assert all(any(step is other for other in advised) for step in earlier(method.trained_by))


def test_a_step_is_printed_after_those_whose_results_it_takes():
    for description in descriptions().values():
        for use in description.uses:
            for number, step in enumerate(use.steps):
                if not isinstance(step, Calibration):
                    assert set(earlier(step)[1:]) <= set(use.steps[:number])


def test_options_of_a_printed_step_are_those_that_a_comparison_gives():
    (use,) = (use for use in describe("deepatlas_joint").uses if use.stages)
    (stage,) = (stage for stage in use.stages if stage.name == "joint")
    joint = command_of("deepatlas_joint", stage, "my cases.json", ["FLAIR"])
    assert joint == (
        "python -m monai.bundle run --config_file bundles/deepatlas_joint/configs/train.json "
        "--datalist_file 'my cases.json' --registration_weights bundles/deepatlas_joint/models/registration.pt "
        "--segmentation_weights bundles/deepatlas_joint/models/model.pt --sequences '[\"FLAIR\"]'"
    )


def test_no_tool_and_no_shared_module_names_a_bundle():
    """But the small studies of the papers, one per bundle."""
    allowed = {ROOT / "scripts" / "study" / f"{name}.py" for name in NAMES}
    word = re.compile(rf"\b({'|'.join(NAMES)})\b")
    files = [path for folder in ("common", "scripts") for path in (ROOT / folder).rglob("*.*") if is_text(path)]
    assert [str(path) for path in files if path not in allowed and word.search(path.read_text(encoding="utf-8"))] == []


def is_text(path: Path) -> bool:
    return path.suffix in (".py", ".json", ".md", ".html", ".txt", ".toml", ".conf")


@pytest.mark.parametrize("name", NAMES)
def test_the_least_volume_and_the_weights_of_a_predictor_are_those_of_its_configs(name):
    """Whatever the transform and the handler are called that they are given to."""
    bundle = ROOT / "bundles" / name
    config = read_json(bundle / "configs" / "inference.json")
    found = predictor_of(bundle, ["inference.json"])
    assert found.min_lesion_mm3 == config.get("min_lesion_mm3", 0.0)
    assert list(found.weights) == ["model.pt"]


def test_layers_that_make_no_masks_are_refused():
    bundle = ROOT / "bundles" / "sae_segmentation"
    assert predictor_of(bundle, ["inference.json", "inference_em.json"]).weights == {}
    with pytest.raises(InputError, match="layers are evaluate, expected one of those of sae_segmentation: none; infer"):
        predictor_of(bundle, ["inference.json", "evaluate.json"])
