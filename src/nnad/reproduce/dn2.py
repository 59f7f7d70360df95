"""DN2 (Bergman, Cohen and Hoshen, arXiv 2002.10445): its tables and figures, and their numbers.

Features of ResNet101 (section 4.6), k-NN with k = 2 of squared distances (Eq. 2). Numbers of other
systems are those that DN2 prints, most of which it took from their papers.
"""

from collections.abc import Sequence
from typing import Any

from nnad.reproduce.tables import Entry, System, Table

RESNET = "torchvision:resnet101"
DN2 = System(backbone=RESNET, arguments={"k": 2})
TRAINED = {
    "OC-SVM": System("ocsvm", operator=None),
    "Deep SVDD": System("deep-svdd", operator=None),
    "GEOM": System("geom", operator=None),
    "GOAD": System("goad", operator=None),
    "MHRot": System("mhrot", operator=None),
    "DN2": DN2,
}

# Table 1: OC-SVM, Deep SVDD, GEOM, GOAD, MHRot, DN2
CIFAR10 = {
    "0": (70.6, 61.7, 74.7, 77.2, 77.5, 93.9),
    "1": (51.3, 65.9, 95.7, 96.7, 96.9, 97.7),
    "2": (69.1, 50.8, 78.1, 83.3, 87.3, 85.5),
    "3": (52.4, 59.1, 72.4, 77.7, 80.9, 85.5),
    "4": (77.3, 60.9, 87.8, 87.8, 92.7, 93.6),
    "5": (51.2, 65.7, 87.8, 87.8, 90.2, 91.3),
    "6": (74.1, 67.7, 83.4, 90.0, 90.9, 94.3),
    "7": (52.6, 67.3, 95.5, 96.1, 96.5, 93.6),
    "8": (70.9, 75.9, 93.3, 93.8, 95.2, 95.1),
    "9": (50.6, 73.1, 91.3, 92.0, 93.3, 95.3),
    "Avg": (62.0, 64.8, 86.0, 88.2, 90.1, 92.5),
}
NEIGHBOURS = (1, 2, 3, 5, 10, 20, 50)
SIZES = (1, 2, 5, 10, 50, 100, 500, 1000, None)
SHARES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
OVER_DRAWS = {"seed": (0, 1, 2)}
COUNTS = {"n_train": 1000, "n_test": 500}  # groups
ONCE = {"seed": (0,)}
BOTH = (("CIFAR10", "cifar10"), ("FashionMNIST", "fashion-mnist"))

_OTHERS = {name: "DN2" for name in TRAINED if name != "DN2"}


def _row(
    row: str,
    data: str,
    columns: dict[str, System],
    paper: Sequence[float | None],
    protocol: str = "one class",
    **more: Any,
) -> list[Entry]:
    """An entry for each system, with the paper's numbers in their order."""
    return [
        Entry(row, name, data, protocol, system, paper=number, **more)
        for (name, system), number in zip(columns.items(), paper, strict=True)
    ]


def _some(*names: str) -> dict[str, System]:
    return {name: TRAINED[name] for name in names}


_TABLE_1 = [
    entry
    for row, numbers in CIFAR10.items()
    for entry in _row(
        row, "cifar10", TRAINED, numbers, classes="all" if row == "Avg" else (int(row),)
    )
]
_TABLE_2 = [
    *_row(
        "FashionMNIST",
        "fashion-mnist",
        _some("OC-SVM", "GEOM", "GOAD", "DN2"),
        (92.8, 93.5, 94.1, 94.4),
    ),
    *_row("CIFAR100", "cifar100", _some("OC-SVM", "GEOM", "GOAD", "DN2"), (62.6, 78.7, None, 89.3)),
]
_MHROT = {
    "Oxford Flowers": ("flowers-dn2", 65.9, 93.9),
    "UCSD Birds 200": ("birds", 64.4, 95.2),
    "CatsVsDogs": ("cats-vs-dogs", 88.5, 97.5),
    "DIOR": ("dior", 83.2, 92.2),
    "WBC": ("wbc", 60.5, 82.9),
}


def _mhrot(*rows: str) -> tuple[Entry, ...]:
    return tuple(
        entry
        for row in rows
        for entry in _row(
            row, _MHROT[row][0], _some("MHRot", "DN2"), _MHROT[row][1:], classes="first 20"
        )
    )


_CLEANINGS = {"DN2": DN2, "DN2, cleaned": System(backbone=RESNET, arguments={"k": 2}, clean=0.5)}
_KINDS = ("literal", "without permutations")
_GROUPS = [
    Entry(
        str(m),
        f"{pooling}, {kind}",
        "cifar10",
        "groups",
        DN2,
        {"kind": kind, "pooling": pooling, "m": m, **COUNTS},
        None,
        OVER_DRAWS,
    )
    for m in range(1, 11)
    for kind in _KINDS
    for pooling in ("concat", "max", "mean")
    if m > 1 or kind == "literal"
]
_SHOWN = {"Airplane": 0, "Automobile": 1}

TABLES = (
    Table(
        "dn2",
        "table",
        "1",
        "Each class of CIFAR-10 in turn is normal",
        tuple(_TABLE_1),
        against=_OTHERS,
        main="DN2",
    ),
    Table(
        "dn2",
        "table",
        "2",
        "Each class in turn is normal, mean of the classes",
        tuple(_TABLE_2),
        against=_OTHERS,
        main="DN2",
    ),
    Table(
        "dn2",
        "table",
        "3",
        "Each of the first 20 classes by alphabet in turn is normal",
        _mhrot("Oxford Flowers", "UCSD Birds 200", "CatsVsDogs"),
        against=_OTHERS,
        main="DN2",
        notes="Flowers: the validation images are test images, as only so a class has 30 and more.",
    ),
    Table(
        "dn2",
        "table",
        "4",
        "Aerial and microscope images: each class in turn is normal",
        _mhrot("DIOR", "WBC"),
        against=_OTHERS,
        main="DN2",
    ),
    Table(
        "dn2",
        "table",
        "5",
        "All classes but one are normal, mean over the odd one",
        (
            *_row("CIFAR10", "cifar10", _some("GEOM", "DN2"), (61.7, 71.7), "all but one"),
            *_row("CIFAR100", "cifar100", _some("GEOM", "DN2"), (57.3, 71.0), "all but one"),
        ),
        against=_OTHERS,
        main="DN2",
        notes="CIFAR-100: the 20 coarse classes, as in Table 2.",
    ),
    Table(
        "dn2",
        "table",
        "6",
        "CIFAR-10: C k-means centres in the place of the training features",
        tuple(
            _row(
                "CIFAR10",
                "cifar10",
                {
                    **{
                        f"C={c}": System(
                            backbone=RESNET, operator="kmeans", arguments={"n_centers": c}
                        )
                        for c in (1, 3, 5, 10)
                    },
                    "kNN": DN2,
                },
                (91.94, 92.00, 91.87, 91.64, 92.52),
            )
        ),
        digits=2,
        against={f"C={c}": "kNN" for c in (1, 3, 5, 10)},
        main="kNN",
    ),
    Table(
        "dn2",
        "figure",
        "1",
        "Depth of the network",
        tuple(
            Entry(
                "{network}",
                label,
                data,
                "one class",
                System(backbone=f"torchvision:resnet{depth}", arguments={"k": 2}),
            )
            for depth in (50, 101, 152)
            for label, data in BOTH
        ),
        networks=True,
    ),
    Table(
        "dn2",
        "figure",
        "2",
        "Number of neighbours k",
        tuple(
            Entry(str(k), label, data, "one class", System(backbone=RESNET, arguments={"k": k}))
            for k in NEIGHBOURS
            for label, data in BOTH
        ),
        notes="k is clipped to the images there are.",
    ),
    Table(
        "dn2",
        "figure",
        "4",
        "Groups of one image of each of the first M classes of CIFAR-10",
        tuple(_GROUPS),
        against={
            f"{pooling}, {kind}": f"concat, {kind}"
            for pooling in ("max", "mean")
            for kind in _KINDS
        },
        by_row=True,
        notes=(
            "Literal: an odd group is M images of random classes, which may be one of each after "
            "all: always at M = 1, half of them at M = 2. Without permutations: such groups are "
            "drawn again. 1,000 training groups as in the paper; it does not say how many are "
            "tested, here 500 normal and 500 odd ones."
        ),
    ),
    Table(
        "dn2",
        "figure",
        "5",
        "Few training images (left, centre), and anomalies among them (right)",
        tuple(
            [
                Entry(
                    "all" if size is None else str(size),
                    label,
                    data,
                    "few shot",
                    DN2,
                    {"count": size},
                    over=ONCE if size is None else OVER_DRAWS,
                )
                for size in SIZES
                for label, data in BOTH
            ]
            + [
                Entry(
                    "all" if size is None else str(size),
                    "CIFAR10, GEOM",
                    "cifar10",
                    "few shot",
                    TRAINED["GEOM"],
                    {"count": size},
                    over=ONCE if size is None else OVER_DRAWS,
                )
                for size in SIZES
            ]
            + [
                Entry(
                    f"{share:.0%} odd",
                    name,
                    "cifar10",
                    "impure",
                    system,
                    {"share": share},
                    over=ONCE,
                )
                for share in SHARES
                for name, system in _CLEANINGS.items()
            ]
        ),
        against={"DN2, cleaned": "DN2"},
        by_row=True,
        notes=(
            "k and the numbers of images are clipped to those there are. Three draws of few "
            "images; one of odd images, which are added to all normal ones. GEOM on FashionMNIST "
            "is not shown, as in the paper."
        ),
    ),
    Table(
        "dn2",
        "figure",
        "6",
        "t-SNE of the test features of CIFAR-10, and the AUROC of the same features",
        tuple(
            Entry(row, column, "cifar10", "one class", system, classes=(number,))
            for row, number in _SHOWN.items()
            for column, system in {
                **_some("Deep SVDD", "GEOM"),
                "DN2": System(backbone="torchvision:resnet50", arguments={"k": 2}),
            }.items()
        ),
        shows_features=True,
        notes="The normal class is yellow. At most 2,000 test images are drawn.",
    ),
    Table(
        "dn2",
        "section",
        "4.5",
        "Sets of 10 to 50 digits of one class, odd ones of any, by the trace alone",
        (
            Entry(
                "MNIST",
                "trace",
                "mnist",
                "groups",
                System(backbone=RESNET, operator=None),
                {"kind": "sets", "pooling": "trace", **COUNTS},
                None,
                OVER_DRAWS,
                92.0,
            ),
            Entry(
                "FashionMNIST",
                "trace",
                "fashion-mnist",
                "groups",
                System(backbone=RESNET, operator=None),
                {"kind": "sets", "pooling": "trace", **COUNTS},
                None,
                OVER_DRAWS,
            ),
        ),
        notes="D'Oro et al. have 81 on MNIST. FashionMNIST is ours.",
    ),
)
