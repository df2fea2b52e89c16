"""Basin radii in PyTorch, the peers of ``experiments.benchmarks.radii``.

A loop over directions, and in it over distances: what one writes in PyTorch. Lean: full batch in
memory, no module, no gradient; weights moved out of place, biases never. Directions are ready in
memory. ``loader`` is the habit of the field: a module whose weights are set at every distance, and
a ``DataLoader`` over the points.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

# Of the loader, as the released loops have it.
BATCH = 128

Loss = Callable[[float], float]


@dataclass(frozen=True)
class Net:
    """A minimum and its data.

    Attributes:
      kernels: [in, out] float32 each.
      biases: [out] float32 each.
      inputs: [b, 2] float32.
      labels: [b] float32, 0 or 1.
    """

    kernels: list[torch.Tensor]
    biases: list[torch.Tensor]
    inputs: torch.Tensor
    labels: torch.Tensor

    def loss_along(self, direction: list[torch.Tensor]) -> Loss:
        """Sigmoid cross-entropy at a distance along a direction of the kernels."""

        def loss(distance: float) -> float:
            y = self.inputs
            for i, (w, d, b) in enumerate(zip(self.kernels, direction, self.biases, strict=True)):
                y = torch.addmm(b, y, torch.add(w, d, alpha=distance))
                y = torch.relu(y) if i + 1 < len(self.kernels) else y
            return F.binary_cross_entropy_with_logits(y[:, 0], self.labels).item()

        return loss


@dataclass(frozen=True)
class Limits:
    """Of a search: see ``densejax.landscape.basins.radii``."""

    cutoff: float
    first_step: float
    growth: float
    span: float
    rtol: float


def bisected(loss: Loss, limits: Limits) -> tuple[float, int]:
    """Radius by a geometric bracket and bisection, and how many losses it took."""
    low, high, count = 0.0, limits.first_step, 1
    while loss(high) < limits.cutoff:
        if high >= limits.span:
            return limits.span, count
        low, high = high, min(high * limits.growth, limits.span)
        count += 1
    while high - low > limits.rtol * high:
        middle = (low + high) / 2
        low, high = (middle, high) if loss(middle) < limits.cutoff else (low, middle)
        count += 1
    return (low + high) / 2, count


def same_search(loss: Loss, limits: Limits, centre: float) -> tuple[float, int]:
    """Radius by densejax's own search (``basins/bisection.py``), and how many losses it took."""
    low, at_low, high, count = 0.0, centre, limits.first_step, 1
    at_high = loss(high)
    while at_high < limits.cutoff:
        if high >= limits.span:
            return limits.span, count
        low, at_low, high = high, at_high, min(high * limits.growth, limits.span)
        at_high, count = loss(high), count + 1
    if low == 0:
        raise ValueError(f"the loss crosses within the first step {limits.first_step:g}")
    first, tolerance = high - low, limits.rtol * low
    allowed = tolerance / 2 * 2 ** (np.ceil(np.log2(first / tolerance)) + 1)
    while high - low > tolerance:
        width, middle = high - low, (low + high) / 2
        point = low + width * (limits.cutoff - at_low) / (at_high - at_low)
        towards = float(np.sign(middle - point))
        truncation = max(0.2 * width**2 / first, tolerance / 2)
        point = point + towards * truncation if truncation <= abs(middle - point) else middle
        reach = max(allowed - width / 2, 0.0)
        point = point if abs(point - middle) <= reach else middle - towards * reach
        value, allowed, count = loss(point), allowed / 2, count + 1
        if value < limits.cutoff:
            low, at_low = point, value
        else:
            high, at_high = point, value
    return low + (high - low) * (limits.cutoff - at_low) / (at_high - at_low), count


def nearest(loss: Loss, grid: list[float], cutoff: float) -> tuple[float, int]:
    """Radius as released: the grid's point whose loss is nearest to the cutoff."""
    values = [abs(loss(distance) - cutoff) for distance in grid]
    return grid[int(np.argmin(values))], len(grid)


class Loader:
    """The same loss by a module and a ``DataLoader``, its weights set at every distance."""

    def __init__(self, net: Net) -> None:
        self._net = net
        layers: list[torch.nn.Module] = []
        for w, b in zip(net.kernels, net.biases, strict=True):
            layer = torch.nn.Linear(w.shape[0], w.shape[1], device=w.device)
            layer.bias.data.copy_(b)
            layers += [layer, torch.nn.ReLU()]
        self._module = torch.nn.Sequential(*layers[:-1])
        data = torch.utils.data.TensorDataset(net.inputs, net.labels)
        self._data = torch.utils.data.DataLoader(data, batch_size=BATCH)

    def loss_along(self, direction: list[torch.Tensor]) -> Loss:
        """As ``Net.loss_along``."""
        linear = [layer for layer in self._module if isinstance(layer, torch.nn.Linear)]

        def loss(distance: float) -> float:
            for layer, w, d in zip(linear, self._net.kernels, direction, strict=True):
                layer.weight.data = (w + distance * d).T
            total = 0.0
            for inputs, labels in self._data:
                logits = self._module(inputs)[:, 0]
                mean = F.binary_cross_entropy_with_logits(logits, labels)
                total += mean.item() * len(labels)
            return total / len(self._net.labels)

        return loss


def run(
    loss_along: Callable[[list[torch.Tensor]], Loss],
    directions: list[torch.Tensor],
    radius: Callable[[Loss], tuple[float, int]],
) -> tuple[np.ndarray, int]:
    """Radii [k] along stacked directions of the kernels, [k, in, out] each, and losses taken."""
    found, total = [], 0
    with torch.inference_mode():
        for one in zip(*(stacked.unbind() for stacked in directions), strict=True):
            value, count = radius(loss_along(list(one)))
            found.append(value)
            total += count
    return np.array(found), total
