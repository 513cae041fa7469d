"""What the tools know of ``sae_segmentation``: tissues or structures from unlabelled scans and one atlas."""

from catalog import Description, Inference, Method, Prediction, Row, Stage, Use

NETWORK = Inference()
MIXTURE = Inference(("inference_em",), weights=())
ATLAS = Inference(("inference_atlas",), weights=())

TRAINING = Stage(("train",), learns={"unlabelled": 1}, validates={"unlabelled": 1}, paper={"unlabelled": 30})
ADAPTATION = Stage(
    ("train", "adapt"), learns={"unlabelled": 1}, validates={"unlabelled": 1}, sections=False, output_dir="adapted"
)

DESCRIPTION = Description(
    summary="""\
Tissues or structures from unlabeled scans and one atlas. An encoder segments, a decoder makes the scan of the
segmentation again. `adapt.json` fits it to your scanner. After Yu et al., MIDL 2020.""",
    inferences=(NETWORK, MIXTURE, ATLAS),
    uses=(
        Use("as shipped", "tissues from T1w", (Prediction(NETWORK),)),
        Use(
            "fit to these scans (adapt.json)",
            "tissues from scans of any contrast, without a label",
            (ADAPTATION, Prediction(NETWORK, by=ADAPTATION)),
            any_sequence=True,
        ),
        Use("train on unlabelled scans and the atlas", "tissues, without a label", (TRAINING,), any_sequence=True),
    ),
    methods=(
        Method("sae", "SAE", "tissue", NETWORK, TRAINING),
        Method("em", "mixture of Gaussians", "tissue", MIXTURE, is_baseline=True),
        Method("atlas", "atlas alone", "tissue", ATLAS, is_baseline=True),
    ),
    rows=(
        Row("segmentation auto-encoder", NETWORK),
        Row("segmentation auto-encoder, after adapt.json", NETWORK, adapted_by=ADAPTATION),
        Row("mixture of Gaussians", MIXTURE, is_baseline=True),
        Row("atlas alone", ATLAS, is_baseline=True),
    ),
    needs=(frozenset({"T1w", "tissues"}),),
    neighbor_table="sae_segmentation.loss.neighbor_table",
    small={"train": {"patch_size": [16, 16, 16], "patches_per_volume": 1}},
)
