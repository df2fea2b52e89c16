"""VAAL: samples whose code a discriminator takes for unlabelled, by adversarial training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple, TypeAlias, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial

from densejax.active.pool import Pool, Selection, Selector, check_budget
from densejax.active.rows import first, take_rows
from densejax.active.scores import Score, evaluate
from densejax.classification.task import ImageTask
from densejax.data.images import augment, standardise
from densejax.models.vae import VAE, Discriminator
from densejax.trees import all_finite
from densejax.typing import Array, Key, Params

Standard: TypeAlias = tuple[tuple[float, ...], tuple[float, ...]] | None
WIDTHS = (128, 256, 512, 1024)
# The published window of pictures of at least this size, pixels.
WINDOW = 64


class Preset(TypedDict):
    """Options that go together."""

    latent: int
    vae_rate: float
    discriminator_rate: float
    adversary: float


# As published for CIFAR; the defaults of ``vaal``.
CIFAR: Preset = {"latent": 32, "vae_rate": 5e-4, "discriminator_rate": 5e-4, "adversary": 1.0}
# As published for ImageNet. The thesis' released jobs never pass these options, so that its CIFAR
# runs too were made with these values, not with those that its help text gives for CIFAR.
IMAGENET: Preset = {"latent": 64, "vae_rate": 5e-5, "discriminator_rate": 1e-3, "adversary": 10.0}


def vaal(
    key: Key,
    pool: Pool,
    budget: int,
    *,
    steps: int,
    latent: int = CIFAR["latent"],
    vae_rate: float = CIFAR["vae_rate"],
    discriminator_rate: float = CIFAR["discriminator_rate"],
    adversary: float = CIFAR["adversary"],
    kl: Literal["sum", "mean"] = "sum",
    beta: float = 1.0,
    batch: int = 128,
    window: int | None = None,
    widths: Sequence[int] = WIDTHS,
    recipe: Literal["none", "cifar", "imagenet", "simclr", "moco"] = "none",
    decay: Literal["none", "cosine"] = "none",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Selection:
    """The samples whose code is most surely that of an unlabelled sample, lowest D(mu) first.

    Variational adversarial active learning (Sinha, Ebrahimi and Darrell 2019, arXiv 1904.00370,
    algorithms 1 and 2). An autoencoder learns codes of labelled and unlabelled pictures, and to
    pass unlabelled ones off as labelled; a discriminator learns to tell them apart. A step is one
    of the autoencoder, ``vae_step``, then one of the discriminator, ``discriminator_step``, on the
    same pictures. Both networks and both optimisers (Adam) are drawn anew by each call; the
    thesis' released code means to do so each round but never draws the two layers that give mean
    and log variance again. The released codes train the classifier in the same loop; it has no
    part in the query and is left out.

    The defaults are those published for CIFAR; ``**CIFAR`` names them, ``**IMAGENET`` has those of
    ImageNet, with which the thesis' released CIFAR jobs really ran (``CIFAR``: code 32, rates 5e-4
    and 5e-4, lambda 1; ``IMAGENET``: 64, 5e-5 and 1e-3, 10). Departures: a step's pictures are
    drawn with replacement, not by epochs; the released codes feed augmented pictures (VAAL's own
    flips; the thesis' as its classifier, and standardised), which is ``recipe``, ``mean`` and
    ``std`` here; the thesis' code lowers the rates by the classifier's schedule, here ``decay``.
    With ``kl='sum'``, as released, the divergence outweighs the mean squared error by far, codes
    tell next to nothing of a picture, and the query may be no better than a random one; where that
    matters take ``kl='mean'`` and a small ``beta``.

    Pictures that may train are kept on the device as uint8; of more than it holds,
    ``wrappers.partitioned`` with ``max_labelled`` and ``max_unlabelled`` takes a part. All steps
    are one compiled program, which serves later rounds of one pool too while nothing but the
    labelled samples and ``steps`` changes.

    Args:
      key: of draws of parameters, batches, windows and codes.
      pool: with images [n, y, x, c] uint8, some of them labelled; what is held out is neither
        trained on nor selected. Labels are not looked at.
      budget: number of samples.
      steps: of the training, at least 1. Released: the classifier's, epochs times labelled samples
        / 128.
      latent: length of the code.
      vae_rate: learning rate of the autoencoder, above 0.
      discriminator_rate: learning rate of the discriminator, above 0.
      adversary: lambda_2, weight of the adversarial loss, from 0; lambda_1 is 1.
      kl: divergences of a batch are added up, as released, or averaged.
      beta: weight of the divergence, from 0.
      batch: labelled, and as many unlabelled, pictures of a step; at least 2.
      window: y and x, pixels, of what the autoencoder sees: one place for all pictures of a step,
        and another for all of the query. Where None, pictures below 64 pixels whole and of larger
        ones 64 pixels, as released. A multiple of ``2**len(widths)``.
      widths: channels of the autoencoder; fewer for tests and CPUs.
      recipe: augmentation of the training pictures.
      decay: learning rates stay, or fall to 0 along half a cosine.
      mean: c numbers for ``standardise`` of pictures in [0, 1]; with ``std``.
      std: c numbers.

    Returns:
      The selection; scores are the logits of "labelled", ascending, whose sigmoid is D(mu).

    Raises:
      ValueError: budget or an option out of range, the images are missing, not uint8 [n, y, x, c]
        or do not fit the window, nothing is labelled, or the training diverges.
    """
    budget = check_budget(pool, budget)
    _check_options(steps, batch, kl, decay, (mean, std))
    _check_rates(vae_rate, discriminator_rate, adversary, beta)
    _check_images(pool)
    y, x, c = pool.images.shape[1:]
    window = _window(y, x, len(widths)) if window is None else window
    _check_window(window, y, x, len(widths))
    if budget == 0:
        return Selection(np.zeros(0, np.int64), np.zeros(0, np.float32))
    if not pool.is_labelled.any():
        raise ValueError(
            "vaal needs labelled samples (pool labelled) to tell the others from; found none: "
            "choose the first ones at random or by features"
        )
    settings = _Settings(
        vae=VAE(channels=c, window=window, latent=latent, widths=tuple(widths)),
        discriminator=Discriminator(),
        batch=batch,
        vae_rate=vae_rate,
        discriminator_rate=discriminator_rate,
        adversary=adversary,
        kl=kl,
        beta=beta,
        recipe=recipe,
        decay=decay,
        standard=None if mean is None or std is None else (tuple(mean), tuple(std)),
    )
    train_key, place_key = jax.random.split(key)
    rows = np.flatnonzero(pool.is_labelled | pool.available)
    labelled = pool.is_labelled[rows]
    order = np.argsort(~labelled, kind="stable").astype(np.int32)
    images = jnp.asarray(take_rows(pool.images, rows))
    state = _train(train_key, images, order, int(labelled.sum()), steps, settings=settings)
    if not bool(all_finite(state)):
        raise ValueError(
            f"vaal: parameters are not finite after {steps} steps; found rates {vae_rate} and "
            f"{discriminator_rate}, expected smaller ones"
        )
    place = _corner(place_key, (y, x), window)
    trained = state.vae, state.stats, state.discriminator
    logits = _judge(settings.vae, settings.discriminator, settings.standard)
    score = Score("vaal", ("images",), Partial(logits, trained, place))
    free = np.flatnonzero(pool.available)
    values = evaluate(score, pool, rows=free)
    best = first(values, np.ones(free.size, bool), budget, largest_first=False)
    return Selection(free[best], values[best])


def _window(y: int, x: int, depth: int) -> int:
    if y >= WINDOW and x >= WINDOW:
        return WINDOW
    if y != x or y % 2**depth:
        raise ValueError(
            f"vaal: images of {y} x {x} pixels; expected 64 or more, or square of a multiple of "
            f"{2**depth}, or a window of such a size"
        )
    return y


def _check_window(window: int, y: int, x: int, depth: int) -> None:
    if not 0 < window <= min(y, x) or window % 2**depth:
        raise ValueError(
            f"vaal: window is {window}; expected a multiple of {2**depth} (2**len(widths)) up to "
            f"{min(y, x)}, the smaller side of the images"
        )


def _check_images(pool: Pool) -> None:
    if pool.images is None:
        raise ValueError("vaal needs the images of the pool (pool images), uint8 [n, y, x, c]")
    found, kind = tuple(pool.images.shape), pool.images.dtype
    # A TensorStore has a dtype of its own.
    if len(found) != 4 or np.dtype(getattr(kind, "numpy_dtype", kind)) != np.uint8:
        raise ValueError(f"vaal: expected images uint8 [n, y, x, c], found {kind} {found}")


def _check_options(
    steps: int,
    batch: int,
    kl: str,
    decay: str,
    standard: tuple[Sequence[float] | None, Sequence[float] | None],
) -> None:
    if steps < 1 or batch < 2:
        raise ValueError(f"steps {steps}, batch {batch}: expected at least 1 and at least 2")
    if kl not in ("sum", "mean") or decay not in ("none", "cosine"):
        raise ValueError(f"kl {kl!r}, decay {decay!r}: expected sum or mean, and none or cosine")
    if (standard[0] is None) != (standard[1] is None):
        raise ValueError("expected both mean and std, or neither")


def _check_rates(vae_rate: float, discriminator_rate: float, adversary: float, beta: float) -> None:
    if not (vae_rate > 0 and discriminator_rate > 0 and adversary >= 0 and beta >= 0):
        raise ValueError(
            f"vae_rate {vae_rate}, discriminator_rate {discriminator_rate}: expected above 0; "
            f"adversary {adversary}, beta {beta}: expected from 0"
        )


def vaal_query(task: ImageTask, images: Array, *, options: Mapping[str, Any]) -> Selector:
    """``vaal`` of a round: autoencoder and discriminator learn when the query is made.

    Published, they learn beside the classifier, a step of theirs after each of its own, over the
    same epochs; nothing of them reaches the classifier or the other way round, so that training
    them afterwards on the round's labelled and unlabelled pictures makes the same query but for
    the draws. Their steps are by default the classifier's without early stop: its epochs
    times its batches of the labelled set. Networks of several seeds are trained one after another.

    Pictures below 64 pixels whose side is no multiple of 16 (MNIST's 28) are seen by an autoencoder
    with fewer levels: a departure, as the published one takes 32 or 64 pixels.

    Args:
      task: for the length of its training and for the moments of its pictures.
      images: [n, ...] of the pool, of which shape and dtype are looked at.
      options: of ``vaal``; ``width`` is the first of its ``widths``, each twice the one before;
        ``steps`` may be left out.

    Raises:
      ValueError: images that are not uint8 [n, y, x, c], a side that cannot be halved twice, or
        steps or a width below 1.
    """
    if images.ndim != 4 or images.dtype != np.uint8:
        raise ValueError(
            f"vaal learns from pictures uint8 [n, y, x, c]; found {images.dtype} {images.shape}"
        )
    options = dict(options)
    steps, width = options.pop("steps", None), options.pop("width", WIDTHS[0])
    if width < 1 or (steps is not None and steps < 1):
        raise ValueError(f"vaal: steps are {steps} and the width is {width}; expected 1 or more")
    widths = tuple(width * 2**level for level in range(_levels(*images.shape[1:3])))
    moments = {"mean": task.mean, "std": task.std} if len(task.mean) else {}

    def select(key: Key, pool: Pool, budget: int) -> Selection:
        own = task.epochs * task.steps_of(int(pool.is_labelled.sum()))
        return vaal(key, pool, budget, steps=steps or own, widths=widths, **(moments | options))

    return select


def _levels(y: int, x: int) -> int:
    """How often the autoencoder halves its window."""
    if min(y, x) >= WINDOW:
        return len(WIDTHS)
    levels = next((k for k in range(len(WIDTHS), 1, -1) if y % 2**k == 0), 0)
    if y != x or not levels:
        raise ValueError(
            f"vaal: pictures of {y} x {x} pixels; expected 64 or more, or square of a multiple of 4"
        )
    return levels


# ---- the training: autoencoder and discriminator against each other ----


@dataclass(frozen=True)
class _Settings:
    """The networks and how they are trained; rates and weights may be arrays."""

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
    _Settings,
    data_fields=["vae_rate", "discriminator_rate", "adversary", "beta"],
    meta_fields=["vae", "discriminator", "batch", "kl", "recipe", "decay", "standard"],
)


class _State(NamedTuple):
    """Parameters, the autoencoder's running moments, and states of ``optax.scale_by_adam``."""

    vae: Params
    stats: Params
    discriminator: Params
    vae_adam: Any
    discriminator_adam: Any


def _vae_loss(
    images: Array,
    again: Array,
    mean: Array,
    log_variance: Array,
    *,
    kl: Literal["sum", "mean"] = "sum",
    beta: Array | float = 1.0,
) -> jax.Array:
    """Mean squared error of all numbers + beta * KL(N(mean, variance) || N(0, 1)).

    Divergences of the b samples are added up, as released, or averaged.
    """
    error = jnp.mean(jnp.square(jnp.asarray(again) - images))
    terms = 1 + jnp.asarray(log_variance) - jnp.square(mean) - jnp.exp(log_variance)
    divergence = -0.5 * jnp.sum(terms)
    return error + beta * (divergence / mean.shape[0] if kl == "mean" else divergence)


def _adversarial_loss(labelled: Array, unlabelled: Array) -> jax.Array:
    """What the autoencoder pays where not all is taken for labelled: logits [b], [u] -> scalar.

    The sum of both means of -log D, equation 3 of the paper.
    """
    return jnp.mean(jax.nn.softplus(-labelled)) + jnp.mean(jax.nn.softplus(-unlabelled))


def _discriminator_loss(labelled: Array, unlabelled: Array) -> jax.Array:
    """Binary cross-entropy of the discriminator, equation 4: logits [b], [u] -> scalar.

    The sum of the means of -log D of labelled and of -log(1 - D) of unlabelled samples.
    """
    return jnp.mean(jax.nn.softplus(-labelled)) + jnp.mean(jax.nn.softplus(unlabelled))


def _start(key: Key, *, settings: _Settings) -> _State:
    """Networks and optimisers before the first step."""
    one, two = jax.random.split(key)
    side = settings.vae.window
    variables = settings.vae.init(one, jnp.zeros((1, side, side, settings.vae.channels)))
    judge = settings.discriminator.init(two, jnp.zeros((1, settings.vae.latent)))["params"]
    adam = optax.scale_by_adam()
    vae = variables["params"]
    return _State(vae, variables["batch_stats"], judge, adam.init(vae), adam.init(judge))


def _vae_step(
    key: Key,
    state: _State,
    labelled: Array,
    unlabelled: Array,
    *,
    settings: _Settings,
    factor: Array | float = 1.0,
) -> tuple[_State, jax.Array]:
    """One step of the autoencoder and its loss; nothing of the discriminator changes.

    The loss is ``_vae_loss`` of the labelled and of the unlabelled pictures [b, window, window, c],
    each batch normalised by its own moments, + lambda_2 ``_adversarial_loss`` of their means. The
    two halves of the key, by ``split``, are of the codes of both.
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
            total += _vae_loss(images, again, *code, kl=settings.kl, beta=settings.beta)
            means.append(out["mean"])
        logits = (_logits(settings.discriminator, state.discriminator, mean) for mean in means)
        return total + settings.adversary * _adversarial_loss(*logits), stats

    (value, stats), grads = jax.value_and_grad(loss, has_aux=True)(state.vae)
    vae, adam = _adam(state.vae, grads, state.vae_adam, settings.vae_rate * factor)
    return state._replace(vae=vae, stats=stats, vae_adam=adam), value


def _discriminator_step(
    state: _State,
    labelled: Array,
    unlabelled: Array,
    *,
    settings: _Settings,
    factor: Array | float = 1.0,
) -> tuple[_State, jax.Array]:
    """One step of the discriminator on ``_discriminator_loss`` of the means of both batches.

    The autoencoder's parameters do not change; its running moments do, as released, for its
    encoder (the decoder's, which no query uses, are left alone).
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
        return _discriminator_loss(
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
def _train(
    key: Key,
    images: jax.Array,
    order: jax.Array,
    count: jax.Array,
    steps: jax.Array,
    *,
    settings: _Settings,
) -> _State:
    """All steps: images [r, y, x, c] uint8, order [r] of which the first ``count`` are labelled."""

    def draw(key: Key, low: Array | int, high: Array | int, place: jax.Array) -> jax.Array:
        one, two = jax.random.split(key)
        rows = order[jax.random.randint(one, (settings.batch,), low, high)]
        drawn = images[rows].astype(jnp.float32) / 255
        drawn = augment(two, drawn, recipe=settings.recipe)
        return _cut(drawn, place, settings.vae.window, settings.standard)

    def step(number: jax.Array, state: _State) -> _State:
        at, one, two, code = jax.random.split(jax.random.fold_in(key, number + 1), 4)
        place = _corner(at, (images.shape[1], images.shape[2]), settings.vae.window)
        labelled = draw(one, 0, count, place)
        unlabelled = draw(two, count, len(order), place)
        cosine = 0.5 * (1 + jnp.cos(jnp.pi * number / steps))
        factor = cosine if settings.decay == "cosine" else 1.0
        state, _ = _vae_step(code, state, labelled, unlabelled, settings=settings, factor=factor)
        return _discriminator_step(state, labelled, unlabelled, settings=settings, factor=factor)[0]

    state = _start(jax.random.fold_in(key, 0), settings=settings)
    return jax.lax.fori_loop(0, steps, step, state)


@lru_cache(maxsize=32)
def _judge(vae: VAE, discriminator: Discriminator, standard: Standard) -> Any:
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


def _corner(key: Key, size: tuple[int, int], window: int) -> jax.Array:
    """[2] int32, where a window begins; anywhere inside."""
    free = jnp.array([size[0] - window + 1, size[1] - window + 1])
    return jax.random.randint(key, (2,), 0, free)


def _cut(images: jax.Array, place: jax.Array, side: int, standard: Standard) -> jax.Array:
    """The window of [b, y, x, c] in [0, 1], in the numbers that the autoencoder takes."""
    sizes = (images.shape[0], side, side, images.shape[3])
    images = jax.lax.dynamic_slice(images, (0, place[0], place[1], 0), sizes)
    return images if standard is None else standardise(images, mean=standard[0], std=standard[1])
