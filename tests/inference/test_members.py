"""Ensembles on tiles: what leaves the device is what the members say, however tiles are spread."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densejax.inference.members import (
    Plan,
    TileEnsemble,
    _tile_dtype,
    agrees,
    choose_plan,
    maps_of,
    parity,
)
from densejax.inference.tiles import Windowing
from densejax.ops.convolution import convolution

WINDOW, CLASSES, MEMBERS = (3, 12, 10), 4, 3
GREY = (100.0, 40.0)


def network(params, image):
    """One 3x3x3 convolution, kept at its window's size."""
    return convolution(image, params["kernel"]) + params["bias"], {}


def members(seed=0, size=MEMBERS):
    random = np.random.default_rng(seed)
    return {
        "kernel": (random.normal(size=(size, 3, 3, 3, 1, CLASSES)) / 4).astype(np.float32),
        "bias": random.normal(size=(size, CLASSES)).astype(np.float32),
    }


def ensemble(*, blend="centre", views="one", plan=Plan(), dtype=np.uint8, **options):  # noqa: B008
    settings = {"network": network, "members": members()} | options
    windowing = Windowing(WINDOW, WINDOW, blend=blend, views=views)
    return TileEnsemble(windowing=windowing, dtype=dtype, grey=GREY, plan=plan, **settings)


def tile(seed=0, dtype=np.uint8):
    return np.random.default_rng(seed).integers(0, 255, WINDOW).astype(dtype)


def shares_of(image, parameters):
    """Probabilities of every member, [k, z, y, x, c], by NumPy in float64."""
    image = (image.astype(np.float64) - GREY[0]) / GREY[1]
    padded = np.pad(image, 1)
    z, y, x = image.shape
    found = []
    for kernel, bias in zip(parameters["kernel"], parameters["bias"], strict=True):
        logits = np.zeros((*image.shape, CLASSES)) + bias
        for a, b, c in np.ndindex(3, 3, 3):
            logits += padded[a : a + z, b : b + y, c : c + x, None] * kernel[a, b, c, 0]
        share = np.exp(logits - logits.max(-1, keepdims=True))
        found.append(share / share.sum(-1, keepdims=True))
    return np.stack(found)


def expected_maps(shares):
    mean = shares.mean(0)
    entropy = -(mean * np.log(np.maximum(mean, 1e-30))).sum(-1) / np.log(CLASSES)
    other = (shares.argmax(-1) != mean.argmax(-1)).mean(0)
    return mean, mean.argmax(-1), entropy, other


def assert_bytes(found, share):
    """A share times 255, rounded; float32 may fall on the other side of a half."""
    assert found.dtype == np.uint8
    np.testing.assert_allclose(found, 255 * share, atol=0.501)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float64])
def test_maps_are_those_of_the_members_by_brute_force(dtype):
    found = ensemble(probabilities=True, dtype=dtype)
    (maps,) = found.finish(found.start([tile(dtype=dtype)]))
    mean, labels, entropy, other = expected_maps(shares_of(tile(), members()))
    np.testing.assert_array_equal(maps["labels"], labels)
    assert_bytes(maps["entropy"], entropy)
    assert_bytes(maps["disagreement"], other)
    assert_bytes(maps["probabilities"], np.moveaxis(mean, -1, 0))


def test_what_is_blended_is_the_mean_and_makes_the_same_maps():
    found = ensemble(blend="gaussian")
    (maps,) = found.finish(found.start([tile()]))
    mean, labels, entropy, other = expected_maps(shares_of(tile(), members()))
    np.testing.assert_allclose(maps["mean"], np.moveaxis(mean, -1, 0), atol=1e-5)
    np.testing.assert_allclose(maps["disagreement"], other, atol=1e-6)
    maps = maps_of(maps["mean"], maps["disagreement"], probabilities=True)
    np.testing.assert_array_equal(maps["labels"], labels)
    assert_bytes(maps["entropy"], entropy)
    assert_bytes(maps["disagreement"], other)
    assert_bytes(maps["probabilities"], np.moveaxis(mean, -1, 0))


def test_flips_average_each_member_over_eight_reflections():
    found = ensemble(blend="gaussian", views="flips")
    (maps,) = found.finish(found.start([tile()]))
    shares = 0
    for code in np.ndindex(2, 2, 2):
        axes = [axis for axis in range(3) if code[axis]]
        flipped = shares_of(np.flip(tile(), axes), members())
        shares = shares + np.flip(flipped, [axis + 1 for axis in axes]) / 8
    mean, _, _, other = expected_maps(shares)
    np.testing.assert_allclose(maps["mean"], np.moveaxis(mean, -1, 0), atol=1e-5)
    np.testing.assert_allclose(maps["disagreement"], other, atol=1e-6)


def test_one_at_a_time_the_bits_do_not_depend_on_devices_or_company():
    tiles = [tile(seed) for seed in range(8)]
    alone = ensemble(blend="gaussian")
    singles = [alone.finish(alone.start([one]))[0]["mean"] for one in tiles]
    spread = ensemble(blend="gaussian", plan=Plan(8, 1))
    for count in (8, 3):
        together = spread.finish(spread.start(tiles[:count]))
        assert len(together) == count
        for one, other in zip(singles, together, strict=False):
            np.testing.assert_array_equal(one, other["mean"])


def test_side_by_side_agrees_to_rounding():
    alone = ensemble(blend="gaussian")
    batched = ensemble(blend="gaussian", plan=Plan(2, 4))
    tiles = [tile(seed) for seed in range(7)]
    for one, other in zip(tiles, batched.finish(batched.start(tiles)), strict=True):
        (single,) = alone.finish(alone.start([one]))
        np.testing.assert_allclose(single["mean"], other["mean"], atol=1e-6)


def test_a_probe_chooses_among_the_ways_and_keeps_to_the_batch_that_was_begun():
    devices = jax.local_devices()[:2]
    made = []

    def make(plan):
        made.append(plan)
        return ensemble(plan=plan, devices=devices)

    found, speeds = choose_plan(make, tile(), devices=devices)
    assert made == [Plan(1, 1), Plan(2, 1)] and len(speeds) == 2
    assert found.plan in made and all(speed > 0 for speed in speeds.values())
    found, _ = choose_plan(make, tile(), devices=devices, side_by_side=2)
    assert found.plan.side_by_side == 2


def test_a_plan_that_does_not_fit_is_passed_over_unless_it_is_the_last():
    devices = jax.local_devices()[:2]

    def make(plan):
        if plan.devices > 1:
            raise MemoryError("too much")
        return ensemble(plan=plan)

    assert choose_plan(make, tile(), devices=devices)[0].plan == Plan(1, 1)

    def never(plan):
        raise MemoryError("needs 9 GB")

    with pytest.raises(MemoryError, match="9 GB"):
        choose_plan(never, tile(), devices=devices)


def test_a_program_larger_than_the_memory_is_refused(monkeypatch):
    monkeypatch.setattr("densejax.inference.members.memory_limit", lambda devices: 10)
    with pytest.raises(MemoryError, match=r"\(3, 12, 10\) with 3 members.*--window"):
        ensemble()


def test_parity_tells_rounding_from_a_wrong_kernel():

    def rounded(params, image):
        low = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (params, image))
        return network(*low)[0].astype(jnp.float32), {}

    def wrong(params, image):
        return network(params, jnp.roll(image, 1, axis=2))

    # Gentle members, as trained ones are: their labels do not hang on the last bit everywhere.
    gentle = jax.tree.map(lambda leaf: leaf / 2, members())
    reference = ensemble(blend="gaussian", members=gentle)
    same = parity(reference, ensemble(blend="gaussian", members=gentle), tile())
    assert same == (1.0, 0.0) and agrees(same)
    low = ensemble(blend="gaussian", members=gentle, network=rounded, precision="bfloat16")
    agreement, difference = parity(reference, low, tile())
    assert agreement > 0.95 and 0 < difference < 0.005
    bad = parity(reference, ensemble(blend="gaussian", members=gentle, network=wrong), tile())
    assert not agrees(bad)


def test_dtypes_that_go_to_the_device_as_they_are():
    assert _tile_dtype(np.uint16) == np.uint16 and _tile_dtype(bool) == np.uint8
    assert _tile_dtype(np.float64) == np.float32 and _tile_dtype(np.int64) == np.float32
