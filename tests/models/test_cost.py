"""Operation counts: by hand, against the released TensorFlow graphs, through loops."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax import lax

from densejax.models import unet3d
from densejax.models.cost import gflop, multiply_adds, parameters
from densejax.models.hybrid import Hybrid2D3D
from densejax.models.layers import Conv, UpConv
from densejax.models.unet import UNet
from densejax.ops.convolution import convolution


@pytest.mark.parametrize(
    ("model", "window", "published"),
    [
        (Hybrid2D3D(), (5, 300, 300), 1330),
        (UNet(), (1, 572, 572), 300),
        (unet3d.thin(), (5, 300, 300), 380),
    ],
)
def test_published_cost_of_a_window(model, window, published):
    assert gflop(model, window) == pytest.approx(published, rel=0.02)


def test_one_layer_counted_by_hand():
    assert gflop(Conv(7, (3, 3, 3)), (2, 4, 5), channels=3) == pytest.approx(
        2e-9 * 2 * 4 * 5 * 27 * 3 * 7
    )
    assert gflop(Conv(7, (1, 1, 1)), (2, 4, 5), channels=3) == pytest.approx(
        2e-9 * 2 * 4 * 5 * 3 * 7
    )
    # A transposed convolution multiplies every input voxel by every tap.
    assert gflop(UpConv(7, (1, 2, 2)), (2, 4, 5), channels=3) == pytest.approx(
        2e-9 * 2 * 4 * 5 * 4 * 3 * 7
    )
    assert parameters(Conv(7, (3, 3, 3)), (2, 4, 5), channels=3) == 27 * 3 * 7 + 7


@pytest.mark.parametrize("kernel", [(1, 3, 3), (3, 3, 3)])
def test_gradients_cost_as_much_as_the_convolution_each(kernel):
    x, w = jnp.zeros((1, 4, 8, 8, 4)), jnp.zeros((*kernel, 4, 4))
    counts = []
    for implementation in ("folded", "native"):

        def f(x, w, implementation=implementation):
            return convolution(x, w, implementation=implementation)

        counts.append(multiply_adds(jax.make_jaxpr(f)(x, w).jaxpr))
    assert counts[0] == counts[1]

    def loss(x, w):
        return convolution(x, w, implementation="folded").sum()

    backward = multiply_adds(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(x, w).jaxpr)
    assert backward == 3 * counts[0]


def test_a_scan_counts_every_turn_and_flax_layers_count_too():
    def looped(x):
        return lax.scan(lambda c, _: (jax.jit(jnp.matmul)(c, c), None), x, None, 5)[0]

    assert multiply_adds(jax.make_jaxpr(looped)(jnp.zeros((3, 3))).jaxpr) == 5 * 27
    assert gflop(nn.Conv(2, (3, 3)), (1, 4, 4), channels=3) == pytest.approx(2e-9 * 16 * 9 * 3 * 2)
