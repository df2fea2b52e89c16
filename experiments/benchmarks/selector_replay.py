"""Is a query one that the algorithm can make? Replayed in float64, pick by pick.

Two programs that round differently may order two samples differently that are all but equal, and a
greedy selection then goes on differently. So queries are not only compared with each other: each is
followed pick by pick, and at every pick its value is compared with the best that was there, given
its own earlier picks. The *regret* is by how much it was worse; that of an exact selector is 0.
"""

import numpy as np


def ranking(values: np.ndarray, picks: np.ndarray, free: np.ndarray) -> float:
    """Largest regret of picks that take the smallest values in order, of the median value.

    Args:
      values: [n] float64.
      picks: [b] integers.
      free: [n] bool.
    """
    left = np.where(free, values, np.inf)
    worst = 0.0
    for pick in picks:
        worst = max(worst, left[pick] - left.min())
        left[pick] = np.inf
    return float(worst / np.median(values))


def margins(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """[n] float64: largest less second largest probability."""
    p = _softmax(_logits(x, kernel, bias))
    p.partition(p.shape[1] - 2, axis=1)
    return p[:, -1] - p[:, -2]


def boundaries(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """[n, c] float64: distance to the boundary with each class; of the predicted one, the least."""
    z = _logits(x, kernel, bias)
    rows = np.asarray(kernel, np.float64).T
    table = np.stack([np.linalg.norm(rows - row, axis=1) for row in rows])
    np.fill_diagonal(table, 1)
    predicted = z.argmax(axis=1)
    at = np.arange(len(z)), predicted
    distance = (z[at][:, None] - z) / table[predicted]
    distance[at] = np.inf
    distance[at] = distance.min(axis=1)
    return distance


def blocks(distance: np.ndarray, picks: np.ndarray, free: np.ndarray) -> float:
    """Largest regret of picks class after class (BASE as released), of each class's median.

    Args:
      distance: [n, c] float64.
      picks: [b] integers; b // c of each class, one more of the first b % c.
      free: [n] bool.
    """
    classes, free, worst = distance.shape[1], free.copy(), 0.0
    shares = [len(picks) // classes + (c < len(picks) % classes) for c in range(classes)]
    for c, part in enumerate(np.split(picks, np.cumsum(shares)[:-1])):
        if len(part):
            worst = max(worst, ranking(distance[:, c], part, free))
            free[part] = False
    return worst


def furthest(x: np.ndarray, picks: np.ndarray, free: np.ndarray) -> float:
    """Largest regret of greedy k-centre, in squared distance, of the best.

    Args:
      x: [n, d] floating.
      picks: [b] integers.
      free: [n] bool; the others are labelled.
    """
    x = x.astype(np.float64)
    squares = (x**2).sum(axis=1)
    near = _nearest(x, squares, np.flatnonzero(~free))
    near[~free], worst = -np.inf, 0.0
    for pick in picks:
        worst = max(worst, (near.max() - near[pick]) / near.max())
        near = np.minimum(near, ((x - x[pick]) ** 2).sum(axis=1))
        near[pick] = -np.inf
    return float(worst)


def _nearest(x: np.ndarray, squares: np.ndarray, references: np.ndarray) -> np.ndarray:
    near = np.full(len(x), np.inf)
    for part in np.array_split(references, -(-len(references) // 256)):
        products = squares[part] - 2 * (x @ x[part].T)
        near = np.minimum(near, squares + products.min(axis=1))
    return near


def clocks(
    x: np.ndarray,
    logits: np.ndarray,
    picks: np.ndarray,
    free: np.ndarray,
    *,
    draws: np.ndarray,
    relative: bool,
) -> float:
    """Largest regret of BADGE's draws by clocks, in the time at which they are due, of that time.

    Args:
      x: [n, d] floating.
      logits: [n, c] floating.
      picks: [b] integers; where not ``relative``, the first is the largest embedding.
      free: [n] bool; the others are labelled.
      draws: [n] exponential variables.
      relative: whether distances count from labelled samples.
    """
    x, left = x.astype(np.float64), draws.astype(np.float64)
    g = _softmax(logits.astype(np.float64))
    g[np.arange(len(g)), logits.argmax(axis=1)] -= 1
    squares = (g**2).sum(axis=1) * (x**2).sum(axis=1)
    near = np.where(free, np.inf, 0)

    def closer(near: np.ndarray, pick: int) -> np.ndarray:
        between = squares + squares[pick] - 2 * (x @ x[pick]) * (g @ g[pick])
        near = np.minimum(near, between.clip(min=0))
        near[pick] = 0
        return near

    worst, now = 0.0, 0.0
    if relative:
        for one in np.flatnonzero(~free):
            near = closer(near, int(one))
    else:
        largest = np.where(free, squares, -1)
        worst = float((largest.max() - largest[picks[0]]) / largest.max())
        near, picks = closer(near, int(picks[0])), picks[1:]
    for pick in picks:
        with np.errstate(divide="ignore", invalid="ignore"):
            wait = np.where(near > 0, left / near, np.inf)
        step = wait[pick]
        worst = max(worst, (step - wait.min()) / (now + step))
        left, now = left - near * step, now + step
        near = closer(near, int(pick))
    return float(worst)


def _logits(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return x.astype(np.float64) @ np.asarray(kernel, np.float64) + bias


def _softmax(z: np.ndarray) -> np.ndarray:
    p = np.exp(z - z.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)
