"""Windows of a volume: who owns a voxel, what a box needs, and blocks along chunks."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from densejax.data.windows import evaluation_corners, input_tile
from densejax.inference.sliding_window import centrality
from densejax.inference.stream import choose_blocks, computed_twice
from densejax.inference.tiles import (
    Windowing,
    clip,
    corner,
    grid_of,
    pooling_factor,
    sizes,
    slices,
)
from densejax.models import hybrid, unet, unet3d
from densejax.models.planned_unet import PlannedUNet


@st.composite
def layouts(draw, largest=12):
    """Volume, output window, overlap, input window and pooling factor, one entry an axis each."""
    axes = []
    for _ in range(3):
        volume = draw(st.integers(1, largest))
        output = draw(st.integers(1, volume))
        overlap = draw(st.integers(0, output - 1))
        margin = draw(st.integers(0, min(5, volume - 1)))
        axes.append((volume, output, overlap, output + margin, draw(st.integers(1, 4))))
    return tuple(zip(*axes, strict=True))


def grid_from(layout, blend="centre"):
    shape, output, overlap, window, factor = layout
    return grid_of(shape, Windowing(window, output, overlap, blend), factor=factor)


def everything(shape):
    return tuple((0, size) for size in shape)


@settings(max_examples=60, deadline=None)
@given(layouts())
def test_the_owner_of_a_voxel_is_as_central_as_any_window(layout):
    grid = grid_from(layout)
    central = centrality(grid.output)
    reach = np.zeros(grid.shape)
    for index in grid.windows(everything(grid.shape)):
        place = slices(grid.held(index))
        reach[place] = np.maximum(reach[place], central)
    owners = np.zeros(grid.shape, int)
    for index in grid.windows(everything(grid.shape)):
        own, held = grid.own(index), grid.held(index)
        owners[slices(own)] += 1
        inner = central[slices(own, origin=corner(held))]
        np.testing.assert_array_equal(inner, reach[slices(own)])
    assert (owners == 1).all()


@settings(max_examples=40, deadline=None)
@given(layouts())
def test_starts_are_those_of_the_released_grid(layout):
    grid = grid_from(layout)
    found = [corner(grid.held(index)) for index in grid.windows(everything(grid.shape))]
    assert found == [
        tuple(c) for c in evaluation_corners(grid.shape, grid.output, grid.overlap).tolist()
    ]


@settings(max_examples=60, deadline=None)
@given(layouts(), st.data(), st.sampled_from(["centre", "gaussian"]))
def test_a_box_needs_the_windows_that_bear_on_it(layout, data, blend):
    grid = grid_from(layout, blend)
    box = []
    for size in grid.shape:
        low = data.draw(st.integers(0, size - 1))
        box.append((low, data.draw(st.integers(low + 1, size))))
    whole = grid.windows(everything(grid.shape))
    part = grid.own if blend == "centre" else grid.held
    bears = [i for i in whole if all(n > 0 for n in sizes(clip(part(i), box)))]
    assert grid.windows(box) == bears and grid.count(box) == len(bears)


@settings(max_examples=40, deadline=None)
@given(layouts())
def test_gaussian_weights_sum_to_one(layout):
    grid = grid_from(layout, "gaussian")
    total = np.zeros(grid.shape)
    for index in grid.windows(everything(grid.shape)):
        total[slices(grid.held(index))] += grid.weights(index)
    np.testing.assert_allclose(total, 1, rtol=1e-5)


def test_gaussian_weights_fall_off_by_an_eighth_of_the_window():
    grid = grid_of((1, 1, 64), Windowing((1, 1, 64), (1, 1, 64), (0, 0, 0)))
    bell = grid.axes[2]._bell
    # One deviation, 64 / 8 voxels, from the middle at 31.5.
    np.testing.assert_allclose(bell[31] / bell[23], np.exp((8.5**2 - 0.5**2) / (2 * 64)))


@settings(max_examples=40, deadline=None)
@given(layouts(), st.integers(0, 99))
def test_a_region_holds_every_input_that_its_box_needs(layout, seed):
    grid = grid_from(layout)
    volume = np.random.default_rng(seed).normal(size=grid.shape).astype(np.float32)
    box = everything(grid.shape)
    region = grid.region(box)
    read = grid.read(volume, region)
    for index in grid.windows(box):
        found = read[slices(grid.input_of(index), origin=corner(region))]
        at = np.array(corner(grid.held(index)))
        np.testing.assert_array_equal(found, input_tile(volume, at, grid.output, grid.window))


@settings(max_examples=60, deadline=None)
@given(layouts(40), st.data(), st.sampled_from(["centre", "gaussian"]))
def test_blocks_cover_a_part_once_along_chunks(layout, data, blend):
    grid = grid_from(layout, blend)
    part = []
    for size in grid.shape:
        low = data.draw(st.integers(0, size - 1))
        part.append((low, data.draw(st.integers(low + 1, size))))
    chunk = data.draw(st.sampled_from([None, (1, 2, 3), (4, 4, 4)]))
    voxels = data.draw(st.sampled_from([1, 100, 5000]))
    blocks = choose_blocks(grid, part=tuple(part), chunk=chunk, voxels=voxels)
    seen = np.zeros(sizes(part), int)
    needed = set()
    for number in range(len(blocks)):
        inside = blocks.inside(number)
        seen[slices(inside)] += 1
        needed |= set(grid.windows(blocks.box(number)))
        for (low, high), step, size in zip(inside, blocks.chunk, sizes(part), strict=True):
            assert low % step == 0 and (high % step == 0 or high == size)
        assert sizes(inside) == sizes(blocks.box(number))
        assert all(a <= b for a, b in zip(sizes(inside), blocks.largest(), strict=True))
    assert (seen == 1).all()
    assert needed == set(grid.windows(part))
    count = sum(grid.count(blocks.box(number)) for number in range(len(blocks)))
    assert math.isclose(computed_twice(grid, blocks), count / len(needed) - 1)


def test_default_chunks_cut_few_windows_of_the_published_shape():
    windowing = Windowing((5, 300, 300), (5, 296, 296), (1, 98, 98))
    grid = grid_of((250, 2000, 2000), windowing, factor=(1, 8, 8))
    assert grid.overlap == (1, 104, 104)
    blocks = choose_blocks(grid)
    assert computed_twice(grid, blocks) < 0.1
    assert math.prod(blocks.largest()) < 2**26
    # Chunks of round numbers, as one would choose them, cut many more.
    assert computed_twice(grid, choose_blocks(grid, chunk=(16, 128, 128))) > 0.2


def test_strides_keep_the_phase_of_the_pooling_where_the_window_allows():
    windowing = Windowing((5, 64, 4), (5, 64, 4), (2, 21, 1))
    grid = grid_of((20, 200, 40), windowing, factor=(1, 8, 8))
    assert [axis.stride for axis in grid.axes] == [3, 40, 3]


def planned(strides):
    scales = len(strides)
    options = {"widths": (2,) * scales, "kernels": ((1, 3, 3),) * scales}
    return PlannedUNet(classes=2, strides=strides, **options)


@pytest.mark.parametrize(
    ("model", "window", "factor"),
    [
        (hybrid.Hybrid2D3D(width=2), (5, 300, 300), (1, 8, 8)),
        (unet.UNet(width=2, padding="SAME"), (3, 64, 64), (1, 16, 16)),
        (unet.UNet(width=2), (1, 572, 572), (1, 16, 16)),
        (unet3d.thick(width=2), (8, 32, 32), (4, 4, 4)),
        # These take nothing but multiples.
        (planned(strides=((1, 4, 4), (1, 2, 2))), (1, 64, 64), (1, 8, 8)),
        (planned(strides=((1, 4, 4), (2, 8, 8), (2, 4, 4))), (4, 256, 256), (4, 128, 128)),
    ],
)
def test_the_pooling_factor_is_seen_from_the_sizes(model, window, factor):
    assert pooling_factor(model.output_window, window) == factor


def test_what_does_not_fit_is_refused():
    windowing = Windowing((2, 4, 4), (2, 4, 4), (0, 0, 0))
    with pytest.raises(ValueError, match=r"overlap \(0, 4, 0\).*\(2, 4, 4\)"):
        grid_of((4, 8, 8), replace(windowing, overlap=(0, 4, 0)))
    with pytest.raises(ValueError, match=r"\(2, 4, 4\).*\(1, 8, 8\)"):
        grid_of((1, 8, 8), windowing)
    with pytest.raises(ValueError, match="centre or gaussian"):
        grid_of((4, 8, 8), replace(windowing, blend="mean"))
    grid = grid_of((4, 8, 8), windowing)
    with pytest.raises(ValueError, match=r"0:5,0:8,0:8 .*\(4, 8, 8\)"):
        choose_blocks(grid, part=((0, 5), (0, 8), (0, 8)))
    with pytest.raises(ValueError, match=r"chunk \(0, 8, 8\)"):
        choose_blocks(grid, chunk=(0, 8, 8))


def test_clipping_leaves_what_two_boxes_share():
    for a, b in itertools.product([(0, 3), (2, 5), (4, 6)], repeat=2):
        low, high = clip((a, a, a), (b, b, b))[0]
        assert set(range(low, high)) == set(range(*a)) & set(range(*b))
