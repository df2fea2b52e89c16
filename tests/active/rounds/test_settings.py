"""Published settings and the table of strategies."""

import numpy as np
import pytest

from densejax.active.rounds import settings
from densejax.active.strategies import IN_ROUNDS, STRATEGIES, Options, from_arrays, in_rounds, vaal


def given(**values):
    names = ("data", "model", "width", "pretrained", "imbalance", "weighted", "frozen_norm")
    return dict.fromkeys(names) | {"setting": "A-I", "values": "code"} | values


def test_what_is_said_stands_above_the_setting():
    found = settings.fill(given(setting="B-I", imbalance=0.0, pretrained="folder"))
    assert (found["data"], found["learning_rate"], found["weighted"]) == ("cifar10", 2e-3, False)
    assert found["frozen_norm"] and settings.fill(given())["frozen_norm"] is False
    assert settings.fill(given(setting="B-I", weighted=False))["weighted"] is False
    assert settings.fill(given(data="fashion_mnist"))["width"] == 512
    assert settings.fill(given(data="fashion_mnist", width=3))["width"] == 3


def test_vaal_has_the_rates_with_which_it_ran():
    options = {"schedule": "cosine", "recipe": "cifar"}
    code = settings.vaal_of("code", "cifar10", **options)
    thesis = settings.vaal_of("thesis", "cifar10", **options)
    assert code == {**vaal.IMAGENET, "recipe": "cifar", "decay": "cosine"}
    assert thesis == {**vaal.CIFAR, "recipe": "cifar", "decay": "none"}
    steps = settings.vaal_of("code", "imagenet", schedule="step", recipe="imagenet")
    assert steps["decay"] == "none" and steps["latent"] == 64


def test_rounds_know_every_strategy_of_files_and_more():
    assert set(IN_ROUNDS) > set(STRATEGIES)
    assert {"vaal", "odin", "expert", "partitioned_badge"} <= set(IN_ROUNDS) - set(STRATEGIES)
    plain = [n for n in IN_ROUNDS if n not in ("odin", "vaal")]
    made = in_rounds(plain, Options(dropout=0.5, radius=0.5))
    assert list(made) == plain
    cheats = {n for n, s in made.items() if s.truth or s.sequential or s.expert}
    assert cheats == {"balanced_random", "most_incorrect", "balancing", "expert"}
    assert [n for n, s in made.items() if not s.network] == ["random"]
    assert not any(s.balanced_start for s in made.values())
    start = in_rounds(["balanced_random", "random"], Options(), released_start=True)
    assert [s.balanced_start for s in start.values()] == [True, False]


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (["bald"], Options(), "bald needs stochastic passes, and the network has no dropout"),
        (["batch_bald"], Options(), "batch_bald needs stochastic passes"),
        (["vote_entropy"], Options(dropout=0.5, passes=0), "passes 0"),
        (["probcover"], Options(), "probcover needs --radius"),
        (["odin"], Options(), "odin needs the task and the images"),
        (["random", "random"], Options(), "expected each once"),
        (["best"], Options(), "strategies best: expected each once, of random"),
    ],
)
def test_what_does_not_suit_is_refused(names, options, message):
    with pytest.raises(ValueError, match=message):
        in_rounds(names, options)


def test_options_that_say_nothing_leave_the_strategy_as_it_is():
    import jax

    from densejax.active.pool import Pool
    from densejax.active.scores import margin, ranked

    pool = Pool(logits=np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32))
    plain = ranked(margin())(jax.random.key(0), pool, 9)
    subsample = {"max_labelled": None, "max_unlabelled": None}
    found = from_arrays("margin", ["logits"], Options(), subsample=subsample)
    np.testing.assert_array_equal(found(jax.random.key(0), pool, 9).indices, plain.indices)
    few = from_arrays("margin", ["logits"], Options(), subsample={"max_unlabelled": 9})
    assert not np.array_equal(few(jax.random.key(0), pool, 9).indices, plain.indices)
