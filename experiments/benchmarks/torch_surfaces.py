"""Planes of the loss in PyTorch, the peers of ``experiments.benchmarks.surfaces``.

Loops over points, as one writes them: the weights are set to ``centre + x * first + y * second``,
and the loss and the accuracy of all samples are taken in evaluation mode. *Lean*: the data are one
tensor and one forward pass, without gradient. *Tuned*: the same in batches and in the memory layout
that are fastest. *Loader*: the habit of the field, a ``DataLoader`` with batches of 128 and two
numbers read back from each batch.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

# Of the loader, as the released loops have it.
BATCH = 128


def mlp(widths: Sequence[int]) -> nn.Sequential:
    """Linear layers of these widths, input and output included, with ReLU between."""
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(itertools.pairwise(widths)):
        layers += [nn.ReLU()] if i else []
        layers.append(nn.Linear(a, b))
    return nn.Sequential(*layers)


class Block(nn.Module):
    """Two 3x3 convolutions with a shortcut without parameters (He et al. 2016, option A)."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride, self.more = stride, width - channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, c, y, x] -> [b, c', y / stride, x / stride]."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.more:
            less = self.more // 2
            x = x[:, :, :: self.stride, :: self.stride]
            x = F.pad(x, (0, 0, 0, 0, less, self.more - less))
        return F.relu(x + y)


class ResNet20(nn.Module):
    """ResNet-20 of 32-pixel pictures, with torchvision's names."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(Block(16, 16, 1), Block(16, 16, 1), Block(16, 16, 1))
        self.layer2 = nn.Sequential(Block(16, 32, 2), Block(32, 32, 1), Block(32, 32, 1))
        self.layer3 = nn.Sequential(Block(32, 64, 2), Block(64, 64, 1), Block(64, 64, 1))
        self.fc = nn.Linear(64, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, 3, y, x] -> logits [b, c]."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean((2, 3)))


@dataclass
class Peer:
    """A network, its data, and a plane through its weights.

    Attributes:
      model: in evaluation mode; returns logits [b, c], or [b, 1] of two classes.
      inputs: [b, ...] float32.
      labels: [b] int64.
      first: name of a parameter to its direction.
      second: the same of the other axis.
    """

    model: nn.Module
    inputs: torch.Tensor
    labels: torch.Tensor
    first: dict[str, torch.Tensor]
    second: dict[str, torch.Tensor]

    def __post_init__(self) -> None:
        names, self._params = zip(*self.model.named_parameters(), strict=True)
        self._centre = [p.detach().clone() for p in self._params]
        self._first = [self.first[name] for name in names]
        self._second = [self.second[name] for name in names]
        self._loader = DataLoader(TensorDataset(self.inputs, self.labels), batch_size=BATCH)

    def lean(
        self,
        coordinates: Sequence[tuple[float, float]],
        *,
        batch: int | None = None,
        channels_last: bool = False,
    ) -> torch.Tensor:
        """Loss and accuracy at points, [p, 2] float32; the full batch at once unless told."""
        inputs = self._laid_out(channels_last)
        parts = list(zip(*(a.split(batch or len(a)) for a in (inputs, self.labels)), strict=True))
        values = torch.zeros(len(coordinates), 2, device=inputs.device)
        with torch.inference_mode():
            for row, (x, y) in enumerate(coordinates):
                self._move(x, y)
                for pictures, labels in parts:
                    values[row] += measures(self.model(pictures), labels)
        self._move(0.0, 0.0)
        return (values / len(inputs)).cpu()

    def loader(self, coordinates: Sequence[tuple[float, float]]) -> torch.Tensor:
        """Loss and accuracy at points, [p, 2] float32, over the ``DataLoader``."""
        self._laid_out(False)
        values = torch.zeros(len(coordinates), 2)
        with torch.no_grad():
            for row, (x, y) in enumerate(coordinates):
                self._move(x, y)
                loss = right = 0.0
                for inputs, labels in self._loader:
                    sums = measures(self.model(inputs), labels)
                    loss += sums[0].item()
                    right += sums[1].item()
                values[row] = torch.tensor([loss, right]) / len(self.inputs)
        self._move(0.0, 0.0)
        return values

    def _laid_out(self, channels_last: bool) -> torch.Tensor:
        """The inputs in a layout, in which the weights are as well from now on."""
        if self.inputs.ndim < 4:
            return self.inputs
        layout = torch.channels_last if channels_last else torch.contiguous_format
        for p in self._params:
            if p.ndim == 4:
                p.data = p.data.contiguous(memory_format=layout)
        return self.inputs.contiguous(memory_format=layout)

    def _move(self, x: float, y: float) -> None:
        with torch.no_grad():
            for p, c, a, b in zip(
                self._params, self._centre, self._first, self._second, strict=True
            ):
                torch.add(c, a, alpha=x, out=p.data)
                p.data.add_(b, alpha=y)


def measures(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sums over the samples, [2]: cross-entropy, and how many are right."""
    if logits.shape[1] == 1:
        logits = logits[:, 0]
        loss = F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="sum")
        return torch.stack([loss, ((logits > 0) == (labels > 0)).sum()])
    loss = F.cross_entropy(logits, labels, reduction="sum")
    return torch.stack([loss, (logits.argmax(1) == labels).sum()])
