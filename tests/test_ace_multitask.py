"""Label sets, adaptive cross entropy, sampler and networks of the multi-task bundle, worked by hand."""

import json
import math
from collections import Counter

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from torch import nn
from torch.nn import functional as F

from ace_multitask.fusion import FusedNetworks
from ace_multitask.intensity import NormalizeBrainIntensityd, normalize_brain_intensity
from ace_multitask.label_sets import LabelSets, ObservationCodesd, load_label_sets
from ace_multitask.loss import OBJECTIVES, LabelSetLoss, label_set_cross_entropy, make_loss, merged_dice
from ace_multitask.masks import (
    ChannelMapd,
    ThresholdedArgmaxd,
    WithoutSmallComponentsd,
    thresholded_argmax,
    without_small_components,
)
from ace_multitask.network import AddUNet
from ace_multitask.pseudo_label import PseudoLabelsd, pseudo_labels
from ace_multitask.sampler import BalancedSampler, crop_ratios
from common.errors import InputError
from common.transforms import LoadScand

CLASSES = ("background", "CSF", "GM", "WM", "lesion")
BG, CSF, GM, WM, LESION = range(5)
TISSUE = {"labels": {"1": "CSF", "2": "GM", "3": "WM"}, "background_is_complete": True}
LESIONS = {"labels": {"1": "lesion"}}
HIDDEN = {"labels": {"1": "CSF", "2": "GM", "3": ["WM", "lesion"]}, "background_is_complete": True}
JOINT = {"labels": {"1": "CSF", "2": "GM", "3": "WM", "4": "lesion"}, "background_is_complete": True}


@pytest.fixture
def table():
    """The paper's case. Codes: 1 to 4 are 0 to 3 of the tissue set, 5 and 6 are 0 and 1 of the lesion set."""
    return LabelSets(CLASSES, {"tissue": TISSUE, "lesion": LESIONS})


def sets_of(table, dataset):
    """Label value -> indices of the classes that are possible."""
    return {v: table.allowed[table.code(dataset, v)].nonzero().flatten().tolist() for v in table.values(dataset)}


def column(*values, dtype=torch.float64):
    """Logits (1, C, n) of n voxels that are equal, or of one."""
    return torch.tensor(values, dtype=dtype).view(1, -1, 1).requires_grad_()


def observed(*codes):
    """Codes (1, 1, n) of n voxels."""
    return torch.tensor(codes, dtype=torch.uint8).view(1, 1, -1)


def by_definition(logits, codes, allowed):
    """-log P at every voxel, straight from the definition in float64, voxel by voxel: (B, n)."""
    z = logits.double().flatten(2)
    return torch.stack(
        [
            torch.stack([z[b, :, i].logsumexp(0) - z[b, allowed[c], i].logsumexp(0) for i, c in enumerate(sample)])
            for b, sample in enumerate(codes.flatten(1).long())
        ]
    )


# --- label sets ------------------------------------------------------------------------------------------------------


def test_the_papers_table_has_the_papers_sets(table):
    assert sets_of(table, "tissue") == {0: [BG], 1: [CSF], 2: [GM], 3: [WM]}
    assert sets_of(table, "lesion") == {0: [BG, CSF, GM, WM], 1: [LESION]}
    assert table.allowed[0].all()  # padding
    assert [table.code("tissue", v) for v in (0, 1, 2, 3)] == [1, 2, 3, 4]
    assert table.dataset_of_code == [None, *["tissue"] * 4, *["lesion"] * 2]


def test_values_may_stand_for_several_classes_or_for_all():
    content = {"labels": {"1": "CSF", "2": ["GM", "WM"], "3": "lesion", "9": "ignore"}}
    table = LabelSets(dict(enumerate(CLASSES)), {"coarse": content, "tissue": TISSUE})
    assert sets_of(table, "coarse") == {0: [BG], 1: [CSF], 2: [GM, WM], 3: [LESION], 9: [BG, CSF, GM, WM, LESION]}


def test_the_matrix_says_what_each_data_set_knows():
    table = LabelSets(CLASSES, {"tissue": HIDDEN, "lesion": LESIONS})
    assert table.matrix() == {
        "tissue": {"background": "exact", "CSF": "exact", "GM": "exact", "WM": "merged", "lesion": "merged"},
        "lesion": {"background": "merged", "CSF": "merged", "GM": "merged", "WM": "merged", "lesion": "exact"},
    }
    lines = table.describe().splitlines()
    assert lines[0].split() == list(CLASSES)
    assert lines[1].split() == ["tissue", "exact", "exact", "exact", "merged", "merged"]


def test_a_class_of_which_a_data_set_says_nothing_is_unknown(table):
    assert table.matrix()["tissue"]["lesion"] == "unknown"


def test_two_values_of_one_class_are_exact():
    both_sides = {"labels": {"1": "GM", "2": "WM", "3": "GM", "4": "WM", "5": "CSF"}, "background_is_complete": True}
    table = LabelSets(CLASSES, {"sides": both_sides, "lesion": LESIONS})
    assert [table.matrix()["sides"][name] for name in CLASSES[:4]] == ["exact"] * 4


def test_classes_that_no_data_set_tells_apart_are_named():
    coarse = {"labels": {"1": "CSF", "2": ["GM", "WM"]}, "background_is_complete": True}
    with pytest.raises(InputError, match=r"^no dataset of label_sets tells apart GM, WM, expected"):
        LabelSets(CLASSES, {"coarse": coarse, "lesion": LESIONS})
    # one set that separates them is enough, whatever the other says
    assert LabelSets(CLASSES, {"coarse": coarse, "lesion": LESIONS, "tissue": TISSUE}).datasets[0] == "coarse"


def test_two_groups_that_overlap_tell_their_classes_apart():
    overlapping = {"labels": {"1": ["CSF", "GM"], "2": ["GM", "WM"]}, "background_is_complete": True}
    assert LabelSets(CLASSES[:4], {"odd": overlapping}).classes == CLASSES[:4]


@pytest.mark.parametrize(
    ("datasets", "message"),
    [
        ({"lesion": LESIONS}, r"^no dataset of label_sets annotates CSF, GM, WM, expected at least one that does$"),
        ({}, "has the datasets {}, expected a table for each"),
        ({"a": {"labels": {}}}, r"label_sets of dataset a is .*, expected {\"labels\""),
        ({"a": {"labels": {"1": "bone"}}}, r"dataset a has the class \['bone'\], expected some of background, CSF"),
        ({"a": {"labels": {"1": []}}}, "dataset a has the class"),
        ({"a": {"labels": {"one": "CSF"}}}, "dataset a has the label value 'one', expected a whole number"),
        ({"a": {"labels": {"-1": "CSF"}}}, "dataset a has the label value -1, expected 0 or above"),
        ({"a": {"labels": {"1": "CSF", "01": "GM"}}}, "dataset a has the values 1, 01, expected each of them once"),
        ({"a": {**LESIONS, "background": 0}}, "dataset a has the key 'background', expected only labels"),
        ({"a": {**LESIONS, "background_is_complete": "yes"}}, "background_is_complete 'yes', expected true or false"),
        ({"a": {"labels": {"0": "CSF"}, "background_is_complete": True}}, "both a value 0 and background_is_complete"),
        ({"a": {"labels": {"1": ["background", "CSF"], "2": ["GM", "WM", "lesion"]}}}, "names every class"),
    ],
)
def test_a_table_that_cannot_be_is_answered_by_one_sentence(datasets, message):
    with pytest.raises(InputError, match=message):
        LabelSets(CLASSES, datasets)


@pytest.mark.parametrize("classes", [["background"], ["a", "a"], "background", {"0": "a", "2": "b"}, ["a", "ignore"]])
def test_class_names_that_cannot_be_are_refused(classes):
    with pytest.raises(InputError, match=r"^classes (is|has)"):
        LabelSets(classes, {"lesion": LESIONS})


def test_one_data_set_alone_keeps_the_classes_that_it_tells_apart(table):
    lesion = table.single("lesion")
    assert lesion.classes == ("background", "lesion")
    assert sets_of(lesion, "lesion") == {0: [0], 1: [1]}
    assert table.single("tissue").classes == CLASSES[:4]
    hidden = LabelSets(CLASSES, {"tissue": HIDDEN, "lesion": LESIONS}).single("tissue")
    assert sets_of(hidden, "tissue") == {0: [BG], 1: [CSF], 2: [GM], 3: [WM]}
    with pytest.raises(InputError, match="'bone' is no dataset of label_sets, expected one of tissue, lesion"):
        table.single("bone")


def test_naively_every_background_is_background(table):
    naive = table.naive()
    assert sets_of(naive, "lesion") == {0: [BG], 1: [LESION]}
    assert naive.code_of == table.code_of  # the same code volumes serve both


def test_codes_take_the_place_of_label_values(table, tmp_path):
    label = np.array([0, 1, 3, 0, 2, 1], dtype=np.uint8).reshape(3, 2, 1).repeat(2, 2)
    nib.save(nib.Nifti1Image(label, np.diag([1, 2, 3, 1])), tmp_path / "x_label.nii.gz")
    case = LoadScand("label")({"label": str(tmp_path / "x_label.nii.gz"), "dataset": "tissue"})
    coded = ObservationCodesd("label", table)(case)["label"]
    assert coded.dtype == torch.uint8
    assert coded[..., 1].flatten().tolist() == [1, 2, 4, 1, 3, 2]
    assert isinstance(coded, MetaTensor)
    assert coded.affine.diagonal().tolist() == [1, 2, 3, 1]
    with pytest.raises(InputError, match=r"x_label.nii.gz has the label values 2, 3, expected only 0, 1 .* lesion$"):
        ObservationCodesd("label", table)({**case, "dataset": "lesion"})


def test_a_case_of_no_data_set_of_the_table_is_refused(table):
    case = {"name": "sub-1", "label": torch.zeros(1, 2, 2, 2)}
    with pytest.raises(InputError, match="the case sub-1 has no dataset, expected one of tissue, lesion"):
        ObservationCodesd("label", table)(case)
    with pytest.raises(InputError, match="the case sub-1 has the dataset 'bone', expected one of tissue, lesion"):
        ObservationCodesd("label", table)({**case, "dataset": "bone"})


def test_the_table_of_a_datalist_takes_the_place_of_the_configs(tmp_path):
    config = {"classes": CLASSES, "datasets": {"tissue": TISSUE, "lesion": LESIONS}}
    path = tmp_path / "datalist.json"
    path.write_text(json.dumps({"training": []}))
    assert load_label_sets(config, path).datasets == ("tissue", "lesion")
    path.write_text(json.dumps({"training": [], "label_sets": {"datasets": {"all": JOINT}}}))
    assert load_label_sets(config, path).datasets == ("all",)
    path.write_text(json.dumps({"label_sets": {"datasets": {"lesion": LESIONS}}}))
    with pytest.raises(InputError, match=r"datalist.json: no dataset of label_sets annotates CSF, GM, WM"):
        load_label_sets(config, path)
    path.write_text(json.dumps({"label_sets": {"data": {}}}))
    with pytest.raises(InputError, match=r"datalist.json: label_sets is .*, expected classes and datasets"):
        load_label_sets(config, path)
    path.write_text("{")
    with pytest.raises(InputError, match=r"datalist.json is no valid JSON"):
        load_label_sets(config, path)


# --- adaptive cross entropy ------------------------------------------------------------------------------------------


def test_full_labels_give_the_cross_entropy():
    torch.manual_seed(0)
    table = LabelSets(CLASSES, {"joint": JOINT})  # code = class + 1
    logits = torch.randn(2, 5, 4, 4, 4, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 5, (2, 4, 4, 4))
    ours, theirs = make_loss("ace", table)(logits, target[:, None] + 1), F.cross_entropy(logits, target)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-12)
    (ours_gradient,) = torch.autograd.grad(ours, logits)
    torch.testing.assert_close(ours_gradient, torch.autograd.grad(theirs, logits)[0])


def test_nothing_known_is_exactly_no_loss_and_no_gradient(table):
    logits = (30 * torch.randn(2, 5, 3, 3, 3)).requires_grad_()
    loss = LabelSetLoss(table, gamma=2.0)(logits, torch.zeros(2, 1, 3, 3, 3))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.abs().max() == 0


def test_voxels_of_which_nothing_is_known_do_not_thin_out_the_mean(table):
    codes = torch.randint(1, 7, (1, 1, 4, 4, 4))
    logits = torch.randn(1, 5, 4, 4, 4)
    padded = F.pad(codes, (2, 2, 2, 2, 2, 2)), F.pad(logits, (2, 2, 2, 2, 2, 2), value=5.0)
    for objective in OBJECTIVES:
        loss = make_loss(objective, table)
        assert loss(padded[1], padded[0]).item() == pytest.approx(loss(logits, codes).item(), rel=1e-5)


def test_the_numbers_of_a_confidently_wrong_voxel():
    # log P = log(3 exp(-60)) - log(exp(60) + ...) = log 3 - 120; gradient p - q = (1, 0, ...) - (0, 1/3, 1/3, 1/3, 0)
    allowed = torch.tensor([[True] * 5, [False, True, True, True, False]])
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        logits = column(60, -60, -60, -60, -60, dtype=dtype)
        loss = label_set_cross_entropy(logits, observed(1), allowed)
        loss.backward()
        assert loss.item() == pytest.approx(120 - math.log(3), rel=1e-6)
        expected = torch.tensor([1, -1 / 3, -1 / 3, -1 / 3, 0], dtype=dtype)
        torch.testing.assert_close(logits.grad.flatten(), expected, atol=1e-12, rtol=1e-2)


def test_half_precision_logits_of_sixty_are_safe_also_under_autocast(table):
    torch.manual_seed(1)
    codes = torch.randint(0, 7, (2, 1, 5, 5, 5))
    logits = (60.0 * (2 * torch.randint(0, 2, (2, 5, 5, 5, 5)) - 1)).half()
    loss = make_loss("ace_dice", table)
    exact = loss(logits.double(), codes).item()
    assert exact > 30
    assert loss(logits, codes).dtype == torch.float32
    assert loss(logits, codes).item() == pytest.approx(exact, rel=1e-5)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=dtype):
            weight = torch.ones(5, 1, 1, 1, 1, requires_grad=True)
            value = loss(F.conv3d(logits, weight, groups=5), codes)
        value.backward()
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(exact, rel=1e-5)
        assert weight.grad.isfinite().all()


def test_the_loss_is_its_definition_also_where_the_volume_passes_in_pieces(table):
    torch.manual_seed(2)
    codes = torch.randint(0, 7, (2, 1, 2**14 + 100), dtype=torch.uint8)
    logits = 5 * torch.randn(2, 5, 2**14 + 100)
    few = torch.cat([torch.arange(50), torch.arange(2**14 - 50, 2**14 + 50)])
    values = by_definition(logits[..., few], codes[..., few], table.allowed)
    known = codes[:, 0, few] > 0
    whole = torch.zeros_like(codes)
    whole[..., few] = codes[..., few]
    assert make_loss("ace", table)(logits, whole).item() == pytest.approx(values[known].mean().item(), rel=1e-5)


def test_the_gradient_is_that_of_finite_differences():
    torch.manual_seed(3)
    table = LabelSets(CLASSES, {"tissue": HIDDEN, "lesion": LESIONS})
    codes = torch.randint(0, 7, (2, 1, 3, 2, 2))
    logits = torch.randn(2, 5, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    weights = {"lesion": {"1": 3.0}}
    for options in ({"value_weights": weights}, {"gamma": 2.0}, {"scope": "patch"}, {"pooled": True, "ce_weight": 0}):
        assert torch.autograd.gradcheck(LabelSetLoss(table, **options), (logits, codes))


def test_classes_within_a_set_can_change_places(table):
    codes = torch.full((1, 1, 10), 5)  # background of the lesion set
    logits = torch.randn(1, 5, 10, dtype=torch.float64)
    permuted = logits[:, [WM, BG, CSF, GM, LESION]]
    loss = make_loss("ace_dice", table)
    assert loss(permuted, codes).item() == pytest.approx(loss(logits, codes).item(), rel=1e-12)
    other = logits[:, [LESION, CSF, GM, WM, BG]]
    assert loss(other, codes).item() != pytest.approx(loss(logits, codes).item(), rel=1e-3)


def test_a_coarse_label_is_scored_on_the_sum_of_its_classes():
    coarse = {"labels": {"1": ["GM", "WM"]}, "background_is_complete": True}
    table = LabelSets(CLASSES, {"coarse": coarse, "tissue": TISSUE, "lesion": LESIONS})
    p = torch.tensor([0.1, 0.1, 0.2, 0.5, 0.1]).log().view(1, 5, 1)
    loss = make_loss("ace", table)
    assert loss(p, observed(table.code("coarse", 1))).item() == pytest.approx(-math.log(0.7))
    assert loss(p, observed(table.code("tissue", 3))).item() == pytest.approx(-math.log(0.5))
    assert loss(p, observed(table.code("lesion", 0))).item() == pytest.approx(-math.log(0.9))


def optimum(loss, codes):
    """Probabilities of one softmax that serves all voxels at the minimum of the loss."""
    logits = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=100, line_search_fn="strong_wolfe", tolerance_grad=1e-10)

    def closure():
        optimizer.zero_grad()
        value = loss(logits.view(1, 5, 1).expand(1, 5, codes.numel()), codes)
        value.backward()
        return value

    optimizer.step(closure)
    return logits.detach().softmax(0)


def test_naively_white_matter_is_a_coin_toss_and_adaptively_it_is_white_matter(table):
    codes = observed(*[4] * 6, *[5] * 4)  # WM of the tissue set, background of the lesion set
    naive = optimum(make_loss("naive_ce", table), codes)
    assert naive[WM].item() == pytest.approx(0.6, abs=1e-4)
    assert naive[BG].item() == pytest.approx(0.4, abs=1e-4)
    assert optimum(make_loss("ace", table), codes)[WM] > 0.999


def test_lesions_hidden_under_a_tissue_label_halve_the_lesion_unless_the_table_says_so(table):
    # of what looks like a lesion, the tissue set calls all WM, and the lesion set 8 of 10 lesion
    looks = [*[4] * 10, *[6] * 8, *[5] * 2]
    p = optimum(make_loss("ace", table), observed(*looks))
    assert p[LESION].item() == pytest.approx(0.5 * 0.8, abs=1e-4)  # pi_B b / (pi_A + pi_B)
    assert p[WM].item() == pytest.approx(0.6, abs=1e-4)
    cured = LabelSets(CLASSES, {"tissue": HIDDEN, "lesion": LESIONS})
    p = optimum(make_loss("ace", cured), observed(*looks))
    assert p[LESION].item() == pytest.approx(0.8, abs=1e-4)
    assert p[WM].item() == pytest.approx(0.2, abs=1e-4)


def test_two_data_sets_of_disjoint_labels_teach_one_network_both_unless_naively(table):
    # 400 voxels of every class, each with its own intensities on two sequences; half of them as each data set has them
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(5).repeat_interleave(400)
    centers = torch.tensor([[0.0, 0.0], [-1.5, -1.5], [0.0, 1.5], [1.5, 0.0], [1.5, 1.5]])
    images = centers[truth].T[None] + 0.25 * torch.randn(1, 2, 2000, generator=generator)
    of_tissue_set = torch.arange(2000) % 2 == 0
    codes = torch.where(of_tissue_set, torch.tensor([1, 2, 3, 4, 0])[truth], torch.tensor([5, 5, 5, 5, 6])[truth])
    right = {}
    for objective in ("ace", "ace_dice", "naive_ce"):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv1d(2, 16, 1), nn.ReLU(), nn.Conv1d(16, 5, 1))
        optimizer = torch.optim.Adam(network.parameters(), lr=0.05)
        loss = make_loss(objective, table)
        for _ in range(100):
            optimizer.zero_grad()
            loss(network(images), codes[None, None]).backward()
            optimizer.step()
        found = network(images).argmax(1)[0] == truth
        right[objective] = found[truth < LESION].float().mean(), found[truth == LESION].float().mean()
    assert min(*right["ace"], *right["ace_dice"]) > 0.95
    assert right["naive_ce"][0] < 0.75


def test_the_layout_of_the_logits_in_memory_changes_nothing(table):
    logits, codes = torch.randn(2, 5, 4, 6, 8), torch.randint(0, 7, (2, 1, 4, 6, 8))
    gradients = []
    for layout in (torch.contiguous_format, torch.channels_last_3d):
        z = logits.clone(memory_format=layout).requires_grad_()
        make_loss("ace_dice", table)(z, codes).backward()
        gradients.append(z.grad)
    torch.testing.assert_close(*gradients)
    z = MetaTensor(logits).requires_grad_()
    make_loss("ace_dice", table)(z, MetaTensor(codes)).backward()
    torch.testing.assert_close(torch.as_tensor(z.grad), gradients[0])


def test_the_patch_decides_in_the_paper_and_the_data_set_here():
    classes = ["background", "GM", "oedema", "tumour"]
    tumours = {"labels": {"1": "oedema", "2": "tumour"}}
    tissue = {"labels": {"1": "GM"}, "background_is_complete": True}
    table = LabelSets(classes, {"tumours": tumours, "tissue": tissue})
    p = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().view(1, 4, 1).expand(2, 4, 2)
    rest, oedema = table.code("tumours", 0), table.code("tumours", 1)
    # the first patch has no lesion, the second one voxel of oedema and no tumour
    codes = torch.tensor([[[rest, rest]], [[rest, oedema]]])
    by_dataset, by_patch = make_loss("ace", table)(p, codes), make_loss("ace_patch", table)(p, codes)
    assert by_dataset.item() == pytest.approx((-3 * math.log(0.1 + 0.2) - math.log(0.3)) / 4)
    # rest of the first patch: anything; of the second: all but oedema. Divided by all voxels, as in the paper.
    assert by_patch.item() == pytest.approx((-math.log(0.1 + 0.2 + 0.4) - math.log(0.3)) / 4)
    gm = table.code("tissue", 1)
    exact = torch.full((2, 1, 2), gm)
    assert make_loss("ace_patch", table)(p, exact).item() == pytest.approx(-math.log(0.2))


def test_a_patch_without_a_lesion_says_nothing_to_the_paper(table):
    logits = torch.randn(1, 5, 2, 2, 2, requires_grad=True)
    loss = make_loss("ace_patch", table)(logits, torch.full((1, 1, 2, 2, 2), 5))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.abs().max() == 0


def test_padding_does_not_say_that_all_classes_occur_in_a_patch(table):
    logits = torch.randn(1, 5, 3)
    loss = make_loss("ace_patch", table)
    assert loss(logits, observed(5, 5, 0)).item() == pytest.approx(0, abs=1e-6)
    assert loss(logits, observed(5, 6, 0)).item() > 0.1


def test_weights_are_those_of_label_values(table):
    torch.manual_seed(4)
    joint = LabelSets(CLASSES, {"joint": JOINT})
    logits, target = torch.randn(2, 5, 4, 4), torch.randint(0, 5, (2, 4, 4))
    loss = LabelSetLoss(joint, dice_weight=0, value_weights={"joint": {"0": 0.5, "4": 10, 2: 0}})
    theirs = F.cross_entropy(logits, target, weight=torch.tensor([0.5, 1, 0, 1, 10]))
    assert loss(logits, target[:, None] + 1).item() == pytest.approx(theirs.item(), rel=1e-5)
    for weights, message in (
        ({"bone": {"1": 2}}, "'bone' is no dataset of label_sets"),
        ({"lesion": {"2": 2}}, "'2' is no label value of dataset lesion, expected one of 0, 1"),
        ({"lesion": {"1": -1}}, "the weight of value 1 of dataset lesion is -1, expected 0 or above"),
    ):
        with pytest.raises(InputError, match=message):
            LabelSetLoss(table, value_weights=weights)


def test_the_focal_form_spares_what_is_nearly_right(table):
    p = torch.tensor([0.2, 0.1, 0.1, 0.5, 0.1]).log().view(1, 5, 1)
    # P = 0.9 for the rest of the lesion set, 0.1 for its lesion
    loss = LabelSetLoss(table, dice_weight=0, gamma=2.0)
    assert loss(p, observed(5)).item() == pytest.approx(-(0.1**2) * math.log(0.9), rel=1e-5)
    assert loss(p, observed(6)).item() == pytest.approx(-(0.9**2) * math.log(0.1), rel=1e-5)
    with pytest.raises(ValueError, match=r"gamma is 0.5, expected 0, or 1 and above"):
        LabelSetLoss(table, gamma=0.5)(p, observed(5))


def test_the_loss_keeps_nothing_but_its_input_for_the_gradient(table):
    logits, codes = torch.randn(1, 5, 16, 16, 16, requires_grad=True), torch.randint(0, 7, (1, 1, 16, 16, 16)).byte()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        make_loss("ace_dice", table)(logits, codes)
    large = {t.untyped_storage().data_ptr() for t in kept if t.numel() >= logits.numel()}
    assert large == {logits.untyped_storage().data_ptr()}


@pytest.mark.parametrize(
    ("shape", "classes", "message"),
    [((2, 1, 4, 4), 5, r"codes \(2, 1, 4, 4\) do not fit"), ((2, 1, 4, 5), 4, "have 4 classes, expected 5")],
)
def test_shapes_that_do_not_fit_are_refused(table, shape, classes, message):
    with pytest.raises(ValueError, match=message):
        make_loss("ace", table)(torch.zeros(2, classes, 4, 5), torch.zeros(shape))


def test_an_objective_scope_or_weighting_that_does_not_exist_is_refused(table):
    with pytest.raises(
        InputError, match="objective is 'dice', expected one of ace_dice, ace, ace_patch, naive_ce, naive"
    ):
        make_loss("dice", table)
    with pytest.raises(ValueError, match="scope is 'voxel', expected dataset or patch"):
        LabelSetLoss(table, scope="voxel")
    with pytest.raises(ValueError, match="ce_weight and dice_weight are 0 and 0, expected one above 0"):
        LabelSetLoss(table, ce_weight=0, dice_weight=0)


def test_the_tables_of_the_loss_stay_out_of_checkpoints(table):
    assert make_loss("ace_dice", table).state_dict() == {}


# --- merged Dice -----------------------------------------------------------------------------------------------------


def probabilities(*voxels):
    """Logits (1, C, n) whose softmax is the given probabilities of n voxels."""
    return torch.tensor(voxels, dtype=torch.float64).T[None].log()


def test_merged_dice_by_hand(table):
    tissue = [[0.7, 0.1, 0.1, 0.05, 0.05], [0.1, 0.1, 0.2, 0.5, 0.1], [0.1, 0.2, 0.1, 0.2, 0.4]]
    lesion = [[0.1, 0.1, 0.2, 0.5, 0.1], [0.05, 0.05, 0.1, 0.2, 0.6]]
    # tissue set: background, WM, WM; lesion set: rest, lesion; and one voxel that does not count
    codes = observed(1, 4, 4, 5, 6, 0)
    logits = probabilities(*tissue, *lesion, [0.2] * 5)
    csf, gm = 1 - 0, 1 - 0  # annotated and absent: no overlap
    wm = 1 - 2 * (0.5 + 0.2) / ((0.05 + 0.5 + 0.2) + 2)
    spots = 1 - 2 * 0.6 / ((0.1 + 0.6) + 1)
    assert merged_dice(logits, codes, table).item() == pytest.approx((csf + gm + wm + spots) / 4, abs=1e-4)


def test_a_class_without_labels_in_the_batch_is_left_out(table):
    logits = probabilities([0.1, 0.1, 0.2, 0.5, 0.1], [0.05, 0.05, 0.1, 0.2, 0.6]).requires_grad_()
    loss = merged_dice(logits, observed(5, 6), table)
    assert loss.item() == pytest.approx(1 - 2 * 0.6 / (0.7 + 1), abs=1e-4)
    (gradient,) = torch.autograd.grad(loss, logits)
    # the split among background and tissues is free: moving p within them changes nothing
    p = logits.detach().softmax(1)
    per_class = gradient / p
    torch.testing.assert_close(per_class[:, :4], per_class[:, :1].expand(-1, 4, -1))


def test_groups_that_overlap_are_scored_where_the_label_decides():
    whole = {"labels": {"1": "oedema", "2": "tumour", "3": ["oedema", "tumour"]}}
    table = LabelSets(["background", "oedema", "tumour"], {"tumours": whole})
    logits = probabilities([0.2, 0.3, 0.5], [0.1, 0.6, 0.3], [0.5, 0.4, 0.1], [0.7, 0.2, 0.1])
    codes = observed(*(table.code("tumours", v) for v in (3, 1, 2, 0)))
    # the first voxel is of the whole but of which part is unknown
    oedema = 1 - 2 * 0.6 / ((0.6 + 0.4 + 0.2) + 1)
    tumour = 1 - 2 * 0.1 / ((0.3 + 0.1 + 0.1) + 1)
    both = 1 - 2 * (0.8 + 0.9 + 0.5) / ((0.8 + 0.9 + 0.5 + 0.3) + 3)
    assert merged_dice(logits, codes, table).item() == pytest.approx((oedema + tumour + both) / 3, abs=1e-4)


def test_with_full_labels_merged_dice_is_monais_dice_over_the_batch():
    from monai.losses import DiceLoss

    table = LabelSets(CLASSES, {"joint": JOINT})
    logits, target = torch.randn(2, 5, 6, 6, 6), torch.randint(0, 5, (2, 1, 6, 6, 6))
    theirs = DiceLoss(include_background=False, softmax=True, to_onehot_y=True, batch=True)(logits, target)
    assert merged_dice(logits, target + 1, table).item() == pytest.approx(theirs.item(), rel=1e-5)


def test_naive_dice_is_monais_dice_of_the_labels_taken_at_their_word(table):
    from monai.losses import DiceLoss

    logits, codes = torch.randn(2, 5, 6, 6, 6), torch.randint(1, 7, (2, 1, 6, 6, 6))
    at_their_word = torch.tensor([0, BG, CSF, GM, WM, BG, LESION])[codes]
    theirs = DiceLoss(include_background=False, softmax=True, to_onehot_y=True, batch=True)(logits, at_their_word)
    assert make_loss("naive_dice", table)(logits, codes).item() == pytest.approx(theirs.item(), rel=1e-5)


def test_two_values_of_one_class_are_one_group():
    sides = LabelSets(CLASSES[:3], {"sides": {"labels": {"1": "CSF", "2": "GM", "12": "GM"}}})
    plain = LabelSets(CLASSES[:3], {"plain": {"labels": {"1": "CSF", "2": "GM"}}})
    logits, target = torch.randn(1, 3, 50), torch.randint(0, 3, (1, 1, 50))
    left = torch.rand(1, 1, 50) < 0.5
    assert merged_dice(logits, torch.where(left & (target == 2), 4, target + 1), sides).item() == pytest.approx(
        merged_dice(logits, target + 1, plain).item(), rel=1e-5
    )


# --- pseudo-labels ---------------------------------------------------------------------------------------------------


def test_pseudo_labels_are_the_best_class_that_the_label_allows(table):
    p = torch.tensor([0.1, 0.1, 0.2, 0.25, 0.35]).view(1, 5, 1).expand(1, 5, 4)
    codes = observed(0, 2, 5, 6)
    # padding: lesion from its threshold on, else the best; CSF of the tissue set: CSF; rest of the lesion set: the best
    # but lesion; lesion: lesion, however improbable
    for threshold, padding in ((0.3, LESION), (0.4, WM)):
        found = pseudo_labels(p, codes, table.allowed, LESION, threshold)
        assert found.flatten().tolist() == [padding, CSF, WM, LESION]
    # in the brain nothing is background but what the label calls so
    p = torch.tensor([[0.9, 0.0, 0.06, 0.04, 0.0], [0.9, 0, 0.06, 0.04, 0], [0, 0, 0, 0, 0]]).T[None]
    found = pseudo_labels(p, observed(5, 1, 5), table.allowed, LESION, 0.3, background=False)
    assert found.flatten().tolist() == [GM, BG, BG]


def test_a_lesion_just_at_its_threshold_is_one_as_in_inference(table):
    p = torch.tensor([0.5, 0.0, 0.0, 0.25, 0.25]).view(1, 5, 1)
    assert pseudo_labels(p, observed(0), table.allowed, LESION, 0.25).item() == LESION
    assert thresholded_argmax(p[0], LESION, 0.25).item() == LESION


def test_pseudo_labels_find_lesions_under_a_label_that_may_hide_them():
    hidden = LabelSets(CLASSES, {"tissue": HIDDEN, "joint": JOINT})
    p = torch.tensor([[0.0, 0, 0.3, 0.3, 0.4], [0, 0, 0.8, 0.15, 0.05]]).T[None]
    codes = torch.full((1, 1, 2), hidden.code_of["tissue", 3])
    assert pseudo_labels(p, codes, hidden.allowed, LESION, 0.35).flatten().tolist() == [LESION, WM]
    assert pseudo_labels(p, codes, hidden.allowed, LESION, 0.5).flatten().tolist() == [WM, WM]


def test_pseudo_labels_keep_the_grid_of_the_prediction(table):
    pred = MetaTensor(torch.rand(5, 4, 4, 4), affine=torch.diag(torch.tensor([2.0, 2, 2, 1])))
    case = {"pred": pred, "label": MetaTensor(torch.full((1, 4, 4, 4), 6, dtype=torch.uint8))}
    made = PseudoLabelsd("pred", "label", table, LESION, 0.5)(case)["pred"]
    assert made.shape == (1, 4, 4, 4)
    assert (made == LESION).all()
    assert made.affine.diagonal().tolist() == [2, 2, 2, 1]


# --- sampler ---------------------------------------------------------------------------------------------------------

NAMES = ["tissue"] * 3 + ["lesion"] * 50


def draws(epoch=0, **options):
    sampler = BalancedSampler(NAMES, 400, seed=1, **options)
    sampler.set_epoch(epoch)
    return list(sampler)


def test_every_pair_of_draws_has_one_of_each_data_set_whatever_their_sizes():
    names = [NAMES[i] for i in draws()]
    assert all(set(names[i : i + 2]) == {"tissue", "lesion"} for i in range(0, 400, 2))
    assert set(names[::2]) == {"tissue", "lesion"}  # in no fixed order


def test_within_a_data_set_no_case_is_preferred():
    count = Counter(draws())
    assert sorted(count[i] for i in range(3)) == [66, 67, 67]
    assert [count[i] for i in range(3, 53)] == [4] * 50
    lesion = [i for i in draws() if i >= 3]
    first, second = lesion[:50], lesion[50:100]
    assert sorted(first) == sorted(second) == list(range(3, 53))  # each once before any comes again
    assert first != second
    assert sorted(first) != first


def test_draws_follow_from_seed_and_epoch_alone_so_a_resumed_training_has_its_own():
    assert draws(epoch=3) == draws(epoch=3)
    assert draws(epoch=3) != draws(epoch=4)
    running = BalancedSampler(NAMES, 400, seed=1)
    for epoch in (1, 2, 3):
        running.set_epoch(epoch)
        last = list(running)
    assert last == draws(epoch=3)


def test_ranks_share_out_the_draws_of_one_process():
    whole, ranks = draws(), [draws(rank=rank, world_size=4) for rank in range(4)]
    assert [len(part) for part in ranks] == [100] * 4
    pairs = [[tuple(part[i : i + 2]) for i in range(0, 100, 2)] for part in ranks]
    assert [pair for row in zip(*pairs, strict=True) for pair in row] == list(zip(whole[::2], whole[1::2], strict=True))


def test_ranks_draw_equally_often_also_if_the_length_cannot_be_divided():
    parts = [list(BalancedSampler(NAMES, 11, rank=rank, world_size=3)) for rank in range(3)]
    assert [len(part) for part in parts] == [len(BalancedSampler(NAMES, 11, rank=0, world_size=3))] * 3 == [4] * 3


def test_one_data_set_with_one_case_is_enough_for_the_sampler():
    assert list(BalancedSampler(["a"], 3)) == [0, 0, 0]


def test_a_sampler_without_cases_draws_or_rank_is_refused():
    with pytest.raises(InputError, match="no case to draw from"):
        BalancedSampler([], 4)
    with pytest.raises(InputError, match="draw 0 cases per epoch, expected 1 or more"):
        BalancedSampler(NAMES, 0)
    with pytest.raises(ValueError, match="rank is 2, expected"):
        BalancedSampler(NAMES, 4, rank=2, world_size=2)


def test_patches_are_centered_on_every_class_of_a_data_set_alike(table):
    # padding; background and CSF, GM, WM of the tissue set; rest and lesion of the lesion set
    assert crop_ratios(table) == pytest.approx([0, 0, 1 / 3, 1 / 3, 1 / 3, 1 / 3, 2 / 3])
    # one data set alone: no other patches than among the others
    assert crop_ratios(table, dataset_name="lesion") == pytest.approx([0, 1 / 3, 2 / 3])
    assert crop_ratios(table, dataset_name="tissue") == pytest.approx([0, 0, 1 / 3, 1 / 3, 1 / 3])
    assert len(table.single("lesion").allowed) == 3
    assert crop_ratios(table, background=0) == pytest.approx([0, 0, 1 / 3, 1 / 3, 1 / 3, 0, 1])
    sides = {"labels": {"1": "lesion", "2": "WM", "3": "WM", "9": "ignore"}}
    assert crop_ratios(LabelSets(CLASSES, {"sides": sides, "tissue": TISSUE}), background=0.5)[1:6] == pytest.approx(
        [0.5, 0.25, 0.125, 0.125, 0]
    )
    with pytest.raises(InputError, match="background is 1, expected a share of at least 0 and below 1"):
        crop_ratios(table, background=1)


# --- networks --------------------------------------------------------------------------------------------------------


def test_the_papers_widths_give_the_papers_size():
    network = AddUNet(in_channels=2, out_channels=5)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(5.02e6, rel=0.001)


def test_skips_are_added_to_what_comes_from_below():
    network = AddUNet(channels=(4, 8), dropout=0.0).eval()
    image = torch.randn(1, 2, 8, 8, 8)
    skip = network.encoder[0](image)
    for parameter in network.up[0].parameters():
        nn.init.zeros_(parameter)
    torch.testing.assert_close(network(image), network.output(network.decoder[0](skip)))


@pytest.mark.parametrize("norm", ["INSTANCE", "BATCH"])
def test_the_network_is_the_same_in_torchscript(norm):
    network = AddUNet(channels=(4, 8, 8), norm=norm).eval()
    image = torch.randn(1, 2, 8, 12, 16)
    assert network(image).shape == (1, 5, 8, 12, 16)
    torch.testing.assert_close(torch.jit.script(network)(image), network(image))


def test_a_size_that_cannot_be_halved_is_refused():
    with pytest.raises(ValueError, match="a size of the image is 12, expected a multiple of 8"):
        AddUNet(channels=(2, 2, 2, 2))(torch.zeros(1, 2, 16, 12, 16))
    with pytest.raises(ValueError, match=r"channels is \(8,\), expected the widths of two levels or more"):
        AddUNet(channels=(8,))


class Constant(nn.Module):
    """A network that gives the same probabilities everywhere."""

    def __init__(self, *p):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(p).log().view(1, -1, 1, 1, 1) + 3)

    def forward(self, image):
        return self.logits.expand(len(image), -1, *image.shape[2:])


def test_two_networks_share_out_the_probability_by_hand(table):
    fused = FusedNetworks(Constant(0.1, 0.2, 0.3, 0.4), Constant(0.7, 0.3), table, "tissue", "lesion")
    p = fused(torch.zeros(2, 2, 4, 4, 4)).softmax(1)
    assert p.shape == (2, 5, 4, 4, 4)
    torch.testing.assert_close(p[1, :, 0, 0, 0], torch.tensor([0.07, 0.14, 0.21, 0.28, 0.3]))
    assert {name.split(".")[0] for name in fused.state_dict()} == {"base", "overlay"}


def test_joint_classes_keep_their_order_in_two_networks():
    classes = ["background", "lesion", "GM"]  # the overlaid class in the middle
    tissue = {"labels": {"1": "GM"}, "background_is_complete": True}
    table = LabelSets(classes, {"tissue": tissue, "lesion": LESIONS})
    fused = FusedNetworks(Constant(0.25, 0.75), Constant(0.5, 0.5), table, "tissue", "lesion")
    torch.testing.assert_close(
        fused(torch.zeros(1, 1, 1, 1, 1)).softmax(1).flatten(), torch.tensor([0.125, 0.5, 0.375])
    )


def test_two_networks_for_the_same_class_are_refused(table):
    joint = LabelSets(CLASSES, {"joint": JOINT, "lesion": LESIONS})
    with pytest.raises(ValueError, match="expected each joint class in one of them"):
        FusedNetworks(nn.Identity(), nn.Identity(), joint, "joint", "lesion")


# intensities, probabilities and masks


def meta(array, spacing=(1.0, 1.0, 1.0)):
    """An image of a file called scan.nii.gz."""
    meta = {"filename_or_obj": "scan.nii.gz"}
    return MetaTensor(torch.as_tensor(array), affine=np.diag([*spacing, 1.0]), meta=meta)


def test_brain_intensities_get_mean_0_and_deviation_1_and_the_rest_stays_0():
    # values 2, 4, 6, 8 in the brain: mean 5, variance (9 + 1 + 1 + 9) / 4 = 5
    image = torch.tensor([[0.0, 2, 4, 6, 8, 0], [0, 0, 0, 0, 0, 0]]).reshape(2, 6, 1, 1)
    out = NormalizeBrainIntensityd("image")({"image": meta(image)})["image"]
    expected = torch.tensor([0, -3, -1, 1, 3, 0]) / 5**0.5
    torch.testing.assert_close(out[0].flatten().as_tensor(), expected.float())
    assert not out[1].any()  # missing
    outside = normalize_brain_intensity(image[:1] + 1, (image[:1] > 0).float())
    torch.testing.assert_close(outside[0], out[0].as_tensor())


def test_a_constant_brain_is_no_image():
    image = torch.full((1, 3, 3, 3), 7.0)
    with pytest.raises(InputError, match=r"scan.nii.gz: channel 0 is 7 everywhere in the brain"):
        NormalizeBrainIntensityd("image")({"image": meta(image)})
    with pytest.raises(InputError, match="brain mask is empty"):
        normalize_brain_intensity(image, torch.zeros(1, 3, 3, 3))
    with pytest.raises(ValueError, match="expected one channel"):
        normalize_brain_intensity(image, torch.ones(2, 3, 3, 3))


def test_the_class_with_a_threshold_goes_first_and_the_largest_of_the_others_second():
    # classes background, tissue, other tissue, lesion at five voxels; the last lies outside of the brain
    p = torch.tensor([[0.1, 0.5, 0.2, 0.2], [0.1, 0.4, 0.2, 0.3], [0.05, 0, 0, 0.95], [0.7, 0.1, 0, 0.2], [0] * 4]).T
    p = p.reshape(4, 5, 1, 1)
    assert thresholded_argmax(p, 3, 0.3).flatten().tolist() == [1, 3, 3, 0, 0]
    assert thresholded_argmax(p, 3, 0.96).flatten().tolist() == [1, 1, 0, 0, 0]  # never lesion by its size alone
    inside = torch.tensor([[0.6, 0.3, 0.1, 0.0], [0.5, 0.1, 0.0, 0.4], [0.0, 0, 0, 0]]).T[..., None, None]
    assert thresholded_argmax(inside, 3, 0.3).flatten().tolist() == [0, 3, 0]
    assert thresholded_argmax(inside, 3, 0.3, background=False).flatten().tolist() == [1, 3, 0]
    out = ThresholdedArgmaxd("pred", 3, 0.3)({"pred": meta(p, spacing=(2, 2, 2))})["pred"]
    assert (out.dtype, tuple(out.shape), float(out.affine[0, 0])) == (torch.uint8, (1, 5, 1, 1), 2.0)
    for index, threshold in ((4, 0.5), (-1, 0.5), (3, 0.0), (3, 1.5)):
        with pytest.raises(ValueError, match="expected"):
            thresholded_argmax(p, index, threshold)


def test_small_components_of_a_class_lose_its_probability_and_nothing_else():
    # a piece of two voxels, one voxel of another class, a piece of one, and one below the threshold
    lesion, tissue = torch.tensor([0.9, 0.9, 0.1, 0.9, 0.4]), torch.tensor([0.1, 0.1, 0.9, 0.1, 0.6])
    p = torch.stack([tissue, lesion]).reshape(2, 5, 1, 1)
    found = without_small_components(p, 1, 0.5, 8.0, 4.0)
    torch.testing.assert_close(found[1].flatten(), torch.tensor([0.9, 0.9, 0.1, 0.0, 0.4]))
    assert found[0].equal(p[0])
    assert without_small_components(p, 1, 0.5, 4.0, 4.0).equal(p)
    transform = WithoutSmallComponentsd("pred", 1, 0.5, min_volume_mm3=16.0)
    out = transform({"pred": meta(p, spacing=(2, 2, 2))})["pred"]  # 16 mm3 are two voxels of 8
    assert out[1].flatten().tolist() == found[1].flatten().tolist()
    assert float(out.affine[0, 0]) == 2.0


def test_one_channel_is_copied_and_the_others_stay():
    p = meta(torch.arange(8.0).reshape(4, 2, 1, 1), spacing=(2, 2, 2))
    item = ChannelMapd("pred", names="prob", index=2)({"pred": p})
    assert item["prob"].flatten().tolist() == [4, 5]
    assert float(item["prob"].affine[0, 0]) == 2.0
    assert item["pred"] is p
    with pytest.raises(ValueError, match="has 4 channels, expected one with the index 4"):
        ChannelMapd("pred", names="prob", index=4)({"pred": p})
