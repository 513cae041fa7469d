"""What the tools know of ``deepatlas_joint``: registration and segmentation that teach each other."""

from catalog import Description, Inference, Method, Prediction, Row, Stage, Use

NETWORK = Inference()
PROPAGATION = Inference(("inference_propagation",), told=("moving_file", "moving_label_file"))

REGISTRATION = Stage(
    ("train", "train_registration"),
    writes="registration.pt",
    learns={"any": 2},
    validates={"any": 2},
    paper={"any": 65},
)
SEGMENTATION = Stage(
    ("train", "train_segmentation"),
    name="taught",
    learns={"any": 2, "labeled": 1},
    validates={"any": 2, "labeled": 2},
    paper={"any": 65},
    given={"registration_weights": REGISTRATION},
)
JOINT = Stage(
    ("train",),
    name="joint",
    learns={"any": 2, "labeled": 1},
    validates={"any": 2, "labeled": 2},
    paper={"any": 65},
    given={"registration_weights": REGISTRATION, "segmentation_weights": SEGMENTATION},
    note="the measured steps of train are of registration; one in 21 is of segmentation and takes longer",
)
FINE = Stage(
    ("train", "train_segmentation", "train_fine"),
    name="fine",
    learns={"any": 2, "labeled": 1},
    validates={"any": 2, "labeled": 2},
    paper={"any": 65},
    given={"segmentation_weights": JOINT},
    options={"max_epochs": 8},
)
SEGMENTATION_OF_LABELS = Stage(
    ("train", "train_segmentation", "train_fine"),
    name="plain",
    learns={"any": 2, "labeled": 1},
    validates={"any": 2, "labeled": 2},
    options={"segmentation_weights": None, "segmentation_rate": 0.002},
)

DESCRIPTION = Description(
    summary="""\
Registration and segmentation networks that teach each other. Registration carries labels to scans without;
segmentation learns from them and tells registration what belongs together. ITK, ANTs and SimpleITK read the fields.
After Xu and Niethammer, MICCAI 2019.""",
    inferences=(NETWORK, PROPAGATION),
    uses=(
        Use("as shipped", "tissues from T1w", (Prediction(NETWORK),)),
        Use(
            "train both networks, from one label map up",
            "a segmenter and an inter-subject registration",
            (REGISTRATION, SEGMENTATION, JOINT, FINE),
            values=(0, 1, 2, 3),
            any_sequence=True,
        ),
    ),
    methods=(
        Method("deepatlas", "DeepAtlas", "tissue", NETWORK, FINE),
        Method("propagation", "label propagation", "tissue", PROPAGATION, REGISTRATION, is_baseline=True),
        Method(
            "unet_tissue",
            "U-Net, labels",
            "tissue",
            NETWORK,
            SEGMENTATION_OF_LABELS,
            is_shipped=False,
            is_baseline=True,
        ),
    ),
    rows=(
        Row("joint training", NETWORK),
        Row("labels of the template, propagated", PROPAGATION, is_baseline=True),
        Row("labels of one scan, propagated", PROPAGATION, is_baseline=True, is_told=True),
    ),
    needs=(frozenset({"T1w", "tissues"}),),
    registration="inference_registration",
    registration_alone={"refine": False},
    small={
        "train": {
            "spacing": [8.0, 8.0, 8.0],
            "shape": [24, 24, 24],
            "correlation_window": 3,
            "registration_steps": 2,
            "segmentation_steps": 2,
        }
    },
)
