"""A real experiment that takes seconds: lines fitted by descent, with troubles on request.

Which seeds fail, crash or are slow is said by files in ``--trouble``, so that a sweep's flags stay
the same while its troubles come and go: ``crash-13`` ends any process that has seed 13, ``nan-4``
makes seed 4 diverge, ``slow`` holds the seconds that every interval takes.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from densejax.cli import main, option, parse_seeds, start_folder
from densejax.training.folders import members_of
from densejax.training.logs import Reporter
from densejax.training.sweep import Schedule, Sweep

VARYING = ("seeds",)


@dataclass(frozen=True)
class Config:
    steps: int = option(40, "updates")
    rate: float = option(0.05, "learning rate")
    trouble: str = option("", "folder of troubles")
    seeds: tuple[int, ...] = option((0, 1), "seeds", parse=parse_seeds)


@dataclass(frozen=True)
class Line:
    rate: float
    score: str = "fit"

    def init(self, key, settings):
        del settings
        key, used = jax.random.split(key)
        weights = jax.random.normal(used, (2,))
        return {"w": weights, "key": jax.random.key_data(key), "step": jnp.int32(0)}

    def step(self, state, data):
        key = jax.random.fold_in(jax.random.wrap_key_data(state["key"]), state["step"])
        chosen = jax.random.randint(key, (4,), 0, data["x"].shape[0])

        def loss_of(w):
            return jnp.mean((w[0] * data["x"][chosen] + w[1] - data["y"][chosen]) ** 2)

        loss, gradient = jax.value_and_grad(loss_of)(state["w"])
        # Which seed this is shows in its key alone.
        bad = jnp.any(jnp.all(state["key"] == data["bad_keys"], axis=1))
        w = state["w"] - self.rate * gradient + jnp.where(bad, jnp.nan, 0.0)
        return dict(state, w=w, step=state["step"] + 1), {"loss": loss}

    def evaluate(self, state, data):
        error = state["w"][0] * data["x"] + state["w"][1] - data["y"]
        return {"fit": -jnp.mean(error**2)}

    def parameters(self, state):
        return {"w": state["w"]}

    def stop(self, step, measures):
        del step, measures
        return False


class Slow(Reporter):
    """Takes its time over each interval, as long as there is a file that says so."""

    def __init__(self, trouble):
        super().__init__(score="fit")
        self.file = trouble / "slow"

    def interval(self, *rest):
        super().interval(*rest)
        if self.file.exists():
            time.sleep(float(self.file.read_text()))


@dataclass(frozen=True)
class Result:
    failed: int


def run(config, workdir):
    trouble = Path(config.trouble or workdir / "none")
    for seed in config.seeds:
        if (trouble / f"crash-{seed}").exists():
            raise RuntimeError(f"seed {seed} brings the whole process down")
    start_folder(config, workdir, ignore=VARYING)
    keys = [jax.random.fold_in(jax.random.key(0), s) for s in config.seeds]
    keys = [
        jax.random.key_data(jax.random.split(key)[0])
        for key, seed in zip(keys, config.seeds, strict=True)
        if (trouble / f"nan-{seed}").exists()
    ]
    x = np.linspace(-1, 1, 32, dtype=np.float32)
    data = {"x": x, "y": 3 * x - 1, "bad_keys": np.array([*keys, (0, 0)], np.uint32)}
    outcomes = Sweep(
        Line(config.rate),
        data,
        members_of(config.seeds, {}),
        workdir=workdir,
        schedule=Schedule(config.steps, log_every=5, evaluate_every=10, checkpoint_every=5),
        reporter=Slow(trouble),
    ).run()
    (workdir / "summary").mkdir(exist_ok=True)
    lines = [f"{o.member.name} {o.status} {o.best_score:.9g}" for o in outcomes]
    (workdir / "summary" / "scores.txt").write_text("\n".join(lines) + "\n")
    return Result(sum(o.status == "FAILED" for o in outcomes))


def fast(config):
    return config


if __name__ == "__main__":
    main(Config, run, fast=fast, description=__doc__)
