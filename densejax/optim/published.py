"""The optimisers of the thesis' table, with the settings of its code.

The code has twelve; the thesis speaks of thirteen, eleven of PyTorch and two others. Which one is
missing is not known: neither history nor comments name one. Its L-BFGS closure takes the loss of
outputs that were computed before, so it never evaluates the loss anew (and raises an error with a
PyTorch of today): the number published for it is no target. Its ProxProp feeds proximal steps to
Adam.

Steps are PyTorch's to rounding. RMSprop adds its epsilon outside the root, as there and unlike
optax's default. Adagrad's epsilon (1e-10) is under the root in optax, and 0 here: a difference of
1e-10 over the gradients' size. A gradient that has always been 0 moves nothing in either.
"""

from collections.abc import Callable
from dataclasses import dataclass

import optax

from densejax.optim.method import Method, descent, line_searched, sharpness_aware
from densejax.optim.torch_forms import averaged, quasi_newton, scale_by_amsgrad, scale_by_rprop

THESIS = (
    "sgd",
    "momentum",
    "nesterov",
    "adam",
    "adadelta",
    "adagrad",
    "adamax",
    "asgd",
    "rmsprop",
    "amsgrad",
    "lbfgs",
    "proxprop",
)
"""Names of the table's twelve."""

OTHERS = ("rprop", "sam", "lbfgs_zoom")
"""Not in the table: two that came later or were left out, and L-BFGS with a line search."""


@dataclass(frozen=True)
class Setting:
    """A method with its learning rate.

    Attributes:
      method: what steps.
      rate: initial learning rate.
      proximal: whether the network's layers are to be ``optimisers.proximal.proximal``.
    """

    method: Method
    rate: float
    proximal: bool = False


def setting(name: str, *, lbfgs_memory: int = 100, lbfgs_iterations: int = 20) -> Setting:
    """An optimiser of the table by its name.

    Args:
      name: of ``THESIS`` or ``OTHERS``.
      lbfgs_memory: pairs that L-BFGS remembers (PyTorch's default, and so the published number).
      lbfgs_iterations: of L-BFGS on each batch; the same holds.

    Raises:
      ValueError: the name is unknown.
    """
    settings: dict[str, Callable[[], Setting]] = {
        "sgd": lambda: Setting(descent(optax.identity()), 0.05),
        "momentum": lambda: Setting(descent(optax.trace(0.9)), 0.01),
        "nesterov": lambda: Setting(descent(optax.trace(0.9, nesterov=True)), 0.01),
        "adam": lambda: Setting(descent(optax.scale_by_adam(0.9, 0.999)), 0.01),
        "adadelta": lambda: Setting(descent(optax.scale_by_adadelta(0.5)), 5.0),
        "adagrad": lambda: Setting(descent(optax.scale_by_rss(0.0, 0.0)), 0.025),
        "adamax": lambda: Setting(descent(optax.scale_by_adamax(0.9, 0.9)), 5e-4),
        "asgd": lambda: Setting(averaged(decay=1e-4, power=0.75), 0.1),
        "rmsprop": lambda: Setting(descent(optax.scale_by_rms(0.72, eps_in_sqrt=False)), 5e-4),
        "amsgrad": lambda: Setting(descent(scale_by_amsgrad(b1=0.9, b2=0.99)), 5e-4),
        "lbfgs": lambda: Setting(
            quasi_newton(memory=lbfgs_memory, iterations=lbfgs_iterations), 0.9
        ),
        "proxprop": lambda: Setting(descent(optax.scale_by_adam(0.9, 0.999)), 1e-3, True),
        "rprop": lambda: Setting(descent(scale_by_rprop(first=1e-3), own_rate=True), 1e-3),
        "sam": lambda: Setting(sharpness_aware(optax.trace(0.9), radius=0.05), 0.01),
        "lbfgs_zoom": lambda: Setting(line_searched(memory=min(lbfgs_memory, 10)), 1.0),
    }
    if name not in settings:
        raise ValueError(f"optimiser {name!r}: expected one of {', '.join(settings)}")
    return settings[name]()
