"""Which networks are compared, and what does each cost?

Data: none. Prints the parameters of every segmentation network, the window it reads, the window it
labels and the operations of one forward pass, all by shape inference.

  python -m experiments.networks --format=table

Expected: the published parameter counts (10.3M hybrid, 9.9M without 3x3x3, 7.9M without pyramid,
31.0M U-Net, 2.0M and 2.1M 3D U-Nets) and 1.33 TFLOP for the hybrid on (5, 300, 300). Seconds, no
accelerator.
"""

import dataclasses
import json
from typing import Any, Literal

from densejax.cli import main, option
from densejax.models import cost, unet3d
from densejax.models.hybrid import Hybrid2D3D
from densejax.models.unet import UNet

Window = tuple[int, int, int]

HYBRID_WINDOW = (5, 300, 300)


@dataclasses.dataclass(frozen=True)
class Config:
    """How the networks are printed."""

    format: Literal["table", "json"] = option("table", "aligned text, or JSON", essential=True)


@dataclasses.dataclass(frozen=True)
class Network:
    """One row: windows are (z, y, x) voxels, GFLOP count two operations a multiply-add."""

    name: str
    parameters: int
    input_window: Window
    output_window: Window
    gflop_per_window: float


def networks() -> list[tuple[str, Any, Window]]:
    """Name, network and the input window with which it was published."""
    return [
        ("2D-3D + 3x3x3 (hybrid)", Hybrid2D3D(), HYBRID_WINDOW),
        ("2D-3D, no 3x3x3 convolutions", Hybrid2D3D(conv3d_in_2d=False), HYBRID_WINDOW),
        # The same network as the hybrid: the ablation is a loss weight of zero on logits_2d.
        ("2D-3D, no multi-loss", Hybrid2D3D(), HYBRID_WINDOW),
        ("2D-3D, no 3D pyramid", Hybrid2D3D(pyramid=False), HYBRID_WINDOW),
        ("2D-3D + 3x3x3 (released TensorFlow)", Hybrid2D3D(upsample_z=True), HYBRID_WINDOW),
        ("Original U-Net", UNet(), (1, 572, 572)),
        ("3D U-Net Thin", unet3d.thin(crop=(0, 2, 2)), (5, 300, 300)),
        # Its depth is inferred: 16 planes give the 0.29 TFLOP of the released network.
        ("3D U-Net Thick", unet3d.thick(), (16, 180, 180)),
    ]


def described() -> list[Network]:
    """Describe every network, without allocating any."""
    return [
        Network(
            name=name,
            parameters=cost.parameters(model, window),
            input_window=window,
            output_window=model.output_window(window),
            gflop_per_window=round(cost.gflop(model, window), 2),
        )
        for name, model, window in networks()
    ]


def table(rows: list[Network]) -> str:
    """The rows as aligned text, one network a line."""
    header = ("name", "parameters", "input window", "output window", "GFLOP/window")
    cells = [
        (
            row.name,
            f"{row.parameters:,}",
            "x".join(map(str, row.input_window)),
            "x".join(map(str, row.output_window)),
            f"{row.gflop_per_window:,.1f}",
        )
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    lines = [
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in (header, *cells)
    ]
    return "\n".join(lines)


def run(config: Config, *, fast: bool = False) -> None:
    """Print the networks."""
    del fast  # they are never allocated, so all are shown
    rows = described()
    if config.format == "json":
        print(json.dumps([dataclasses.asdict(row) for row in rows], indent=2))
    else:
        print(table(rows))


if __name__ == "__main__":
    main(Config, run, description=__doc__, workdir="", trains=False)
