"""The picture of objects' sizes: one row a class, and what it refuses."""

import numpy as np
import pytest

from densejax.plots.agreement import object_sizes


def test_one_row_a_class(assert_readable):
    rng = np.random.default_rng(0)
    volumes = {"mitochondrion": np.exp(rng.normal(17, 0.7, 50)), "core": [3e6]}
    heights = []
    for names in (["core"], ["mitochondrion", "core"]):
        figure = object_sizes({n: volumes[n] for n in names}, title="sizes")
        assert_readable(figure)
        heights.append(figure.get_figheight())
    assert heights[1] > heights[0]


@pytest.mark.parametrize(
    ("volumes", "message"),
    [({}, "no class has objects"), ({"a": []}, "a: expected"), ({"a": [0.0]}, "above 0")],
)
def test_bad_volumes_are_refused(tmp_path, volumes, message):
    with pytest.raises(ValueError, match=message):
        object_sizes(volumes, path=tmp_path / "a.png")
