"""A user's own volumes: one or several, partly labelled, with labels in any convention."""

from dataclasses import replace

import numpy as np
import pytest
import tifffile

from densejax.segmentation.planning import fingerprint
from densejax.segmentation.prepare import sweep_data
from densejax.segmentation.recipes import RecipeOptions
from densejax.segmentation.sources import DataOptions, load_parts, volume_weights

NAMES = ("outside", "inside")
SHAPES = [(20, 24, 32), (10, 40, 24), (8, 16, 48)]


def write(folder, name, shape=SHAPES[0], *, labelled=np.s_[:], seed=0, labels=None):
    """An image and labels that are -1 where not ``labelled``; the paths."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 200, shape, np.uint8)
    if labels is None:
        labels = np.full(shape, -1, np.int16)
        labels[labelled] = (image > 100)[labelled]
    paths = tuple(str(folder / f"{name}_{what}.tif") for what in ("im", "lb"))
    for path, array in zip(paths, (image, labels), strict=True):
        tifffile.imwrite(path, array, photometric="minisblack")
    return paths


def options(image, labels, **more):
    values = {"class_names": NAMES, "voxel_nm": (50.0, 4.0, 4.0)} | more
    return DataOptions(image=image, labels=labels, **values)


def three(folder):
    pairs = [write(folder, f"v{i}", shape, seed=i) for i, shape in enumerate(SHAPES)]
    return [",".join(paths) for paths in zip(*pairs, strict=True)]


def test_labels_in_the_first_three_of_twenty_sections_are_divided_among_themselves(tmp_path):
    parts = load_parts(options(*write(tmp_path, "a", labelled=np.s_[:3])))
    assert parts.sparse and parts.tested
    for part in (parts.train, parts.evaluation, parts.test):
        assert (part.labels >= 0).any()


def test_sections_without_labels_are_refused_with_the_flags(tmp_path):
    paths = write(tmp_path, "a", labelled=np.s_[:3])
    with pytest.raises(ValueError, match=r"test part has no labelled voxel.*0\.\.2.*--test_image"):
        load_parts(options(*paths, sections=(1, 1, 5, 1)))
    nothing = write(tmp_path, "b", labelled=np.s_[:0])
    with pytest.raises(ValueError, match="no voxel is labelled"):
        load_parts(options(*nothing))
    other = {"evaluation_image": nothing[0], "evaluation_labels": nothing[1]}
    with pytest.raises(ValueError, match=r"b_im\.tif.*no voxel is labelled.*evaluation"):
        load_parts(options(*paths, **other))


def test_a_run_from_before_is_divided_by_sections_as_it_was(tmp_path):
    paths = write(tmp_path, "a", labelled=np.s_[::2])
    new, old = (load_parts(options(*paths, split=split)) for split in (None, "sections"))
    assert [len(p.labels) for p in (old.train, old.evaluation, old.test)] == [8, 5, 5]
    assert not old.sparse and new.sparse
    assert RecipeOptions.upgrade({"recipe": "planned"})["split"] == "sections"
    assert RecipeOptions.upgrade({"recipe": "planned", "split": None})["split"] is None


def test_several_volumes_are_divided_each_by_itself(tmp_path):
    parts = load_parts(options(*three(tmp_path)), several=True)
    for part in ("train", "evaluation", "test"):
        shapes = [volume.images.shape[1:] for volume in parts.volumes(part)]
        assert shapes == [shape[1:] for shape in SHAPES]
    assert len(parts.divisions) == 3
    with pytest.raises(ValueError, match="this command takes one"):
        load_parts(options(*three(tmp_path)))


def test_volumes_that_rank_and_test_leave_all_others_to_training(tmp_path):
    image, labels = three(tmp_path)
    judge, tester = (write(tmp_path, name, SHAPES[1], seed=9) for name in "et")
    ranked = options(image, labels, evaluation_image=judge[0], evaluation_labels=judge[1])
    parts = load_parts(ranked, several=True)
    assert [v.images.shape for v in parts.volumes("train")] == SHAPES
    assert parts.test is parts.evaluation and not parts.tested
    tested = replace(ranked, test_image=tester[0], test_labels=tester[1])
    assert load_parts(tested, several=True).tested
    only = options(image, labels, test_image=tester[0], test_labels=tester[1])
    parts = load_parts(only, several=True)
    assert [len(v.labels) for v in parts.volumes("test")] == [SHAPES[1][0]]
    depths = [len(v.labels) for v in parts.volumes("train")]
    assert all(0 < depth < shape[0] for depth, shape in zip(depths, SHAPES, strict=True))


def test_a_fold_ranks_and_the_others_train(tmp_path):
    paths = write(tmp_path, "a")
    parts = [load_parts(options(*paths, fold=f"{k}/4")) for k in range(4)]
    seen = sum((p.evaluation.labels >= 0).sum() for p in parts)
    assert seen == np.prod(SHAPES[0]) and not parts[0].tested
    with pytest.raises(ValueError, match="--evaluation_image gives it"):
        load_parts(options(*paths, fold="0/4", evaluation_image=paths[0]))


def test_voxel_sizes_for_each_volume(tmp_path):
    sizes = (50.0, 4.0, 4.0, 40.0, 8.0, 8.0, 50.0, 4.0, 4.0)
    with pytest.warns(UserWarning, match="differ by 2 times along y"):
        parts = load_parts(options(*three(tmp_path), voxel_nm=sizes), several=True)
    assert parts.volumes("train")[1].voxel_nm == (40.0, 8.0, 8.0)
    assert fingerprint(parts).voxel_nm == (50.0, 4.0, 4.0)
    with pytest.raises(ValueError, match=r"--voxel_nm has 6 numbers.*3 volumes"):
        load_parts(options(*three(tmp_path), voxel_nm=sizes[:6]), several=True)


def test_the_arrays_of_several_volumes(tmp_path):
    parts = load_parts(options(*three(tmp_path)), several=True)
    train, judged = parts.volumes("train"), parts.volumes("evaluation")
    weights = [volume_weights(volume, "balance") for volume in train]
    sizes = {"window": (1, 16, 16), "output": (1, 16, 16)}
    data = sweep_data(train, judged, weights, sampled=True, **sizes)
    for volume, own, one in zip(train, weights, data["volumes"], strict=True):
        assert one["image"].shape == volume.images.shape
        assert abs(one["image"].mean()) < 1e-5 and abs(one["image"].std() - 1) < 1e-4
        np.testing.assert_array_equal(one["weights"], own.astype(np.float32))
    total = sum(volume.labels.size for volume in judged)
    assert (data["evaluation_labels"] >= 0).sum() == total
    assert data["class_voxels"].shape[2] == 4
    counts = fingerprint(parts).counts
    assert sum(counts) == sum(volume.labels.size for volume in train)


def test_windows_without_labels_are_not_evaluated(tmp_path):
    parts = load_parts(options(*write(tmp_path, "a", labelled=np.s_[::5])))
    sizes = {"window": (1, 8, 8), "output": (1, 8, 8)}
    data = sweep_data(parts.train, parts.evaluation, parts.train.labels, sparse=True, **sizes)
    labels = data["evaluation_labels"]
    assert (labels >= 0).any(axis=(1, 2, 3)).all()
    assert (labels >= 0).sum() == (parts.evaluation.labels >= 0).sum()


LABELS = {
    "0 and 255": (lambda image: np.uint8(255) * (image > 100), {"label_values": (0, 255)}),
    "255 is nothing": (
        lambda image: np.where(image < 20, 255, image > 100).astype(np.uint8),
        {"unlabelled": 255},
    ),
    "0 is nothing": (
        lambda image: np.where(image < 20, 0, 1 + (image > 100)).astype(np.uint8),
        {"unlabelled": 0, "label_values": (1, 2)},
    ),
    "a mask": (lambda image: image > 100, {}),
}


@pytest.mark.parametrize("what", LABELS)
def test_conventions_of_labels(what, tmp_path):
    make, said = LABELS[what]
    image = np.random.default_rng(0).integers(0, 200, SHAPES[0], np.uint8)
    parts = load_parts(options(*write(tmp_path, "a", labels=make(image)), **said))
    for part in (parts.train, parts.evaluation, parts.test):
        known = part.labels >= 0
        np.testing.assert_array_equal(part.labels[known], (part.images > 100)[known])
        np.testing.assert_array_equal(~known, (part.images < 20) & (what.endswith("nothing")))


def test_conventions_need_files():
    with pytest.raises(ValueError, match="--unlabelled belongs to volumes of your own"):
        load_parts(DataOptions(unlabelled=0))
    with pytest.raises(ValueError, match="has three"):
        load_parts(DataOptions(fold="0/5"))
