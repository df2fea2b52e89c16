"""The pool: what it refuses, and how its rows are read, from memory and from disk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore as ts
from hypothesis import given, settings
from hypothesis import strategies as st

from densejax.active import rows, scores
from densejax.active.pool import Pool, check_budget, chunks
from densejax.active.rows import first, members
from densejax.active.scores import Score, evaluate

settings.register_profile("pool", deadline=None, max_examples=40)
settings.load_profile("pool")


def arrays(n=37, d=5, c=4, seed=0):
    draw = np.random.default_rng(seed)
    kernel, bias = draw.standard_normal((d, c)), draw.standard_normal(c)
    features = draw.standard_normal((n, d)).astype(np.float32)
    return features, kernel.astype(np.float32), bias.astype(np.float32)


def largest(logits):
    return logits.max(axis=-1)


def row_sum(features):
    return features.sum(axis=-1)


def whole(probabilities):
    return probabilities


LARGEST = Score("largest", ("logits",), largest)
SUM = Score("sum", ("features",), row_sum)


def stores(features, folder):
    """The same rows as every kind of array."""
    file = folder / "features.npy"
    np.save(file, features)
    spec = {"driver": "zarr", "kvstore": (folder / "f.zarr").as_uri() + "/"}
    store = ts.open(
        spec, create=True, dtype=ts.float32, shape=features.shape, chunk_layout=ts.ChunkLayout()
    ).result()
    store.write(features).result()
    return {
        "numpy": features,
        "fortran": np.asfortranarray(features),
        "float64": features.astype(np.float64),
        "jax": jnp.asarray(features),
        "memmap": np.load(file, mmap_mode="r"),
        "private": np.load(file, mmap_mode="c"),
        "slice": np.load(file, mmap_mode="r")[:],
        "tensorstore": store,
    }


@pytest.mark.parametrize("size", [None, 1, 8, 37, 100])
@pytest.mark.parametrize("picked", [False, True])
def test_chunks_of_every_store_hold_the_rows(tmp_path, size, picked):
    features, kernel, bias = arrays()
    rows = np.array([0, 1, 2, 7, 9, 30, 31, 36]) if picked else None
    expected = features if rows is None else features[rows]
    logits = expected.astype(np.float64) @ kernel + bias
    for name, array in stores(features, tmp_path).items():
        pool = Pool(features=array, kernel=kernel, bias=bias)
        seen, parts, shapes = [], [], set()
        for ids, chunk in chunks(pool, ("features", "logits"), rows=rows, size=size):
            assert ids.dtype == np.int64
            seen.append(ids)
            shapes.add(chunk["features"].shape)
            parts.append((np.asarray(chunk["features"]), np.asarray(chunk["logits"])))
            padding = parts[-1][0][len(ids) :]
            last = parts[-1][0][len(ids) - 1]
            np.testing.assert_array_equal(padding, np.broadcast_to(last, padding.shape))
        assert len(shapes) == 1
        ids = np.concatenate(seen)
        np.testing.assert_array_equal(ids, np.arange(37) if rows is None else rows)
        cut = [len(s) for s in seen]
        found = [
            np.concatenate([p[i][:k] for p, k in zip(parts, cut, strict=True)]) for i in (0, 1)
        ]
        np.testing.assert_array_equal(found[0], expected, err_msg=name)
        np.testing.assert_allclose(found[1], logits, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("cache", [1, 200, 2**22])
def test_evaluate_is_the_function_of_all_rows(tmp_path, monkeypatch, cache):
    features, kernel, bias = arrays(n=301)
    monkeypatch.setattr(scores, "CACHE_BYTES", cache)
    expected = (features.astype(np.float64) @ kernel + bias).max(axis=1)
    rows = np.array([3, 4, 200, 300])
    for name, array in stores(features, tmp_path).items():
        pool = Pool(features=array, kernel=kernel, bias=bias)
        found = evaluate(LARGEST, pool)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5, err_msg=name)
        np.testing.assert_allclose(
            evaluate(LARGEST, pool, rows=rows), expected[rows], rtol=1e-5, atol=1e-5
        )
        assert evaluate(LARGEST, pool, rows=np.zeros(0, int)).shape == (0,)


def test_devices_share_the_pool_and_change_nothing(monkeypatch):
    features, kernel, bias = arrays(n=1000)
    monkeypatch.setattr(scores, "CACHE_BYTES", 4000)
    pool = Pool(features=features, kernel=kernel, bias=bias)
    one = evaluate(LARGEST, pool)
    for devices in (jax.local_devices()[:3], jax.local_devices()):
        np.testing.assert_array_equal(evaluate(LARGEST, pool, devices=devices), one)


def test_classwise_scores_keep_their_classes():
    features, kernel, bias = arrays()
    score = Score("whole", ("probabilities",), whole, classwise=True)
    pool = Pool(features=features, kernel=kernel, bias=bias)
    found = evaluate(score, pool)
    assert found.shape == (37, 4)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-6)
    logits = Pool(logits=features @ kernel + bias)
    np.testing.assert_allclose(evaluate(score, logits), found, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(evaluate(score, Pool(probabilities=found)), found)
    assert evaluate(score, pool, rows=np.zeros(0, int)).shape == (0, 4)


def test_a_program_is_compiled_once_for_all_chunks():
    _, kernel, bias = arrays(n=100)
    counts = []

    def counted(logits):
        counts.append(1)
        return logits.max(axis=-1)

    score = Score("counted", ("logits",), counted)
    for seed in range(3):
        other = arrays(n=100, seed=seed)[0]
        evaluate(score, Pool(features=other, kernel=kernel, bias=bias))
    assert len(counts) == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("needs", [("features",), ("logits",), ("probabilities",)])
def test_values_that_are_not_finite_are_refused(tmp_path, bad, needs):
    features, kernel, bias = arrays()
    features[[20, 33], [1, 3]] = bad
    for array in stores(features, tmp_path).values():
        pool = Pool(features=array, kernel=kernel, bias=bias)
        with pytest.raises(ValueError, match=r"pool features: .*not finite, the first is row 20"):
            list(chunks(pool, needs, size=10))
        with pytest.raises(ValueError, match=r"pool features: 2 rows of 0 to 36 .* row 20"):
            evaluate(Score("any", needs, row_sum), pool)
        good = np.setdiff1d(np.arange(37), [20, 33])
        assert np.isfinite(evaluate(Score("any", needs, row_sum), pool, rows=good)).all()


def test_large_finite_values_are_not_refused():
    features = np.full((4, 3), 3e38, np.float32)
    np.testing.assert_array_equal(
        np.concatenate([f["features"] for _, f in chunks(Pool(features=features), ["features"])]),
        features,
    )
    head = np.full((3, 2), 3e38, np.float32)
    with pytest.raises(ValueError, match=r"largest: 4 rows .* not finite"):
        evaluate(LARGEST, Pool(features=features, kernel=head))


@pytest.mark.parametrize("name", ["kernel", "bias"])
def test_a_head_that_is_not_finite_is_refused(name):
    features, kernel, bias = arrays()
    head = {"kernel": kernel, "bias": bias}
    head[name][0] = np.nan
    with pytest.raises(ValueError, match=f"head's {name} holds . values that are not finite"):
        evaluate(LARGEST, Pool(features=features, **head))


def test_what_is_missing_is_named():
    features, kernel, _ = arrays()
    for needs, match in [
        (("logits",), "logits, or features and the kernel"),
        (("probabilities",), "probabilities, logits, or features"),
        (("passes",), "pool's passes"),
    ]:
        with pytest.raises(ValueError, match=match):
            next(chunks(Pool(features=features), needs))
    with pytest.raises(ValueError, match="logits, or features"):
        next(chunks(Pool(labels=np.zeros(3, np.int32), kernel=kernel), ("logits",)))


def test_a_store_that_fails_is_named():
    class Broken:
        shape = (10, 3)

        def __getitem__(self, rows):
            raise OSError("the disk is gone")

    with pytest.raises(ValueError, match=r"pool features: rows 0 to 9 .*the disk is gone"):
        list(chunks(Pool(features=Broken()), ("features",)))


def test_reading_can_be_left_early():
    features, _, _ = arrays(n=1000)
    for _ in chunks(Pool(features=features), ("features",), size=10):
        break


def test_buffers_are_not_overwritten_before_their_time():
    features, _, _ = arrays(n=64)
    held = []
    for ids, chunk in rows.read_chunks({"f": features}, 64, 4, buffers=5):
        held = [*held, (ids, chunk["f"])][-4:]
        for old, part in held[-3:]:
            np.testing.assert_array_equal(part, features[old])


def test_aligned_memory_is():
    for shape in ((1,), (3, 5), (7, 2, 2)):
        array = rows._aligned(shape)
        assert array.shape == shape
        assert array.dtype == np.float32
        assert array.ctypes.data % rows.ALIGNMENT == 0


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"features": None, "labels": None}, "a pool needs"),
        ({"labels": np.zeros(36, np.int32)}, "one length"),
        ({"features": np.zeros(37)}, "expected 2 axes"),
        ({"kernel": np.zeros((6, 4))}, "do not fit the head's kernel"),
        ({"bias": np.zeros(5)}, r"bias must be \[4\]"),
        ({"logits": np.zeros((37, 3))}, "the head has 4 classes"),
        ({"labelled": np.ones(37, bool), "held_out": np.ones(37, bool)}, "37 samples are labelled"),
    ],
)
def test_a_pool_that_does_not_agree_is_refused(changes, match):
    features, kernel, bias = arrays()
    given = {"features": features, "kernel": kernel, "bias": bias, "labels": np.zeros(37, np.int32)}
    with pytest.raises(ValueError, match=match):
        Pool(**{**given, **changes})


def test_size_classes_and_what_is_available():
    features, kernel, _ = arrays()
    pool = Pool(
        features=features,
        kernel=kernel,
        labelled=members(np.array([0, 5]), 37),
        held_out=members(np.array([36]), 37),
    )
    assert (pool.size, pool.classes, pool.available.sum()) == (37, 4, 34)
    assert check_budget(pool, 34) == 34
    for budget in (-1, 35):
        with pytest.raises(ValueError, match=f"budget {budget}: expected 0 to 34"):
            check_budget(pool, budget)
    with pytest.raises(ValueError, match="classes unknown"):
        _ = Pool(features=features).classes


@pytest.mark.parametrize(
    ("indices", "match"),
    [([0, 3], "3 is not a row"), ([-1], "-1 is not a row"), ([1, 1], "1 occurs more than once")],
)
def test_members_are_checked(indices, match):
    with pytest.raises(ValueError, match=f"E.npy: {match}"):
        members(np.array(indices), 3, name="E.npy")
    with pytest.raises(ValueError, match=r"expected .* integers"):
        members(np.array([0.5]), 3)


@given(st.data())
def test_first_is_a_stable_sort_of_what_is_available(data):
    n = data.draw(st.integers(1, 30))
    values = np.array(data.draw(st.lists(st.integers(-3, 3), min_size=n, max_size=n)), np.float32)
    free = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    budget = data.draw(st.integers(0, int(free.sum())))
    largest_first = data.draw(st.booleans())
    sign = -1 if largest_first else 1
    expected = sorted(np.flatnonzero(free), key=lambda i: (sign * values[i], i))[:budget]
    found = first(values, free, budget, largest_first=largest_first)
    assert found.tolist() == expected
