"""convolution against lax.conv_general_dilated: values, gradients, batching, higher derivatives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from densejax.ops import convolution as module
from densejax.ops.convolution import convolution

KERNELS = [(1, 1, 1), (1, 3, 3), (3, 3, 3), (2, 1, 4)]


def reference(x, w, padding="SAME"):
    dims = ("NDHWC", "DHWIO", "NDHWC")
    return lax.conv_general_dilated(
        x, w, (1, 1, 1), padding, dimension_numbers=dims, precision=lax.Precision.HIGHEST
    )


def folded(x, w, padding="SAME"):
    return convolution(x, w, padding=padding, implementation="folded")


def arrays(kernel, *, k=None, c_in=3, c_out=4, space=(3, 6, 5)):
    """x and w of unit variance; w scaled so that the convolution has unit variance too."""
    lead = () if k is None else (k,)
    one, two = jax.random.split(jax.random.key(0))
    scale = (np.prod(kernel) * c_in) ** -0.5
    x = jax.random.normal(one, (*lead, 2, *space, c_in))
    return x, jax.random.normal(two, (*lead, *kernel, c_in, c_out)) * scale


def close(ours, theirs, tolerance=1e-4):
    """Equal to ``tolerance`` of the largest entry: sums of many terms have no finer meaning."""
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * float(jnp.abs(b).max()))


def gradient(f):
    return jax.jit(jax.grad(lambda x, w: jnp.sin(f(x, w)).sum(), argnums=(0, 1)))


def value_and_gradients(f):
    """Value and both gradients for a cotangent that varies, in one compiled program."""

    def both(x, w):
        y, back = jax.vjp(f, x, w)
        return y, back(jnp.sin(y))

    return jax.jit(both)


@pytest.mark.parametrize("implementation", ["folded", "native"])
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_value_and_gradient_agree_with_lax(kernel, padding, implementation):
    x, w = arrays(kernel)
    ours = functools.partial(convolution, padding=padding, implementation=implementation)
    (y, slopes), (y0, slopes0) = (
        value_and_gradients(f)(x, w) for f in (ours, functools.partial(reference, padding=padding))
    )
    close(y, y0, 1e-5)
    close(slopes, slopes0)


def test_unjitted_it_is_the_same():
    x, w = arrays((3, 3, 3))
    close(folded(x, w), reference(x, w), 1e-5)


@pytest.mark.parametrize("form", ["convolved", "gathered", "looped"])
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("kernel", KERNELS[1:])
def test_every_form_of_the_weight_gradient_agree_with_lax(form, kernel, padding):
    x, w = arrays(kernel)
    rule = getattr(module, f"_weight_gradient_{form}")
    y, back = jax.vjp(functools.partial(reference, x, padding=padding), w)
    pads = module._pads(kernel, padding)
    close(jax.jit(lambda x, g: rule(x, g, pads))(x, y), back(y)[0])


@pytest.mark.parametrize(
    ("c_in", "c_out", "side"), [(3, 48, 6), (3, 48, 128), (3, 4, 16), (80, 4, 150), (1, 4, 128)]
)
def test_the_choice_of_the_weight_gradient_does_not_show(c_in, c_out, side):
    x, w = arrays((1, 3, 3), c_in=c_in, c_out=c_out, space=(1, side, side))
    (_, ours), (_, theirs) = (value_and_gradients(f)(x, w) for f in (folded, reference))
    close(ours, theirs, 3e-4)


@pytest.mark.parametrize("k", [2, module.MAX_UNROLL + 1])
@pytest.mark.parametrize("axes", [(0, 0), (0, None), (None, 0)])
def test_every_batching_agrees_with_lax(axes, k):
    one, many = arrays((3, 3, 3)), arrays((3, 3, 3), k=k)
    args = [m if axis == 0 else o for m, o, axis in zip(many, one, axes, strict=True)]
    (y, slopes), (y0, slopes0) = (
        jax.jit(jax.vmap(value_and_gradients(f), axes))(*args) for f in (folded, reference)
    )
    close(y, y0, 1e-5)
    close(slopes, slopes0)


def test_vmap_over_weights_never_makes_a_grouped_convolution():
    x, w = arrays((3, 3, 3), k=3)
    text = str(jax.make_jaxpr(jax.vmap(gradient(folded)))(x, w))
    assert "densejax_convolution" in text
    lowered = jax.jit(jax.vmap(gradient(folded))).lower(x, w).as_text()
    assert "feature_group_count = 1" in lowered and "feature_group_count = 3" not in lowered
    assert "batch_group_count = 3" not in lowered


def test_other_axes_and_nested_vmap_agree_with_lax():
    x, w = arrays((1, 3, 3), k=2)
    x2, w2 = jnp.stack([x, 2 * x], axis=3), jnp.stack([w, -w], axis=-1)
    ours, theirs = (
        jax.jit(jax.vmap(jax.vmap(gradient(f)), in_axes=(3, -1), out_axes=1))
        for f in (folded, reference)
    )
    close(ours(x2, w2), theirs(x2, w2))


def test_inside_a_map_a_scan_and_a_checkpoint_it_agrees_with_lax():
    x, w = arrays((3, 3, 3), k=3)

    def mapped(f):
        return jax.jit(lambda x, w: lax.map(lambda a: gradient(jax.checkpoint(f))(*a), (x, w)))

    def scanned(f):
        w0 = w[0, ..., :3]
        return jax.grad(
            lambda x: (lax.scan(lambda c, _: (f(c, w0), None), x, None, 2)[0] ** 2).sum()
        )

    close(mapped(folded)(x, w), mapped(reference)(x, w))
    close(scanned(folded)(x[0]), scanned(reference)(x[0]))


def test_over_devices_it_agrees_with_lax():
    if jax.device_count() < 2:
        pytest.skip("one device only")
    x, w = arrays((3, 3, 3), k=4)
    x, w = (a.reshape(2, 2, *a.shape[1:]) for a in (x, w))
    ours, theirs = (jax.pmap(jax.vmap(gradient(f)))(x, w) for f in (folded, reference))
    close(ours, theirs)


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_second_derivatives_agree_with_lax(padding):
    x, w = arrays((3, 3, 3))
    dx, dw = x[::-1] * 0.3, w[::-1]

    def forward_over_reverse(f):
        return jax.jit(lambda x, w: jax.jvp(gradient(f), (x, w), (dx, dw))[1])

    def reverse_over_reverse(f):
        return jax.jit(jax.grad(lambda x, w: sum((g**2).sum() for g in gradient(f)(x, w)), (0, 1)))

    def reverse_over_forward(f):
        return jax.jit(jax.grad(lambda x, w: (jax.jvp(f, (x, w), (dx, dw))[1] ** 2).sum(), (0, 1)))

    for order in (forward_over_reverse, reverse_over_reverse, reverse_over_forward):
        ours, theirs = (functools.partial(f, padding=padding) for f in (folded, reference))
        close(order(ours)(x, w), order(theirs)(x, w))


def test_hessian_vector_products_can_be_vmapped_over_directions():
    x, w = arrays((1, 3, 3))
    directions = jax.random.normal(jax.random.key(3), (3, *w.shape))

    def products(f):
        slope = jax.grad(lambda w: jnp.sin(f(x, w)).sum())
        return jax.jit(jax.vmap(lambda v: jax.jvp(slope, (w,), (v,))[1]))(directions)

    close(products(folded), products(reference))


def test_bfloat16_stays_bfloat16_and_is_near_float32():
    x, w = arrays((3, 3, 3), c_in=8, c_out=8)
    half = gradient(folded)(x.astype(jnp.bfloat16), w.astype(jnp.bfloat16))
    assert {g.dtype for g in half} == {jnp.dtype(jnp.bfloat16)}
    close([g.astype(jnp.float32) for g in half], gradient(reference)(x, w), 0.06)
    assert convolution(x.astype(jnp.bfloat16), w).dtype == jnp.float32


@pytest.mark.parametrize(
    ("x", "w", "options", "message"),
    [
        ((1, 4, 4, 3), (1, 3, 3, 3, 2), {}, r"\(1, 4, 4, 3\)"),
        ((1, 1, 4, 4, 3), (1, 3, 3, 2, 2), {}, "3 channels"),
        ((1, 1, 4, 4, 3), (3, 3, 3, 3, 2), {"padding": "VALID"}, "does not fit"),
        ((1, 1, 4, 4, 3), (1, 3, 3, 3, 2), {"padding": "FULL"}, "'FULL'"),
        ((1, 1, 4, 4, 3), (1, 3, 3, 3, 2), {"implementation": "fast"}, "'fast'"),
    ],
)
def test_wrong_arguments_are_named(x, w, options, message):
    with pytest.raises(ValueError, match=message):
        convolution(jnp.zeros(x), jnp.zeros(w), **options)
