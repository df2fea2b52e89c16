"""Losses against PyTorch and against sums written out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densejax.losses import (
    grouped_l2,
    info_nce,
    nt_xent,
    soft_dice,
    unit_rows,
    weighted_cross_entropy,
)


def case(seed, shape=(2, 3, 4, 5), classes=4, scale=3.0):
    random = np.random.default_rng(seed)
    logits = (scale * random.normal(size=(*shape, classes))).astype(np.float32)
    labels = random.integers(-1, classes, shape).astype(np.int32)
    weights = random.uniform(0, 3, shape).astype(np.float32)
    return logits, labels, weights


def by_hand(logits, labels, weights, reduction):
    total, number = 0.0, 0
    for place in np.ndindex(labels.shape):
        if labels[place] >= 0:
            row = logits[place].astype(np.float64)
            total += weights[place] * (np.log(np.sum(np.exp(row))) - row[labels[place]])
            number += 1
    return total if reduction == "sum" else total / number


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_cross_entropy_is_the_formula(reduction):
    logits, labels, weights = case(0)
    found = weighted_cross_entropy(logits, labels, weights=weights, reduction=reduction)
    np.testing.assert_allclose(found, by_hand(logits, labels, weights, reduction), rtol=1e-5)
    plain = weighted_cross_entropy(logits, labels, reduction=reduction)
    ones = np.ones_like(weights)
    np.testing.assert_allclose(plain, by_hand(logits, labels, ones, reduction), rtol=1e-5)
    assert found.shape == () and found.dtype == jnp.float32


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_cross_entropy_and_its_gradient_agree_with_torch(reduction):
    torch = pytest.importorskip("torch")
    logits, labels, weights = case(1)
    theirs = torch.tensor(logits, requires_grad=True)
    rows = torch.nn.functional.cross_entropy(
        theirs.reshape(-1, logits.shape[-1]),
        torch.tensor(labels, dtype=torch.long).reshape(-1),
        reduction="none",
        ignore_index=-1,
    )
    loss = (rows * torch.tensor(weights).reshape(-1)).sum()
    if reduction == "mean":
        loss = loss / int((labels >= 0).sum())
    loss.backward()
    ours, gradient = jax.value_and_grad(weighted_cross_entropy)(
        jnp.asarray(logits), labels, weights=weights, reduction=reduction
    )
    np.testing.assert_allclose(ours, loss.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, theirs.grad.numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("bad", [1e4, np.inf, np.nan])
def test_what_is_not_labelled_never_counts(bad):
    logits, labels, weights = case(2)
    other, other_weights = logits.copy(), weights.copy()
    other[labels < 0] = bad if np.isfinite(bad) else 7.0
    # An infinite weight where nothing is labelled must not count either.
    other_weights[labels < 0] = bad
    assert weighted_cross_entropy(logits, labels, weights=weights) == weighted_cross_entropy(
        other, labels, weights=other_weights
    )
    gradient = jax.grad(weighted_cross_entropy)(jnp.asarray(logits), labels, weights=weights)
    assert not np.any(np.asarray(gradient)[labels < 0])
    assert np.all(np.any(np.asarray(gradient)[labels >= 0], axis=-1))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_nothing_labelled_is_no_loss(reduction):
    logits, labels, weights = case(3)
    nothing = np.full_like(labels, -1)
    value, gradient = jax.value_and_grad(weighted_cross_entropy)(
        jnp.asarray(logits), nothing, weights=weights, reduction=reduction
    )
    assert value == 0 and not np.any(gradient)


@pytest.mark.parametrize("size", [1e2, 1e4, 1e30])
def test_extreme_logits_have_finite_gradients(size):
    _, labels, weights = case(4)
    random = np.random.default_rng(4)
    logits = (size * random.choice([-1.0, 0.0, 1.0], (*labels.shape, 4))).astype(np.float32)
    value, gradient = jax.value_and_grad(weighted_cross_entropy)(
        jnp.asarray(logits), labels, weights=weights
    )
    assert np.isfinite(value) and np.all(np.isfinite(gradient))
    # A confident miss costs the distance between the two logits.
    one = weighted_cross_entropy(jnp.float32([[size, -size]]), np.int32([1]))
    np.testing.assert_allclose(one, 2 * size, rtol=1e-6)


def test_cross_entropy_compiles_and_maps(assert_modes_agree):
    logits, labels, weights = case(5)

    def of_arrays(logits, labels, weights):
        return weighted_cross_entropy(logits, labels, weights=weights)

    assert_modes_agree(of_arrays, logits, labels, weights)


def dice_by_hand(logits, labels, epsilon):
    """Class after class over the labelled voxels of the batch, float64."""
    kept = labels >= 0
    rows = logits[kept].astype(np.float64)
    shares = np.exp(rows - rows.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    found = []
    for index in range(logits.shape[-1]):
        own = labels[kept] == index
        common = shares[own, index].sum()
        total = shares[:, index].sum() + own.sum()
        found.append((2 * common + epsilon) / (total + epsilon))
    return 1 - np.mean(found)


@pytest.mark.parametrize("epsilon", [1e-5, 1.0])
@pytest.mark.parametrize("absent", [False, True])
def test_soft_dice_is_the_formula(absent, epsilon):
    logits, labels, _ = case(6)
    if absent:
        labels[labels == 2] = 0
    found = soft_dice(logits, labels, epsilon=epsilon)
    expected = dice_by_hand(logits, labels, epsilon)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert found.shape == () and found.dtype == jnp.float32


def test_soft_dice_and_its_gradient_agree_with_torch():
    torch = pytest.importorskip("torch")
    logits, labels, _ = case(8)
    theirs = torch.tensor(logits, requires_grad=True)
    kept = torch.tensor(labels >= 0)
    shares = torch.softmax(theirs, -1)[kept]
    truth = torch.nn.functional.one_hot(torch.tensor(labels, dtype=torch.long)[kept], 4)
    dice = (2 * (shares * truth).sum(0) + 1e-5) / (shares.sum(0) + truth.sum(0) + 1e-5)
    loss = 1 - dice.mean()
    loss.backward()
    ours, gradient = jax.value_and_grad(soft_dice)(jnp.asarray(logits), labels)
    np.testing.assert_allclose(ours, loss.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, theirs.grad.numpy(), rtol=1e-4, atol=1e-7)


def test_soft_dice_of_the_truth_is_nothing_and_of_the_opposite_is_one():
    _, labels, _ = case(9, classes=2)
    truth = 50.0 * np.eye(2, dtype=np.float32)[labels.clip(0)]
    np.testing.assert_allclose(soft_dice(truth, labels), 0, atol=1e-6)
    np.testing.assert_allclose(soft_dice(-truth, labels), 1, atol=1e-6)


def test_the_sums_of_soft_dice_go_over_the_whole_batch():
    logits, labels, _ = case(10)
    as_one = soft_dice(logits.reshape(1, -1, 4), labels.reshape(1, -1))
    np.testing.assert_allclose(soft_dice(logits, labels), as_one, rtol=1e-6)
    each = [float(soft_dice(logits[i : i + 1], labels[i : i + 1])) for i in range(2)]
    assert abs(np.mean(each) - float(as_one)) > 1e-4


@pytest.mark.parametrize("bad", [1e4, np.inf, np.nan])
def test_what_is_not_labelled_never_counts_in_soft_dice(bad):
    logits, labels, _ = case(11)
    other = logits.copy()
    other[labels < 0] = bad
    value, gradient = (
        np.asarray(found) for found in jax.value_and_grad(soft_dice)(jnp.asarray(other), labels)
    )
    assert value == soft_dice(logits, labels)
    assert not np.any(gradient[labels < 0])
    assert np.all(np.isfinite(gradient)) and np.all(np.any(gradient[labels >= 0], axis=-1))


def test_nothing_labelled_is_no_soft_dice():
    logits, labels, _ = case(12)
    value, gradient = jax.value_and_grad(soft_dice)(jnp.asarray(logits), np.full_like(labels, -1))
    assert value == 0 and not np.any(gradient)


def test_soft_dice_compiles_and_maps(assert_modes_agree):
    logits, labels, _ = case(13)
    assert_modes_agree(soft_dice, logits, labels)


PARAMS = {
    "first": {"kernel": np.float32([[1, 2], [3, 4]]), "bias": np.float32([5])},
    "head": {"kernel": np.float32([6, 7])},
}


def group(path):
    return None if path[-1] == "bias" else path[0]


def test_grouped_l2_by_hand():
    found = grouped_l2(PARAMS, {"first": 0.1, "head": 0.01}, group)
    np.testing.assert_allclose(found, 0.1 * (1 + 4 + 9 + 16) + 0.01 * (36 + 49), rtol=1e-6)
    gradient = jax.grad(lambda p: grouped_l2(p, {"first": 0.1, "head": 0.01}, group))(PARAMS)
    np.testing.assert_allclose(gradient["first"]["kernel"], 0.2 * PARAMS["first"]["kernel"])
    assert not np.any(gradient["first"]["bias"])


def test_grouped_l2_sees_the_whole_path():
    seen = []
    grouped_l2(PARAMS, {}, lambda path: seen.append(path))
    assert sorted(seen) == [("first", "bias"), ("first", "kernel"), ("head", "kernel")]


def test_a_group_without_a_factor_is_refused():
    with pytest.raises(KeyError, match="head"):
        grouped_l2(PARAMS, {"first": 0.1}, group)


def rows(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def nt_xent_by_hand(first, second, temperature):
    """Equation 1 of SimCLR, pair after pair."""
    z = np.concatenate([first, second]).astype(np.float64)
    b, total = len(first), 0.0
    for i in range(2 * b):
        similar = [z[i] @ z[k] / np.linalg.norm(z[i]) / np.linalg.norm(z[k]) for k in range(2 * b)]
        own = similar[(i + b) % (2 * b)] / temperature
        others = [np.exp(s / temperature) for k, s in enumerate(similar) if k != i]
        total -= np.log(np.exp(own) / sum(others))
    return total / (2 * b)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_nt_xent_is_the_formula(temperature):
    first, second = rows(0, 5, 3), 7 * rows(1, 5, 3)
    found = nt_xent(first, second, temperature=temperature)
    np.testing.assert_allclose(found, nt_xent_by_hand(first, second, temperature), rtol=1e-5)
    assert found.shape == () and found.dtype == jnp.float32


def test_nt_xent_and_its_gradient_agree_with_torch():
    torch = pytest.importorskip("torch")
    first, second = rows(2, 6, 8), rows(3, 6, 8)
    theirs = [torch.tensor(x, requires_grad=True) for x in (first, second)]
    z = torch.nn.functional.normalize(torch.cat(theirs), dim=1)
    logits = (z @ z.T / 0.5).masked_fill(torch.eye(12, dtype=torch.bool), float("-inf"))
    partners = torch.cat([torch.arange(6, 12), torch.arange(6)])
    loss = torch.nn.functional.cross_entropy(logits, partners)
    loss.backward()
    ours, gradients = jax.value_and_grad(nt_xent, argnums=(0, 1))(first, second)
    np.testing.assert_allclose(ours, loss.item(), rtol=1e-5)
    for mine, other in zip(gradients, theirs, strict=True):
        np.testing.assert_allclose(mine, other.grad.numpy(), rtol=1e-4, atol=1e-6)


def test_info_nce_agrees_with_torch_and_keys_get_no_gradient():
    torch = pytest.importorskip("torch")
    normalise = torch.nn.functional.normalize
    queries, keys, queue = rows(4, 6, 8), rows(5, 6, 8), np.asarray(unit_rows(rows(6, 20, 8)))
    theirs = torch.tensor(queries, requires_grad=True)
    q, k = normalise(theirs, dim=1), normalise(torch.tensor(keys), dim=1)
    positive = torch.einsum("nc,nc->n", q, k).unsqueeze(-1)
    logits = torch.cat([positive, q @ torch.tensor(queue).T], dim=1) / 0.2
    loss = torch.nn.functional.cross_entropy(logits, torch.zeros(6, dtype=torch.long))
    loss.backward()
    ours, gradients = jax.value_and_grad(info_nce, argnums=(0, 1, 2))(queries, keys, queue)
    np.testing.assert_allclose(ours, loss.item(), rtol=1e-5)
    np.testing.assert_allclose(gradients[0], theirs.grad.numpy(), rtol=1e-4, atol=1e-6)
    assert not np.any(gradients[1]) and not np.any(gradients[2])


def test_contrastive_losses_ignore_lengths_and_the_order_of_pairs():
    first, second, order = rows(7, 6, 4), rows(8, 6, 4), np.array([3, 1, 5, 0, 4, 2])
    np.testing.assert_allclose(
        nt_xent(first, second), nt_xent(3 * second[order], first[order]), rtol=1e-6
    )
    queue = np.asarray(unit_rows(rows(9, 10, 4)))
    np.testing.assert_allclose(
        info_nce(first, second, queue), info_nce(2 * first, 5 * second, queue[::-1]), rtol=1e-6
    )


def test_rows_of_zeros_have_finite_gradients():
    zeros = np.zeros((3, 4), np.float32)
    assert not np.any(unit_rows(zeros))
    for loss in (lambda x: nt_xent(x, x), lambda x: info_nce(x, x, rows(0, 2, 4))):
        value, gradient = jax.value_and_grad(loss)(jnp.asarray(zeros))
        assert np.isfinite(value) and np.all(np.isfinite(gradient))


def test_contrastive_losses_compile_and_map(assert_modes_agree):
    first, second, temperature = rows(1, 4, 3), rows(2, 4, 3), np.float32(0.4)
    assert_modes_agree(lambda a, b, t: nt_xent(a, b, temperature=t), first, second, temperature)
    queue = np.asarray(unit_rows(rows(3, 8, 3)))
    assert_modes_agree(lambda a, b, q: info_nce(a, b, q), first, second, queue)


def test_contrastive_shapes_are_checked():
    with pytest.raises(ValueError, match=r"\(4, 3\).*\(5, 3\)"):
        nt_xent(rows(0, 4, 3), rows(0, 5, 3))
    with pytest.raises(ValueError, match=r"\(8, 2\)"):
        info_nce(rows(0, 4, 3), rows(0, 4, 3), rows(0, 8, 2))
