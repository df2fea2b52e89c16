"""How far is each convolution of the hybrid network from oneDNN's, operation by operation?

Every convolution of the network with a kernel above one voxel, at the sizes of a window: forward,
input gradient (dx) and weight gradient (dw), by ``densejax.ops.convolution``, by XLA's own 3-D
convolution (native), by PyTorch as installed (which picks its backend by size, named in the table)
and by oneDNN, forced: plain layout, and channels last, which it prefers.

    python -m experiments.benchmarks.convolution --width=32 --window=64

Interleaved rounds, float32, one process; all contenders agree before timing. Ratios are PyTorch's
(or XLA's) time over densejax's: above 1, densejax is faster; below 1 is the distance to oneDNN. The
last rows weigh every operation by how often a step computes it. Minutes at window 64.
"""

import functools
from collections import Counter
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax import lax

from densejax.cli import option
from densejax.models.hybrid import Hybrid2D3D
from densejax.ops.convolution import convolution
from experiments.benchmarks import measure
from experiments.benchmarks.measure import Calls, Row

DEPTH = 5
PASSES = ("forward", "dx", "dw")
PEERS = ("native", "torch", "oneDNN", "oneDNN channels last")
COLUMNS = (
    *("pass", "kernel", "c_in", "c_out", "plane", "times", "PyTorch's backend"),
    *("densejax ms (cpu)", *(f"{peer} / densejax" for peer in PEERS)),
    *("GFLOP", "densejax GFLOP/s", "share of ceiling"),
)

Shapes = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class Config(measure.Timed):
    """Which convolutions are measured."""

    width: int = option(32, "width of the network", fast=4)
    window: int = option(64, "y and x of the window", unit="voxels", fast=64)
    operations: int = option(0, "only so many, the costliest; 0 is all", fast=1)


def shapes_of(width: int, window: int) -> Counter[Shapes]:
    """(x, w) shapes of the network's convolutions, each with how often it occurs."""
    model = Hybrid2D3D(width=width)
    x = jax.ShapeDtypeStruct((1, DEPTH, window, window, 1), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    found: Counter[Shapes] = Counter()
    for equation in measure.equations(jax.make_jaxpr(model.apply)(variables, x).jaxpr):
        if equation.primitive.name == "densejax_convolution":
            a, b = (v.aval.shape for v in equation.invars)
            found[tuple(a), tuple(b)] += 1
    return found


def gflop(shapes: Shapes) -> float:
    """GFLOP of one pass; the three passes cost the same."""
    x, w = shapes
    return 2e-9 * float(np.prod(x[:-1])) * float(np.prod(w))


def jax_calls(x: np.ndarray, w: np.ndarray, g: np.ndarray) -> dict[str, Calls]:
    """densejax and native, by pass."""

    def native(x: jax.Array, w: jax.Array) -> jax.Array:
        dims = ("NDHWC", "DHWIO", "NDHWC")
        return lax.conv_general_dilated(x, w, (1, 1, 1), "SAME", dimension_numbers=dims)

    a, b, c = (jnp.asarray(array) for array in (x, w, g))
    calls: dict[str, Calls] = {name: {} for name in PASSES}
    for name, function in (("densejax", convolution), ("native", native)):
        # Linear in each argument: the transposes alone, without a forward pass.
        forward = jax.jit(function)
        dx = jax.jit(lambda b, c, f=function: jax.linear_transpose(lambda x: f(x, b), a)(c)[0])
        dw = jax.jit(lambda a, c, f=function: jax.linear_transpose(lambda w: f(a, w), b)(c)[0])
        calls["forward"][name] = functools.partial(forward, a, b)
        calls["dx"][name] = functools.partial(dx, b, c)
        calls["dw"][name] = functools.partial(dw, a, c)
    return calls


def torch_calls(x: np.ndarray, w: np.ndarray, g: np.ndarray) -> dict[str, Calls]:
    """PyTorch as installed and oneDNN in two layouts, by pass."""
    a, c = (torch.tensor(v.transpose(0, 4, 1, 2, 3)).contiguous() for v in (x, g))
    b = torch.tensor(w.transpose(4, 3, 0, 1, 2)).contiguous()
    pad = [k // 2 for k in w.shape[:3]]
    last = [t.contiguous(memory_format=torch.channels_last_3d) for t in (a, b, c)]

    def backward(x: torch.Tensor, w: torch.Tensor, g: torch.Tensor, mask: list[bool]) -> Any:
        # What autograd calls; tensors of oneDNN's own kind force its backend.
        rest = (None, [1] * 3, pad, [1] * 3, False, [0] * 3, 1)
        return torch.ops.aten.convolution_backward(g, x, w, *rest, mask)

    def one_dnn(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return torch.mkldnn_convolution(x, w, None, pad, [1] * 3, [1] * 3, 1)

    def turned(w: torch.Tensor) -> torch.Tensor:
        return w.flip(2, 3, 4).transpose(0, 1)

    own = [t.to_mkldnn() for t in (a, c)]
    back = [turned(b).contiguous(), turned(b).contiguous(memory_format=torch.channels_last_3d)]
    calls: dict[str, Calls] = {
        "forward": {
            "torch": lambda: torch.nn.functional.conv3d(a, b, padding=pad),
            "oneDNN": lambda: one_dnn(a, b),
            "oneDNN channels last": lambda: one_dnn(last[0], last[1]),
        },
        "dx": {
            "torch": lambda: backward(a, b, c, [True, False, False])[0],
            # The input gradient of an odd kernel is a forward convolution with the turned kernel.
            "oneDNN": lambda: one_dnn(c, back[0]),
            "oneDNN channels last": lambda: one_dnn(last[2], back[1]),
        },
        "dw": {
            "torch": lambda: backward(a, b, c, [False, True, False])[1],
            "oneDNN": lambda: backward(own[0], b, own[1], [False, True, False])[1],
        },
    }
    return calls


def channels_last(name: str, value: Any) -> np.ndarray:
    """Any contender's result in densejax's layout."""
    if isinstance(value, jax.Array):
        return np.asarray(value)
    array = value.numpy()
    return array.transpose(2, 3, 4, 1, 0) if name == "dw" else array.transpose(0, 2, 3, 4, 1)


def contenders(shapes: Shapes) -> dict[str, Calls]:
    """Contenders by pass, found to agree.

    Raises:
      ValueError: if two differ by more than rounding.
    """
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    g = rng.standard_normal((*x.shape[:-1], w.shape[-1])).astype(np.float32)
    ours, theirs = jax_calls(x, w, g), torch_calls(x, w, g)
    calls = {name: ours[name] | theirs[name] for name in PASSES}
    for name in PASSES:
        results = {who: channels_last(name, call()) for who, call in calls[name].items()}
        for who, result in results.items():
            text = f"{name} of {shapes}: {who}"
            measure.agreed(text, result, results["torch"], tolerance=1e-4)
    return calls


def rows_of(shapes: Shapes, times: int, *, rounds: int, ceiling: float) -> measure.Rows:
    """The three rows of one convolution."""
    x, w = shapes
    rows: measure.Rows = []
    pad = [k // 2 for k in w[:3]]
    a, b = torch.empty(1, x[-1], *x[1:4]), torch.empty(w[4], w[3], *w[:3])
    chosen = torch._C._select_conv_backend(a, b, None, [1] * 3, pad, [1] * 3, False, [0] * 3, 1)
    for name, calls in contenders(shapes).items():
        found = measure.compared(calls, rounds=rounds)
        rate = 1e3 * gflop(shapes) / found["densejax ms (cpu)"]["wall_ms"]
        row: Row = {
            **{"pass": name, "kernel": "x".join(map(str, w[:3])), "c_in": w[3], "c_out": w[4]},
            **{"plane": f"{x[2]}x{x[3]}", "times": times, "PyTorch's backend": chosen.name},
            **{"GFLOP": gflop(shapes), "densejax GFLOP/s": rate},
            **{"share of ceiling": rate / ceiling, **found},
        }
        rows.append(row)
    return rows


def totals(rows: measure.Rows) -> measure.Rows:
    """Each pass over the whole network: sums of medians, every operation as often as it occurs."""
    lines: measure.Rows = []
    for name in PASSES:
        part = [row for row in rows if row["pass"] == name]

        def total(who: str, part: measure.Rows = part) -> float:
            return sum(r["times"] * measure.medians(r["seconds"][who])["wall_ms"] for r in part)

        line: dict[str, Any] = {"pass": f"all {name}", "densejax ms (cpu)": total("densejax")}
        line["GFLOP"] = sum(row["times"] * row["GFLOP"] for row in part)
        for peer in PEERS:
            if all(peer in row["seconds"] for row in part):
                line[f"{peer} / densejax"] = total(peer) / total("densejax")
        lines.append(line)
    return lines


def run(config: Config) -> None:
    """Measure the network's convolutions, the costliest first.

    Raises:
      ValueError: there is an accelerator.
    """
    if jax.default_backend() != "cpu":
        raise ValueError("this compares CPUs: set JAX_PLATFORMS=cpu")
    product = "jax matmul GFLOP/s"
    ceilings = {product: measure.matmul_gflops()}
    title = f"Convolutions of the hybrid network, width {config.width}, window {config.window}"
    file = f"convolution_{config.width}_{config.window}"
    report = measure.Report(file, title, COLUMNS, config, ceilings=ceilings, totals=totals)
    costs = shapes_of(config.width, config.window)
    shapes = sorted(costs, key=lambda pair: -costs[pair] * gflop(pair))
    for pair in report.each(shapes[: config.operations or None]):
        report.rows += rows_of(pair, costs[pair], rounds=config.rounds, ceiling=ceilings[product])


if __name__ == "__main__":
    measure.main(Config, run, description=__doc__)
