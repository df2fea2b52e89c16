"""Three-dimensional convolution, stride 1, that a CPU computes at the speed of its matrix products.

Transposed convolution, of a kernel that equals its stride, is a matrix product and a rearrangement.

XLA's own 3-D convolution is slow on a CPU: three times slower than the same sum written as a 2-D
convolution, thirteen times slower inside a loop, and five times slower when the kernels are
batched (a grouped convolution). Here z is folded into the batch (kernels of one plane) or the
z-shifts are concatenated in the channels (deeper kernels), and every convolution is written
channels last, so that XLA need not choose a layout. On an accelerator XLA's own is used.

The convolution and its weight gradient are two primitives, each bilinear and each the other's
transpose (the input gradient is a convolution with the kernel turned round). So derivatives of any
order and in any direction (``grad``, ``jvp`` of ``grad``, ``grad`` of ``grad``) stay among the two,
and ``vmap`` over kernels visits one instance after another and never groups channels.
"""

import contextlib
import contextvars
import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from densejax.typing import Array

Implementation = Literal["auto", "folded", "native"]
Pads = tuple[tuple[int, int], ...]
_LEAVING = contextvars.ContextVar("convolutions of a program that leaves this one", default=False)

# The weight gradient as a convolution wins where planes are smaller than this and output channels
# are at least so many, or where there is hardly an input channel; elsewhere matrix products win, up
# to 4 times: with the shifts side by side while both operands stay near the caches (1.4 to 1.9
# times the speed of one shift at a time), one shift at a time beyond. Measured on two AVX-512 cores
# of 1 MiB L2 each, planes of 8^2 to 300^2, 1 to 256 channels.
LARGE_PLANE = 128**2
MANY_CHANNELS = 48
FEW_CHANNELS = 2
CACHED_BYTES = 20 * 2**20
# Every dilation-th pixel of a plane: so few are convolved tap by tap (14 times faster at 2 x 3, the
# same at 3 x 3 of few channels, a third as fast at 6 x 8, in a loop on the same cores).
FEW_PIXELS = 12
# Up to this many instances are unrolled under vmap; more are looped, so compile time stays flat.
MAX_UNROLL = 4


def convolution(
    x: Array,
    w: Array,
    *,
    padding: Literal["SAME", "VALID"] = "SAME",
    implementation: Implementation = "auto",
) -> jax.Array:
    """Convolve a volume with a kernel, stride 1, no bias (a cross-correlation, as in all networks).

    Args:
      x: [b, z, y, x, c_in], floating.
      w: [kz, ky, kx, c_in, c_out], floating. ``x`` and ``w`` are promoted to one dtype.
      padding: 'SAME' pads with zeros (the odd zero of an even kernel goes at the end), or 'VALID'.
      implementation: 'folded' (2-D convolutions and matrix products; the choice of 'auto' where the
        default backend is a CPU) or 'native' (XLA's own; the choice of 'auto' elsewhere).

    Returns:
      [b, z', y', x', c_out], of the promoted dtype.

    Raises:
      ValueError: if a rank, a channel count, the padding or the implementation is wrong, or if the
        volume is smaller than a 'VALID' kernel.
    """
    x, w = jnp.asarray(x), jnp.asarray(w)
    _check(x.shape, w.shape, padding, implementation)
    dtype = jnp.promote_types(x.dtype, w.dtype)
    x, w = x.astype(dtype), w.astype(dtype)
    if w.shape[:3] == (1, 1, 1):
        return jnp.einsum("bzyxi,io->bzyxo", x, w[0, 0, 0])
    pads = _pads(w.shape[:3], padding)
    if implementation == "auto" and _LEAVING.get():
        return _forward(x, w, pads=pads)
    if implementation == "auto":
        implementation = "folded" if jax.default_backend() == "cpu" else "native"
    if implementation == "native":
        return _native(x, w, pads)
    return _conv_p.bind(x, w, pads=pads)


@contextlib.contextmanager
def portable() -> Iterator[None]:
    """Trace convolutions of ``auto`` as XLA's own operations alone, for a program that leaves this.

    Converters to other formats do not know the primitives of this module. On a CPU the values are
    the same to the bit, and derivatives are XLA's own.
    """
    token = _LEAVING.set(True)
    try:
        yield
    finally:
        _LEAVING.reset(token)


def dilated_convolution(
    x: Array, w: Array, *, dilation: int, implementation: Implementation = "auto"
) -> jax.Array:
    """Convolve planes with a kernel whose taps lie ``dilation`` pixels apart; size kept by zeros.

    Where folded, every dilation-th pixel of a row and of a column is a plane of its own, and what
    is left is ``convolution`` without a dilation over dilation^2 times as many planes. Where such a
    plane has up to ``FEW_PIXELS`` pixels, each tap is one matrix product over the pixels that it
    meets. Inside a loop on a CPU, XLA's own is 15 times slower than either.

    Args:
      x: [b, z, y, x, c_in], floating.
      w: [1, ky, kx, c_in, c_out], floating, ky and kx odd. Promoted with ``x``.
      dilation: pixels from tap to tap along y and x; 1 is ``convolution``.
      implementation: as in ``convolution``.

    Returns:
      [b, z, y, x, c_out], of the promoted dtype.

    Raises:
      ValueError: as ``convolution``; or the kernel is deep or even, or the dilation below 1.
    """
    x, w = jnp.asarray(x), jnp.asarray(w)
    _check(x.shape, w.shape, "SAME", implementation)
    if w.shape[0] != 1 or not w.shape[1] % 2 == w.shape[2] % 2 == 1 or dilation < 1:
        raise ValueError(
            f"dilated_convolution: dilation {dilation} of a kernel {w.shape[:3]}: expected 1 or "
            "more, and a kernel of one plane with an odd number of rows and of columns"
        )
    native = jax.default_backend() != "cpu" if implementation == "auto" else None
    if dilation > 1 and (native or implementation == "native"):
        dtype = jnp.promote_types(x.dtype, w.dtype)
        return _native(x.astype(dtype), w.astype(dtype), _pads(w.shape[:3], "SAME"), dilation)
    rows, columns = (-(-n // dilation) for n in x.shape[2:4])
    if dilation > 1 and rows * columns <= FEW_PIXELS:
        return _tap_by_tap(x, w[0], dilation)
    y = convolution(_residues(x, dilation), w, implementation=implementation)
    return _interleaved(y, dilation, x.shape)


def _tap_by_tap(x: jax.Array, w: jax.Array, dilation: int) -> jax.Array:
    """A dilated convolution as the sum of one product a tap, zeros outside not multiplied."""
    _, _, rows, columns, _ = x.shape
    ky, kx = w.shape[:2]
    y: Any = 0
    for i, j in itertools.product(range(ky), range(kx)):
        dy, dx = (i - ky // 2) * dilation, (j - kx // 2) * dilation
        if abs(dy) < rows and abs(dx) < columns:
            part = x[:, :, max(dy, 0) : rows + min(dy, 0), max(dx, 0) : columns + min(dx, 0)]
            met = jnp.einsum("bzyxi,io->bzyxo", part, w[i, j])
            ends = [(max(-d, 0), max(d, 0)) for d in (dy, dx)]
            y = y + jnp.pad(met, [(0, 0), (0, 0), *ends, (0, 0)])
    return y


def _residues(x: jax.Array, step: int) -> jax.Array:
    """[b, z, y, x, c] -> [b, step^2 * z, y / step, x / step, c], padded by zeros to whole steps."""
    b, z, rows, columns, c = x.shape
    x = jnp.pad(x, ((0, 0), (0, 0), (0, -rows % step), (0, -columns % step), (0, 0)))
    x = x.reshape(b, z, x.shape[2] // step, step, x.shape[3] // step, step, c)
    return x.transpose(0, 3, 5, 1, 2, 4, 6).reshape(b, -1, x.shape[2], x.shape[4], c)


def _interleaved(y: jax.Array, step: int, shape: tuple[int, ...]) -> jax.Array:
    """The inverse of ``_residues``; ``shape`` is that of the array before it."""
    b, z, rows, columns, _ = shape
    y = y.reshape(b, step, step, z, *y.shape[2:]).transpose(0, 3, 4, 1, 5, 2, 6)
    y = y.reshape(b, z, y.shape[2] * step, y.shape[4] * step, y.shape[-1])
    return y[:, :, :rows, :columns]


def _check(x_shape: tuple, w_shape: tuple, padding: str, implementation: str) -> None:
    if len(x_shape) != 5 or len(w_shape) != 5:
        raise ValueError(
            f"convolution: expected x [b, z, y, x, c_in] and w [kz, ky, kx, c_in, c_out], "
            f"found shapes {x_shape} and {w_shape}"
        )
    if x_shape[-1] != w_shape[3]:
        raise ValueError(
            f"convolution: x has {x_shape[-1]} channels, but w takes {w_shape[3]} "
            f"(shapes {x_shape} and {w_shape})"
        )
    if padding not in ("SAME", "VALID"):
        raise ValueError(f"convolution: padding must be 'SAME' or 'VALID', found {padding!r}")
    if implementation not in ("auto", "folded", "native"):
        raise ValueError(
            f"convolution: implementation must be 'auto', 'folded' or 'native', "
            f"found {implementation!r}"
        )
    small = any(n < k for n, k in zip(x_shape[1:4], w_shape[:3], strict=True))
    if padding == "VALID" and small:
        raise ValueError(
            f"convolution: a VALID kernel of {w_shape[:3]} does not fit in x of {x_shape[1:4]}"
        )


def _pads(kernel: tuple[int, ...], padding: str) -> Pads:
    if padding == "VALID":
        return tuple((0, 0) for _ in kernel)
    return tuple(((k - 1) // 2, k // 2) for k in kernel)


def _native(x: jax.Array, w: jax.Array, pads: Pads, dilation: int = 1) -> jax.Array:
    """XLA's convolution; a kernel of one plane as 2-D, which every backend has tuned best."""
    if w.shape[0] > 1:
        dims = ("NDHWC", "DHWIO", "NDHWC")
        return lax.conv_general_dilated(x, w, (1, 1, 1), pads, dimension_numbers=dims)
    b, z = x.shape[:2]
    pads = tuple((lo * dilation, hi * dilation) for lo, hi in pads[1:])
    y = _conv2d(x.reshape(b * z, *x.shape[2:]), w[0], pads, dilation)
    return y.reshape(b, z, *y.shape[1:])


def _conv2d(x: jax.Array, w: jax.Array, pads: Pads, dilation: int = 1) -> jax.Array:
    dims, steps = ("NHWC", "HWIO", "NHWC"), (dilation, dilation)
    return lax.conv_general_dilated(x, w, (1, 1), pads, rhs_dilation=steps, dimension_numbers=dims)


def _shifts_in_channels(x: jax.Array, kz: int, pad: tuple[int, int]) -> jax.Array:
    """[b, z, y, x, c] -> [b * z', y, x, kz * c]: each plane with its neighbours in z."""
    if kz > 1:
        x = jnp.pad(x, ((0, 0), pad, (0, 0), (0, 0), (0, 0)))
        z = x.shape[1] - kz + 1
        x = jnp.concatenate([x[:, i : i + z] for i in range(kz)], axis=-1)
    return x.reshape(-1, *x.shape[2:])


def _forward(x: jax.Array, w: jax.Array, *, pads: Pads) -> jax.Array:
    kz, ky, kx, _, c_out = w.shape
    planes = _shifts_in_channels(x, kz, pads[0])
    # The kernel's z moves next to its input channels, in the order of the concatenation.
    w2 = w.transpose(1, 2, 0, 3, 4).reshape(ky, kx, -1, c_out)
    y = _conv2d(planes, w2, pads[1:])
    return y.reshape(x.shape[0], -1, *y.shape[1:])


def _weight_gradient(x: jax.Array, g: jax.Array, *, pads: Pads) -> jax.Array:
    """[b, z, y, x, c_in], [b, z', y', x', c_out] -> [kz, ky, kx, c_in, c_out]."""
    small_plane = x.shape[2] * x.shape[3] < LARGE_PLANE
    if x.shape[-1] <= FEW_CHANNELS or (small_plane and g.shape[-1] >= MANY_CHANNELS):
        return _weight_gradient_convolved(x, g, pads)
    kz, _, kx = _kernel(x.shape, g.shape, pads)
    gathered = x.dtype.itemsize * math.prod(g.shape[:4]) * (kz * x.shape[-1] + kx * g.shape[-1])
    if gathered <= CACHED_BYTES:
        return _weight_gradient_gathered(x, g, pads)
    return _weight_gradient_looped(x, g, pads)


def _weight_gradient_convolved(x: jax.Array, g: jax.Array, pads: Pads) -> jax.Array:
    """A 2-D convolution in which the planes are the channels and the channels the batch."""
    kz, ky, kx = _kernel(x.shape, g.shape, pads)
    planes = _shifts_in_channels(x, kz, pads[0])
    g = g.reshape(-1, *g.shape[2:])
    # Explicit transposes: left to itself inside a loop, XLA keeps a layout that is 13 times slower.
    dw = _conv2d(planes.transpose(3, 1, 2, 0), g.transpose(1, 2, 0, 3), pads[1:])
    return dw.reshape(kz, -1, ky, kx, g.shape[-1]).transpose(0, 2, 3, 1, 4)


def _weight_gradient_gathered(x: jax.Array, g: jax.Array, pads: Pads) -> jax.Array:
    """One matrix product a row of the kernel, large enough for narrow layers to be efficient.

    The shifts in z lie side by side in the channels of x, the shifts in x in the channels of g.
    """
    kz, ky, kx = _kernel(x.shape, g.shape, pads)
    planes = _shifts_in_channels(x, kz, pads[0])
    planes = jnp.pad(planes, ((0, 0), *pads[1:], (0, 0)))
    g = g.reshape(-1, *g.shape[2:])
    height = g.shape[1]
    # Where x is read j to the right, g is written j to the right: the product meets the same pair.
    wide = [jnp.pad(g, ((0, 0), (0, 0), (j, kx - 1 - j), (0, 0))) for j in range(kx)]
    flat = jnp.concatenate(wide, axis=-1).reshape(-1, kx * g.shape[-1])

    def row(index: jax.Array) -> jax.Array:
        part = lax.dynamic_slice_in_dim(planes, index, height, 1).reshape(-1, planes.shape[-1])
        return _contract_rows(part, flat)

    dw = lax.map(row, jnp.arange(ky))
    dw = dw.reshape(ky, kz, x.shape[-1], kx, g.shape[-1])
    return dw.transpose(1, 0, 3, 2, 4).astype(x.dtype)


def _contract_rows(a: jax.Array, b: jax.Array) -> jax.Array:
    """[n, i], [n, o] -> [i, o], summed in float32."""
    contract = (((0,), (0,)), ((), ()))
    return lax.dot_general(a, b, contract, preferred_element_type=jnp.float32)


def _weight_gradient_looped(x: jax.Array, g: jax.Array, pads: Pads) -> jax.Array:
    """One matrix product a tap of the kernel, in a loop: unrolled, XLA keeps every shifted copy."""
    kernel = _kernel(x.shape, g.shape, pads)
    c_in, c_out = x.shape[-1], g.shape[-1]
    padded = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    flat = g.reshape(-1, c_out)
    window = (g.shape[0], *g.shape[1:4], c_in)

    def tap(index: jax.Array) -> jax.Array:
        corner: list[Any] = [0, *jnp.unravel_index(index, kernel), 0]
        part = lax.dynamic_slice(padded, corner, window).reshape(-1, c_in)
        return _contract_rows(part, flat)

    dw = lax.map(tap, jnp.arange(math.prod(kernel)))
    return dw.reshape(*kernel, c_in, c_out).astype(x.dtype)


def _kernel(x_shape: tuple[int, ...], g_shape: tuple[int, ...], pads: Pads) -> tuple[int, ...]:
    sizes = zip(x_shape[1:4], g_shape[1:4], pads, strict=True)
    return tuple(n + sum(pad) - m + 1 for n, m, pad in sizes)


def _turned(w: jax.Array) -> jax.Array:
    return lax.rev(w, (0, 1, 2)).swapaxes(3, 4)


def _input_gradient(g: jax.Array, w: jax.Array, pads: Pads) -> jax.Array:
    """The transpose of the convolution: convolve with the kernel turned round."""
    back = tuple((k - 1 - lo, k - 1 - hi) for k, (lo, hi) in zip(w.shape[:3], pads, strict=True))
    return _conv_p.bind(g, _turned(w), pads=back)


def _forward_shape(x: Any, w: Any, *, pads: Pads) -> Any:
    sizes = zip(x.shape[1:4], w.shape[:3], pads, strict=True)
    space = tuple(n + sum(pad) - k + 1 for n, k, pad in sizes)
    return x.update(shape=(x.shape[0], *space, w.shape[4]), weak_type=False)


def _weight_gradient_shape(x: Any, g: Any, *, pads: Pads) -> Any:
    shape = (*_kernel(x.shape, g.shape, pads), x.shape[-1], g.shape[-1])
    return x.update(shape=shape, weak_type=False)


def _each_instance(primitive: Primitive, first: jax.Array, second: jax.Array, pads: Pads):
    """Visit the instances (axis 0 of both) one after another."""
    k = first.shape[0]
    bind = functools.partial(primitive.bind, pads=pads)
    if k <= MAX_UNROLL:
        return jnp.stack([bind(first[i], second[i]) for i in range(k)])
    return lax.map(lambda pair: bind(*pair), (first, second))


def _forward_batched(args: tuple, dims: tuple, *, pads: Pads):
    x, w = args
    if dims[1] is None:
        # One kernel for all: the instances are only more batch.
        x = jnp.moveaxis(x, dims[0], 0)
        y = _conv_p.bind(x.reshape(-1, *x.shape[2:]), w, pads=pads)
        return y.reshape(*x.shape[:2], *y.shape[1:]), 0
    if dims[0] is None:
        # One input for all: the instances are only more output channels.
        w = jnp.moveaxis(w, dims[1], -2)
        y = _conv_p.bind(x, w.reshape(*w.shape[:4], -1), pads=pads)
        return y.reshape(*y.shape[:4], *w.shape[4:]), 4
    x, w = jnp.moveaxis(x, dims[0], 0), jnp.moveaxis(w, dims[1], 0)
    return _each_instance(_conv_p, x, w, pads), 0


def _weight_gradient_batched(args: tuple, dims: tuple, *, pads: Pads):
    x, g = args
    if dims[0] is None:
        g = jnp.moveaxis(g, dims[1], -2)
        dw = _weight_gradient_p.bind(x, g.reshape(*g.shape[:4], -1), pads=pads)
        return dw.reshape(*dw.shape[:4], *g.shape[4:]), 4
    if dims[1] is None:
        x = jnp.moveaxis(x, dims[0], -2)
        dw = _weight_gradient_p.bind(x.reshape(*x.shape[:4], -1), g, pads=pads)
        return dw.reshape(*dw.shape[:3], *x.shape[4:], dw.shape[-1]), 3
    x, g = jnp.moveaxis(x, dims[0], 0), jnp.moveaxis(g, dims[1], 0)
    return _each_instance(_weight_gradient_p, x, g, pads), 0


def _define(name: str, rule, shape, batched, transpose_first, transpose_second) -> Primitive:
    primitive = Primitive(name)
    primitive.def_impl(jax.jit(rule, static_argnames="pads"))
    primitive.def_abstract_eval(shape)
    mlir.register_lowering(primitive, mlir.lower_fun(rule, multiple_results=False))
    batching.primitive_batchers[primitive] = batched
    ad.defbilinear(primitive, transpose_first, transpose_second)
    return primitive


_conv_p: Primitive = _define(
    "densejax_convolution",
    _forward,
    _forward_shape,
    _forward_batched,
    lambda ct, x, w, *, pads: _input_gradient(ct, w, pads),
    lambda ct, x, w, *, pads: _weight_gradient_p.bind(x, ct, pads=pads),
)
_weight_gradient_p: Primitive = _define(
    "densejax_convolution_weight_gradient",
    _weight_gradient,
    _weight_gradient_shape,
    _weight_gradient_batched,
    lambda ct, x, g, *, pads: _input_gradient(g, ct, pads),
    lambda ct, x, g, *, pads: _conv_p.bind(x, ct, pads=pads),
)


def transposed_convolution(x: Array, w: Array) -> jax.Array:
    """Upsample by a transposed convolution with stride = kernel, no bias.

    Output voxel (kz * i + dz, ...) is x[i, ...] @ w[dz, ...], as in PyTorch's ``conv_transpose3d``.

    Args:
      x: [b, z, y, x, c_in], floating.
      w: [kz, ky, kx, c_in, c_out], floating, for instance (1, 2, 2, ...). Promoted with ``x``.

    Returns:
      [b, kz * z, ky * y, kx * x, c_out], of the promoted dtype.

    Raises:
      ValueError: if a rank or the channel count is wrong.
    """
    x, w = jnp.asarray(x), jnp.asarray(w)
    if x.ndim != 5 or w.ndim != 5 or x.shape[-1] != w.shape[3]:
        raise ValueError(
            f"transposed_convolution: expected x [b, z, y, x, c_in] and "
            f"w [kz, ky, kx, c_in, c_out], found shapes {x.shape} and {w.shape}"
        )
    b, z, y, x_, _ = x.shape
    kz, ky, kx, c_in, c_out = w.shape
    # One product for all taps, so that XLA sees a single large matrix.
    matrix = w.transpose(3, 0, 1, 2, 4).reshape(c_in, -1)
    out = (x.reshape(-1, c_in) @ matrix).reshape(b, z, y, x_, kz, ky, kx, c_out)
    out = out.transpose(0, 1, 4, 2, 5, 3, 6, 7)
    return out.reshape(b, z * kz, y * ky, x_ * kx, c_out)
