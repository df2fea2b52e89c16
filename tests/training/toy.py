"""A task small enough to compile in a second: fit a line by stochastic gradient descent."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True)
class Line:
    score: str = "fit"
    blow_up_below: float = -1.0
    give_up_at: int = 0

    def init(self, key, settings):
        key, used = jax.random.split(key)
        return {
            "w": jax.random.normal(used, (2,)),
            "key": jax.random.key_data(key),
            "rate": jnp.float32(settings.get("rate", 0.05)),
            "step": jnp.int32(0),
        }

    def step(self, state, data):
        key = jax.random.fold_in(jax.random.wrap_key_data(state["key"]), state["step"])
        chosen = jax.random.randint(key, (4,), 0, data["x"].shape[0])

        def loss_of(w):
            error = w[0] * data["x"][chosen] + w[1] - data["y"][chosen]
            return jnp.mean(error**2)

        loss, gradient = jax.value_and_grad(loss_of)(state["w"])
        w = state["w"] - state["rate"] * gradient
        return dict(state, w=w, step=state["step"] + 1), {"loss": loss}

    def evaluate(self, state, data):
        error = state["w"][0] * data["x"] + state["w"][1] - data["y"]
        return {"fit": -jnp.mean(error**2)}

    def parameters(self, state):
        return {"w": state["w"]}

    def stop(self, step, measures):
        return bool(self.give_up_at) and step >= self.give_up_at


def line_data():
    x = np.linspace(-1, 1, 32, dtype=np.float32)
    noise = np.random.default_rng(0).normal(size=32).astype(np.float32)
    return {"x": x, "y": 3 * x - 1 + 0.1 * noise}
