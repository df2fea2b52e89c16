"""dilated_convolution against PyTorch and lax: values, gradients, instances, and what is traced."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from densejax.ops.convolution import dilated_convolution

# Space, kernel, dilation: folded by whole multiples and not, with 5 taps; tap by tap, with an axis
# shorter than the dilation, both, and outer taps that meet nothing.
CASES = [
    ((8, 10), (3, 3), 2),
    ((13, 11), (3, 3), 3),
    ((9, 8), (5, 1), 2),
    ((12, 5), (3, 3), 5),
    ((4, 5), (3, 3), 6),
    ((9, 13), (5, 3), 4),
    ((1, 7), (3, 1), 2),
    ((5, 6), (3, 3), 1),
]


def arrays(space, kernel, *, k=None, seed=0):
    rng = np.random.default_rng(seed)
    lead = () if k is None else (k,)
    x = rng.standard_normal((*lead, 2, 3, *space, 4)).astype(np.float32)
    w = rng.standard_normal((*lead, 1, *kernel, 4, 5)).astype(np.float32) / 6
    return x, w


def lax_reference(x, w, dilation):
    pads = [(dilation * (k // 2),) * 2 for k in w.shape[1:3]]
    y = lax.conv_general_dilated(
        x.reshape(-1, *x.shape[2:]),
        w[0],
        (1, 1),
        pads,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y.reshape(*x.shape[:2], *y.shape[1:])


@pytest.mark.parametrize(("space", "kernel", "dilation"), CASES)
def test_value_and_gradients_agree_with_torch(space, kernel, dilation):
    torch = pytest.importorskip("torch")
    x, w = arrays(space, kernel)
    a = torch.tensor(x.reshape(-1, *x.shape[2:]).transpose(0, 3, 1, 2), requires_grad=True)
    b = torch.tensor(w[0].transpose(3, 2, 0, 1), requires_grad=True)
    pads = [dilation * (n // 2) for n in kernel]
    expected = torch.nn.functional.conv2d(a, b, None, 1, pads, dilation)
    expected.sin().sum().backward()
    slopes = (
        a.grad.numpy().transpose(0, 2, 3, 1).reshape(x.shape),
        b.grad.numpy().transpose(2, 3, 1, 0)[None],
    )

    @jax.jit
    def both(x, w):
        y, back = jax.vjp(lambda x, w: dilated_convolution(x, w, dilation=dilation), x, w)
        return y, back(jnp.cos(y))

    found, ours = both(x, w)
    expected = expected.detach().numpy().transpose(0, 2, 3, 1).reshape(found.shape)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    for a, b in zip(ours, slopes, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    native = dilated_convolution(x, w, dilation=dilation, implementation="native")
    np.testing.assert_allclose(native, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("space", [(7, 5), (13, 11)])
def test_instances_side_by_side_and_second_derivatives_agree_with_lax(space):
    x, w = arrays(space, (3, 3), k=2)

    def curvature(f):
        def slope(x, w):
            return jax.grad(lambda w: jnp.sin(f(x, w)).sum())(w)

        return jax.jit(jax.vmap(lambda x, w: jax.jvp(slope, (x, w), (x, w))[1]))(x, w)

    ours, theirs = (
        curvature(lambda x, w, f=f: f(x, w, dilation=3))
        for f in (dilated_convolution, lambda x, w, dilation: lax_reference(x, w, dilation))
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3)


def test_what_is_convolved_is_folded_and_no_kernel_grows():
    x, w = arrays((24, 27), (3, 3))
    traced = jax.make_jaxpr(lambda x, w: dilated_convolution(x, w, dilation=6))(x, w)
    (equation,) = [e for e in traced.jaxpr.eqns if e.primitive.name == "densejax_convolution"]
    sizes = [v.aval.shape for v in equation.invars]
    assert sizes == [(2, 3 * 36, 4, 5, 4), (1, 3, 3, 4, 5)]
    assert "conv_general_dilated" not in str(traced)


@pytest.mark.parametrize(("space", "products"), [((12, 15), 9), ((12, 5), 3), ((5, 4), 1)])
def test_few_pixels_are_one_product_a_tap_that_meets_any(space, products):
    x, w = arrays(space, (3, 3))
    traced = jax.make_jaxpr(lambda x, w: dilated_convolution(x, w, dilation=6))(x, w)
    assert [e.primitive.name for e in traced.jaxpr.eqns].count("dot_general") == products
    assert "convolution" not in str(traced)


@pytest.mark.parametrize(
    ("kernel", "dilation", "message"),
    [
        ((1, 2, 3), 2, r"kernel \(1, 2, 3\)"),
        ((3, 3, 3), 2, r"kernel \(3, 3, 3\)"),
        ((1, 3, 3), 0, "dilation 0"),
    ],
)
def test_wrong_arguments_are_named(kernel, dilation, message):
    with pytest.raises(ValueError, match=message):
        dilated_convolution(
            jnp.zeros((1, 3, 4, 4, 2)), jnp.zeros((*kernel, 2, 2)), dilation=dilation
        )
