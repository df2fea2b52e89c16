"""All scores of one pass against brute force; names, thresholds and refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densejax.active import pixel_scores
from densejax.active.balanced import balanced
from densejax.active.pixel_scores import PixelNetwork, PixelScores, pixel_score
from densejax.active.pool import Pool
from densejax.active.scores import column
from densejax.active.strategies.class_context import class_context, class_context_distances
from densejax.active.wrappers import stride

CLASSES, PASSES, KEY = 3, 4, jax.random.key(7)
NAMES = (
    "entropy:mean",
    "entropy:count",
    "max_softmax:mean",
    "max_softmax:count0.4",
    "margin:mean",
    "margin:count0.8",
    "margin:fraction0.5",
    "odin0.1:mean",
    "odin10-0.05:mean",
    "bald:mean",
    "mean_entropy:mean",
    "vote_entropy:mean",
    "mean_entropy:count0.9",
    "ensemble_bald:mean",
    "ensemble_vote_entropy:mean",
    "error:mean",
    "miou:mean",
    "entropy:quantile",
    "margin:quantile0.7",
)


def apply(variables, x):
    logits = jnp.tanh(x @ variables["w"]) @ variables["v"]
    return logits, {"bottleneck": x[:, :, ::2, ::2] @ variables["w"]}


def passes(variables, x, key):
    noise = jax.random.normal(key, variables["v"].shape)
    return apply(dict(variables, v=variables["v"] + noise), x)


def variables_of(seed):
    rng = np.random.default_rng(seed)
    return {
        "w": rng.normal(size=(2, 5)).astype(np.float32) * 3,
        "v": rng.normal(size=(5, CLASSES)).astype(np.float32) * 2,
    }


NETWORK = PixelNetwork(lambda key: variables_of(0), apply, passes)


@pytest.fixture(scope="module")
def pool():
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (11, 1, 6, 8, 2)).astype(np.uint8)
    labels = rng.integers(-1, CLASSES, (11, 1, 6, 8)).astype(np.int32)
    return images, labels


def plan_of(names, chunk=4, **options):
    scores = tuple(pixel_score(name) for name in names)
    return PixelScores(NETWORK, CLASSES, scores, passes=PASSES, chunk=chunk, **options)


def softmax(logits):
    p = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return p / p.sum(axis=-1, keepdims=True)


def logits_of(variables, x):
    w, v = (np.asarray(variables[n], np.float64) for n in ("w", "v"))
    return np.tanh(x @ w) @ v


def entropy(p):
    return -(p * np.log(np.maximum(p, 1e-300))).sum(axis=-1)


def three(p):
    """BALD, entropy of the mean, entropy of the votes of [m, ..., c]."""
    votes = np.eye(CLASSES)[p.argmax(axis=-1)].mean(axis=0)
    mean = entropy(p.mean(axis=0))
    return mean - entropy(p).mean(axis=0), mean, entropy(votes)


def brute(images, labels, committee, thresholds, chunk):
    """Every score by stored maps in float64, [n] by name."""
    x, variables = images.astype(np.float64) / 255, variables_of(0)
    logits = logits_of(variables, x)
    p = softmax(logits)
    top = np.sort(p, axis=-1)
    drawn = []
    for start in range(0, len(images), chunk):
        key = jax.random.fold_in(KEY, start)
        rows = []
        for i in range(PASSES):
            noise = jax.random.normal(jax.random.fold_in(key, i), variables["v"].shape)
            own = dict(variables, v=variables["v"] + np.asarray(noise))
            rows.append(softmax(logits_of(own, x[start : start + chunk])))
        drawn.append(np.stack(rows))
    bald, mean_entropy, votes = three(np.concatenate(drawn, axis=1))
    e_bald, _, e_votes = three(np.stack([softmax(logits_of(one, x)) for one in committee]))

    def gradient(x):
        # d/dx of log P of the largest class at T = 10, by hand: tanh' = 1 - tanh^2.
        w, v = (np.asarray(variables[n], np.float64) for n in ("w", "v"))
        hidden = np.tanh(x @ w)
        q = softmax(hidden @ v / 10)
        along = (np.eye(CLASSES)[q.argmax(axis=-1)] - q) / 10
        return ((along @ v.T) * (1 - hidden**2)) @ w.T

    moved = softmax(logits_of(variables, x + 0.05 * np.sign(gradient(x))) / 10)
    maps = {
        "entropy": entropy(p),
        "max_softmax": 1 - top[..., -1],
        "margin": 1 - (top[..., -1] - top[..., -2]),
        "bald": bald,
        "mean_entropy": mean_entropy,
    }
    known = labels >= 0
    true = np.take_along_axis(p, np.maximum(labels, 0)[..., None], axis=-1)[..., 0]
    error, miou = [], []
    for unit in range(len(images)):
        k, t, f = known[unit], labels[unit], p[unit].argmax(axis=-1)
        error.append((1 - true[unit])[k].mean())
        ious = [
            ((t == c) & (f == c))[k].sum() / ((t == c) | (f == c))[k].sum()
            for c in range(CLASSES)
            if ((t == c) | (f == c))[k].any()
        ]
        miou.append(1 - np.mean(ious))
    mean = {name: values.reshape(len(images), -1).mean(axis=1) for name, values in maps.items()}

    def above(name, level):
        return (maps[name] > level).reshape(len(images), -1).mean(axis=1)

    def flat(values):
        return values.reshape(len(images), -1).mean(axis=1)

    return {
        "entropy:mean": mean["entropy"],
        "entropy:count": above("entropy", np.log(2)),
        "max_softmax:mean": mean["max_softmax"],
        "max_softmax:count0.4": above("max_softmax", 0.4),
        "margin:mean": mean["margin"],
        "margin:count0.8": above("margin", 0.8),
        "margin:fraction0.5": above("margin", 0.5),
        "odin0.1:mean": flat(1 - softmax(logits / 0.1).max(axis=-1)),
        "odin10-0.05:mean": flat(1 - moved.max(axis=-1)),
        "bald:mean": mean["bald"],
        "mean_entropy:mean": mean["mean_entropy"],
        "vote_entropy:mean": flat(votes),
        "mean_entropy:count0.9": above("mean_entropy", 0.9),
        "ensemble_bald:mean": flat(e_bald),
        "ensemble_vote_entropy:mean": flat(e_votes),
        "error:mean": np.array(error),
        "miou:mean": np.array(miou),
        # A threshold is the value of a pixel, which rounds otherwise here.
        "entropy:quantile": above("entropy", thresholds["entropy:quantile"] + 1e-6),
        "margin:quantile0.7": above("margin", thresholds["margin:quantile0.7"] + 1e-6),
    }, maps


def test_one_pass_gives_what_stored_maps_give(pool):
    images, labels = pool
    committee = [variables_of(seed) for seed in (3, 4, 5)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *committee)
    plan = plan_of(NAMES, context=True, flatten=True, members=3)
    thresholds = pixel_scores.freeze_quantiles(
        KEY, plan, variables_of(0), images, committee=stacked
    )
    compiled = pixel_scores._chunk._cache_size()
    given = {"committee": stacked, "labels": labels, "thresholds": thresholds}
    found = pixel_scores.look(KEY, plan, variables_of(0), images, **given)
    again = pixel_scores.look(KEY, plan, variables_of(1), images, **given)
    assert pixel_scores._chunk._cache_size() == compiled + 1  # three chunks, two networks
    assert not np.allclose(again.columns["entropy:mean"], found.columns["entropy:mean"])
    expected, maps = brute(images, labels, committee, thresholds, 4)
    assert set(expected) == set(NAMES) == set(found.columns)
    for name in NAMES:
        np.testing.assert_allclose(found.columns[name], expected[name], atol=2e-5, err_msg=name)
    # A tenth of the pool's pixels is above a quantile of 0.9, three tenths above 0.7.
    assert (maps["entropy"] > thresholds["entropy:quantile"]).mean() == pytest.approx(0.1, abs=0.01)
    assert (maps["margin"] > thresholds["margin:quantile0.7"]).mean() == pytest.approx(
        0.3, abs=0.01
    )

    x = images.astype(np.float64) / 255
    p = softmax(logits_of(variables_of(0), x)).reshape(11, -1, CLASSES)
    np.testing.assert_allclose(found.probabilities, p.mean(axis=1), atol=1e-5)
    shares = np.eye(CLASSES)[p.argmax(axis=-1)]
    np.testing.assert_allclose(found.shares, shares.mean(axis=1), atol=1e-6)
    bottleneck = (x[:, :, ::2, ::2] @ variables_of(0)["w"].astype(np.float64)).reshape(11, -1, 5)
    np.testing.assert_allclose(found.embedding, bottleneck.mean(axis=1), atol=1e-4)
    np.testing.assert_allclose(found.flat, bottleneck.reshape(11, -1), atol=1e-4)
    for unit in range(11):
        for c in range(CLASSES):
            here = shares[unit, :, c] > 0
            weights = entropy(p[unit])[here]
            mean = np.zeros(CLASSES)
            if here.any():
                mean = (weights[:, None] * p[unit][here]).sum(axis=0) / weights.sum()
            np.testing.assert_allclose(found.context[unit, c], mean, atol=1e-4)


def test_plain_scores_hang_on_neither_chunks_nor_order(pool):
    images, _ = pool
    names = ("entropy:mean", "margin:count0.8")
    one = pixel_scores.look(KEY, plan_of(names, chunk=11), variables_of(0), images)
    other = pixel_scores.look(KEY, plan_of(names, chunk=3), variables_of(0), images[::-1])
    for name in names:
        np.testing.assert_allclose(other.columns[name][::-1], one.columns[name], atol=1e-6)


def test_distances_of_contexts_by_hand():
    a = np.zeros((3, 2, 2), np.float32)
    a[0] = [[0.9, 0.1], [0.2, 0.8]]
    a[1] = [[0.6, 0.4], [0, 0]]
    a[2, 1] = [0.5, 0.5]
    found = np.asarray(class_context_distances(a, a))
    p, q = np.array([0.9, 0.1]), np.array([0.6, 0.4])
    assert found[0, 1] == pytest.approx(((p - q) * np.log(p / q)).sum() / 2, abs=1e-5)
    assert found[1, 2] == pytest.approx(-np.log(1e-8), rel=1e-5)  # no class in common
    np.testing.assert_allclose(np.diag(found), 0, atol=1e-5)
    np.testing.assert_allclose(found, found.T, atol=1e-5)


def test_a_column_is_ranked_and_strided():
    values = np.array([3, 9, 1, 9, 5, 7], np.float32)
    pool = Pool(probabilities=np.full((6, 2), 0.5), columns={"doubt": values}, labelled=values == 7)
    assert column("doubt")(KEY, pool, 3).indices.tolist() == [1, 3, 4]
    assert column("doubt", largest_first=False)(KEY, pool, 2).indices.tolist() == [2, 0]
    assert stride(column("doubt"), 2)(KEY, pool, 2).indices.tolist() == [3, 0]
    with pytest.raises(ValueError, match="no column 'margin'"):
        column("margin")(KEY, pool, 1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("doubt:mean", "expected MEASURE:AGGREGATION"),
        ("entropy", "expected MEASURE:AGGREGATION"),
        ("odin:mean", "odin has a temperature"),
        ("entropy2:mean", "odin has a temperature"),
        ("entropy:mean0.5", "a mean has no threshold"),
        ("bald:count", "Chen gives no threshold"),
        ("entropy:fraction", "between 0 and 1"),
        ("entropy:quantile1.5", "between 0 and 1"),
        ("miou:count0.5", "expected miou:mean"),
        ("error:quantile", "expected error:mean"),
        ("entropy-0.5:mean", "others have neither"),
        ("bald-0.5:mean", "others have neither"),
        ("odin1--0.5:mean", "expected MEASURE:AGGREGATION"),
        ("odin1.2.3:mean", "expected MEASURE:AGGREGATION"),
        ("margin:count0.8.1", "expected MEASURE:AGGREGATION"),
        ("odin0:mean", "a temperature above 0"),
    ],
)
def test_names_that_are_none(name, message):
    with pytest.raises(ValueError, match=message):
        pixel_score(name)


def test_what_no_pass_can_compute_is_refused(pool):
    images, _ = pool
    with pytest.raises(ValueError, match=r"exceeds 1\.2 \(at most 1\.099\)"):
        plan_of(("entropy:count1.2",))
    with pytest.raises(ValueError, match=r"exceeds 0\.8"):
        plan_of(("ensemble_vote_entropy:count0.8",), members=2)  # two votes: at most log 2
    with pytest.raises(ValueError, match="needs a committee of 2 or more members, found 0"):
        pixel_scores.look(KEY, plan_of(("ensemble_bald:mean",)), variables_of(0), images)
    with pytest.raises(ValueError, match="needs its threshold first"):
        pixel_scores.look(KEY, plan_of(("entropy:quantile",)), variables_of(0), images)
    with pytest.raises(ValueError, match="need the true labels"):
        pixel_scores.look(KEY, plan_of(("error:mean",)), variables_of(0), images)
    silent = PixelNetwork(NETWORK.init, apply)
    with pytest.raises(ValueError, match="needs stochastic passes"):
        PixelScores(silent, CLASSES, (pixel_score("bald:mean"),))


def test_quantiles_see_every_column_and_pixels_without_doubt(pool, monkeypatch):
    images, _ = pool
    plan = plan_of(("entropy:quantile", "odin1000:quantile0.5"), chunk=11)
    whole = pixel_scores.freeze_quantiles(KEY, plan, variables_of(0), images)
    steps, sample = [], pixel_scores._sample

    def counted(plan, step, *rest):
        steps.append(step)
        return sample(plan, step, *rest)

    monkeypatch.setattr(pixel_scores, "_sample", counted)
    monkeypatch.setattr(pixel_scores, "SAMPLED", images[..., 0].size // 4)
    few = pixel_scores.freeze_quantiles(KEY, plan, variables_of(0), images)
    assert steps == [3]  # of 8 columns: every third pixel, as every fourth shows two of them
    for name in whole:
        assert few[name] == pytest.approx(whole[name], rel=0.1)
    # At this temperature all pixels lie close to the most that there can be.
    found = pixel_scores.look(KEY, plan, variables_of(0), images, thresholds=whole)
    assert found.columns["odin1000:quantile0.5"].mean() == pytest.approx(0.5, abs=0.02)
    sure = jax.tree.map(lambda leaf: leaf * 1e4, variables_of(0))
    level = pixel_scores.freeze_quantiles(KEY, plan, sure, images)["entropy:quantile"]
    levels = {**whole, "entropy:quantile": level}
    found = pixel_scores.look(KEY, plan, sure, images, thresholds=levels)
    assert found.columns["entropy:quantile"].mean() <= 0.1


def test_what_is_not_finite_or_not_there_is_named(pool):
    images, labels = pool
    plan = plan_of(("entropy:mean", "error:mean", "miou:mean"))
    void = labels.copy()
    void[3] = -1
    found = pixel_scores.look(KEY, plan, variables_of(0), images, labels=void)
    assert found.columns["error:mean"][3] == found.columns["miou:mean"][3] == 0
    broken = dict(variables_of(0), v=np.full((5, CLASSES), np.nan, np.float32))
    with pytest.raises(ValueError, match="11 of 11 units have no finite value"):
        pixel_scores.look(KEY, plan_of(("entropy:mean",)), broken, images)
    with pytest.raises(ValueError, match="without any unit"):
        pixel_scores.look(KEY, plan_of(("entropy:mean",)), variables_of(0), images[:0])
    four = jax.tree.map(lambda leaf: np.stack([leaf] * 4), variables_of(0))
    with pytest.raises(ValueError, match="4 members; expected at most 3"):
        plan = plan_of(("ensemble_bald:mean",), members=3)
        pixel_scores.look(KEY, plan, variables_of(0), images, committee=four)


def test_class_contexts_are_covered_one_after_another():
    rng = np.random.default_rng(0)
    contexts = rng.dirichlet(np.ones(3), (12, 3)).astype(np.float32)
    labelled = np.isin(np.arange(12), [4, 9])
    pool = Pool(features=contexts.reshape(12, 9), labelled=labelled)
    distances = np.array(
        [
            [((a - b) * np.log(a / b)).sum(axis=1).mean() / 2 for b in contexts.astype(np.float64)]
            for a in contexts.astype(np.float64)
        ]
    )
    chosen, covered = [], [4, 9]
    for _ in range(5):
        near = distances[:, covered].min(axis=1)
        near[covered] = -1
        chosen.append(int(near.argmax()))
        covered.append(chosen[-1])
    assert class_context(KEY, pool, 5).indices.tolist() == chosen


def test_a_column_is_balanced_over_predicted_classes():
    p = np.full((6, 2), 0.1)
    p[[0, 1, 2, 5], 0], p[[3, 4], 1] = 0.9, 0.9
    pool = Pool(probabilities=p, columns={"doubt": np.arange(6, dtype=np.float32)})
    chosen = balanced(column("doubt"))(KEY, pool, 4).indices
    assert sorted(chosen.tolist()) == [2, 3, 4, 5]
