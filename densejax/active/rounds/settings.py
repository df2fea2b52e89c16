"""Published settings of rounds of active learning: A-I, B-I, C-I and C-II of the thesis, 5.5.

Where the thesis and its released code differ, ``VALUES`` has both.
"""

from collections.abc import Mapping
from typing import Any

from densejax.active.wrappers import PUBLISHED_SUBSAMPLE

Preset = dict[str, Any]

CIFAR: Preset = {"data": "cifar10", "model": "resnet18", "initial": 1000, "budget": 1000}
CIFAR |= {"epochs": 200, "patience": 50, "schedule": "cosine", "mode": "end_to_end"}
IMAGENET: Preset = {"data": "imagenet", "model": "resnet50", "initial": 30000, "budget": 10000}
IMAGENET |= {"epochs": 60, "patience": 30, "rounds": 8, "schedule": "step", "imbalance": 0.0}
# Tables of the thesis stop at 20 (A-I) and 10 rounds (B-I); its jobs run 30.
SETTINGS: dict[str, Preset] = {
    "A-I": CIFAR | {"rounds": 20, "learning_rate": 1e-3, "weight_decay": 5e-4, "imbalance": 0.0},
    "B-I": CIFAR | {"rounds": 10, "learning_rate": 2e-3, "weight_decay": 0.0, "imbalance": 0.1},
    "C-I": IMAGENET | {"mode": "end_to_end", "learning_rate": 1e-3, "weight_decay": 0.0},
    "C-II": IMAGENET | {"mode": "linear", "learning_rate": 15.0, "weight_decay": 1e-4},
}
# Share of the training set that is held out, and epochs between tenfold falls of the rate.
VALUES: dict[str, dict[str, Preset]] = {
    "thesis": {"A": {"validation": 0.01}, "B": {"validation": 0.01}, "C": {"validation": 0.1}},
    "code": {"A": {"validation": 0.1}, "B": {"validation": 0.1}, "C": {"validation": 0.01}},
}
VALUES["thesis"]["C"]["decay_every"], VALUES["code"]["C"]["decay_every"] = 20, 10
# Sets that are in none of the settings: networks and rounds of their size.
SMALL: dict[str, Preset] = {
    "mnist": {"model": "mlp"},
    "fashion_mnist": {"model": "mlp"},
    "features": {"model": "head"},
}
SMALL["tiny"] = {"initial": 20, "budget": 20, "rounds": 5, "epochs": 30, "patience": 0}
SMALL["tiny"] |= {"width": 8, "learning_rate": 0.05, "validation": 0.2}
COMMON: Preset = {"width": 64, "schedule": "cosine", "decay_every": 20, "augmentation": None}


def fill(given: Mapping[str, Any]) -> Preset:
    """What a setting says, wherever nothing else is said.

    Args:
      given: values by name, None where nothing is said; ``setting`` and ``values`` choose. The loss
        is weighted where classes are imbalanced, and the norm frozen where there is a checkpoint
        (``pretrained``), unless it is said.

    Returns:
      All values by name.
    """
    preset = COMMON | VALUES[given["values"]][given["setting"][0]] | SETTINGS[given["setting"]]
    preset |= SMALL.get(given["data"] or preset["data"], {})
    if (given["model"] or preset["model"]) == "mlp":
        preset["width"] = 512
    whole = preset | {name: value for name, value in given.items() if value is not None}
    derived = {"weighted": whole["imbalance"] > 0, "frozen_norm": bool(given["pretrained"])}
    return derived | whole


def subsample_of(data: str | None) -> dict[str, int]:
    """What the released jobs draw of a set before they partition it (``wrappers.partitioned``)."""
    return dict(PUBLISHED_SUBSAMPLE) if data == "imagenet" else {}


def vaal_of(values: str, data: str | None, *, schedule: str | None, recipe: str) -> Preset:
    """Options of ``vaal`` in a setting: those of ImageNet in all released jobs, of the set else.

    Pictures are augmented as the classifier's. The released jobs lower the rates with the
    classifier's; there is a half cosine here, and no fall in steps, so that C keeps its rates.

    Args:
      values: ``thesis`` or ``code``.
      data: which set.
      schedule: of the classifier's rate.
      recipe: of the classifier's augmentation.
    """
    from densejax.active.strategies import vaal

    released = values == "code"
    rates = vaal.IMAGENET if released or data == "imagenet" else vaal.CIFAR
    decay = "cosine" if released and schedule == "cosine" else "none"
    return {**rates, "recipe": recipe, "decay": decay}
