"""CDAL: the k-centre of what a network confuses with each class, for units of segmentation."""

import jax
import jax.numpy as jnp
import numpy as np

from densejax.active.pool import Pool, Selection, check_budget
from densejax.active.rows import first
from densejax.typing import Array, Key


def class_context_distances(context: Array, others: Array) -> jax.Array:
    """Mean symmetrised KL between class contexts, over the classes that both units have.

    Agarwal et al. 2020 (CDAL); the published code skips what is not a number without a word. Here a
    class counts where both units predict it somewhere, probabilities are bounded by 1e-8 from
    below, and units that share no class are as far apart as such bounds allow: -log 1e-8.

    Args:
      context: [s, c, c] float32.
      others: [r, c, c] float32.

    Returns:
      [s, r] float32, from 0.
    """
    a, b = (jnp.maximum(jnp.asarray(part), 1e-8) for part in (context, others))
    here = (jnp.asarray(context).sum(axis=-1) > 0)[:, None] & (jnp.asarray(others).sum(axis=-1) > 0)
    logs = [jnp.log(part) for part in (a, b)]
    # KL(a, b) + KL(b, a) = sum (a - b)(log a - log b), as four products.
    own = [jnp.einsum("skc,skc->sk", part, log) for part, log in zip((a, b), logs, strict=True)]
    cross = jnp.einsum("skc,rkc->srk", a, logs[1]) + jnp.einsum("skc,rkc->srk", logs[0], b)
    each = (own[0][:, None] + own[1][None] - cross) / 2
    number = here.sum(axis=-1)
    mean = jnp.where(here, each, 0).sum(axis=-1) / jnp.maximum(number, 1)
    return jnp.where(number > 0, jnp.maximum(mean, 0), -jnp.log(1e-8))


_distances = jax.jit(class_context_distances)


def class_context(key: Key, pool: Pool, budget: int) -> Selection:
    """Choose the unit whose class context is furthest from all that are labelled, again and again.

    The k-centre of CDAL (Agarwal et al. 2020) with ``class_context_distances``. Without a labelled
    unit it starts from the first.

    Args:
      key: not drawn from.
      pool: its ``features`` are contexts [n, c c].
      budget: b.
    """
    del key
    check_budget(pool, budget)
    features = np.asarray(pool.features, np.float32)
    classes = round(np.sqrt(features.shape[1]))
    context = jnp.asarray(features.reshape(-1, classes, classes))
    near = np.full(len(context), np.inf, np.float32)
    labelled = np.flatnonzero(pool.is_labelled)
    for start in range(0, len(labelled), 32):
        part = labelled[start : start + 32]
        padded = np.resize(part, 32)
        near = np.minimum(near, np.asarray(_distances(context, context[padded])).min(axis=1))
    free, chosen, scores = pool.available.copy(), [], []
    for _ in range(budget):
        at = int(first(near, free, 1)[0])
        chosen.append(at)
        scores.append(near[at])
        free[at] = False
        near = np.minimum(near, np.asarray(_distances(context, context[at : at + 1]))[:, 0])
    return Selection(np.array(chosen, np.int64), np.array(scores, np.float32))
