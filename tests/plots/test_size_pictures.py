"""The picture of objects' sizes: one row a class, and what it refuses."""

import numpy as np
import pytest
from PIL import Image

from densejax.plots.sizes import object_sizes


def test_one_row_a_class(tmp_path):
    rng = np.random.default_rng(0)
    volumes = {"mitochondrion": np.exp(rng.normal(17, 0.7, 50)), "core": [3e6]}
    heights = []
    for names in (["core"], ["mitochondrion", "core"]):
        path = object_sizes({n: volumes[n] for n in names}, tmp_path / "a.png", title="sizes")
        with Image.open(path) as picture:
            heights.append(picture.height)
            assert np.asarray(picture.convert("L")).std() > 10
    assert heights[1] > heights[0]


@pytest.mark.parametrize(
    ("volumes", "message"),
    [({}, "no class has objects"), ({"a": []}, "a: expected"), ({"a": [0.0]}, "above 0")],
)
def test_bad_volumes_are_refused(tmp_path, volumes, message):
    with pytest.raises(ValueError, match=message):
        object_sizes(volumes, tmp_path / "a.png")
