"""What the tools know of ``ace_multitask``: tissues and lesions from data sets that label one or the other."""

from catalog import Description, Inference, Method, Prediction, Row, Stage, Use

ONE_NETWORK = Inference(weights=("handlers#0#path",), least_volume="min_lesion_mm3", is_probability=True)
TWO_NETWORKS = Inference(
    ("two_networks",), weights=("handlers#0#path", "handlers#1#path"), least_volume="min_lesion_mm3"
)
FLAIR_THRESHOLD = Inference(("inference_threshold",), weights=(), least_volume="min_lesion_mm3")

TRAINING = Stage(
    ("train",),
    learns={"labeled": 1},
    validates={"labeled": 1},
    paper={"labeled": 52},
    datalists={"datalist_file": "data sets"},
)

DESCRIPTION = Description(
    summary="""\
One network for tissues and lesions, from T1w and FLAIR. It learns from data sets that label only one of the two: the
loss asks of a label only what it says. After Roulet et al., MIDL 2019.""",
    inferences=(ONE_NETWORK, TWO_NETWORKS),
    uses=(
        Use("as shipped", "tissues and lesions from T1w and FLAIR, one may be missing", (Prediction(ONE_NETWORK),)),
        Use(
            "train on data sets that label one thing each",
            "tissues and lesions, or the classes of your table",
            (TRAINING,),
        ),
    ),
    methods=(
        Method("ace_lesion", "ACE", "lesion", ONE_NETWORK, TRAINING),
        Method("ace_tissue", "ACE", "tissue", ONE_NETWORK, TRAINING),
    ),
    rows=(
        Row("one network for all classes", ONE_NETWORK),
        Row("plain FLAIR threshold", FLAIR_THRESHOLD, is_baseline=True, bundle="uad_autoencoder"),
    ),
    needs=(frozenset({"T1w", "tissues"}), frozenset({"T1w", "FLAIR", "lesion"})),
    suspects_in=("T1w", "FLAIR"),
    single_pass={"mirror": False, "window_overlap": 0.0},
    small={
        "train": {"network_def#channels": [4, 8], "patch_size": [24, 24, 24], "volumes_per_epoch": 4},
    },
)
