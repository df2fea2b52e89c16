"""Autoencoder and discriminator against each other: the training of VAAL, and what it says."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from densejax.data.images import augment, standardise
from densejax.models.vae import VAE, Discriminator
from densejax.typing import Array, Key, Params

Standard: TypeAlias = tuple[tuple[float, ...], tuple[float, ...]] | None


@dataclass(frozen=True)
class Settings:
    """The networks and how they are trained.

    Rates and weights may be arrays and change without a new compilation.

    Attributes:
      vae: the autoencoder; its window is cut from the pictures.
      discriminator: of its codes.
      batch: labelled, and as many unlabelled, pictures of a step.
      vae_rate: learning rate.
      discriminator_rate: learning rate.
      adversary: lambda_2, the weight of the adversarial loss.
      kl: 'sum' or 'mean' over the batch.
      beta: weight of the divergence.
      recipe: of ``densejax.data.images.augment``.
      decay: of the learning rates.
      standard: mean and deviation of each channel, for ``standardise``; not done where None.
    """

    vae: VAE
    discriminator: Discriminator
    batch: int = 128
    vae_rate: Array | float = 5e-4
    discriminator_rate: Array | float = 5e-4
    adversary: Array | float = 1.0
    kl: Literal["sum", "mean"] = "sum"
    beta: Array | float = 1.0
    recipe: Literal["none", "cifar", "imagenet", "simclr", "moco"] = "none"
    decay: Literal["none", "cosine"] = "none"
    standard: Standard = None


jax.tree_util.register_dataclass(
    Settings,
    data_fields=["vae_rate", "discriminator_rate", "adversary", "beta"],
    meta_fields=["vae", "discriminator", "batch", "kl", "recipe", "decay", "standard"],
)


class State(NamedTuple):
    """Both networks in training.

    Attributes:
      vae: parameters.
      stats: the autoencoder's running moments.
      discriminator: parameters.
      vae_adam: state of ``optax.scale_by_adam``.
      discriminator_adam: likewise.
    """

    vae: Params
    stats: Params
    discriminator: Params
    vae_adam: Any
    discriminator_adam: Any


def vae_loss(
    images: Array,
    again: Array,
    mean: Array,
    log_variance: Array,
    *,
    kl: Literal["sum", "mean"] = "sum",
    beta: Array | float = 1.0,
) -> jax.Array:
    """Mean squared error of all numbers + beta * KL(N(mean, variance) || N(0, 1)).

    Args:
      images: [b, y, x, c] floating.
      again: [b, y, x, c] floating, the reconstruction.
      mean: [b, d] floating.
      log_variance: [b, d] floating.
      kl: divergences of the b samples are added up, as released, or averaged.
      beta: weight.
    """
    error = jnp.mean(jnp.square(jnp.asarray(again) - images))
    terms = 1 + jnp.asarray(log_variance) - jnp.square(mean) - jnp.exp(log_variance)
    divergence = -0.5 * jnp.sum(terms)
    return error + beta * (divergence / mean.shape[0] if kl == "mean" else divergence)


def adversarial_loss(labelled: Array, unlabelled: Array) -> jax.Array:
    """What the autoencoder pays where not all is taken for labelled: logits [b], [u] -> scalar.

    The sum of both means of -log D, equation 3 of the paper.
    """
    return jnp.mean(jax.nn.softplus(-labelled)) + jnp.mean(jax.nn.softplus(-unlabelled))


def discriminator_loss(labelled: Array, unlabelled: Array) -> jax.Array:
    """Binary cross-entropy of the discriminator, equation 4: logits [b], [u] -> scalar.

    The sum of the means of -log D of labelled and of -log(1 - D) of unlabelled samples.
    """
    return jnp.mean(jax.nn.softplus(-labelled)) + jnp.mean(jax.nn.softplus(unlabelled))


def start(key: Key, *, settings: Settings) -> State:
    """Networks and optimisers before the first step."""
    one, two = jax.random.split(key)
    side = settings.vae.window
    variables = settings.vae.init(one, jnp.zeros((1, side, side, settings.vae.channels)))
    judge = settings.discriminator.init(two, jnp.zeros((1, settings.vae.latent)))["params"]
    adam = optax.scale_by_adam()
    vae = variables["params"]
    return State(vae, variables["batch_stats"], judge, adam.init(vae), adam.init(judge))


def vae_step(
    key: Key,
    state: State,
    labelled: Array,
    unlabelled: Array,
    *,
    settings: Settings,
    factor: Array | float = 1.0,
) -> tuple[State, jax.Array]:
    """One step of the autoencoder; nothing of the discriminator changes.

    The loss is ``vae_loss`` of the labelled and of the unlabelled pictures, each batch normalised
    by its own moments, + lambda_2 ``adversarial_loss`` of their means.

    Args:
      key: of the codes: its two halves, by ``split``, for labelled and unlabelled pictures.
      state: before the step.
      labelled: [b, window, window, c] floating.
      unlabelled: [u, window, window, c] floating.
      settings: networks and weights.
      factor: of the learning rate.

    Returns:
      the state and the loss.
    """

    def loss(params: Params) -> tuple[jax.Array, Params]:
        stats, total, means = state.stats, jnp.zeros(()), []
        for part, images in zip(jax.random.split(key), (labelled, unlabelled), strict=True):
            (again, out), changed = settings.vae.apply(
                {"params": params, "batch_stats": stats},
                images,
                train=True,
                mutable=["batch_stats"],
                rngs={"latent": part},
            )
            stats = changed["batch_stats"]
            code = out["mean"], out["log_variance"]
            total += vae_loss(images, again, *code, kl=settings.kl, beta=settings.beta)
            means.append(out["mean"])
        logits = (_logits(settings.discriminator, state.discriminator, mean) for mean in means)
        return total + settings.adversary * adversarial_loss(*logits), stats

    (value, stats), grads = jax.value_and_grad(loss, has_aux=True)(state.vae)
    vae, adam = _adam(state.vae, grads, state.vae_adam, settings.vae_rate * factor)
    return state._replace(vae=vae, stats=stats, vae_adam=adam), value


def discriminator_step(
    state: State,
    labelled: Array,
    unlabelled: Array,
    *,
    settings: Settings,
    factor: Array | float = 1.0,
) -> tuple[State, jax.Array]:
    """One step of the discriminator on ``discriminator_loss`` of the means of both batches.

    The autoencoder's parameters do not change; its running moments do, as released, for its
    encoder (the decoder's, which no query uses, are left alone).

    Args:
      state: before the step.
      labelled: [b, window, window, c] floating.
      unlabelled: [u, window, window, c] floating.
      settings: networks and weights.
      factor: of the learning rate.

    Returns:
      the state and the loss.
    """
    stats, means = state.stats, []
    for images in (labelled, unlabelled):
        (mean, _), changed = settings.vae.apply(
            {"params": state.vae, "batch_stats": stats},
            images,
            train=True,
            mutable=["batch_stats"],
            method="encode",
        )
        # Where only the encoder is applied, only its moments may come back.
        stats = {**stats, **changed["batch_stats"]}
        means.append(mean)

    def loss(params: Params) -> jax.Array:
        return discriminator_loss(
            *(_logits(settings.discriminator, params, mean) for mean in means)
        )

    value, grads = jax.value_and_grad(loss)(state.discriminator)
    judge, adam = _adam(
        state.discriminator, grads, state.discriminator_adam, settings.discriminator_rate * factor
    )
    return state._replace(discriminator=judge, stats=stats, discriminator_adam=adam), value


def _logits(discriminator: Discriminator, params: Params, code: jax.Array) -> jax.Array:
    return discriminator.apply({"params": params}, code)[0]


def _adam(params: Params, grads: Params, adam: Any, rate: Array | float) -> tuple[Params, Any]:
    directions, adam = optax.scale_by_adam().update(grads, adam)
    return jax.tree.map(lambda p, d: p - rate * d, params, directions), adam


@jax.jit
def train(
    key: Key,
    images: jax.Array,
    order: jax.Array,
    count: jax.Array,
    steps: jax.Array,
    *,
    settings: Settings,
) -> State:
    """All steps: images [r, y, x, c] uint8, order [r] of which the first ``count`` are labelled."""

    def draw(key: Key, low: Array | int, high: Array | int, place: jax.Array) -> jax.Array:
        one, two = jax.random.split(key)
        rows = order[jax.random.randint(one, (settings.batch,), low, high)]
        drawn = images[rows].astype(jnp.float32) / 255
        drawn = augment(two, drawn, recipe=settings.recipe)
        return _cut(drawn, place, settings.vae.window, settings.standard)

    def step(number: jax.Array, state: State) -> State:
        at, one, two, code = jax.random.split(jax.random.fold_in(key, number + 1), 4)
        place = corner(at, (images.shape[1], images.shape[2]), settings.vae.window)
        labelled = draw(one, 0, count, place)
        unlabelled = draw(two, count, len(order), place)
        cosine = 0.5 * (1 + jnp.cos(jnp.pi * number / steps))
        factor = cosine if settings.decay == "cosine" else 1.0
        state, _ = vae_step(code, state, labelled, unlabelled, settings=settings, factor=factor)
        return discriminator_step(state, labelled, unlabelled, settings=settings, factor=factor)[0]

    state = start(jax.random.fold_in(key, 0), settings=settings)
    return jax.lax.fori_loop(0, steps, step, state)


@lru_cache(maxsize=32)
def judge(vae: VAE, discriminator: Discriminator, standard: Standard) -> Any:
    """One function for the same networks, so that a score of it is compiled once."""

    def logits(trained: tuple, place: jax.Array, images: jax.Array) -> jax.Array:
        params, stats, adversary = trained
        # A ranking hangs on it: no rounding to shorter numbers in products.
        with jax.default_matmul_precision("highest"):
            seen = _cut(images / 255, place, vae.window, standard)
            variables = {"params": params, "batch_stats": stats}
            mean, _ = vae.apply(variables, seen, method="encode")
            return _logits(discriminator, adversary, mean)

    return logits


def corner(key: Key, size: tuple[int, int], window: int) -> jax.Array:
    """[2] int32, where a window begins; anywhere inside."""
    free = jnp.array([size[0] - window + 1, size[1] - window + 1])
    return jax.random.randint(key, (2,), 0, free)


def _cut(images: jax.Array, place: jax.Array, side: int, standard: Standard) -> jax.Array:
    """The window of [b, y, x, c] in [0, 1], in the numbers that the autoencoder takes."""
    sizes = (images.shape[0], side, side, images.shape[3])
    images = jax.lax.dynamic_slice(images, (0, place[0], place[1], 0), sizes)
    return images if standard is None else standardise(images, mean=standard[0], std=standard[1])
