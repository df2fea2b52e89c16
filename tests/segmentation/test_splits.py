"""How labelled volumes are divided: by labelled sections, columns or folds, never by windows."""

from dataclasses import replace

import numpy as np
import pytest

from densejax.data.datasets import LabelledVolume, split_sections
from densejax.segmentation.splits import (
    AROUND_NM,
    default_sections,
    divided,
    draw_divisions,
    parse_fold,
    split_volume,
    where_labelled,
)


def volume_of(labelled, shape=(20, 24, 32), *, voxel_nm=(50.0, 4.0, 4.0), weights=False):
    """Noise with two classes where ``labelled`` (an index) says so."""
    rng = np.random.default_rng(0)
    labels = np.full(shape, -1, np.int32)
    labels[labelled] = rng.integers(0, 2, shape)[labelled]
    images = rng.integers(0, 255, shape, np.uint8)
    heavy = rng.random(shape, np.float32) if weights else None
    return LabelledVolume("made", images, labels, heavy, voxel_nm, ("a", "b"))


def owners(volume, pieces):
    """Part of each voxel, as its position in train, evaluation, test; -1 for none."""
    owner = np.full(volume.labels.shape, -1)
    for piece in pieces:
        mine = piece.volume.labels >= 0
        place = slice(piece.start, piece.start + len(mine))
        assert (owner[place][mine] == -1).all(), "a voxel belongs to one part only"
        owner[place][mine] = ("train", "evaluation", "test").index(piece.part)
        np.testing.assert_array_equal(piece.volume.labels[mine], volume.labels[place][mine])
        np.testing.assert_array_equal(piece.volume.images, volume.images[place])
    return owner


SPARSE = {
    "every fifth section": np.s_[::5],
    "the first three": np.s_[:3],
    "the last three": np.s_[-3:],
    "one section": np.s_[7],
    "two, far apart": [2, 17],
    "corners of two sections": np.s_[[4, 9], :10, 20:],
    "every second": np.s_[::2],
    "all but the last": np.s_[:-1],
    "a block": np.s_[5:11, 4:20, 3:30],
}


@pytest.mark.parametrize("what", SPARSE)
def test_every_part_has_labels_and_none_of_another(what):
    volume = volume_of(SPARSE[what], weights=True)
    pieces = split_volume(volume)
    owner = owners(volume, pieces)
    labelled = volume.labels >= 0
    assert not (owner[~labelled] >= 0).any()
    counts = [int((owner == part).sum()) for part in range(3)]
    assert min(counts) >= 0.02 * labelled.sum() and 2 * counts[0] >= labelled.sum()
    for piece in pieces:
        assert (piece.volume.weights[piece.volume.labels < 0] == 0).all()


@pytest.mark.parametrize("what", ["every fifth section", "a block", "the first three"])
def test_neighbouring_parts_keep_a_gap(what):
    volume = volume_of(SPARSE[what])
    owner = owners(volume, split_volume(volume))
    for axis in range(3):
        one, other = (np.moveaxis(owner, axis, 0)[s] for s in (np.s_[1:], np.s_[:-1]))
        assert not ((one != other) & (one >= 0) & (other >= 0)).any()


def test_a_fully_labelled_volume_is_cut_as_it_was():
    volume = volume_of(np.s_[:], weights=True)
    train, evaluation, test, gap = default_sections(20)
    expected = split_sections(volume, train=train, evaluation=evaluation, test=test, gap=gap)
    for by in ("labelled", "sections"):
        pieces = split_volume(volume, by=by)
        for piece, slab in zip(pieces, expected, strict=True):
            for name in ("images", "labels", "weights"):
                np.testing.assert_array_equal(getattr(piece.volume, name), getattr(slab, name))
            assert piece.volume.name == slab.name
    assert [piece.start for piece in pieces] == [0, train + gap, train + evaluation + 2 * gap]


def test_sections_with_a_labelled_corner_each_are_cut_as_sections():
    volume = volume_of(np.s_[:, :5, :5])
    assert [len(p.volume.labels) for p in split_volume(volume)] == [8, 5, 5]


def test_unlabelled_sections_around_stay_to_look_at():
    volume = volume_of(np.s_[::5], (60, 8, 8))
    pieces = split_volume(volume)
    around = round(AROUND_NM / 50)
    for piece in pieces:
        known = np.flatnonzero((piece.volume.labels >= 0).any((1, 2)))
        assert known[0] == min(around, piece.start + known[0])
    thin = split_volume(replace(volume, voxel_nm=(10.0, 4.0, 4.0)))
    assert len(thin[1].volume.labels) > len(pieces[1].volume.labels)


def test_a_part_without_labels_is_refused_with_where_they_are():
    volume = volume_of(np.s_[:3])
    message = r"evaluation part has no labelled voxel in its sections 13 to 14; 3 of 20 sections"
    with pytest.raises(ValueError, match=message + r" are labelled: 0\.\.2.*--evaluation_image"):
        split_volume(volume, sections=(12, 2, 2, 1))
    with pytest.raises(ValueError, match="--split=labelled"):
        split_volume(volume, by="sections")
    with pytest.raises(ValueError, match="no voxel is labelled"):
        split_volume(volume_of(np.s_[:0]))


def test_too_little_to_divide_names_the_flags():
    with pytest.raises(
        ValueError, match=r"1 of 20 sections are labelled: 3, too little.*--test_im"
    ):
        split_volume(volume_of(np.s_[3, 5:7, 5:7]))


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5, 12])
def test_a_short_stack_is_divided_or_told_what_it_needs(depth):
    volume = volume_of(np.s_[:], (depth, 8, 8))
    if depth >= 5:
        assert sum(len(p.volume.labels) for p in split_volume(volume)) == depth - 2
        return
    with pytest.raises(ValueError, match=rf"{depth} sections are too few.* 6 or more") as caught:
        split_volume(volume)
    assert "-8" not in str(caught.value) and "--evaluation_image" in str(caught.value)
    if depth >= 3:
        offered = str(caught.value).split("--sections=")[1].split(" ")[0]
        split_volume(volume, sections=tuple(int(n) for n in offered.split(",")))


def test_parts_with_volumes_of_their_own_take_nothing():
    volume = volume_of(np.s_[:])
    (whole,) = split_volume(volume, parts=["train"])
    assert whole.volume is volume
    two = split_volume(volume, parts=["train", "evaluation"])
    assert [piece.part for piece in two] == ["train", "evaluation"]
    assert sum(len(piece.volume.labels) for piece in two) == 19
    given = split_volume(volume, sections=(10, 5, 0, 2), parts=["train", "evaluation"])
    assert [len(piece.volume.labels) for piece in given] == [10, 5]
    with pytest.raises(ValueError, match="test has volumes of its own"):
        split_volume(volume, sections=(10, 5, 2, 1), parts=["train", "evaluation"])
    with pytest.raises(ValueError, match="--sections divides"):
        split_volume(volume, sections=(10, 5, 2, 1), parts=["train"])


@pytest.mark.parametrize("what", [np.s_[:], np.s_[::5], np.s_[:12]])
def test_the_folds_evaluate_each_labelled_section_once(what):
    volume = volume_of(what)
    known = (volume.labels >= 0).any((1, 2))
    seen = np.zeros(20, int)
    for fold in range(4):
        pieces = split_volume(volume, fold=(fold, 4))
        assert [piece.part for piece in pieces] == ["train", "evaluation"]
        owner = owners(volume, pieces)
        mine, others = ((owner == part).any((1, 2)) for part in (1, 0))
        seen += mine
        distances = np.abs(np.flatnonzero(mine)[:, None] - np.flatnonzero(others))
        assert distances.min() > 1
    np.testing.assert_array_equal(seen, known)
    with pytest.raises(ValueError, match="labelled sections"):
        split_volume(volume, fold=(0, 21))


def test_folds_as_text():
    assert parse_fold("") is None and parse_fold("0/5") == (0, 5)
    for text in ("5/5", "1", "a/b", "0/1", "-1/3", "0/0"):
        with pytest.raises(ValueError, match="0/5"):
            parse_fold(text)


def test_where_labels_are_in_words():
    known = np.zeros(50, bool)
    known[[0, 1, 2, 7]] = True
    assert where_labelled(known) == "4 of 50 sections are labelled: 0..2, 7"
    known[:] = False
    known[::5] = True
    assert where_labelled(known).endswith(": 0, 5, ... 45")


def test_a_division_is_drawn_from_the_side_that_shows_it(tmp_path):
    volume = volume_of(np.s_[::5])
    division = divided(volume, split_volume(volume))
    assert division.front.shape == (20, 32) and division.top.shape == (24, 32)
    codes = division.front[:, 0]
    np.testing.assert_array_equal(codes[[0, 5, 10, 15]], [1, 1, 2, 3])
    assert (np.delete(codes, [0, 5, 10, 15]) == 0).all()
    assert division.text == "train sections 0, 5; evaluation sections 10; test sections 15"
    columns = volume_of(np.s_[:3])
    strips = divided(columns, split_volume(columns))
    assert set(np.unique(strips.top)) == {1, 2, 3, 4}
    assert "evaluation sections 0..2, x " in strips.text
    path = draw_divisions([division, strips], tmp_path / "split.png")
    assert path.stat().st_size > 5000
