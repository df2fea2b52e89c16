"""Every strategy by its name: what it imports, and what it refuses instead of a wrong query."""

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import densejax as dj
from densejax.active import wrappers
from densejax.active.pool import Pool
from densejax.active.scores import evaluate, margin, ranked
from densejax.active.strategies import IN_ROUNDS, STRATEGIES, Options, in_rounds
from experiments import select

ROOT = Path(__file__).resolve().parents[3]
N, D, C, M = 40, 4, 3, 5
USED = {name: set(entry.options) - {"passes"} for name, entry in STRATEGIES.items()}
RADIUS = {"probcover": 0.7}


def world(scale=1.0, classes=C):
    random = np.random.default_rng(0)
    passes = random.dirichlet(np.ones(classes), (N, M)).astype(np.float32)
    return {
        "features": (scale * random.normal(size=(N, D))).astype(np.float32),
        "head": (random.normal(size=(D, classes)).astype(np.float32), np.zeros(classes)),
        "passes": passes,
        "probabilities": passes.mean(axis=1),
        "labels": np.arange(N) % classes,
        "labelled": np.arange(6),
    }


def arrays_of(name, given):
    """The arrays that a strategy needs: features and a head, where these will do."""
    ways = STRATEGIES[name].needs
    way = next((way for way in ways if set(way) >= {"features", "weights"}), ways[0])
    wanted = {"head" if need == "weights" else need for need in way}
    return {key: value for key, value in given.items() if key in wanted | {"labels", "labelled"}}


def ask(name, given, **more):
    options = more.pop("options", Options(radius=RADIUS.get(name)))
    return dj.active.select(name, budget=5, options=options, **given, **more)


LOADED = """
import sys
from experiments import select
config = select.Config(strategy={name!r}, features="F.npy", weights="W.npz")
select.build(config)
prefix = "densejax.active.strategies."
print(*sorted(name[len(prefix):] for name in sys.modules if name.startswith(prefix)))
heavy = ("flax", "optax", "matplotlib", "sklearn", "tensorstore", "orbax")
print(*(name for name in heavy if name in sys.modules))
"""


@pytest.mark.parametrize(
    ("name", "files"),
    [("base", "base"), ("margin", ""), ("badge", "badge greedy"), ("bait", "bait")],
)
def test_a_strategy_is_imported_alone(name, files):
    done = subprocess.run(
        [sys.executable, "-c", LOADED.format(name=name)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == [files, ""]


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_query_by_name_has_finite_scores_and_no_labelled_sample(name):
    found = ask(name, arrays_of(name, world()))
    assert len(set(found.indices.tolist())) == 5 and (found.indices >= 6).all()
    # Of the balancing sampler, those drawn at random have none.
    assert np.isfinite(found.scores).all() or name == "balancing"


@pytest.mark.parametrize("name", STRATEGIES)
def test_fewer_than_two_classes_are_refused(name):
    given = world()
    column = {"probabilities": np.ones((N, 1)), "passes": np.ones((N, M, 1))}
    for more in (
        {"features": given["features"], "head": (given["head"][0][:, :1], np.zeros(1))},
        {"features": given["features"], "logits": given["features"][:, :1]},
        {"features": given["features"], **column},
    ):
        with pytest.raises(ValueError, match=r"found 1 class, expected 2 or more|needs --"):
            ask(name, more | {"labels": np.zeros(N, int)})
    with pytest.raises(ValueError, match=r"found 1 class, .* -z/2 and z/2"):
        Pool(kernel=np.ones((D, 1)), features=given["features"])


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("scale", [1e-30, 1e18, 1e20, 3e37])
@pytest.mark.parametrize("fresh", [False, True])
def test_what_overflows_is_refused_and_never_a_score(name, scale, fresh):
    given = arrays_of(name, world(scale))
    if fresh:
        given.pop("labelled")
    try:
        found = ask(name, given)
    except ValueError as error:
        assert "not finite" in str(error)
        return
    scores = found.scores[1:] if fresh and name == "core_set" else found.scores
    assert np.isfinite(scores).all() or name == "balancing"


@pytest.mark.parametrize("name", ["core_set", "badge", "k_means", "cluster_margin", "bait"])
def test_squares_that_overflow_are_refused_with_what_to_do(name):
    given = arrays_of(name, world())
    given["features"][9] = 1e20
    with pytest.raises(ValueError, match=r"pool features: 1 rows of .* row 9; scale the features"):
        ask(name, given)


@pytest.mark.parametrize("name", ["mase", "base"])
def test_a_head_without_boundaries_is_refused(name):
    given = arrays_of(name, world())
    given["head"] = np.ones((D, C), np.float32), np.arange(C)
    with pytest.raises(ValueError, match=rf"{name}: \d of the 5 samples chosen .* with inf"):
        ask(name, given)


def test_a_class_that_is_never_predicted_has_no_region_to_be_near():
    given = arrays_of("base", world())
    kernel = np.round(8 * given["head"][0]) / 4  # so that means are exact
    kernel[:, 2] = kernel[:, :2].mean(axis=1)
    given["head"] = kernel, np.array([0, 0, -1e6])
    with pytest.raises(ValueError, match=r"base: 1 of the 5 .* it never predicts"):
        ask("base", given, options=Options(boundary="exact"))
    assert np.isfinite(ask("base", given).scores).all()


@pytest.mark.parametrize("name", STRATEGIES)
def test_what_is_no_distribution_is_refused(name):
    given = world()
    given.pop("head")
    for array in ("probabilities", "passes"):
        wrong = given | {array: given[array] * 3}
        with pytest.raises(ValueError, match=rf"{array}: row 0 is no distribution|needs --"):
            ask(name, wrong)


def test_a_pool_of_no_distributions_is_refused_where_it_is_read():
    given = world()
    low, high = given["probabilities"] - 0.5, given["probabilities"] * 2
    for wrong in (low, high):
        pool = Pool(probabilities=wrong)
        with pytest.raises(ValueError, match="pool probabilities: row 0 is no distribution"):
            ranked(margin())(jax.random.key(0), pool, 3)
        with pytest.raises(ValueError, match="pool probabilities: row 7 is no distribution"):
            evaluate(margin(), pool, rows=np.array([7, 9]))
    parts = wrappers.partitioned(ranked(margin()), partitions=2)
    with pytest.raises(ValueError, match=r"pool probabilities: .* no distribution"):
        parts(jax.random.key(0), Pool(probabilities=high), 3)


SAID = {
    "order": "block",
    "boundary": "exact",
    "radius": 0.5,
    "partitions": 3,
    "subsample": {"max_labelled": 3},
    "dropout": 0.5,
    "passes": 3,
    "odin_temperature": 1.0,
    "odin_step": 0.1,
    "vaal": {"steps": 3},
}


@pytest.mark.parametrize("option", SAID)
@pytest.mark.parametrize("name", STRATEGIES)
def test_an_option_that_a_strategy_does_not_use_is_refused(name, option):
    given = arrays_of(name, world())
    options = Options(**{"radius": RADIUS.get(name), option: SAID[option]})
    if option in USED[name]:
        assert len(ask(name, given, options=options).indices) == 5
        return
    users = [other for other, entry in IN_ROUNDS.items() if option in entry.options]
    with pytest.raises(ValueError, match=rf"{name}: the option {option} \(.* is not used") as error:
        ask(name, given, options=options)
    assert all(user in str(error.value) for user in users)


@pytest.mark.parametrize("name", STRATEGIES)
def test_power_and_stride_are_refused_but_of_scores(name):
    given = arrays_of(name, world())
    for more in ({"power": 1.0}, {"stride": 2}):
        if "power" in more and name.endswith("_logit"):  # logits are below 0
            continue
        if STRATEGIES[name].score:
            assert len(ask(name, given, **more).indices) == 5
        else:
            with pytest.raises(ValueError, match=rf"of scores, confidence.*; {name} is none"):
                ask(name, given, **more)


def test_a_radius_of_zero_is_not_taken_for_none():
    for name in ("max_herding", "uncertainty_herding"):
        with pytest.raises(ValueError, match="radius 0"):
            ask(name, arrays_of(name, world()), options=Options(radius=0.0))


def test_rounds_refuse_an_option_that_none_of_their_strategies_uses():
    names = ["base", "random"]
    assert list(in_rounds(names, Options(order="block", dropout=0.1))) == names
    for option in ("radius", "partitions", "passes", "odin_step", "vaal"):
        with pytest.raises(ValueError, match=rf"base, random: the option {option} "):
            in_rounds(names, Options(**{option: SAID[option]}))
    in_rounds(["bald"], Options(passes=3, dropout=0.5))


# ---- the command line ----


@pytest.fixture
def folder(tmp_path):
    given = world()
    np.save(tmp_path / "F.npy", given["features"])
    np.savez(tmp_path / "W.npz", kernel=given["head"][0], bias=given["head"][1])
    np.savez(tmp_path / "one.npz", kernel=given["head"][0][:, :1], bias=np.zeros(1))
    np.save(tmp_path / "P.npy", given["probabilities"])
    np.save(tmp_path / "L.npy", np.arange(6))
    return tmp_path


def command(folder, **more):
    files = {"features": "F.npy", "weights": "W.npz", "labelled": "L.npy"} | {
        name: value for name, value in more.items() if str(value).endswith((".npy", ".npz"))
    }
    paths = {name: str(folder / file) for name, file in files.items()}
    rest = {name: value for name, value in more.items() if name not in files}
    return select.Config(**paths, out=str(folder / "Q.csv"), budget=5, **rest)


@pytest.mark.parametrize("strategy", ["margin", "base", "core_set"])
def test_one_logit_is_refused_with_its_file(folder, strategy):
    with pytest.raises(ValueError, match=r"one\.npz: found 1 class, .* -z/2 and z/2"):
        select.run(command(folder, strategy=strategy, weights="one.npz"))
    assert not (folder / "Q.csv").exists()


@pytest.mark.parametrize("strategy", ["badge", "core_set", "k_means"])
def test_features_that_overflow_are_refused_with_their_file(folder, strategy):
    np.save(folder / "big.npy", np.full((N, D), 1e20, np.float32))
    with pytest.raises(ValueError, match=r"big\.npy: \d+ rows .* row \d; scale the features"):
        select.run(command(folder, strategy=strategy, features="big.npy"))
    assert not (folder / "Q.csv").exists()


@pytest.mark.parametrize(
    ("strategy", "more", "message"),
    [
        ("margin", {"radius": 0.5}, "margin: the option radius .* probcover, max_herding"),
        ("core_set", {"order": "block"}, "core_set: the option order .* looked at by base"),
        ("mase", {"boundary": "exact"}, "mase: the option boundary .* looked at by base"),
        ("base", {"power": 1.0}, "base is none"),
    ],
)
def test_a_flag_that_the_strategy_does_not_use_is_refused(folder, strategy, more, message):
    with pytest.raises(ValueError, match=message):
        select.run(command(folder, strategy=strategy, **more))
    assert not (folder / "Q.csv").exists()
    assert len(select.run(command(folder, strategy=strategy)).indices) == 5


def test_the_order_of_balanced_classes_is_of_any_strategy(folder):
    config = command(folder, strategy="margin", class_balanced=True, order="block")
    assert len(select.run(config).indices) == 5
