"""What is planned from which data, worked by hand, and what is refused, with what would fit."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest

from densejax.data.datasets import LabelledVolume
from densejax.models.planned_unet import PlannedUNet, whole_stride
from densejax.segmentation import planning
from densejax.segmentation.planning import Cost, Fingerprint, plan, plan_time
from densejax.segmentation.sources import Parts

VNC = Fingerprint(
    train=(8, 1024, 1024),
    smallest=(5, 1024, 1024),
    voxel_nm=(50.0, 4.6, 4.6),
    counts=(1_400_000, 270_000, 450_000, 60_000, 6_200_000),
    coarse={2: 0.876, 4: 0.755},
    memory=20 * 10**9,
    devices=2,
    platform="cpu",
)
ISOTROPIC = replace(VNC, train=(120, 400, 400), smallest=(60, 400, 400), voxel_nm=(8.0, 8.0, 8.0))


def sizes(texts):
    return [planning.parse_sizes(text) for text in texts]


def test_thick_sections_are_labelled_for_themselves_and_a_cube_as_a_volume():
    flat = plan(VNC, {}).values
    assert flat["dimensions"] == "2d" and flat["window"][0] == 1
    assert all(size[0] == 1 for size in sizes(flat["strides"]) + sizes(flat["kernels"]))
    assert flat["views"] == "turns"
    deep = plan(ISOTROPIC, {}).values
    assert deep["dimensions"] == "3d" and deep["window"][0] > 1
    assert all(size == (3, 3, 3) for size in sizes(deep["kernels"]))
    assert deep["views"] == "flips"


def test_an_axis_is_pooled_while_its_spacing_is_within_twice_the_finest():
    data = replace(ISOTROPIC, voxel_nm=(20.0, 8.0, 8.0), coarse={2: 0.0})
    strides = sizes(plan(data, {"dimensions": "3d", "window": (16, 96, 96)}).values["strides"])
    spacing = np.array(data.voxel_nm)
    for stride in strides[1:]:
        expected = [2 if s < 2 * spacing.min() else 1 for s in spacing]
        assert list(stride)[1:] == expected[1:]
        assert stride[0] in (1, expected[0])  # less where the window has no room left
        spacing = spacing * stride


@pytest.mark.parametrize("data", [VNC, ISOTROPIC, replace(VNC, coarse={2: 0.5, 4: 0.2})])
def test_the_planned_network_takes_the_planned_windows(data):
    values = plan(data, {}).values
    model = PlannedUNet(
        classes=5,
        widths=tuple(values["width"] * 2**i for i in range(len(values["strides"]))),
        kernels=tuple(sizes(values["kernels"])),
        strides=tuple(sizes(values["strides"])),
    )
    for name in ("window", "prediction_window"):
        assert model.output_window(values[name]) == values[name]
        assert all(w <= n for w, n in zip(values[name], data.smallest, strict=True))
    assert whole_stride(model.strides)[1] >= values["stem"]


def test_labels_that_coarser_voxels_would_lose_keep_the_full_resolution():
    assert plan(VNC, {}).values["stem"] > 1
    assert plan(replace(VNC, coarse={2: 0.6, 4: 0.3}), {}).values["stem"] == 1


def test_what_is_asked_for_stands_and_what_depends_on_it_follows():
    found = plan(VNC, {"stem": 1, "window": (1, 128, 128), "learning_rate": 1e-4})
    assert found.values["stem"] == 1 and found.values["strides"][0] == "1x1x1"
    assert found.values["window"] == (1, 128, 128)
    assert found.values["learning_rate"] == 1e-4
    assert found.reasons["learning_rate"] == "asked for"
    assert all(found.reasons[name] for name in found.values)


def test_every_choice_is_a_line_with_its_reason():
    found = plan(VNC, {})
    lines = found.lines()
    assert len(lines) == len(found.values)
    for name, line in zip(found.values, lines, strict=True):
        assert line.strip().startswith(f"--{name} ") and found.reasons[name] in line


BAD = {
    "a window deeper than the volume": ({"window": (9, 128, 128)}, r"--window=5,128,128 would"),
    "a window that the strides do not divide": ({"window": (1, 101, 101)}, r"--window=1,100,100"),
    "a step beyond the memory": ({"batch": 4096}, r"--batch=\d+ would fit"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_plan_that_does_not_fit_names_the_smallest_change(what):
    asked, message = BAD[what]
    with pytest.raises(ValueError, match=message):
        plan(VNC, asked)


def test_the_batch_that_is_offered_fits():
    with pytest.raises(ValueError) as caught:
        plan(VNC, {"batch": 4096})
    offered = int(re.search(r"--batch=(\d+) would", str(caught.value))[1])
    assert plan(VNC, {"batch": offered}).values["batch"] == offered


def test_coarse_labels_against_a_loop_over_squares():
    labels = np.random.default_rng(0).integers(0, 3, (2, 9, 8)).astype(np.int32)
    labels[0, :3] = -1
    back = np.full((2, 8, 8), -2)
    for z, y, x in np.ndindex(2, 4, 4):
        square = labels[z, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2]
        votes = [int((square == c).sum()) for c in range(3)]
        back[z, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2] = int(np.argmax(votes))
    inner = labels[:, :8]
    known = inner >= 0
    expected = min(
        ((inner == c) & (back == c)).sum() / (((inner == c) | (back == c)) & known).sum()
        for c in range(3)
    )
    assert planning.coarse_iou(labels, 2, classes=3) == pytest.approx(expected)
    assert planning.coarse_iou(np.repeat(np.repeat(inner, 2, 1), 2, 2), 2, classes=3) == 1.0


def test_the_fingerprint_of_small_volumes():
    rng = np.random.default_rng(0)

    def volume(depth):
        labels = rng.integers(-1, 2, (depth, 16, 12)).astype(np.int32)
        images = rng.integers(0, 255, labels.shape).astype(np.uint8)
        return LabelledVolume("v", images, labels, None, (50.0, 5.0, 5.0), ("a", "b"))

    parts = Parts(volume(6), volume(3), volume(4))
    found = planning.fingerprint(parts)
    assert found.smallest == (3, 16, 12) and found.train == (6, 16, 12)
    assert found.counts == tuple(int((parts.train.labels == c).sum()) for c in range(2))
    assert found.anisotropy == 10.0
    assert found.memory > 0 and found.devices >= 1


COST = Cost(step=0.2, evaluation=1.0, voxel=1e-6)


def test_the_planned_time_is_spent_and_not_exceeded():
    seconds, voxels = 600.0, 10**7
    spent = plan_time(seconds, COST, members=4, devices=2, voxels=voxels, log_every=10)
    waves = 2
    total = waves * (spent.steps * COST.step + spent.evaluations * COST.evaluation)
    total += spent.predicting
    assert spent.predicting >= waves * voxels * COST.voxel
    assert 0.85 * seconds < total <= planning.MARGIN * seconds
    assert spent.steps % 10 == 0


def test_more_members_or_fewer_devices_make_fewer_steps():
    options = {"voxels": 10**6, "log_every": 10}
    four = plan_time(600, COST, members=4, devices=4, **options).steps
    eight = plan_time(600, COST, members=8, devices=4, **options).steps
    assert eight < 0.55 * four
    assert plan_time(600, COST, members=3, devices=2, **options).steps == (
        plan_time(600, COST, members=4, devices=2, **options).steps
    )


@pytest.mark.parametrize(
    ("minutes", "devices", "members"), [(7.5, 2, 2), (90, 1, 2), (90, 8, 8), (0, 2, 4), (0, 1, 2)]
)
def test_a_time_is_spent_on_length_and_no_device_idles(minutes, devices, members):
    assert planning.members_for(minutes, devices=devices) == members


def test_a_time_too_short_for_one_evaluation_says_how_much_more():
    with pytest.raises(ValueError, match=r"give at least (\d+) minutes more") as caught:
        plan_time(10, COST, members=4, devices=2, voxels=10**7, log_every=10)
    more = int(re.search(r"at least (\d+)", str(caught.value))[1])
    enough = plan_time(10 + 60 * more, COST, members=4, devices=2, voxels=10**7, log_every=10)
    assert enough.evaluations >= 1 and enough.steps >= 10


@pytest.mark.parametrize("text", ["1x3", "1x3x0", "3", "ax3x3", "1,3,3"])
def test_sizes_that_are_none_are_refused(text):
    with pytest.raises(ValueError, match=re.escape(repr(text))):
        planning.parse_sizes(text)


def test_the_estimate_of_memory_grows_with_width_and_batch():
    small = replace(VNC, memory=1)
    for asked, other in (({"batch": 64}, {"batch": 32}), ({"width": 256}, {"width": 128})):
        needs = []
        for choice in (asked, other):
            with pytest.raises(ValueError) as caught:
                plan(small, choice)
            needs.append(float(re.search(r"about ([\d.]+) GB", str(caught.value))[1]))
        assert math.isclose(needs[0] / needs[1], 2, rel_tol=0.35)


def test_strides_that_are_asked_for_give_the_stem():
    found = plan(VNC, {"strides": ("1x2x2", "1x2x2")}).values
    assert found["stem"] == 2 and found["width"] == plan(VNC, {"stem": 2}).values["width"]
    with pytest.raises(ValueError, match=r"--stem=4 and --strides=1x2x2,1x2x2 disagree"):
        plan(VNC, {"stem": 4, "strides": ("1x2x2", "1x2x2")})


def test_neighbouring_sections_deepen_the_window():
    assert plan(VNC, {"neighbours": 2}).values["window"][0] == 5
    with pytest.raises(ValueError, match=r"--neighbours=1: expected at least 3 sections"):
        plan(VNC, {"neighbours": 1, "window": (1, 128, 128)})


def test_another_network_has_no_scales_planned():
    found = plan(VNC, {"network": "hybrid"}).values
    assert not {"stem", "strides", "kernels", "neighbours", "block"} & set(found)
    assert found["window"] == (5, 128, 128) and found["norm"] == "instance"
