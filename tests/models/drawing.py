"""Parameters and shapes for the tests of models, and their layers in PyTorch."""

import math

import jax
import jax.numpy as jnp
import numpy as np


def shapes(model, window, *, batch=2, channels=1):
    """((logits, out), variables) of a model, nothing computed."""
    x = jax.ShapeDtypeStruct((batch, *window, channels), jnp.float32)
    return jax.eval_shape(lambda a: model.init_with_output(jax.random.key(0), a), x)


def size(tree):
    """Numbers in a tree of arrays or shapes."""
    return sum(math.prod(p.shape) for p in jax.tree.leaves(tree))


def drawn(model, x):
    """Parameters of unit gain from numpy: compiling an initialisation takes far longer."""
    rng = np.random.default_rng(0)
    tree = jax.eval_shape(model.init, jax.random.key(0), x)

    def draw(path, p):
        gain = math.sqrt(2 / math.prod(p.shape[:-1])) if len(p.shape) > 1 else 0.1
        values = gain * rng.standard_normal(p.shape)
        values = 1 + np.abs(values) if path[-1].key in ("scale", "var") else values
        return values.astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, tree)


class Torch:
    """The layers of pictures [b, c, y, x] in PyTorch, from our variables by the layer's path.

    Tensors of ``params`` require gradients; ``gradients`` returns them in our structure.
    """

    def __init__(self, torch, variables, *, train=False):
        def tensors(tree, *, slopes):
            return jax.tree.map(lambda a: torch.tensor(np.array(a), requires_grad=slopes), tree)

        self.torch, self.F, self.train = torch, torch.nn.functional, train
        self.params = tensors(variables["params"], slopes=True)
        self.stats = tensors(variables.get("batch_stats", {}), slopes=False)

    def at(self, tree, path):
        for name in path.split("/"):
            tree = tree[name]
        return tree

    def conv(self, x, path, *, stride=1, dilation=1):
        p = self.at(self.params, path)
        w = p["kernel"].permute(3, 2, 0, 1)
        pad = dilation * (w.shape[-1] // 2)
        return self.F.conv2d(x, w, p.get("bias"), stride, pad, dilation)

    def norm(self, x, path):
        p, s = self.at(self.params, path), self.at(self.stats, path)
        moments = (s["mean"].clone(), s["var"].clone())
        return self.F.batch_norm(x, *moments, p["scale"], p["bias"], training=self.train)

    def conv_norm(self, x, path, *, relu=True, **options):
        y = self.norm(self.conv(x, f"{path}/conv", **options), f"{path}/norm")
        return self.F.relu(y) if relu else y

    def planes(self, x):
        """[b, z, y, x, c] -> [b * z, c, y, x]."""
        x = np.asarray(x)
        return self.torch.tensor(x.reshape(-1, *x.shape[2:]).transpose(0, 3, 1, 2).copy())

    def gradients(self, loss):
        loss.backward()
        return jax.tree.map(lambda t: t.grad.numpy(), self.params)


def last(t, like):
    """A PyTorch result [b * z, c, y, x] as ``like`` [b, z, y, x, c]."""
    return t.detach().numpy().transpose(0, 2, 3, 1).reshape(like.shape)
