"""The curated public names: lazy, complete, and what the two calls of a notebook return."""

import importlib
import subprocess
import sys

import numpy as np
import pytest

import densejax as dj

NAMESPACES = ("active", "data", "inference", "landscape", "models", "plots", "segmentation")


def test_importing_loads_no_library_and_no_array():
    code = "import sys, densejax; assert not {'jax', 'flax', 'scipy'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", NAMESPACES)
def test_a_namespace_lists_what_a_notebook_needs(name):
    namespace = getattr(dj, name)
    assert 10 <= len(namespace.__all__) <= 25
    assert list(namespace.__all__) == sorted(dir(namespace))
    for public in namespace.__all__:
        assert getattr(namespace, public) is not None


def test_everything_on_top_is_there():
    for name in dj.__all__:
        assert getattr(dj, name) is not None
    with pytest.raises(AttributeError, match="nothing_such"):
        _ = dj.nothing_such


@pytest.mark.parametrize("name", NAMESPACES)
def test_no_public_name_hides_a_module(name):
    package = importlib.import_module(f"densejax.{name}")
    for public in package.__all__:
        assert importlib.util.find_spec(f"densejax.{name}.{public}") is None


@pytest.fixture
def pool():
    random = np.random.default_rng(0)
    features = random.normal(size=(60, 4)).astype(np.float32)
    kernel = random.normal(size=(4, 3)).astype(np.float32)
    return features, kernel, random.normal(size=3).astype(np.float32)


def margins(features, kernel, bias):
    """Best minus second-best probability of each row."""
    logits = features.astype(np.float64) @ kernel + bias
    shares = np.exp(logits - logits.max(1, keepdims=True))
    ordered = np.sort(shares / shares.sum(1, keepdims=True), axis=1)
    return ordered[:, -1] - ordered[:, -2]


def test_a_query_from_arrays_is_that_of_a_sort_by_hand(pool):
    features, kernel, bias = pool
    free = np.arange(7, 58)  # the first are labelled, the last are held out
    expected = free[np.argsort(margins(*pool)[free], kind="stable")[:5]]
    for labelled in (np.arange(7), np.arange(60) < 7):
        for head in (
            (kernel, bias),
            {"kernel": kernel, "bias": bias},
            {"weight": kernel.T, "bias": bias},
        ):
            found = dj.active.select(
                "margin",
                features=features,
                head=head,
                budget=5,
                labelled=labelled,
                held_out=np.array([58, 59]),
            )
            np.testing.assert_array_equal(found.indices, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strategy": "bass"}, "'bass' is unknown"),
        ({"head": None}, "margin needs"),
        ({"head": {"w": 1}}, r"head has \['w'\]: expected kernel \[d, c\] or weight \[c, d\]"),
        ({"head": (1, 2, 3)}, "head has 3 arrays"),
        ({"labelled": np.ones(4, bool)}, r"labelled is a mask of shape \(4,\): expected \(60,\)"),
        ({"labelled": np.array([60])}, "labelled: 60 is not a row"),
        ({"budget": 61}, "budget 61: expected 0 to 60"),
    ],
)
def test_a_query_that_cannot_be_made_says_why(pool, change, message):
    features, kernel, bias = pool
    asked = {"strategy": "margin", "features": features, "head": (kernel, bias), "budget": 3}
    with pytest.raises(ValueError, match=message):
        dj.active.select(**asked | change)
