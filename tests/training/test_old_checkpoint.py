"""A checkpoint that version 0.1 wrote is read by every later version."""

from pathlib import Path

import numpy as np

from densejax.training.checkpoint import restore_tree

OLD = Path(__file__).parent / "checkpoint_of_version_0_1"


def test_a_checkpoint_of_version_0_1_is_read():
    expected = {
        "w": np.arange(6, dtype=np.float32).reshape(2, 3),
        "step": np.int32(7),
        "key": np.array([1, 2], np.uint32),
    }
    found = restore_tree(OLD, expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype
