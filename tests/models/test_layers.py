"""Parameters of all layers from one draw: the same distribution as flax's own initialisers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from densejax.models.hybrid import Hybrid2D3D
from densejax.models.layers import draw_parameters


def test_kernels_are_glorot_uniform_and_biases_zero():
    model = Hybrid2D3D(width=4)
    drawn = draw_parameters(jax.random.key(0), model, (1, 3, 16, 16, 1))
    expected = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 3, 16, 16, 1)))
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), (drawn, expected))
    assert shapes[0] == shapes[1]
    for path, leaf in jax.tree_util.tree_leaves_with_path(drawn):
        values = np.asarray(leaf)
        if path[-1].key == "bias":
            assert not values.any()
            continue
        *field, c_in, c_out = values.shape
        limit = np.sqrt(6 / (np.prod(field) * (c_in + c_out)))
        assert np.abs(values).max() <= limit
        if values.size > 200:
            law = stats.uniform(-limit, 2 * limit)
            assert stats.kstest(values.ravel(), law.cdf).pvalue > 1e-4


def test_two_kernels_of_one_network_share_no_numbers():
    drawn = draw_parameters(jax.random.key(1), Hybrid2D3D(width=4), (1, 3, 16, 16, 1))
    kernels = [np.asarray(k).ravel() for k in jax.tree.leaves(drawn) if np.asarray(k).any()]
    signs = np.concatenate([np.sign(k) * (np.abs(k) / np.abs(k).max()) for k in kernels])
    assert np.unique(signs).size > 0.99 * signs.size


def test_a_layer_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="neither a kernel nor a bias"):
        draw_parameters(jax.random.key(0), nn.LayerNorm(), (1, 3, 16, 16, 1))
