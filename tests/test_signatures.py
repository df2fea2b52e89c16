"""The public functions of densejax: keys first, options by name, everything said and annotated."""

import importlib
import inspect
import pkgutil
import types
from collections.abc import Callable, Iterator

import pytest

import densejax


def modules() -> list[str]:
    walked = pkgutil.walk_packages(densejax.__path__, "densejax.")
    return sorted(found.name for found in walked if "._" not in found.name)


def public_functions(module: types.ModuleType) -> Iterator[Callable]:
    """Functions without a leading underscore that are written in the module itself.

    Decorated ones (``jax.custom_vjp``, ``functools.partial`` of ``jit``) count by what they wrap.
    """
    for name, value in vars(module).items():
        wrapped = inspect.unwrap(value) if callable(value) else value
        here = getattr(wrapped, "__module__", None) == module.__name__
        if not name.startswith("_") and inspect.isfunction(wrapped) and here:
            yield wrapped


def faults(function: Callable) -> list[str]:
    """What is wrong with a function's signature; empty for a good one."""
    name = function.__qualname__
    parameters = list(inspect.signature(function).parameters.values())
    found = [] if inspect.getdoc(function) else [f"{name} has no docstring"]
    for place, parameter in enumerate(parameters):
        if parameter.name == "key" and place:
            found.append(f"{name}: key is not the first parameter")
        by_name = parameter.kind is inspect.Parameter.KEYWORD_ONLY
        if parameter.default is not inspect.Parameter.empty and not by_name:
            found.append(f"{name}: {parameter.name} has a default but is not keyword-only")
        if parameter.annotation is inspect.Parameter.empty:
            found.append(f"{name}: {parameter.name} is not annotated")
    if "return" not in function.__annotations__:
        found.append(f"{name}: what it returns is not annotated")
    return found


@pytest.mark.parametrize("name", modules())
def test_public_signatures(name):
    module = importlib.import_module(name)
    assert inspect.getdoc(module), f"{name} has no docstring"
    found = [fault for function in public_functions(module) for fault in faults(function)]
    assert not found


def test_planted_faults_are_caught():
    def draw(shape: tuple, key, size: int = 3):
        del shape, key, size

    expected = [
        "draw has no docstring",
        "draw: key is not the first parameter",
        "draw: key is not annotated",
        "draw: size has a default but is not keyword-only",
        "draw: what it returns is not annotated",
    ]
    assert [fault.split("<locals>.")[-1] for fault in faults(draw)] == expected


def test_a_good_function_has_no_faults():
    def draw(key: object, shape: tuple[int, ...], *, size: int = 3) -> None:
        """Draw."""

    assert not faults(draw)
    module = types.ModuleType("planted")
    draw.__module__ = "planted"
    vars(module).update(draw=draw, _private=draw, imported=inspect.getdoc, number=3)
    assert list(public_functions(module)) == [draw]
