"""The hybrid 2D-3D network in plain PyTorch, as its user would write it: the benchmarks' peer.

Channels first, [b, c, z, y, x]; layers carry the names of ``densejax.models.hybrid``, so that its
parameters can be loaded and the two compared before either is timed.
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

FLAT = (1, 3, 3)
CUBE = (3, 3, 3)


def block(c_in: int, convs: tuple[tuple[int, tuple[int, int, int]], ...]) -> nn.Sequential:
    """Convolutions (features, kernel), each with a ReLU."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i, (features, kernel) in enumerate(convs):
        layers[f"conv{i}"] = nn.Conv3d(c_in, features, kernel, padding="same")
        layers[f"relu{i}"] = nn.ReLU(inplace=True)
        c_in = features
    return nn.Sequential(layers)


def up(c_in: int, c_out: int) -> nn.ConvTranspose3d:
    """Doubles y and x."""
    return nn.ConvTranspose3d(c_in, c_out, (1, 2, 2), stride=(1, 2, 2))


def crop(x: torch.Tensor, sizes: torch.Size) -> torch.Tensor:
    """Centre-crop y and x of [b, c, z, y, x] to ``sizes`` (y, x)."""
    (a, b), (height, width) = ((n - m) // 2 for n, m in zip(x.shape[3:], sizes, strict=True)), sizes
    return x[..., a : a + height, b : b + width]


class TorchHybrid(nn.Module):
    """``densejax.models.hybrid.Hybrid2D3D`` as released: ReLU on the logits."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        w = width
        fine = ((w, CUBE), (2 * w, FLAT), (2 * w, FLAT))
        middle = ((2 * w, CUBE), (4 * w, FLAT), (4 * w, FLAT))
        coarse = ((8 * w, FLAT),) * 2
        self.encoder0 = block(1, fine)
        self.encoder1 = block(2 * w, middle)
        self.encoder2 = block(4 * w, coarse)
        self.bottom = block(8 * w, ((16 * w, FLAT),) * 2)
        self.up2, self.decoder2 = up(16 * w, 8 * w), block(16 * w, coarse)
        self.up1, self.decoder1 = up(8 * w, 2 * w), block(6 * w, middle)
        self.up0, self.decoder0 = up(4 * w, w), block(3 * w, fine)
        self.predictor_2d = nn.Conv3d(2 * w, classes, 1)
        self.pyramid0 = block(2 * w + classes, ((2 * w, CUBE),) * 3)
        self.pyramid1 = block(2 * w + classes, ((4 * w, CUBE),) * 5)
        self.pyramid_narrow = nn.Conv3d(4 * w, 2 * w, 1)
        self.pyramid_up = up(2 * w, 2 * w)
        self.predictor_3d = nn.Conv3d(2 * w, classes, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[b, 1, z, y, x] float32 -> logits and logits of the 2-D module, [b, c, z, y', x']."""
        skips = [self.encoder0(x)]
        skips.append(self.encoder1(F.max_pool3d(skips[-1], (1, 2, 2))))
        skips.append(self.encoder2(F.max_pool3d(skips[-1], (1, 2, 2))))
        x = self.bottom(F.max_pool3d(skips[-1], (1, 2, 2)))
        for skip, upsample, decode in (
            (skips[2], self.up2, self.decoder2),
            (skips[1], self.up1, self.decoder1),
            (skips[0], self.up0, self.decoder0),
        ):
            x = upsample(x)
            x = decode(torch.cat([crop(skip, x.shape[3:]), x], dim=1))
        logits_2d = F.relu(self.predictor_2d(x))
        x = torch.cat([x, logits_2d], dim=1)
        coarse = self.pyramid1(F.max_pool3d(x, (1, 2, 2)))
        coarse = self.pyramid_up(F.relu(self.pyramid_narrow(coarse)))
        return F.relu(self.predictor_3d(self.pyramid0(x) + coarse)), logits_2d


def load(model: TorchHybrid, params: Mapping[str, Any]) -> TorchHybrid:
    """Load the parameters of ``Hybrid2D3D`` (its tree below 'params'); every one must be there.

    Raises:
      RuntimeError: if a name or a shape is not the model's.
    """
    state: dict[str, torch.Tensor] = {}

    def visit(tree: Mapping[str, Any], names: tuple[str, ...]) -> None:
        for name, value in tree.items():
            if isinstance(value, Mapping):
                visit(value, (*names, name))
            elif name == "bias":
                state[".".join((*names, name))] = torch.tensor(np.asarray(value))
            else:
                # [z, y, x, in, out] to [out, in, z, y, x]; transposed: to [in, out, z, y, x].
                transposed = names[-1].startswith("up") or names[-1].endswith("_up")
                axes = (3, 4, 0, 1, 2) if transposed else (4, 3, 0, 1, 2)
                kernel = np.ascontiguousarray(np.asarray(value).transpose(axes))
                state[".".join((*names, "weight"))] = torch.tensor(kernel)

    visit(params, ())
    model.load_state_dict(state)
    return model


def loss_of(
    outputs: tuple[torch.Tensor, torch.Tensor], labels: torch.Tensor, *, two_d_loss: float = 0.33
) -> torch.Tensor:
    """Mean cross-entropy of the final logits plus ``two_d_loss`` times that of the 2-D module.

    Args:
      outputs: final and 2-D logits, [b, c, z, y, x].
      labels: int64 [b, z, y, x], all labelled.
      two_d_loss: weight of the 2-D module's loss.
    """
    return F.cross_entropy(outputs[0], labels) + two_d_loss * F.cross_entropy(outputs[1], labels)


def train_step(
    model: TorchHybrid, optimiser: torch.optim.Optimizer, x: torch.Tensor, labels: torch.Tensor
) -> float:
    """One update; returns the loss before it."""
    optimiser.zero_grad()
    loss = loss_of(model(x), labels)
    loss.backward()
    optimiser.step()
    return loss.item()


def forward(model: TorchHybrid, x: torch.Tensor) -> torch.Tensor:
    """Final logits without a tape."""
    with torch.inference_mode():
        return model(x)[0]
