"""What every test finds: eight virtual CPU devices, the real data where it is, and the modes."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Before JAX is imported: what one module has compiled, others and the other workers read.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _programs = tempfile.mkdtemp(prefix="densejax-tests-")
    atexit.register(shutil.rmtree, _programs, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _programs
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

import jax
import jax.numpy as jnp
import numpy as np
import pytest

# Before the first array, so that tests of populations see several devices on any machine. On a
# machine with an accelerator the tests still run on the CPU, which their tolerances are made for.
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Compiled programs of a whole run of the tests would fill several gigabytes."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real data sets: ``DENSEJAX_DATA``, else ``../shared/data`` beside the code."""
    named = os.environ.get("DENSEJAX_DATA")
    folder = Path(named) if named else ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is not a folder (name one in DENSEJAX_DATA)")
    return folder


@pytest.fixture(scope="session")
def assert_modes_agree() -> Callable[..., None]:
    """A function of arrays gives the same plain, compiled, and mapped over instances.

    ``assert_modes_agree(fn, *args, other=None, rtol=1e-5, atol=1e-6)``: ``args`` are trees of
    arrays and ``other`` those of a second instance; without it, floating entries are scaled, keys
    folded, and the rest repeated, so that instances that mix are seen. Integers and booleans must
    be equal, floats close.
    """
    return _assert_modes_agree


def _assert_modes_agree(
    fn: Callable[..., Any],
    *args: Any,
    other: tuple[Any, ...] | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-6,
) -> None:
    args = jax.tree.map(jnp.asarray, args)
    other = jax.tree.map(_vary, args) if other is None else jax.tree.map(jnp.asarray, other)
    plain = [fn(*args), fn(*other)]
    compiled = jax.jit(fn)
    side_by_side = jax.vmap(fn)(*jax.tree.map(lambda a, b: jnp.stack([a, b]), args, other))
    for place, (name, instance) in enumerate((("first", args), ("second", other))):
        _assert_close(compiled(*instance), plain[place], f"compiled, {name}", rtol, atol)
        one = jax.tree.map(lambda leaf, place=place: leaf[place], side_by_side)
        _assert_close(one, plain[place], f"mapped, {name}", rtol, atol)


def _vary(leaf: jax.Array) -> jax.Array:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.fold_in(leaf, 1)
    return leaf * jnp.asarray(0.75, leaf.dtype) if jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf


def _assert_close(found: Any, expected: Any, mode: str, rtol: float, atol: float) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected), mode
    pairs = zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True)
    for (path, a), b in pairs:
        what = f"{mode} {jax.tree_util.keystr(path)}"
        if jnp.issubdtype(jnp.result_type(a), jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert jnp.result_type(a) == jnp.result_type(b), what
        if jnp.issubdtype(jnp.result_type(a), jnp.inexact):
            wide = (np.asarray(a, np.float64), np.asarray(b, np.float64))
            np.testing.assert_allclose(*wide, rtol=rtol, atol=atol, err_msg=what)
        else:
            np.testing.assert_array_equal(a, b, err_msg=what)
