"""One query from files: what it writes, and that it refuses before any work, by name."""

import csv
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.special
import tensorstore as ts

from densejax.cli import main
from experiments import select

N, D, C = 60, 6, 4


@pytest.fixture
def folder(tmp_path):
    """Files of a pool that agree."""
    draw = np.random.default_rng(0)
    features = draw.standard_normal((N, D)).astype(np.float32)
    kernel = draw.standard_normal((D, C)).astype(np.float32)
    bias = draw.standard_normal(C).astype(np.float32)
    logits = features @ kernel + bias
    passes = scipy.special.softmax(draw.standard_normal((N, 3, C)), axis=-1)
    np.save(tmp_path / "features.npy", features)
    np.save(tmp_path / "logits.npy", logits)
    np.save(tmp_path / "probabilities.npy", scipy.special.softmax(logits, axis=1))
    np.save(tmp_path / "passes.npy", passes.astype(np.float32))
    np.save(tmp_path / "labels.npy", draw.integers(0, C, N))
    np.save(tmp_path / "labelled.npy", np.array([3, 1, 20]))
    np.save(tmp_path / "held_out.npy", np.array([59, 0]))
    np.savez(tmp_path / "weights.npz", kernel=kernel, bias=bias)
    return tmp_path


def call(*words):
    """The exit code of a command line."""
    options = {"description": select.describe(), "workdir": "", "trains": False}
    with pytest.raises(SystemExit) as ended:
        main(select.Config, select.run, argv=["select", *words], **options)
    return ended.value.code


def query(folder, *names, **options):
    """Exit status of the command with these files of the folder."""
    flags = {name: folder / f"{name}.np{'z' if name == 'weights' else 'y'}" for name in names}
    flags = {"budget": 7, "out": folder / "q.csv", **flags, **options}
    return call(*(f"--{name}={value}" for name, value in flags.items()))


def read(path):
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["index", "score"]
    return [int(row[0]) for row in rows[1:]], [float(row[1]) for row in rows[1:]]


@pytest.mark.parametrize("files", [("features", "weights"), ("logits",), ("probabilities",)])
def test_margin_is_that_of_numpy_from_whatever_is_given(folder, files, capsys):
    assert query(folder, *files, "labelled", "held_out", strategy="margin") == 0
    ordered = np.sort(np.load(folder / "probabilities.npy").astype(np.float64))
    margin = ordered[:, -1] - ordered[:, -2]
    free = np.setdiff1d(np.arange(N), [3, 1, 20, 59, 0])
    expected = free[np.argsort(margin[free], kind="stable")][:7]
    indices, values = read(folder / "q.csv")
    assert indices == expected.tolist()
    np.testing.assert_allclose(values, margin[expected], rtol=1e-4)
    printed = capsys.readouterr().out
    assert "margin: 7 of 55 samples (60 in all, 3 labelled)" in printed
    assert "rows/s" in printed
    assert "MiB" in printed


ALL = ("features", "weights", "labels", "labelled", "held_out", "passes")


@pytest.mark.parametrize("strategy", select.STRATEGIES)
def test_every_strategy_serves_files(folder, strategy):
    used = {"radius": 0.7} if "radius" in select.STRATEGIES[strategy].options else {}
    assert query(folder, *ALL, strategy=strategy, **used) == 0
    indices, values = read(folder / "q.csv")
    assert len(indices) == len(set(indices)) == len(values) == 7
    assert not set(indices) & {3, 1, 20, 59, 0}
    first = (folder / "q.csv").read_text()
    assert query(folder, *ALL, strategy=strategy, overwrite=True, **used) == 0
    assert (folder / "q.csv").read_text() == first


@pytest.mark.parametrize(
    "options",
    [
        {"power": 2.0},
        {"stride": 3},
        {"class_balanced": True},
        {"partitions": 3},
        {"partitions": 2, "max_unlabelled": 20, "max_labelled": 2},
        {"power": 1.0, "partitions": 2, "class_balanced": True},
    ],
)
def test_wrappers_by_flags(folder, options):
    assert query(folder, "features", "weights", "labelled", strategy="entropy", **options) == 0
    indices, _ = read(folder / "q.csv")
    assert len(set(indices)) == 7
    assert query(folder, "features", "weights", "labelled", strategy="entropy", overwrite=True) == 0
    assert read(folder / "q.csv")[0] != indices


@pytest.mark.parametrize("driver", ["zarr", "zarr3"])
def test_zarr_is_read_as_well(folder, driver):
    features = np.load(folder / "features.npy")
    spec = {"driver": driver, "kvstore": (folder / "f.zarr").as_uri() + "/"}
    ts.open(spec, create=True, dtype=ts.float32, shape=features.shape).result().write(
        features
    ).result()
    assert query(folder, "features", "weights", strategy="mase") == 0
    from_npy = read(folder / "q.csv")
    given = {"features": folder / "f.zarr", "out": folder / "z.csv"}
    assert query(folder, "weights", strategy="mase", **given) == 0
    assert read(folder / "z.csv") == from_npy


def cut(path):
    path.write_bytes(path.read_bytes()[:-8])


def put(values):
    return lambda path: np.save(path, values)


def spoil_rows(path):
    features = np.load(path)
    features[[7, 40], [0, 2]] = np.nan, np.inf
    np.save(path, features)


def head(**arrays):
    return lambda path: np.savez(path, **arrays)


BAD = [
    ("features", cut, r"features.npy: cut short: found \d+ bytes, expected 1568"),
    ("features", lambda p: p.write_text("hello"), r"features.npy: expected a .npy file"),
    ("features", lambda p: p.unlink(), r"features.npy: no such file"),
    ("features", lambda p: (p.unlink(), p.mkdir()), r"expected a Zarr array"),
    ("features", put(np.zeros(5)), r"features.npy: found shape \(5,\), expected \[n, d\]"),
    ("features", put(np.zeros((5, D), bool)), r"features.npy: found bool, expected floating"),
    ("features", put(np.zeros((5, 2), object)), r"features.npy: found Python objects"),
    ("features", put(np.zeros((N, D + 1))), r"features.npy \(60, 7\) and the kernel \(6, 4\)"),
    ("features", spoil_rows, r"features.npy: 2 of 60 rows hold .*, the first is row 7"),
    ("weights", cut, r"weights.npz: expected a .npz file"),
    ("weights", head(weight=np.zeros((D, C))), r"weights.npz: found weight; expected kernel"),
    ("weights", head(kernel=np.zeros((C, D))), r"\(4, 6\) of .*is it \[c, d\]\?"),
    ("weights", head(kernel=np.zeros((D, C)), bias=np.zeros(3)), r"bias of shape \(3,\)"),
    ("weights", head(kernel=np.full((D, C), np.nan)), r"24 values of kernel are not finite"),
    ("logits", put(np.zeros((N + 1, C))), r"as many rows: .*features.npy has 60, .* has 61"),
    ("logits", put(np.zeros((N, C + 1))), r"as many classes: .*logits.npy has 5, .* has 4"),
    ("probabilities", put(np.full((N, C), 0.4)), r"probabilities.npy: row 0 is no distribution"),
    ("labels", put(np.full(N, C)), r"labels.npy: 60 labels outside the classes, .* 4 of sample 0"),
    ("labels", put(np.zeros(3, int)), r"labels.npy: found 3 labels, expected 60"),
    ("labels", put(np.zeros(N)), r"labels.npy: found float64, expected integers"),
    ("labelled", put(np.array([60])), r"labelled.npy: 60 is not a row of a pool of 60"),
    ("labelled", put(np.array([4, 4])), r"labelled.npy: 4 occurs more than once"),
    ("held_out", put(np.array([1])), r"1 samples are labelled and held out, the first is 1"),
]


@pytest.mark.parametrize(("name", "spoil", "match"), BAD)
def test_bad_files_are_named(folder, capsys, name, spoil, match):
    file = folder / f"{name}.np{'z' if name == 'weights' else 'y'}"
    spoil(file)
    given = {"features", "weights", "labels", "labelled", "held_out", name}
    assert query(folder, *sorted(given), strategy="base") == 2
    error = capsys.readouterr().err
    assert re.search(match, error), error
    assert not (folder / "q.csv").exists()
    assert not list(folder.glob(".q.csv*"))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"budget": -1}, "budget -1: expected 0 to 57"),
        ({"budget": 58}, "budget 58: expected 0 to 57"),
        ({"strategy": "bass"}, "'bass' is unknown; expected one of random, balanced_random"),
        ({"strategy": ""}, "'' is unknown; expected one of random"),
        ({"strategy": "bald"}, "bald needs --passes; found --features --weights"),
        ({"strategy": "probcover"}, "probcover needs --radius"),
        ({"stride": 2}, "base is none"),
        ({"strategy": "margin", "stride": 2, "power": 1}, "one of --power and --stride"),
        ({"strategy": "margin", "stride": 0}, "step 0: expected at least 1"),
        ({"partitions": 0}, "partitions 0"),
        ({"out": ""}, "--out is needed"),
        ({"out": "/nowhere/at/all/q.csv"}, "no such folder as /nowhere/at/all"),
        ({"order": "alphabet"}, "round_robin"),
        ({"unheard": 1}, "unheard"),
    ],
)
def test_bad_options_are_named(folder, capsys, options, match):
    options = {"strategy": "base", **options}
    assert query(folder, "features", "weights", "labelled", **options) == 2
    assert match in capsys.readouterr().err


def test_nothing_is_written_over_unless_asked(folder, capsys):
    (folder / "q.csv").write_text("precious")
    assert query(folder, "logits", strategy="margin") == 2
    assert "q.csv exists" in capsys.readouterr().err
    assert (folder / "q.csv").read_text() == "precious"
    assert query(folder, "logits", strategy="margin", overwrite=True) == 0
    assert len(read(folder / "q.csv")[0]) == 7


def test_budgets_of_nothing_and_of_all(folder):
    assert query(folder, "logits", strategy="margin", budget=0) == 0
    assert (folder / "q.csv").read_text() == "index,score\n"
    assert query(folder, "logits", strategy="margin", budget=N, overwrite=True) == 0
    assert sorted(read(folder / "q.csv")[0]) == list(range(N))


def test_a_fast_run_writes_nothing(folder, capsys):
    assert query(folder, *ALL, strategy="base", fast_dev_run=True) == 0
    assert "nothing written" in capsys.readouterr().out
    assert not (folder / "q.csv").exists()


def test_help_lists_what_each_strategy_needs(capsys):
    assert call("--help") == 0
    printed = capsys.readouterr().out
    assert all(f"  {name}: " in printed for name in select.STRATEGIES)
    assert "base: --features and --weights, or --logits and --weights" in printed
    assert "--budget" in printed


def test_the_command_itself(folder):
    command = [sys.executable, "-m", "experiments.select", "--strategy=margin", "--budget=2"]
    command += [f"--logits={folder / 'logits.npy'}", f"--out={folder / 'q.csv'}"]
    root = Path(select.__file__).parent.parent
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert len(read(folder / "q.csv")[0]) == 2
