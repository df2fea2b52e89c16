"""Problems and minima of a folder, verdicts by interval, class probabilities on a grid."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, softmax

from densejax.data.points import split, swiss_roll
from densejax.minima.point_nets import (
    PointNet,
    class_probabilities,
    load_problem,
    no_points,
    plane_grid,
    save_problem,
)
from densejax.minima.reading import Basin, Minimum, column, measure_basins, read_minima
from densejax.minima.report import compare_shares
from densejax.models.mlp import MLP
from densejax.training.checkpoint import save_tree


def make_problem():
    roll = swiss_roll(jax.random.key(0), 20)
    train, test = split(jax.random.key(1), roll, (24, 16))
    return PointNet(train, test, no_points(), (5, 4), initialiser="glorot_normal")


def test_loss_is_binary_cross_entropy():
    torch = pytest.importorskip("torch")
    problem = make_problem()
    variables = problem.init_variables(jax.random.key(2))
    odds = torch.tensor(np.asarray(problem.model.apply(variables, problem.train.points)[0])[:, 0])
    labels = torch.tensor(np.asarray(problem.train.labels)).float()
    expected = torch.nn.functional.binary_cross_entropy_with_logits(odds, labels)
    assert float(problem.loss(variables)) == pytest.approx(float(expected), rel=1e-5)
    hits = ((odds > 0).float() == labels).float().mean()
    assert float(problem.accuracy(variables, problem.train)) == pytest.approx(float(hits))


def test_a_folder_keeps_its_problem(tmp_path):
    problem = make_problem()
    save_problem(tmp_path, problem)
    save_problem(tmp_path, problem)
    again = load_problem(tmp_path)
    variables = problem.init_variables(jax.random.key(2))
    assert again.model == problem.model and len(again.poison) == 0
    assert float(again.loss(variables)) == float(problem.loss(variables))
    other = PointNet(problem.test, problem.train, problem.poison, problem.widths)
    with pytest.raises(ValueError, match="another problem: train_points differs"):
        save_problem(tmp_path, other)
    with pytest.raises(FileNotFoundError, match=r"problem\.npz does not exist"):
        load_problem(tmp_path / "elsewhere")
    np.savez(tmp_path / "problem.npz", train_points=np.zeros((1, 2)))
    with pytest.raises(ValueError, match=r"lacks \['network', 'poison_labels'"):
        load_problem(tmp_path)


def test_minima_of_a_folder(tmp_path):
    problem = make_problem()
    save_problem(tmp_path, problem)
    with pytest.raises(FileNotFoundError, match="no instance that is done or failed"):
        read_minima(tmp_path)
    kept = {}
    for number, name in enumerate(("0001,poison=0.3", "0000,poison=0.3", "0002,poison=0")):
        kept[name] = problem.init_variables(jax.random.key(number))
        save_tree(tmp_path / "seeds" / name / "last", kept[name])
        (tmp_path / "seeds" / name / "DONE").write_text("{}")
    (tmp_path / "seeds" / "0007,poison=0.3").mkdir()
    (tmp_path / "seeds" / "0007,poison=0.3" / "FAILED").write_text("{}")
    _, minima, failed = read_minima(tmp_path)
    assert [one.name for one in minima] == ["0002,poison=0", "0000,poison=0.3", "0001,poison=0.3"]
    assert failed == ["0007,poison=0.3"] and minima[1].poison == 0.3 and minima[1].seed == 0
    jax.tree.map(np.testing.assert_array_equal, minima[1].variables, kept["0000,poison=0.3"])
    expected = float(problem.loss(kept["0002,poison=0"]))
    assert minima[0].measures["train_loss"] == pytest.approx(expected, rel=1e-5)
    assert np.isnan(minima[0].measures["poison_accuracy"])
    (tmp_path / "seeds" / "notes").mkdir()
    (tmp_path / "seeds" / "notes" / "DONE").write_text("{}")
    with pytest.raises(ValueError, match=r"notes: expected a name such as"):
        read_minima(tmp_path)


def test_basins_are_kept_and_end_where_the_loss_is(tmp_path, capsys):
    problem = make_problem()
    all_of = [problem.init_variables(jax.random.key(number)) for number in range(3)]
    losses = [float(problem.loss(variables)) for variables in all_of]
    minima = [
        Minimum(f"{n:04d}", n, {}, jax.device_get(v), {"train_loss": loss})
        for n, (v, loss) in enumerate(zip(all_of, losses, strict=True))
    ]
    cutoff = float(np.sort(losses)[1]) + 0.02  # two of three lie below it
    options = {"folder": tmp_path, "directions": 6, "cutoff": cutoff, "span": 50.0}
    key = jax.random.key(5)
    basins = measure_basins(key, problem, minima, progress=False, **options)
    assert [one.radii is None for one in basins] == [loss >= cutoff for loss in losses]
    assert "radii of minima 1 to 2 of 2" in capsys.readouterr().out
    from densejax.landscape.basins import direction

    for one in basins:
        if one.radii is None:
            assert np.isnan(one.radius) and np.isnan(column([one], "jensen")[0])
            continue
        for number in range(6):
            if not one.radii.censored[number]:
                ray = direction(key, one.minimum.variables, number)
                far = float(one.radii.radius[number])
                moved = jax.tree.map(lambda p, d, r=far: p + r * d, one.minimum.variables, ray)
                assert float(problem.loss(moved)) == pytest.approx(cutoff, rel=1e-3)
    again = measure_basins(key, problem, minima, progress=False, **options)
    assert "radii of minima" not in capsys.readouterr().out
    for before, after in zip(basins, again, strict=True):
        if before.radii is not None:
            np.testing.assert_array_equal(before.radii.radius, after.radii.radius)
            assert before.radii.dimension == after.radii.dimension
            assert before.log_volume == after.log_volume
    with pytest.raises(ValueError, match="asked for are"):
        measure_basins(jax.random.key(6), problem, minima, progress=False, **options)


def test_claims_of_a_population_made_by_hand():
    """Radii that fall with poison and rise with test accuracy are seen to; the reverse is not."""

    def population(sign):
        basins = []
        for seed in range(6):
            for share in (0.0, 0.2, 0.4):
                accuracy = 1 - 2 * share - 0.001 * seed
                measures = {
                    "train_loss": 0.01 + 0.01 * share,
                    "train_accuracy": 1.0,
                    "test_accuracy": accuracy,
                    "poison_accuracy": accuracy,
                }
                minimum = Minimum("", seed, {"poison": share}, {}, measures)
                basins.append((minimum, 1 + sign * accuracy / 2))
        return basins

    def verdicts(sign):
        from densejax.landscape.basins import Radii, log_volume

        basins = []
        for minimum, radius in population(sign):
            some = np.full(4, radius) * np.array([0.99, 1, 1.005, 1.01])
            none = np.zeros(4, bool)
            radii = Radii(some, none, some, 0.1, 0.01, 9.0, 0.01, 1.25, dimension=50)
            volume = log_volume(jax.random.key(0), radii, bootstrap=2)
            basins.append(Basin(minimum, radii, volume))
        found = compare_shares(basins, published={"order": "figure 3.4", "accuracy": "7 %"})
        sources = {one.claim: one.published for one in found}
        assert sources["radius falls with poison"] == "figure 3.4"
        assert sources["test accuracy with 0.4 of poison is below chance"] == "7 %"
        return {one.claim: one.verdict for one in found}

    wide = verdicts(1)
    assert set(wide.values()) == {"seen"} and len(wide) == 11
    narrow = verdicts(-1)
    assert narrow["radius rises with test accuracy"] == "not seen"
    assert narrow["test accuracy with 0.4 of poison is below chance"] == "seen"


def test_the_published_grid():
    x, y = plane_grid()
    assert len(x) == len(y) == 500 and x[0] == -18 and y[-1] == 18
    x, y = plane_grid(span=2, points=5, centre=(1, -1))
    np.testing.assert_allclose(x, [-1, 0, 1, 2, 3])
    np.testing.assert_allclose(y, [-3, -2, -1, 0, 1])


@pytest.mark.parametrize("chunk", [1, 7, 10**6])
def test_one_logit_is_the_odds_of_class_one(chunk):
    x, y = np.linspace(-1, 1, 4), np.linspace(0, 3, 5)
    found = class_probabilities(
        lambda w, points: points @ w, jnp.array([[2.0], [-1.0]]), x, y, chunk=chunk
    )
    assert found.shape == (4, 5, 2) and found.dtype == np.float32
    np.testing.assert_allclose(found[..., 1], expit(2 * x[:, None] - y), rtol=1e-5)
    np.testing.assert_allclose(found.sum(axis=-1), 1, rtol=1e-6)


def test_many_networks():
    model = MLP(3, widths=(6,))
    keys = jax.random.split(jax.random.key(0), 4)
    stacked = jax.vmap(lambda key: model.init(key, jnp.zeros((1, 2))))(keys)
    x, y = plane_grid(span=3, points=6)
    logits_of = lambda variables, points: model.apply(variables, points)[0]  # noqa: E731
    found = class_probabilities(logits_of, stacked, x, y, stacked=True, chunk=10)
    assert found.shape == (4, 6, 6, 3)
    third = jax.tree.map(lambda leaf: leaf[2], stacked)
    place = np.array([[x[1], y[4]]], np.float32)
    expected = softmax(np.asarray(model.apply(third, place)[0])[0])
    np.testing.assert_allclose(found[2, 1, 4], expected, rtol=1e-5)
    np.testing.assert_array_equal(found[2], class_probabilities(logits_of, third, x, y, chunk=10))


def test_grids_that_cannot_be():
    with pytest.raises(ValueError, match="grid of 1 points"):
        plane_grid(points=1)
    with pytest.raises(ValueError, match=r"grid_x \(2, 2\)"):
        class_probabilities(lambda w, p: p, {}, np.zeros((2, 2)), np.zeros(2))
    with pytest.raises(ValueError, match="chunk is 0"):
        class_probabilities(lambda w, p: p, {}, np.zeros(2), np.zeros(2), chunk=0)
