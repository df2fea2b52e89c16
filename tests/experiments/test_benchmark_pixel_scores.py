"""The contenders of the benchmark of pixel scores find the same, and a fault in one is seen."""

import numpy as np
import pytest
from scipy.stats import entropy

torch = pytest.importorskip("torch")

from experiments.benchmarks import measure, pixel_scores, torch_pixel_scores  # noqa: E402

CONFIG = pixel_scores.Config(maps=11, side=16, passes=3, chunk=4)


@pytest.fixture(scope="module")
def found():
    x = pixel_scores.stored(CONFIG)
    calls = pixel_scores.contenders(CONFIG, x)
    return x, {name: call() for name, call in calls.items()}


def test_contenders_agree(found):
    _, columns = found
    ours = columns[measure.OURS]
    assert list(ours) == torch_pixel_scores.NAMES
    for name, theirs in columns.items():
        assert pixel_scores.agreement(name, theirs, ours, pixels=256) < 1e-2
    for name in (pixel_scores.VIEWAL, pixel_scores.CHUNKS):
        assert list(columns[name]) == torch_pixel_scores.NAMES


def test_every_stored_pass_is_read_once(found):
    x, columns = found
    p = np.exp(x.astype(np.float64))
    p /= p.sum(axis=2, keepdims=True)
    plain, passes = entropy(p[:, 0], axis=1), entropy(p[:, 1:].mean(axis=1), axis=1)
    bald = passes - entropy(p[:, 1:], axis=2).mean(axis=1)
    votes = np.stack([(x[:, 1:].argmax(axis=2) == c).mean(axis=1) for c in range(2)])
    maps = {"entropy": plain, "mean_entropy": passes, "bald": bald, "vote_entropy": entropy(votes)}
    for name, values in maps.items():
        expected = values.mean(axis=(1, 2))
        np.testing.assert_allclose(columns[measure.OURS][f"{name}:mean"], expected, rtol=1e-5)


def test_another_pass_is_seen(found):
    x, columns = found
    wrong = x.copy()
    wrong[:, 1] = wrong[:, 2]
    theirs = torch_pixel_scores.by_chunk(wrong, size=4)
    with pytest.raises(ValueError, match="chunks: bald:mean differs"):
        pixel_scores.agreement("chunks", theirs, columns[measure.OURS], pixels=256)


def test_report_without_baal(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(pixel_scores.util, "find_spec", lambda name: None)
    monkeypatch.setattr(measure, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(measure, "LAP_SECONDS", 0.0)
    monkeypatch.setattr(measure, "ceilings", lambda: {"copy GB/s": 10.0})
    monkeypatch.setattr(measure, "apart", lambda module, *words: 0.25)
    config = pixel_scores.Config(maps=4, side=8, passes=2, chunk=4, rounds=1, out=str(tmp_path))
    pixel_scores.run(config)
    text = (tmp_path / "pixel_scores.md").read_text()
    assert "| ViewAL | 18 |" in text and "baal: not installed" in text
    assert "at least 10x the loops" in text and "0.25" in capsys.readouterr().out
