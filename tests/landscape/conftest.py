"""What several tests of landscapes share."""

import pytest
from hessians import dense_hessian


@pytest.fixture(scope="session")
def dense():
    """The Hessian of the small network, [n, n] float64."""
    return dense_hessian()
