"""What the configs of every bundle promise, seen without running them."""

from __future__ import annotations

import inspect
import json
import pydoc
import re
from pathlib import Path

import pytest
from bundle_tools import ROOT, config_files, described, nodes, parsed, read_json, repeated_keys, stacks, texts
from monai.bundle import ConfigParser
from monai.bundle.config_item import ConfigComponent
from monai.bundle.reference_resolver import ReferenceResolver

from catalog import describe
from common.engines.settings import settings_of_training
from common.files import difference
from common.options import VOCABULARY
from running.workflow import open_configs

# read by MONAI, by MONAI Label or by tracking, so nothing in the config needs to refer to them
READ_FROM_OUTSIDE = {"_desc_", "bundle_root", "displayable_configs", "experiment_name", "finalize", "imports"}
READ_FROM_OUTSIDE |= {"initialize", "is_not_rank0", "run", "run_name", "save_execute_config", "tracking_uri"}
# differ between training and inference by nature: more keys, one interpolation per key, cropping instead of padding
MAY_DIFFER = {"keys", "mode", "padding_mode", "allow_missing_keys", "_desc_"}
LINE = 160  # columns


def test_no_config_repeats_a_key(bundle):
    files = sorted((bundle / "configs").glob("*.json"))
    assert len(files) > 3
    assert {path.name: repeated_keys(path) for path in files if repeated_keys(path)} == {}


FORBIDDEN_TEXT = {
    "a lambda": re.compile(r"\blambda\b"),
    "a comprehension": re.compile(r"^\$.*\bfor\b.*\bin\b"),
    "a position in a list": re.compile(r"^[$@%].*(#|::)\d"),
    "a boolean as text": re.compile(r"^(true|false)$", re.IGNORECASE),
    "a value out of another file": re.compile(r"^%.*\.(json|ya?ml)\b"),
    "an absolute path": re.compile(r"^\$?['\"]?(/|~|[A-Za-z]:\\)"),
}


@pytest.mark.parametrize("what", FORBIDDEN_TEXT)
def test_no_config_holds(bundle, what):
    found = [
        (path.name, key, text)
        for path in config_files(bundle)
        for key, text in texts(read_json(path))
        if not key.endswith("_desc_") and FORBIDDEN_TEXT[what].search(text)
    ]
    assert found == []


def test_a_component_that_fits_on_a_line_stands_on_one(bundle):
    """But for one that holds a list of several, which are read one below the other."""
    for path in config_files(bundle):
        text = path.read_text(encoding="utf-8")
        for key, value in nodes(read_json(path)):
            if ConfigComponent.is_instantiable(value) and not any(is_of_several(node) for _, node in nodes(value)):
                *above, name = key.split("::")
                line = json.dumps(value, ensure_ascii=False)
                before = " " * 4 * (len(above) + 1) + ("" if name.isdigit() else f'"{name}": ')
                assert line in text or len(f"{before}{line},") > LINE, f"{path.name}: {key}"


def is_of_several(node: object) -> bool:
    return isinstance(node, list) and sum(isinstance(item, dict) for item in node) > 1


def test_a_layer_names_no_position_in_a_list(bundle):
    keys = [(path.name, key) for path in config_files(bundle) for key in read_json(path)]
    assert [(file, key) for file, key in keys if re.search(r"(#|::)\d", key)] == []


def test_descriptions_are_not_evaluated(bundle):
    found = [text for path in config_files(bundle) for key, text in texts(read_json(path)) if key.endswith("_desc_")]
    assert [text for text in found if text.startswith(("@", "$", "%"))] == []


def test_imports_and_initialize_need_nothing_of_the_repository(bundle):
    """They are evaluated before ``run`` puts the bundle on the import path."""
    for path in config_files(bundle):
        for key, text in texts(read_json(path)):
            if key.split("::")[0] in ("imports", "initialize"):
                assert not re.search(rf"\b(common|{bundle.name})\b", text), f"{path.name}: {text}"


def test_every_id_that_a_config_names_exists(bundle):
    for files in stacks(bundle):
        parser = parsed(files)
        known = parser.ref_resolver.items
        for key, text in texts(parser.get()):
            missing = [ref for ref in ReferenceResolver.match_refs_pattern(text) if ref not in known]
            assert missing == [], f"{described(files)}: {key} names {missing}"


def test_every_id_in_a_config_is_read(bundle):
    """A metric, a handler list or a setting that nothing refers to is silently without effect."""
    for files in stacks(bundle):
        parser = parsed(files)
        config = {key: value for key, value in parser.get().items() if key != "_meta_"}
        # null takes an option of the layer below away
        ids = [k for k, v in config.items() if v is not None and k not in {*READ_FROM_OUTSIDE, "train", "validate"}]
        ids += [f"{part}::{key}" for part in ("train", "validate") for key in config.get(part, {}) if key != "_desc_"]
        named = {ref for _, text in texts(config) for ref in ReferenceResolver.match_refs_pattern(text)}
        # where a value comes from is for the reader
        ids = [i for i in ids if i.removesuffix("_source") not in config or i.removesuffix("_source") == i]
        unread = [i for i in ids if not any(ref == i or ref.startswith(f"{i}::") for ref in named)]
        assert unread == [], f"{described(files)}: nothing refers to {unread}"


def test_every_option_that_is_empty_by_default_is_read(bundle):
    """As ``max_minutes``: nobody misses it until it is given."""
    for files in (files for files in stacks(bundle) if len(files) == 1):
        config = {key: value for key, value in parsed(files).get().items() if key != "_meta_"}
        named = {ref for _, text in texts(config) for ref in ReferenceResolver.match_refs_pattern(text)}
        assert {key for key, value in config.items() if value is None} - named == set(), described(files)


def test_an_argument_with_the_name_of_an_option_gets_that_option(bundle):
    """Two weights of a loss that are exchanged change nothing that a run would notice."""
    for path in config_files(bundle):
        for key, text in texts(read_json(path)):
            name, option = key.rsplit("::", 1)[-1], text.removeprefix("@")
            if text.startswith("@") and {name, option} <= VOCABULARY.keys() and name != "ckpt_dir":
                assert name == option, f"{path.name}: {key} is {text}"


def test_an_argument_gets_the_option_that_ends_in_its_name(bundle):
    """As ``weight`` is ``gdl_weight``, beside ``first_epoch`` and ``gdl_first_epoch``."""
    for path in config_files(bundle):
        options = VOCABULARY.keys() & read_json(path).keys()
        for key, text in texts(read_json(path)):
            name, option = key.rsplit("::", 1)[-1], text.removeprefix("@")
            fitting = [known for known in options if known.endswith(f"_{name}")]
            if text.startswith("@") and option in options and fitting and name not in VOCABULARY:
                assert option in fitting, f"{path.name}: {key} is {text}, expected one of {fitting}"


def test_every_training_seeds_its_epochs_steps_its_schedule_and_saves_what_changes(bundle):
    """A run without one of these ends as well as any other, with other weights."""
    for files in trainings(bundle):
        config = parsed(files).get()
        handlers = {handler["_target_"].rpartition(".")[2]: handler for handler in config["train"]["handlers"]}
        assert handlers["EpochSeed"]["seed"] == "@seed", described(files)
        assert handlers["LrScheduleHandler"]["lr_scheduler"] == "@lr_scheduler", described(files)
        assert config["lr_scheduler"]["T_max"] in ("@max_epochs", "@train::trainer::max_epochs"), described(files)
        trained = {config["train"]["trainer"].get(key) for key in ("network", "registration", "segmentation")} - {None}
        saved = set(handlers["TrainingState"]["objects"].values())
        assert saved >= {"@optimizer", "@lr_scheduler", *trained}, described(files)


def test_an_optimizer_has_every_parameter_that_a_training_may_change(bundle):
    for files in trainings(bundle):
        if files[-1].name.startswith("multi_gpu"):  # wants a group of processes
            continue
        parser = open_configs(bundle, [path.name for path in files], device="cpu").parser
        networks = [parser.get_parsed_content(name) for name in ("network", "registration") if name in parser]
        learned = {id(p) for network in networks for p in network.parameters() if p.requires_grad}
        groups = parser.get_parsed_content("optimizer").param_groups
        assert {id(p) for group in groups for p in group["params"]} >= learned > set(), described(files)


def test_the_best_weights_are_those_of_the_highest_score_or_of_the_lowest_error(bundle):
    for files in trainings(bundle):
        validate = parsed(files).get()["validate"]
        (metric,) = validate["key_metric"].values()
        compared = validate["evaluator"].get("metric_cmp_fn", {}).get("_target_", "operator.gt")
        lower_is_better = metric["_target_"].endswith("Error")
        assert compared == ("operator.lt" if lower_is_better else "operator.gt"), described(files)


MOVES = re.compile(r"(Orientation|Crop|Pad|Zoomed|Slices|Spac|Flip|Rotate|Affine)\w*d$")


def test_what_moves_an_image_moves_its_label_and_takes_the_nearest_value_of_it(bundle):
    for files in trainings(bundle):
        for part in ("train", "validate"):
            steps = steps_of(parsed(files), f"{part}::preprocessing")
            loaded = {key for step in steps if step["_target_"].endswith("LoadScand") for key in keys_of(step)}
            for step in steps if "label" in loaded else ():
                both = [key for key in keys_of(step) if key in ("image", "label")] if "keys" in step else []
                assert both in ([], ["image"], ["label"], ["image", "label"]), f"{described(files)}: {step['_target_']}"
                if MOVES.search(step["_target_"]) and "Neighboring" not in step["_target_"]:
                    assert keys_of(step) == ["image", "label"], f"{described(files)}: {part}, {step['_target_']}"
                    assert step.get("mode", ["bilinear", "nearest"]) == ["bilinear", "nearest"], step["_target_"]


def test_a_map_goes_back_to_the_grid_of_the_file_by_interpolation(bundle):
    """It is cut to a mask there, whose edge would have steps of the network's voxels otherwise."""
    found = 0
    for files in stacks(bundle):
        steps = [v for _, v in nodes(parsed(files).get()) if isinstance(v, dict) and v.get("_target_") == "Invertd"]
        assert all(step["nearest_interp"] is False for step in steps), described(files)
        found += len(steps)
    assert found


def test_a_brain_is_mirrored_left_to_right_only(bundle):
    for files in trainings(bundle):
        flips = [v for _, v in nodes(parsed(files).get()) if isinstance(v, dict) and v.get("_target_") == "RandFlipd"]
        assert all(flip["spatial_axis"] == 0 for flip in flips), described(files)


def test_every_metric_that_is_named_is_computed(bundle):
    """Who asks an engine for a metric of another name waits for ever: no best weights, no early stop, no message."""
    for files in stacks(bundle):
        config = parsed(files).get()
        computed, asked = set(), {}
        for key, value in nodes(config):
            last = key.rsplit("::", 1)[-1]
            if last in ("key_metric", "additional_metrics", "key_val_metric", "key_train_metric", "metrics"):
                computed |= set(value) if isinstance(value, dict) and "_target_" not in value else set()
            if last in ("metric_name", "metric_names", "key_metric_name", "monitor") and value is not None:
                asked.update(dict.fromkeys(value if isinstance(value, list) else [value], key))
            if isinstance(value, str):
                asked.update(dict.fromkeys(re.findall(r"\bmetrics\[['\"](\w+)['\"]\]", value), key))
        resolved = {config.get(name[1:], name) if name.startswith("@") else name: key for name, key in asked.items()}
        assert {name: key for name, key in resolved.items() if name not in computed} == {}, described(files)


def test_every_target_exists_and_takes_the_arguments_it_is_given(bundle):
    for files in stacks(bundle):
        parser = parsed(files)
        for key, value in nodes({k: v for k, v in parser.get().items() if k != "_meta_"}):
            if not ConfigComponent.is_instantiable(value) or value["_target_"].startswith(("$", "@")):
                continue
            name = ConfigComponent(config=value, id=key, locator=parser.locator).resolve_module_name()
            target = pydoc.locate(name)
            assert target is not None, f"{described(files)}: {key} has the target {name}, which does not exist"
            arguments = {k: None for k in value if k not in ConfigComponent.non_arg_keys}
            bind = inspect.signature(target).bind_partial if "_mode_" in value else inspect.signature(target).bind
            try:
                bind(**arguments)
            except TypeError as e:
                pytest.fail(f"{described(files)}: {key} ({name}) {e}")


def test_every_engine_that_tracking_reaches_is_protected_from_it(bundle):
    """MONAI adds its handlers to these lists, which must be lists, and behind all that is in them."""
    for files in stacks(bundle):
        config = parsed(files).get()
        if "train" in config:
            handlers, validator = config["train"]["handlers"], "@validate::evaluator"
            assert isinstance(config["validate"]["handlers"], list), described(files)
        else:
            handlers, validator = [config[h[1:]] if isinstance(h, str) else h for h in config["handlers"]], None
        trackers = [handler for handler in handlers if handler["_target_"] == "common.engines.Tracker"]
        assert [tracker.get("validator") for tracker in trackers] == [validator], described(files)


def test_a_training_may_go_on_in_another_number_of_processes(bundle):
    layered = [stack for stack in stacks(bundle) if stack[-1].name == "multi_gpu_train.json"]
    assert layered
    for stack in layered:
        alone, several = (settings_of_training(parsed(files)) for files in (stack[:-1], stack))
        assert difference(several, alone) == ""
        assert {"version", "seed", "max_epochs"} & alone.keys() == {"version", "seed"}


def test_logging_is_the_same_in_every_bundle(bundle):
    """MONAI looks for it beside the configs, so it stands there, and not once for all."""
    template = ROOT / "scripts" / "templates" / "bundle" / "configs" / "logging.conf"
    assert (bundle / "configs" / "logging.conf").read_bytes() == template.read_bytes()


def test_training_and_inference_have_the_same_network(bundle):
    train, inference = (parsed([bundle / "configs" / f"{name}.json"]) for name in ("train", "inference"))
    assert looked_up(train, "network_def") == looked_up(inference, "network_def")


def test_training_prepares_an_image_like_inference(bundle):
    """Every transform of inference but padding stands in training too, in that order, with the same settings."""
    stages = [stage for use in describe(bundle.name).uses for stage in use.stages if stage.configs[0] == "train"]
    layers = next(stage.configs for stage in reversed(stages) if stage.writes == "model.pt")
    train = parsed([bundle / "configs" / f"{name}.json" for name in layers])
    inference = parsed([bundle / "configs" / "inference.json"])
    wanted = prepared(inference, "preprocessing")
    for key in ("train::preprocessing", "validate::preprocessing"):
        if key in train:
            given = iter(prepared(train, key))
            missing = [step for step in wanted if "Pad" not in step["_target_"] and step not in given]
            assert missing == [], f"{key} lacks these steps of inference.json, in this order"


def test_a_validation_looks_through_windows_as_inference_does(bundle):
    """By their blending and overlap: the best weights are those that are best as they will be used."""
    train, inference = (parsed([bundle / "configs" / f"{name}.json"]) for name in ("train", "inference"))
    if "validate::inferer" in train:
        validated, used = (
            [
                {k: v for k, v in value.items() if k not in ("_desc_", "roi_size", "sw_batch_size")}
                for _, value in nodes(looked_up(parser, key))
                if isinstance(value, dict) and value.get("_target_") in ("SlidingWindowInferer", "SliceInferer")
            ]
            for parser, key in ((train, "validate::inferer"), (inference, "inferer"))
        )
        assert validated == used


def trainings(bundle: Path) -> list[list[Path]]:
    return [files for files in stacks(bundle) if "train" in parsed(files).get()]


def keys_of(step: dict) -> list[str]:
    return [step["keys"]] if isinstance(step["keys"], str) else step["keys"]


def looked_up(parser: ConfigParser, key: str) -> object:
    """A part of a config with the plain references in it replaced by what they refer to."""

    def replace(value: object) -> object:
        if isinstance(value, dict):
            return {k: replace(v) for k, v in value.items() if k != "_desc_"}
        if isinstance(value, list):
            return [replace(v) for v in value]
        if isinstance(value, str) and value.startswith("@") and value[1:] in parser:
            return replace(parser[value[1:]])
        return value

    return replace(parser[key])


def steps_of(parser: ConfigParser, key: str) -> list[dict]:
    """Transforms of a Compose, nested ones in line; none where there is no such Compose."""
    steps = []
    for step in looked_up(parser, key)["transforms"] if key in parser else ():
        inner = step.get("transforms")
        steps += [step] if inner is None else inner
    return steps


def prepared(parser: ConfigParser, key: str) -> list[dict]:
    """The same without what may differ."""
    return [{k: v for k, v in step.items() if k not in MAY_DIFFER} for step in steps_of(parser, key)]
