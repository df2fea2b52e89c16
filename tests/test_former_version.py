"""Runs that an earlier version wrote are read and continued by this one.

``fixtures/segment_killed`` was written by version 0.1 (planned recipe 1): seed 0 had ended, seed 1
was killed after the checkpoint of step 20. ``segment_killed.json`` is what that version made of the
same command without a kill. A change of numbers on purpose makes new files by the command in their
``config.json``.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import densejax as dj
from densejax.segmentation.runs import read_config
from experiments import segment

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture(scope="module")
def continued(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("former") / "run"
    shutil.copytree(FIXTURES / "segment_killed", workdir)
    segment.run(read_config(segment.Config, workdir), workdir)
    return workdir


@pytest.fixture(scope="module")
def expected():
    return json.loads((FIXTURES / "segment_killed.json").read_text())


def test_a_killed_run_goes_on_from_its_checkpoint_to_the_same_numbers(continued, expected):
    text = (continued / "seeds" / "0001" / "metrics.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    assert [row["step"] for row in rows] == [row["step"] for row in expected["seed 1"]]
    for found, wanted in zip(rows, expected["seed 1"], strict=True):
        # Bits are those of one machine; another's convolutions add in another order.
        assert found["loss"] == pytest.approx(wanted["loss"], rel=1e-3)
        assert ("miou" in found) == ("miou" in wanted)
    assert rows[1]["loss"] == expected["seed 1"][1]["loss"], "step 20 was kept, not made again"
    provenance = (continued / "provenance.jsonl").read_text().splitlines()
    assert len(provenance) == 2


def test_it_still_predicts(continued, expected):
    image = np.random.default_rng(0).normal(size=(3, 64, 64)).astype(np.float32)
    found = dj.load(continued).predict(image, voxel_nm=(50.0, 10.0, 10.0))
    means = np.asarray(found.probabilities).mean((0, 1, 2))
    np.testing.assert_allclose(means, expected["mean_probabilities"], atol=1e-4)


def test_a_streamed_prediction_is_that_in_memory(continued, tmp_path):
    image = np.random.default_rng(0).normal(size=(3, 80, 64)).astype(np.float32)
    stored = np.lib.format.open_memmap(tmp_path / "image.npy", "w+", np.float32, image.shape)
    stored[:] = image
    ensemble, voxel_nm = dj.load(continued), (50.0, 10.0, 10.0)
    whole = ensemble.predict(image, voxel_nm=voxel_nm)
    parts = ensemble.predict(stored, voxel_nm=voxel_nm, folder=tmp_path / "out", progress=False)
    assert parts.labels.shape == image.shape and parts.labels[0].dtype == np.int32
    # Windows overlap otherwise, and doubt is kept in bytes.
    assert np.mean(parts.labels[...] == whole.labels) > 0.97
    np.testing.assert_allclose(parts.entropy[1], whole.entropy[1], atol=0.02)
    again = ensemble.predict(stored, voxel_nm=voxel_nm, folder=tmp_path / "out", progress=False)
    np.testing.assert_array_equal(again.labels[...], parts.labels[...])
    with pytest.raises(ValueError, match="another prediction"):
        ensemble.predict(image[:, ::-1], voxel_nm=voxel_nm, folder=tmp_path / "out")
