"""Query strategies in PyTorch, the peers of ``experiments.benchmarks.selectors``.

Each strategy twice. ``published``: the algorithm as the released PyTorch code performs it (after
its description, not its text): the tensors it materialises, the sorts it takes, what it computes
anew at each pick. ``closed form``: what densejax computes, in PyTorch: logits, quotients of logits
and a table, running minima, BADGE's factors. Both take tensors on one device and return the picks
in order, [b] int64 on the host. Rows that are not ``free`` are never picked.

The published forms are given what favours them: data in memory, no network, no self-check; the
cross-entropy of BADGE is summed, not averaged, over its batch, so that the embedding does not
depend on the size of the last batch.
"""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as F

# Samples of a batch, as the released jobs have it.
BATCH = 128

# Squared distances [n] to the index of the next pick.
Draw: TypeAlias = Callable[[torch.Tensor], int]
INFINITY = float("inf")


class Clocks:
    """Draws in proportion to weights that only fall, by one exponential variable a sample.

    A sample is due when the sum of its weights over time reaches its variable; the first due is
    drawn. So two selectors that are given the same variables draw the same samples.

    Args:
      draws: [n] exponential variables.
    """

    def __init__(self, draws: torch.Tensor) -> None:
        self.left = draws.to(torch.float64)

    def __call__(self, weights: torch.Tensor) -> int:
        """Return the next sample that is due."""
        weights = weights.to(torch.float64)
        wait = torch.where(weights > 0, self.left / weights, INFINITY)
        chosen = int(wait.argmin())
        self.left = self.left - weights * wait[chosen]
        return chosen


def numpy_choice(seed: int) -> Draw:
    """Draws as the released code: NumPy's choice with normalised probabilities."""
    rng = np.random.default_rng(seed)

    def draw(weights: torch.Tensor) -> int:
        p = weights.cpu().numpy().astype(np.float64)
        return int(rng.choice(len(p), p=p / p.sum()))

    return draw


# ---- as published ----


def margin_published(
    x: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor, free: torch.Tensor, budget: int
) -> np.ndarray:
    """Softmax and a full sort of the classes a batch, then a full sort of the samples.

    Args:
      x: [n, d] features.
      kernel: [d, c].
      bias: [c].
      free: [n] bool.
      budget: b.
    """
    rows = free.nonzero()[:, 0]
    parts = []
    for batch in rows.split(BATCH):
        p = torch.softmax(x[batch] @ kernel + bias, dim=1).sort(dim=1, descending=True).values
        parts.append(p[:, 0] - p[:, 1])
    return _host(rows[torch.cat(parts).sort().indices[:budget]])


def _differences(
    x: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Distances [s, c] of a batch to the boundaries with its predictions [s], by differences."""
    weights = kernel.T
    predicted = (x @ kernel + bias).argmax(dim=1)
    apart = weights[predicted][:, None, :] - weights[None]
    above = (apart * x[:, None, :]).sum(dim=2) + bias[predicted][:, None] - bias[None]
    distance = above.abs() / apart.norm(dim=2)
    return torch.nan_to_num(distance, nan=INFINITY), predicted


def mase_published(
    x: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor, free: torch.Tensor, budget: int
) -> np.ndarray:
    """Differences of weights [s, c, d] for every batch; arguments as of ``margin_published``."""
    rows = free.nonzero()[:, 0]
    parts = [_differences(x[batch], kernel, bias)[0].amin(dim=1) for batch in rows.split(BATCH)]
    return _host(rows[torch.cat(parts).sort().indices[:budget]])


def base_published(
    x: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor, free: torch.Tensor, budget: int
) -> np.ndarray:
    """As ``mase_published``, then classes one after another, each with a sort of all samples."""
    rows = free.nonzero()[:, 0]
    batches = [_differences(x[batch], kernel, bias) for batch in rows.split(BATCH)]
    distance = torch.cat([part[0] for part in batches])
    predicted = torch.cat([part[1] for part in batches])
    nearest = distance.amin(dim=1)
    classes = kernel.shape[1]
    chosen: list[torch.Tensor] = []
    taken = torch.zeros(len(rows), dtype=torch.bool, device=x.device)
    for c in range(classes):
        values = torch.where(predicted == c, nearest, distance[:, c])
        values[taken] = INFINITY
        best = values.sort().indices[: budget // classes + (c < budget % classes)]
        taken[best] = True
        chosen.append(best)
    return _host(rows[torch.cat(chosen)])


def _all_pairs(x: torch.Tensor) -> torch.Tensor:
    """Squared distances of all rows, [n, n]."""
    squares = (x**2).sum(dim=1)
    return (squares[:, None] + squares[None] - 2 * (x @ x.T)).clamp_(min=0)


def k_centre_published(x: torch.Tensor, free: torch.Tensor, budget: int) -> np.ndarray:
    """All distances [n, n]; each pick takes the minimum over all labelled columns anew.

    Args:
      x: [n, d] features.
      free: [n] bool; the others are labelled, at least one.
      budget: b.
    """
    distance = _all_pairs(x)
    labelled = ~free
    chosen: list[int] = []
    for _ in range(budget):
        near = distance[:, labelled].amin(dim=1)
        near[labelled] = -1
        chosen.append(int(near.argmax()))
        labelled[chosen[-1]] = True
    return np.array(chosen, np.int64)


def badge_published(
    x: torch.Tensor,
    logits: torch.Tensor,
    free: torch.Tensor,
    budget: int,
    *,
    relative: bool,
    draw: Draw,
) -> np.ndarray:
    """Embeddings [n, c d] by automatic differentiation, all distances, a minimum anew each pick.

    Args:
      x: [n, d] features.
      logits: [n, c].
      free: [n] bool; the others are labelled.
      budget: b.
      relative: whether distances count from labelled samples too; else the first pick is the
        largest embedding.
      draw: what draws the next pick from squared distances [n], 0 for what must not be drawn.
    """
    parts = []
    for h, values in zip(x.split(BATCH), logits.split(BATCH), strict=True):
        z = values.detach().requires_grad_()
        loss = F.cross_entropy(z, z.argmax(dim=1), reduction="sum")
        g = torch.autograd.grad(loss, z)[0]
        parts.append((g[:, :, None] * h[:, None, :]).flatten(start_dim=1))
    embedding = torch.cat(parts)
    distance = _all_pairs(embedding)
    chosen: list[int] = []
    centres = ~free if relative else torch.zeros_like(free)
    if not relative:
        norms = torch.where(free, embedding.norm(dim=1), -1)
        chosen.append(int(norms.argmax()))
        centres[chosen[0]] = True
    while len(chosen) < budget:
        near = distance[:, centres].amin(dim=1)
        near[~free | centres] = 0
        chosen.append(draw(near))
        centres[chosen[-1]] = True
    return np.array(chosen, np.int64)


# ---- given the closed form ----


def margin_closed(
    x: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor, free: torch.Tensor, budget: int
) -> np.ndarray:
    """One matrix product, the two largest probabilities; arguments as of ``margin_published``."""
    p = torch.softmax(torch.addmm(bias, x, kernel), dim=1).topk(2, dim=1).values
    return _smallest(p[:, 0] - p[:, 1], free, budget)


def _quotients(
    x: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Distances [n, c] from logits and a table of the classes, and the predictions [n]."""
    weights = kernel.T
    table = torch.stack([(weights - row).norm(dim=1) for row in weights])
    # No class has a boundary with itself: 0 / -0 would be NaN.
    table.fill_diagonal_(0)
    z = torch.addmm(bias, x, kernel)
    top, predicted = z.max(dim=1, keepdim=True)
    distance = torch.sub(top, z, out=z).div_(table[predicted[:, 0]])
    return distance.scatter_(1, predicted, INFINITY), predicted


def mase_closed(
    x: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor, free: torch.Tensor, budget: int
) -> np.ndarray:
    """Quotients of logits and a table [c, c]; arguments as of ``margin_published``."""
    return _smallest(_quotients(x, kernel, bias)[0].amin(dim=1), free, budget)


def base_closed(
    x: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor, free: torch.Tensor, budget: int
) -> np.ndarray:
    """As ``mase_closed``; each class in turn takes its few smallest, without a sort."""
    distance, predicted = _quotients(x, kernel, bias)
    distance.scatter_(1, predicted, distance.amin(dim=1, keepdim=True))
    columns = distance.T.contiguous()
    columns[:, ~free] = INFINITY
    classes = kernel.shape[1]
    chosen: list[torch.Tensor] = []
    for c in range(classes):
        count = budget // classes + (c < budget % classes)
        chosen.append(columns[c].topk(count, largest=False).indices)
        columns[c + 1 :, chosen[-1]] = INFINITY
    return _host(torch.cat(chosen))


def k_centre_closed(x: torch.Tensor, free: torch.Tensor, budget: int) -> np.ndarray:
    """One product with the labelled samples, then one with each pick: a running minimum.

    Args:
      x: [n, d] features.
      free: [n] bool; the others are labelled, at least one.
      budget: b.
    """
    squares = (x**2).sum(dim=1)
    labelled = x[~free]
    near = torch.addmm(squares[~free], x, labelled.T, alpha=-2).amin(dim=1) + squares
    near[~free] = -INFINITY
    chosen: list[int] = []
    for _ in range(budget):
        chosen.append(int(near.argmax()))
        pick = x[chosen[-1]]
        near = torch.minimum(near, torch.addmv(squares, x, pick, alpha=-2) + pick.dot(pick))
        near[chosen[-1]] = -INFINITY
    return np.array(chosen, np.int64)


def badge_closed(
    x: torch.Tensor,
    logits: torch.Tensor,
    free: torch.Tensor,
    budget: int,
    *,
    relative: bool,
    draw: Draw,
) -> np.ndarray:
    """Factors g and h and a running minimum; arguments as of ``badge_published``."""
    g = torch.softmax(logits, dim=1)
    predicted = logits.argmax(dim=1, keepdim=True)
    g = g.scatter_add(1, predicted, -torch.ones_like(g[:, :1]))
    squares = (g**2).sum(dim=1) * (x**2).sum(dim=1)
    near = torch.where(free, INFINITY, 0.0)
    chosen: list[int] = []
    if relative:
        products = (x @ x[~free].T).mul_(g @ g[~free].T)
        closest = (squares[~free] - 2 * products).amin(dim=1) + squares
        near = torch.minimum(near, closest.clamp_(min=0))
    else:
        chosen.append(int(torch.where(free, squares, -1).argmax()))
    while True:
        if chosen:
            pick = chosen[-1]
            square = squares + squares[pick] - 2 * (x @ x[pick]) * (g @ g[pick])
            near = torch.minimum(near, square.clamp_(min=0))
            near[pick] = 0
        if len(chosen) == budget:
            return np.array(chosen, np.int64)
        chosen.append(draw(near))


def _smallest(values: torch.Tensor, free: torch.Tensor, budget: int) -> np.ndarray:
    """The smallest free values in order."""
    values[~free] = INFINITY
    return _host(values.topk(budget, largest=False).indices)


def _host(indices: torch.Tensor) -> np.ndarray:
    return indices.cpu().numpy()
