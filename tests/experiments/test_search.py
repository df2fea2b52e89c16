"""The search over architectures end to end on a small world."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import tifffile
from sklearn.metrics import adjusted_rand_score

from densejax.segmentation.search import Ranges
from densejax.segmentation.sources import load_parts
from experiments import search

SMALL = search.Config(
    world=(12, 96, 96),
    window=(3, 32, 32),
    ranges=Ranges(poolings=(1, 2), width=(2, 3), convolutions=(1, 1), window=(0.9, 1.0)),
    steps=4,
    log_every=2,
    evaluate_every=2,
    checkpoint_every=2,
    seeds=(0, 1),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("search")
    return workdir, search.run(SMALL, workdir)


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_search_leaves_tables_pictures_and_the_labelled_volume(finished):
    workdir, summary = finished
    assert summary.failed == 0 and len(summary.ranked) == 2
    folder = workdir / "summary"
    for name in ("settings", "top_k_evaluation", "top_k_test", "orthoslices"):
        assert (folder / f"{name}.png").stat().st_size > 5000
    table = rows_of(folder / "architectures.csv")
    assert sorted(row["seed"] for row in table) == ["0", "1"]
    scores = [float(row["adjusted_rand"]) for row in table]
    assert scores == sorted(scores, reverse=True)
    for row in table:
        entry = next(e for e in summary.entries if e.seed == int(row["seed"]))
        assert row["encoder"] == "-".join(map(str, entry.architecture.encoder))
        assert int(row["parameters"]) == entry.parameters


def test_the_ensemble_is_the_mean_of_probabilities_and_scored_as_scikit_learn_does(finished):
    workdir, summary = finished
    truth = load_parts(SMALL).test.labels
    rows = rows_of(workdir / "summary" / "top_k.csv")
    predicted = summary.test.prediction
    for rank, row in enumerate(rows):
        for what, labels in (("alone", predicted.members), ("top_k", predicted.cumulative)):
            expected = adjusted_rand_score(truth.ravel(), labels[rank].ravel())
            assert float(row[f"test_adjusted_rand_{what}"]) == pytest.approx(expected, abs=1e-6)
    written = tifffile.imread(workdir / "summary" / "test_labels.tif")
    np.testing.assert_array_equal(written, predicted.cumulative[-1])
    numbers = json.loads((workdir / "summary" / "summary.json").read_text())
    best = max(float(row["evaluation_adjusted_rand_top_k"]) for row in rows)
    assert numbers["evaluation"]["adjusted_rand_top_k"] == pytest.approx(best, abs=1e-6)


def test_more_seeds_extend_and_the_first_stay_as_they_are(finished):
    workdir, summary = finished
    before = {
        path: path.stat().st_mtime_ns for path in (workdir / "seeds").rglob("*") if path.is_file()
    }
    more = search.run(replace(SMALL, seeds=(0, 1, 2), most=2), workdir)
    assert [entry.seed for entry in more.entries] == [0, 1, 2] and len(more.ranked) == 2
    assert more.entries[:2] == summary.entries
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    with pytest.raises(ValueError, match="steps was 4 and is 5"):
        search.run(replace(SMALL, steps=5), workdir)


def test_an_architecture_that_does_not_fit_fails_alone(tmp_path, monkeypatch):
    class Small(search.Sweep):
        def run(self):
            if self._members[0].seed == 1:
                raise MemoryError("one instance a device needs 9.00 GB")
            return super().run()

    monkeypatch.setattr(search, "Sweep", Small)
    summary = search.run(SMALL, tmp_path)
    assert summary.failed == 1 and [entry.seed for entry in summary.ranked] == [0]
    table = rows_of(tmp_path / "summary" / "architectures.csv")
    assert [(row["seed"], row["status"]) for row in table] == [("0", "DONE"), ("1", "FAILED")]
    assert "9.00 GB" in table[1]["reason"] and table[1]["adjusted_rand"] == ""


def test_ranges_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"--ranges.width"):
        search.run(replace(SMALL, ranges=Ranges(width=(3, 2))), tmp_path / "run")
    assert not (tmp_path / "run").exists()
