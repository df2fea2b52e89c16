"""Populations: any number of instances on any number of devices is that many separate runs."""

import json
import logging
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from densejax.population import Mapped, Population, host_cores, instance_key, memory_limit


def population(slots, devices=1, **options):
    return Population(slots, devices=jax.devices()[:devices], **options)


def affine(state, shift):
    return {"w": state["w"] * 2 + shift, "n": state["n"] + 1}


def stack_of(slots, seed=0):
    random = np.random.default_rng(seed)
    return {
        "w": random.normal(size=(slots, 3, 2)).astype(np.float32),
        "n": random.integers(0, 9, slots).astype(np.int32),
    }


def assert_trees_equal(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 20), st.integers(1, 8))
def test_what_is_placed_is_fetched(slots, devices):
    many = population(slots, devices)
    stacked = stack_of(slots)
    placed = many.place(stacked)
    assert_trees_equal(many.fetch(placed), stacked)
    assert placed["w"].shape == (len(many.devices), many.per_device, 3, 2)
    assert len(many.devices) == min(slots, devices)
    assert many.capacity - slots < len(many.devices) * many.per_device
    assert {shard.device for shard in placed["w"].addressable_shards} == set(many.devices)
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), stacked)
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), placed)
    assert jax.tree.map(lambda s: (s.shape, s.dtype), many.placed_shapes(one)) == shapes


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 11), st.integers(1, 8), st.sampled_from(["map", "vmap"]))
def test_a_mapped_function_is_a_python_loop(slots, devices, strategy):
    many = population(slots, devices, strategy=strategy)
    stacked, shift = stack_of(slots), np.float32([0.5, -1])
    found = many.fetch(many.map(affine, shared=(1,))(many.place(stacked), many.replicate(shift)))
    rows = [affine(jax.tree.map(lambda a, k=k: a[k], stacked), shift) for k in range(slots)]
    assert_trees_equal(found, jax.tree.map(lambda *leaves: np.stack(leaves), *rows))


def test_shared_arguments_are_one_copy_a_device():
    many = population(5, 4)
    tree = {"x": np.arange(6, dtype=np.float32).reshape(2, 3)}
    copies = many.replicate(tree)["x"]
    assert copies.shape == (4, 2, 3) == many.replicated_shapes(tree)["x"].shape
    assert all(np.array_equal(copy, tree["x"]) for copy in np.asarray(copies))


def conv_loss(weights, image):
    """A small network of two convolutions on a batch of one."""
    dimensions = ("NHWC", "HWIO", "NHWC")
    convolve = partial(
        jax.lax.conv_general_dilated,
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=dimensions,
    )
    hidden = jax.nn.relu(convolve(image[None], weights["first"]))
    return jnp.sum(jnp.sin(convolve(hidden, weights["second"])))


def conv_case(slots):
    random = np.random.default_rng(1)
    shapes = {"first": (3, 3, 2, 4), "second": (3, 3, 4, 3)}
    weights = {
        name: 0.3 * random.normal(size=(slots, *shape)).astype(np.float32)
        for name, shape in shapes.items()
    }
    return weights, random.normal(size=(slots, 6, 7, 2)).astype(np.float32)


@pytest.mark.parametrize("strategy", ["map", "vmap"])
@pytest.mark.parametrize("slots", [2, 4])
def test_weight_gradients_of_a_batch_of_one_are_right_on_two_devices(strategy, slots):
    """Where the compiler partitions the instance axis itself, these gradients come out wrong."""
    weights, images = conv_case(slots)

    def gradients(devices):
        many = population(slots, devices, strategy=strategy)
        program = many.map(jax.grad(conv_loss), name="gradient")
        return many.fetch(program(many.place(weights), many.place(images)))

    two, one = gradients(2), gradients(1)
    rows = [
        jax.grad(conv_loss)(jax.tree.map(lambda a, k=k: a[k], weights), images[k])
        for k in range(slots)
    ]
    loop = jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, two, loop)
    jax.tree.map(close, two, one)
    assert np.abs(two["first"][-1]).max() > 0.1


def trained(weights, images, chosen, devices, steps=3):
    """Some steps of descent of the chosen instances, in that order; parameters by instance."""

    def descend(one, image):
        def step(_, state):
            return jax.tree.map(lambda w, g: w - 0.01 * g, state, jax.grad(conv_loss)(state, image))

        return jax.lax.fori_loop(0, steps, step, one)

    many = population(len(chosen), devices)
    pick = jax.tree.map(lambda a: a[np.array(chosen)], (weights, images))
    found = many.fetch(many.map(descend)(*(many.place(tree) for tree in pick)))
    return {k: jax.tree.map(lambda a, p=p: a[p], found) for p, k in enumerate(chosen)}


def test_bits_depend_neither_on_slot_nor_company_nor_devices():
    weights, images = conv_case(7)
    alone = trained(weights, images, [3], 1)[3]
    for chosen, devices in (([3, 1], 1), ([0, 3], 2), ([6, 5, 4, 3, 2], 2), ([2, 1, 0, 3], 3)):
        assert_trees_equal(trained(weights, images, chosen, devices)[3], alone)


@pytest.mark.parametrize("strategy", ["map", "vmap"])
def test_donated_memory_is_taken_over(strategy):
    many = population(3, 2, strategy=strategy)
    state, stacked = many.place(stack_of(3)), stack_of(3)
    program = many.map(affine, shared=(1,), donate=(0,))
    shift = many.replicate(np.float32([0, 0]))
    new = program(state, shift)
    assert state["w"].is_deleted() and not shift.is_deleted()
    with pytest.raises(RuntimeError, match="deleted"):
        np.asarray(state["w"])
    newer = many.fetch(program(new, shift))
    np.testing.assert_array_equal(newer["w"], 4 * stacked["w"])


def test_the_second_call_compiles_nothing(caplog):
    many = population(3, 2)
    program = many.map(affine, shared=(1,))
    arguments = many.place(stack_of(3)), many.replicate(np.float32([1, 2]))
    other = many.place(stack_of(3, seed=1)), many.replicate(np.float32([3, 4]))
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        program(*arguments)
        assert any("ompil" in record.getMessage() for record in caplog.records)
        caplog.clear()
        program(*other)
        assert not [r.getMessage() for r in caplog.records if "ompil" in r.getMessage()]
    assert program.compilations == 1 and program.compile_seconds > 0


def test_a_program_is_compiled_from_shapes_alone():
    many = population(4, 2)
    one = {"w": np.zeros((3, 2), np.float32), "n": np.int32(0)}
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(np.shape(a), a.dtype), one)
    program = many.map(affine, shared=(1,))
    shift = np.float32([1, 2])
    program.compile(many.placed_shapes(shapes), many.replicated_shapes(shift))
    program(many.place(stack_of(4)), many.replicate(shift))
    assert program.compilations == 1


def test_peak_memory_grows_with_the_arrays():
    def peak(size):
        many = population(2, 2)
        program = many.map(lambda x: jnp.sort(x @ x.T) @ x, name="square")
        shape = jax.ShapeDtypeStruct((size, size), np.float32)
        return program.compile(many.placed_shapes(shape)).peak_bytes()

    small, large = peak(32), peak(256)
    assert small > 0
    # At least the argument and the result of one device's one instance.
    assert large >= 2 * 4 * 256**2 and large > 16 * small
    with pytest.raises(ValueError, match="square is not compiled"):
        population(1).map(lambda x: x, name="square").peak_bytes()


@pytest.mark.parametrize("faster", ["map", "vmap"])
def test_auto_takes_the_faster_one_and_remembers(tmp_path, monkeypatch, faster):
    timed = []

    def seconds(self, compiled, *arguments):
        timed.append(1)
        return 1.0 if (len(timed) == 1) == (faster == "map") else 2.0

    monkeypatch.setattr(Mapped, "_seconds", seconds)
    cache = tmp_path / "strategies.json"
    for _ in range(2):
        many = population(3, 1, strategy="auto", cache=cache)
        program = many.map(affine, shared=(1,))
        stacked = stack_of(3)
        found = many.fetch(program(many.place(stacked), many.replicate(np.float32([0, 0]))))
        np.testing.assert_array_equal(found["w"], 2 * stacked["w"])
        assert program.strategy == faster
        assert len(timed) == 2  # one probe of two programs, none the second time
    known = json.loads(cache.read_text())
    assert list(known.values()) == [faster] and next(iter(known)).startswith("affine ")
    assert [path.name for path in tmp_path.iterdir()] == ["strategies.json"]
    # Other shapes are another question.
    many = population(4, 1, strategy="auto", cache=cache)
    many.map(affine, shared=(1,))(many.place(stack_of(4)), many.replicate(np.float32([0, 0])))
    assert len(timed) == 4 and len(json.loads(cache.read_text())) == 2


def test_auto_really_probes_and_leaves_donated_arguments_whole(tmp_path):
    many = population(3, 1, strategy="auto", cache=tmp_path / "strategies.json")
    stacked = stack_of(3)
    program = many.map(affine, shared=(1,), donate=(0,))
    found = many.fetch(program(many.place(stacked), many.replicate(np.float32([0, 0]))))
    np.testing.assert_array_equal(found["w"], 2 * stacked["w"])
    assert program.strategy in ("map", "vmap")


def test_auto_has_nothing_to_choose_for_one_instance_a_device(monkeypatch):
    monkeypatch.setattr(Mapped, "_seconds", lambda *_: pytest.fail("probed"))
    many = population(2, 2, strategy="auto")
    program = many.map(affine, shared=(1,))
    program(many.place(stack_of(2)), many.replicate(np.float32([0, 0])))
    assert program.strategy == "map"


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="slots=0"):
        population(0)
    with pytest.raises(ValueError, match="'pmap'"):
        population(1, strategy="pmap")
    with pytest.raises(ValueError, match=r"expected 3 instances.*\(2,\)"):
        population(3).place(stack_of(2))
    with pytest.raises(ValueError, match=r"expected 3 instances.*\(\)"):
        population(3).place(np.float32(0))


def test_an_instances_key_is_a_function_of_its_identity():
    base = jax.random.key(0)
    keys = [jax.random.key_data(instance_key(base, identity)) for identity in range(50)]
    assert len({tuple(np.asarray(key)) for key in keys}) == 50
    np.testing.assert_array_equal(keys[7], jax.random.key_data(instance_key(base, jnp.int32(7))))


def test_devices_of_one_host_share_its_memory():
    one, eight = memory_limit(jax.devices()[:1]), memory_limit(jax.devices())
    assert one > 2**20
    np.testing.assert_allclose(one, 8 * eight, rtol=0.2)


def test_the_part_of_memory_that_a_launcher_names(monkeypatch):
    monkeypatch.setenv("DENSEJAX_MEMORY_BYTES", "1000000")
    assert memory_limit(jax.devices()[:1]) == 1_000_000
    monkeypatch.setenv("DENSEJAX_MEMORY_BYTES", str(2**62))
    assert memory_limit(jax.devices()[:1]) < 2**62


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="memory maps are Linux's")
def test_programs_of_populations_that_are_gone_do_not_pile_up(monkeypatch):
    """Each population compiles programs of its own; a held one works on after others are let go."""

    def maps():
        return Path("/proc/self/maps").read_bytes().count(b"\n")

    def train(number):
        mapped = population(2, 2).map(lambda x: {"y": jnp.sort(jnp.sin(x["w"] * number), axis=-1)})
        placed = mapped.population.place({"w": stack_of(2)["w"]})
        return mapped, placed, mapped.population.fetch(mapped(placed))["y"]

    held, placed, expected = train(1)
    before = maps()
    for number in range(2, 8):
        train(number)
    grown = maps() - before
    assert grown > 0, "programs take no maps: nothing is tested"
    monkeypatch.setattr("densejax.population.MOST_MAPS", before)
    for number in range(8, 30):
        train(number)
    assert maps() - before < grown
    np.testing.assert_array_equal(held.population.fetch(held(placed))["y"], expected)


def test_cores_are_counted_where_a_system_has_no_affinity(monkeypatch):
    import os

    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert host_cores() == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert host_cores() == 1
