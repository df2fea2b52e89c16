"""VAAL: losses and one whole step as PyTorch's, what learns from what, and pictures of a new kind.

The small worlds share shapes and settings, so that one compiled program serves most tests.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densejax.active.pool import Pool
from densejax.active.strategies import vaal as module
from densejax.active.strategies.vaal import CIFAR, IMAGENET, vaal
from densejax.models.vae import VAE, Discriminator

KEY = jax.random.key(0)
# A divergence that leaves the codes something to say of so few numbers a picture.
OPTIONS = {"steps": 150, "widths": (8, 16), "batch": 32, "latent": 8, "kl": "mean", "beta": 0.01}
FAST = OPTIONS | {"steps": 3}
SMALL = module._Settings(
    vae=VAE(channels=2, window=8, latent=3, widths=(4, 5)),
    discriminator=Discriminator(widths=(6, 7)),
    adversary=2.5,
    beta=0.7,
    vae_rate=1e-3,
    discriminator_rate=2e-3,
)
vae_step, discriminator_step = jax.jit(module._vae_step), jax.jit(module._discriminator_step)


def world(seed, *, absent, n=200, side=8):
    """Ramps along y, a fifth along x; labelled are 60 at random, ``absent`` without the fifth."""
    rng = np.random.default_rng(seed)
    kind = rng.random(n) < 0.2
    ramp = np.broadcast_to(np.linspace(-1, 1, side)[:, None], (side, side))
    images = np.where(kind[:, None, None], ramp.T, ramp) * rng.uniform(60, 100, (n, 1, 1)) + 128
    images = np.clip(images + rng.normal(size=images.shape) * 10, 0, 255).astype(np.uint8)
    labelled = rng.permutation(n) < 60
    return {"images": images[..., None], "labelled": labelled & ~(absent & kind)}, kind


def numbers(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_losses_are_those_of_pytorch():
    torch = pytest.importorskip("torch")
    nn = torch.nn
    x, again, mean, log_variance = (
        numbers(i, 4, *s) for i, s in enumerate([(3, 3, 2)] * 2 + [(5,)] * 2)
    )
    normal = torch.distributions.Normal
    q = normal(torch.tensor(mean), torch.tensor(log_variance / 2).exp())
    kl = torch.distributions.kl_divergence(q, normal(0.0, 1.0)).sum(1)
    error = nn.functional.mse_loss(torch.tensor(again), torch.tensor(x))
    found = module._vae_loss(x, again, mean, log_variance)
    np.testing.assert_allclose(found, error + kl.sum(), rtol=1e-5)
    found = module._vae_loss(x, again, mean, log_variance, kl="mean", beta=0.3)
    np.testing.assert_allclose(found, error + 0.3 * kl.mean(), rtol=1e-5)
    labelled, unlabelled = numbers(4, 6), numbers(5, 3)
    p, q = torch.sigmoid(torch.tensor(labelled)), torch.sigmoid(torch.tensor(unlabelled))
    bce = nn.BCELoss()
    ones, zeros = torch.ones_like, torch.zeros_like
    found = module._adversarial_loss(labelled, unlabelled)
    np.testing.assert_allclose(found, bce(p, ones(p)) + bce(q, ones(q)), rtol=1e-5)
    found = module._discriminator_loss(labelled, unlabelled)
    np.testing.assert_allclose(found, bce(p, ones(p)) + bce(q, zeros(q)), rtol=1e-5)


class Reference:
    """The same networks in PyTorch, in training mode, of the parameters of a state."""

    def __init__(self, torch, state):
        self.torch, self.f = torch, torch.nn.functional
        copy = lambda a: torch.tensor(np.array(a), requires_grad=True)  # noqa: E731
        self.vae = jax.tree.map(copy, state.vae)
        self.judge = jax.tree.map(copy, state.discriminator)
        self.stats = jax.tree.map(lambda a: torch.tensor(np.array(a)), state.stats)

    def norm(self, name, x):
        p, s = self.vae[name], self.stats[name]
        return self.f.batch_norm(
            x, s["mean"], s["var"], p["scale"], p["bias"], training=True
        ).relu()

    def encode(self, x):
        for i in range(2):
            w = self.vae[f"down_{i}"]["kernel"].permute(3, 2, 0, 1)
            x = self.norm(f"down_norm_{i}", self.f.conv2d(x, w, stride=2, padding=1))
        flat = x.permute(0, 2, 3, 1).flatten(1)
        return [self.dense(self.vae[name], flat) for name in ("mean", "log_variance")]

    def decode(self, code):
        x = self.dense(self.vae["expand"], code).reshape(-1, 4, 4, 5).permute(0, 3, 1, 2)
        w = self.vae["up_0"]["kernel"].flip(0, 1).permute(2, 3, 0, 1)
        x = self.norm("up_norm_0", self.f.conv_transpose2d(x, w, stride=2, padding=1))
        return self.dense(self.vae["paint"], x.permute(0, 2, 3, 1))

    def dense(self, p, x):
        return x @ p["kernel"] + p["bias"]

    def probability(self, code):
        x = self.dense(self.judge["linear0"], code).relu()
        x = self.dense(self.judge["linear1"], x).relu()
        return self.torch.sigmoid(self.dense(self.judge["head"], x)[:, 0])


def close(found, expected, *, name, atol=1e-5):
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True
    ):
        b = b.detach().numpy()
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=atol, err_msg=f"{name} {path}")


def begin():
    labelled, unlabelled = numbers(0, 6, 8, 8, 2), numbers(1, 5, 8, 8, 2) + 1
    return jax.jit(module._start)(KEY, settings=SMALL), labelled, unlabelled


def test_both_steps_are_those_of_the_released_loop_in_pytorch():
    torch = pytest.importorskip("torch")
    state, *pictures = begin()
    net = Reference(torch, state)
    seen = [torch.tensor(x).permute(0, 3, 1, 2) for x in pictures]
    bce, ones, zeros = torch.nn.BCELoss(), torch.ones_like, torch.zeros_like
    key, total, judged = jax.random.key(5), 0, []
    for part, x, picture in zip(jax.random.split(key), seen, pictures, strict=True):
        variables = {"params": state.vae, "batch_stats": state.stats}
        _, out = SMALL.vae.apply(
            variables, picture, train=True, mutable=["batch_stats"], rngs={"latent": part}
        )[0]
        noise = (out["code"] - out["mean"]) / jnp.exp(0.5 * out["log_variance"])
        mean, log_variance = net.encode(x)
        again = net.decode(mean + torch.exp(0.5 * log_variance) * torch.tensor(np.array(noise)))
        kl = -0.5 * torch.sum(1 + log_variance - mean**2 - log_variance.exp())
        total = total + ((again.permute(0, 3, 1, 2) - x) ** 2).mean() + 0.7 * kl
        judged.append(net.probability(mean))
    total = total + 2.5 * (bce(judged[0], ones(judged[0])) + bce(judged[1], ones(judged[1])))
    after, loss = vae_step(key, state, *pictures, settings=SMALL)
    np.testing.assert_allclose(loss, total.item(), rtol=1e-4)
    leaves = jax.tree.leaves(net.vae)
    grads = torch.autograd.grad(total, leaves)
    # Adam's first moment after one step is a tenth of the gradient.
    close(after.vae_adam.mu, [g / 10 for g in grads], name="gradient")
    close(after.stats, net.stats, name="moments")

    # Adam's first step is the rate times the sign, but where the gradient is near zero.
    for old, new, g in zip(
        jax.tree.leaves(state.vae), jax.tree.leaves(after.vae), grads, strict=True
    ):
        big = np.abs(g.numpy()) > 1e-3
        np.testing.assert_allclose((new - old)[big], -1e-3 * np.sign(g.numpy()[big]), rtol=1e-2)

    net = Reference(torch, after)
    with torch.no_grad():
        means = [net.encode(x)[0] for x in seen]
    p, q = (net.probability(mean) for mean in means)
    total = bce(p, ones(p)) + bce(q, zeros(q))
    last, loss = discriminator_step(after, *pictures, settings=SMALL)
    np.testing.assert_allclose(loss, total.item(), rtol=1e-4)
    grads = torch.autograd.grad(total, jax.tree.leaves(net.judge))
    close(last.discriminator_adam.mu, [g / 10 for g in grads], name="gradient")
    close(last.stats, net.stats, name="moments")


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


def test_each_step_changes_its_own_network_only():
    state, *pictures = begin()
    one, _ = vae_step(KEY, state, *pictures, settings=SMALL)
    assert not same(one.vae, state.vae)
    assert same(one.discriminator, state.discriminator)
    assert same(one.discriminator_adam, state.discriminator_adam)
    two, _ = discriminator_step(one, *pictures, settings=SMALL)
    assert not same(two.discriminator, one.discriminator)
    assert same(two.vae, one.vae) and same(two.vae_adam, one.vae_adam)


def test_the_adversary_reaches_the_autoencoder_and_makes_codes_look_labelled():
    state, *pictures = begin()
    plain = dataclasses.replace(SMALL, adversary=0.0)
    without, _ = vae_step(KEY, state, *pictures, settings=plain)
    with_it, _ = vae_step(KEY, state, *pictures, settings=SMALL)
    assert not same(without.vae_adam.mu, with_it.vae_adam.mu)
    # The decoder hears nothing of it.
    for name in ("expand", "up_0", "up_norm_0", "paint"):
        for a, b in zip(
            *(jax.tree.leaves(s.vae_adam.mu[name]) for s in (without, with_it)), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_kind_absent_from_the_labelled_is_chosen_first(seed):
    known, kind = world(seed, absent=True)
    found = vaal(jax.random.key(seed), Pool(**known), 15, **OPTIONS)
    # A random query has a quarter of them.
    assert kind[found.indices].mean() > 0.75
    assert (np.diff(found.scores) >= 0).all()
    assert found.indices.dtype == np.int64 and found.scores.dtype == np.float32


def test_of_labelled_samples_like_the_others_the_kind_does_not_matter():
    rates = []
    for seed in range(4):
        known, kind = world(seed, absent=False)
        found = vaal(jax.random.key(seed), Pool(**known), 15, **OPTIONS)
        rates.append(kind[found.indices].mean())
    assert np.mean(rates) < 0.6


def test_the_same_key_gives_the_same_query_and_only_of_what_is_free(tmp_path):
    known, _ = world(3, absent=False)
    held_out = ~known["labelled"] & (np.arange(200) % 3 == 0)
    pool = Pool(**known, held_out=held_out)
    budget = int(pool.available.sum())
    first = vaal(KEY, pool, budget, **FAST)
    np.testing.assert_array_equal(np.sort(first.indices), np.flatnonzero(pool.available))
    # What is held out is not looked at; where the pictures are doesn't matter.
    changed = known["images"].copy()
    changed[held_out] = 255 - changed[held_out]
    np.save(tmp_path / "images.npy", changed)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    for images in (known["images"], mapped, jnp.asarray(changed)):
        again = vaal(KEY, dataclasses.replace(pool, images=images), budget, **FAST)
        np.testing.assert_array_equal(again.indices, first.indices)
        np.testing.assert_array_equal(again.scores, first.scores)
    other = vaal(jax.random.key(1), pool, budget, **FAST)
    assert not np.array_equal(other.scores, first.scores)
    few = vaal(KEY, pool, 7, **FAST)
    np.testing.assert_array_equal(few.indices, first.indices[:7])


def test_later_rounds_of_a_pool_compile_nothing():
    known, _ = world(3, absent=False)
    found = vaal(KEY, Pool(**known), 5, **FAST)
    before = module._train._cache_size()
    labelled = known["labelled"].copy()
    labelled[found.indices] = True
    later = vaal(
        KEY,
        Pool(images=known["images"], labelled=labelled),
        5,
        **FAST | {"steps": 4, "adversary": 2.0},
    )
    assert module._train._cache_size() == before
    assert not set(later.indices) & set(np.flatnonzero(labelled))


def test_windows_of_large_pictures_and_every_option():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (12, 66, 65, 3), np.uint8)
    pool = Pool(images=images, labelled=np.arange(12) < 4)
    options = {"steps": 2, "batch": 2, "widths": (2,), **IMAGENET}
    options |= {"recipe": "cifar", "decay": "cosine", "mean": [0.5] * 3, "std": [0.25] * 3}
    found = vaal(KEY, pool, 8, **options)
    assert set(found.indices) == set(range(4, 12)) and np.isfinite(found.scores).all()


def test_published_options():
    assert CIFAR == {"latent": 32, "vae_rate": 5e-4, "discriminator_rate": 5e-4, "adversary": 1}
    assert IMAGENET == {"latent": 64, "vae_rate": 5e-5, "discriminator_rate": 1e-3, "adversary": 10}
    assert module._window(32, 32, 4) == 32 and module._window(224, 200, 4) == 64


def test_what_is_refused():
    known, _ = world(0, absent=False)
    pool, images = Pool(**known), known["images"]
    assert vaal(KEY, pool, 0, **FAST).indices.shape == (0,)
    for change, message in (
        ({"steps": 0}, "steps 0"),
        ({"batch": 1}, "batch 1"),
        ({"kl": "max"}, "kl 'max'"),
        ({"decay": "step"}, "decay 'step'"),
        ({"mean": [0.5]}, "both mean and std"),
        ({"vae_rate": 0.0}, "vae_rate 0.0"),
        ({"window": 6}, "window is 6; expected a multiple of 4"),
        ({"window": 12}, "up to 8"),
        ({"widths": (2,) * 4}, "images of 8 x 8 pixels; expected 64 or more"),
    ):
        with pytest.raises(ValueError, match=message):
            vaal(KEY, pool, 1, **FAST | change)
    for wrong, message in (
        (Pool(images=images), "vaal needs labelled samples"),
        (Pool(labelled=known["labelled"], features=np.zeros((200, 2))), "needs the images of the"),
        (Pool(images=images / 255, labelled=known["labelled"]), "expected images uint8"),
        (Pool(images=images[..., 0], labelled=known["labelled"]), r"found uint8 \(200, 8, 8\)"),
    ):
        with pytest.raises(ValueError, match=message):
            vaal(KEY, wrong, 1, **FAST)
