"""The way of a block: out to an annotator, corrected, taken back, merged. Small worlds on disk."""

import csv
import itertools
import json
import shutil

import numpy as np
import pytest
import tifffile

from densejax.cli import few_steps
from densejax.data.ome_zarr import create_image, open_level
from densejax.data.volumes import open_volume
from densejax.segmentation.finetune import corrections
from densejax.segmentation.finetune.corrections import collect_blocks
from densejax.segmentation.finetune.export import export_blocks, open_predicted
from experiments import correct

NAMES = ("outside", "cell", "organelle")
VOXEL = (40.0, 5.0, 4.6)
VOLUME, OFFSET, PART = (6, 40, 50), (1, 8, 10), (4, 32, 40)
BLOCK = (2, 8, 10)


def write_prediction(folder, *, dtype=np.uint8, seed=0, members=("0000", "0001")):
    """A volume, and what ``experiments.predict`` leaves of a part of it."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    image = random.integers(0, 200, VOLUME).astype(dtype)
    if not (folder.parent / "image.tif").exists():
        tifffile.imwrite(folder.parent / "image.tif", image, photometric="minisblack")
    about = {
        "volume": str(folder.parent / "image.tif"),
        "dataset": None,
        "shape": PART,
        "voxel_nm": VOXEL,
        "offset": OFFSET,
        "run": "run",
        "members": members,
        "class_names": NAMES,
        "mean": 100.0,
        "deviation": 50.0,
        "not_predicted": 255,
    }
    labels = random.integers(0, 3, PART).astype(np.uint8)
    labels[0, 0, 0] = 255
    (folder / "prediction.json").write_text(json.dumps(about))
    arrays = {"labels": labels}
    for name in ("entropy", "disagreement"):
        arrays[name] = random.integers(0, 256, PART).astype(np.uint8)
    for name, array in arrays.items():
        path = folder / f"{name}.zarr"
        create_image(
            path,
            shape=PART,
            dtype=np.uint8,
            chunks=(2, 16, 16),
            voxel_nm=VOXEL,
            offset=OFFSET,
            kind="labels" if name == "labels" else "image",
        )
        open_level(path, write=True)[...] = array
    return arrays


@pytest.fixture
def predicted(tmp_path):
    arrays = write_prediction(tmp_path / "out")
    return tmp_path / "out", arrays, tifffile.imread(tmp_path / "image.tif")


def export(out, workdir, *, count=3, by="disagreement", **options):
    options = {"shape": BLOCK, "least_distance_nm": 0.0} | options
    return export_blocks(open_predicted(out, by=by), workdir, count=count, by=by, **options)


def listed(folder):
    return json.loads((folder / "blocks.json").read_text())["blocks"]


def labels_of(folder, name):
    return tifffile.imread(folder / f"{name}_labels.tif").reshape(BLOCK).astype(np.int16)


def save(folder, name, labels, kind="labels"):
    """As a tool does that knows nothing of ImageJ."""
    tifffile.imwrite(folder / f"{name}_{kind}.tif", labels, photometric="minisblack")


def truth_of(block):
    """Labels that the annotator would draw: a function of the place in the volume."""
    places = np.indices(block["shape"]).sum(0) + sum(block["offset"])
    return (places % 3).astype(np.uint8)


def test_blocks_are_exported_from_the_most_doubtful_on(predicted, tmp_path):
    out, arrays, image = predicted
    folder = export(out, tmp_path / "work")
    assert folder == tmp_path / "work" / "export_0001"
    blocks = listed(folder)
    means = {}
    for z in range(0, 4, 2):
        for y in range(0, 32, 8):
            for x in range(0, 40, 10):
                box = (slice(z, z + 2), slice(y, y + 8), slice(x, x + 10))
                if not (arrays["labels"][box] == 255).any():
                    means[z, y, x] = arrays["disagreement"][box].mean() / 255
    best = sorted(means, key=means.get, reverse=True)[:3]
    assert [tuple(np.subtract(b["offset"], OFFSET)) for b in blocks] == best
    with (folder / "blocks.csv").open() as file:
        rows = list(csv.DictReader(file))
    for rank, (row, block, corner) in enumerate(zip(rows, blocks, best, strict=True), 1):
        box = tuple(slice(c, c + n) for c, n in zip(corner, BLOCK, strict=True))
        whole = tuple(slice(o, o + n) for o, n in zip(block["offset"], BLOCK, strict=True))
        labels = arrays["labels"][box]
        np.testing.assert_array_equal(labels_of(folder, block["name"]), labels)
        found = open_volume(folder / f"{block['name']}_image.tif")
        np.testing.assert_array_equal(found.read(), image[whole])
        # The voxel size is kept as a ratio of whole numbers.
        np.testing.assert_allclose(found.voxel_nm, VOXEL, rtol=1e-6)
        assert int(row["rank"]) == rank and row["name"] == block["name"]
        assert float(row["mean_disagreement"]) == pytest.approx(means[corner], abs=1e-6)
        for axis, name in enumerate("zyx"):
            assert int(row[f"offset_{name}"]) == block["offset"][axis]
            centre = (block["offset"][axis] + BLOCK[axis] / 2) * VOXEL[axis]
            assert float(row[f"centre_{name}_nm"]) == pytest.approx(centre, rel=1e-5)
        for label, name in enumerate(NAMES):
            assert float(row[name]) == pytest.approx((labels == label).mean(), abs=1e-6)


def test_the_next_export_passes_over_what_is_out_and_what_came_back(predicted, tmp_path):
    out, _, _ = predicted
    first = export(out, tmp_path / "work", count=4)
    second = export(out, tmp_path / "work", count=100)
    places = [tuple(b["offset"]) for folder in (first, second) for b in listed(folder)]
    assert second.name == "export_0002" and len(places) == len(set(places)) == 2 * 4 * 4 - 1
    with pytest.raises(ValueError, match=r"none of 32 blocks.*1 hold voxels that were not"):
        export(out, tmp_path / "work")


def test_blocks_keep_their_distance(predicted, tmp_path):
    out, _, _ = predicted
    folder = export(out, tmp_path / "work", count=100, least_distance_nm=90.0)
    centres = [(np.array(b["offset"]) + np.array(BLOCK) / 2) * VOXEL for b in listed(folder)]
    gaps = [np.linalg.norm(a - b) for i, a in enumerate(centres) for b in centres[:i]]
    assert len(centres) > 2 and min(gaps) >= 90.0


def test_blocks_are_diverse_where_no_distance_is_asked_for(predicted, tmp_path):
    out, _, _ = predicted
    options = {"shape": (1, 8, 10), "least_distance_nm": None}
    for _ in range(2):
        folder = export(out, tmp_path / "work", count=12, **options)
        scores = [block["score"] for block in listed(folder)]
        assert scores == sorted(scores, reverse=True) and len(scores) == 12
    taken = [block for path in (tmp_path / "work").glob("export_*") for block in listed(path)]
    for one, other in itertools.combinations(taken, 2):
        z, y, x = abs(np.subtract(one["offset"], other["offset"]))
        assert z > 1 or y >= 8 or x >= 10
    # A fair sample is not spread out.
    at_random = export(out, tmp_path / "random", count=60, by="random", **options)
    assert len(listed(at_random)) == 60


@pytest.mark.parametrize("by", ["entropy", "random"])
def test_blocks_by_entropy_and_at_random(predicted, tmp_path, by):
    out, arrays, _ = predicted
    folder = export(out, tmp_path / "work", count=5, by=by)
    again = export(out, tmp_path / "other", count=5, by=by)
    assert [b["offset"] for b in listed(folder)] == [b["offset"] for b in listed(again)]
    if by == "random":
        more = export(out, tmp_path / "third", count=5, by=by, seed=1)
        assert [b["offset"] for b in listed(folder)] != [b["offset"] for b in listed(more)]
        return
    box = tuple(
        slice(a - o, a - o + n)
        for a, o, n in zip(listed(folder)[0]["offset"], OFFSET, BLOCK, strict=True)
    )
    assert listed(folder)[0]["score"] == pytest.approx(arrays["entropy"][box].mean() / 255)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.int16])
def test_images_of_other_dtypes_open_with_their_values(tmp_path, dtype):
    write_prediction(tmp_path / "out", dtype=dtype)
    folder = export(tmp_path / "out", tmp_path / "work", count=1)
    block = listed(folder)[0]
    whole = tuple(slice(o, o + n) for o, n in zip(block["offset"], BLOCK, strict=True))
    found = tifffile.imread(folder / "block_0001_image.tif")
    np.testing.assert_array_equal(found, tifffile.imread(tmp_path / "image.tif")[whole])


def test_only_changed_voxels_count_on_request_unless_the_annotator_says_more(predicted, tmp_path):
    """Blocks 1 to 5: some voxels changed; done; a mask; untouched; deleted."""
    out, _, _ = predicted
    folder = export(out, tmp_path / "work", count=5)
    blocks = listed(folder)
    before = [labels_of(folder, b["name"]) for b in blocks]
    expected = np.full((5, *BLOCK), -1)
    changed = before[0].copy()
    changed[0, :3] = (changed[0, :3] + 1) % 3
    changed[1, 0] = 255
    save(folder, "block_0001", changed)
    expected[0, 0, :3] = changed[0, :3]
    (folder / "done.txt").write_text("block_0002\n\n")
    expected[1] = before[1]
    mask = np.zeros(BLOCK, np.uint8)
    mask[:, 2:4] = 1
    save(folder, "block_0003", mask, kind="mask")
    expected[2] = np.where(mask, before[2], -1)
    (folder / "block_0005_labels.tif").unlink()
    collected = collect_blocks(folder, tmp_path / "work", changed_only=True)
    rules = ["changed", "done", "mask", "untouched", "missing"]
    assert [block.rule for block in collected.blocks] == rules
    assert collected.folder == tmp_path / "work" / "collected" / "0001"
    found = corrections.read_corrections(tmp_path / "work")
    assert [b.name for b in found.blocks] == ["block_0001", "block_0002", "block_0003"]
    for block, labels in zip(found.blocks, expected, strict=False):
        np.testing.assert_array_equal(block.read(), labels)
    volume = corrections._corrected_box(found.blocks, (0, 0, 0), VOLUME)
    for block, labels in zip(blocks, expected, strict=True):
        whole = tuple(slice(o, o + n) for o, n in zip(block["offset"], BLOCK, strict=True))
        np.testing.assert_array_equal(volume[whole], labels)
    assert (volume >= 0).sum() == (expected >= 0).sum()


def test_a_block_counts_where_anything_was_changed(predicted, tmp_path):
    out, _, _ = predicted
    folder = export(out, tmp_path / "work", count=2)
    labels = labels_of(folder, "block_0001")
    labels[0, 0, 0] = (labels[0, 0, 0] + 1) % 3
    labels[1, 1, 1] = 255
    save(folder, "block_0001", labels)
    collected = collect_blocks(folder, tmp_path / "work")
    assert [block.corrected for block in collected.blocks] == [labels.size - 1, 0]
    assert [block.rule for block in collected.blocks] == ["whole block", "untouched"]


def test_labels_come_back_with_values_of_their_own(predicted, tmp_path):
    out, _, _ = predicted
    folder = export(out, tmp_path / "work", count=1)
    labels = labels_of(folder, "block_0001")
    labels[0, 0, :2] = (labels[0, 0, :2] + 1) % 3
    save(folder, "block_0001", np.array([0, 255, 7], np.uint8)[labels])
    (folder / "block_0001_mask.tif").unlink(missing_ok=True)
    with pytest.raises(ValueError, match="label"):
        collect_blocks(folder, tmp_path / "work")
    collected = collect_blocks(folder, tmp_path / "work", values=(0, 255, 7))
    np.testing.assert_array_equal(collected.blocks[0].labels, labels)
    again = collect_blocks(folder, tmp_path / "other", values=(0, 255, 9), unlabelled=7)
    np.testing.assert_array_equal(again.blocks[0].labels, np.where(labels == 2, -1, labels))


def test_an_annotators_last_word_on_a_block_replaces_the_one_before(predicted, tmp_path):
    out, _, _ = predicted
    work = tmp_path / "work"
    folder = export(out, work, count=2)
    start = labels_of(folder, "block_0001")
    first = start.copy()
    first[0, :2] = (start[0, :2] + 1) % 3
    save(folder, "block_0001", first)
    collect_blocks(folder, work)
    same = collect_blocks(folder, work)
    assert same.folder is None and same.known == ("block_0001",)
    second = start.copy()  # the second row is set back, the first gets another label
    second[0, 0] = (start[0, 0] + 2) % 3
    save(folder, "block_0001", second)
    collected = collect_blocks(folder, work)
    # The whole block counted both times; two rows of ten say something else now.
    assert collected.again["block_0001"] == start.size
    assert collected.conflicts["block_0001"] == 20
    found = corrections.read_corrections(work)
    assert len(found.blocks) == 1 and found.collections == ("0001", "0002")
    np.testing.assert_array_equal(found.blocks[0].read(), second)
    earlier = corrections.read_corrections(work, collections=["0001"])
    np.testing.assert_array_equal(earlier.blocks[0].read(), first)


def test_two_annotators_of_a_voxel_are_counted_and_the_later_wins(predicted, tmp_path):
    """The same blocks, exported from a copy of the work before anything came back."""
    out, _, _ = predicted
    work, other = tmp_path / "work", tmp_path / "other"
    one = export(out, work, count=1)
    two = export(out, other, count=1, shape=(2, 8, 20), by="entropy")
    # The same place, so that the two overlap on half of the larger block.
    data = json.loads((two / "blocks.json").read_text())
    corner = np.array(listed(one)[0]["offset"])
    corner[2] = min(corner[2], VOLUME[2] - 20)
    data["blocks"][0]["offset"] = [int(c) for c in corner]
    (two / "blocks.json").write_text(json.dumps(data))
    for path in (two / "predicted" / "block_0001_labels.tif",):
        tifffile.imwrite(path, tifffile.imread(path), photometric="minisblack")
    save(one, "block_0001", truth_of(listed(one)[0]))
    (one / "done.txt").write_text("block_0001")
    labels = (truth_of(listed(two)[0]) + 1) % 3
    save(two, "block_0001", labels)
    (two / "done.txt").write_text("block_0001")
    collect_blocks(one, work)
    collected = collect_blocks(two, work)
    assert collected.again["block_0001"] == collected.conflicts["block_0001"] == 160
    found = corrections.read_corrections(work)
    volume = corrections._corrected_box(found.blocks, corner, (2, 8, 20))
    np.testing.assert_array_equal(volume, labels)
    once = corrections.labels_once(found.blocks)
    assert [int((block >= 0).sum()) for block in once] == [0, 320]


BAD = {
    "another shape": (
        lambda f: save(f, "block_0001", np.zeros((2, 8, 11), np.uint8)),
        r"block_0001_labels\.tif: shape \(2, 8, 11\); expected the block's \(2, 8, 10\)",
    ),
    "two blocks mixed up": (
        lambda f: shutil.copy(f / "block_0002_labels.tif", f / "block_0001_labels.tif"),
        r"block_0001_labels\.tif: the block at \(\d.*expected that at",
    ),
    "floats": (
        lambda f: save(f, "block_0001", np.zeros(BLOCK, np.float32)),
        r"block_0001_labels\.tif: voxels are float32; expected integers",
    ),
    "a class that is not there": (
        lambda f: save(f, "block_0001", np.full(BLOCK, 3, np.uint16)),
        r"label 3 at \(z, y, x\) \(0, 0, 0\), and 160 .*expected 0\.\.2, or 255",
    ),
    "nothing corrected at all": (
        lambda f: None,
        r"export_0001: no corrected voxel in 3 blocks \(0 have no labels file",
    ),
    "only voxels that nobody looked at": (
        lambda f: save(f, "block_0001", np.full(BLOCK, 255, np.uint8)),
        r"no corrected voxel",
    ),
    "a mask of another shape": (
        lambda f: save(f, "block_0001", np.ones((1, 8, 10), np.uint8), kind="mask"),
        r"block_0001_mask\.tif: shape \(1, 8, 10\); expected the block's \(2, 8, 10\)",
    ),
    "an unknown name in done.txt": (
        lambda f: (f / "done.txt").write_text("block_1"),
        r"done\.txt: block_1; expected names from block_0001",
    ),
    "done without labels": (
        lambda f: [
            (f / "block_0001_labels.tif").unlink(),
            (f / "done.txt").write_text("block_0001"),
        ],
        r"block_0001_labels\.tif: no such file",
    ),
    "no copy of what was predicted": (
        lambda f: shutil.rmtree(f / "predicted"),
        r"predicted/block_0001_labels\.tif: no such file",
    ),
    "the copy was changed": (
        lambda f: save(f / "predicted", "block_0001", np.zeros(BLOCK, np.uint8)),
        r"predicted/block_0001_labels\.tif: not the predicted labels",
    ),
    "no list": (
        lambda f: (f / "blocks.json").unlink(),
        r"blocks\.json: no such file",
    ),
    "a colour picture": (
        lambda f: tifffile.imwrite(f / "block_0001_labels.tif", np.zeros((8, 10, 3), np.uint8)),
        r"block_0001_labels\.tif.*expected grey sections",
    ),
    "no picture": (
        lambda f: (f / "block_0001_labels.tif").write_text("labels"),
        r"block_0001_labels\.tif: not a readable TIFF",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_taken_back_is_named_and_nothing_is_kept(predicted, tmp_path, what):
    out, _, _ = predicted
    folder = export(out, tmp_path / "work")
    spoil, message = BAD[what]
    spoil(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        collect_blocks(folder, tmp_path / "fresh")
    assert not (tmp_path / "fresh").exists()


def test_corrections_of_another_volume_or_other_classes_are_refused(predicted, tmp_path):
    out, _, _ = predicted
    folder = export(out, tmp_path / "work")
    path = folder / "blocks.json"
    text = path.read_text()
    path.write_text(text.replace('"organelle"', '"granule"'))
    with pytest.raises(ValueError, match=r"class_names was .*organelle.* and is .*granule"):
        collect_blocks(folder, tmp_path / "work")
    write_prediction(tmp_path / "elsewhere" / "out")
    with pytest.raises(ValueError, match=r'volume was .*image\.tif" and is .*elsewhere'):
        export(tmp_path / "elsewhere" / "out", tmp_path / "work")


def test_predictions_that_cannot_be_exported_from_are_refused(predicted, tmp_path):
    out, _, _ = predicted
    with pytest.raises(FileNotFoundError, match=r"prediction\.json"):
        open_predicted(tmp_path, by="disagreement")
    with pytest.raises(ValueError, match=r"\(5, 8, 8\)"):
        export(out, tmp_path / "work", shape=(5, 8, 8))
    with pytest.raises(ValueError, match="one block or more"):
        export(out, tmp_path / "work", count=0)
    shutil.move(tmp_path / "image.tif", tmp_path / "moved.tif")
    with pytest.raises(FileNotFoundError, match=r"image\.tif.*--image"):
        export(out, tmp_path / "work")
    found = open_predicted(out, by="entropy", image=str(tmp_path / "moved.tif"))
    assert found.image.array.shape == VOLUME
    tifffile.imwrite(
        tmp_path / "image.tif", np.zeros((4, 40, 50), np.uint8), photometric="minisblack"
    )
    with pytest.raises(ValueError, match=r"\(4, 40, 50\); expected at least \(5, 40, 50\)"):
        export(out, tmp_path / "work")
    write_prediction(tmp_path / "single" / "out", members=("0000",))
    with pytest.raises(ValueError, match=r"1 member.*--by=entropy"):
        export(tmp_path / "single" / "out", tmp_path / "work")


def test_a_killed_export_and_a_killed_collection_leave_nothing_behind_that_counts(
    predicted, tmp_path, monkeypatch
):
    out, _, _ = predicted
    work = tmp_path / "work"
    (work / ".export_0001.partial").mkdir(parents=True)
    (work / ".export_0001.partial" / "blocks.json").write_text("{")
    folder = export(out, work, count=2)
    assert not (work / ".export_0001.partial").exists()
    (folder / "done.txt").write_text("block_0001\nblock_0002")
    (work / "collected" / ".0001.partial").mkdir(parents=True)
    (work / "collected" / ".0001.partial" / "collected.json").write_text("{")
    assert corrections.read_corrections(work).blocks == ()
    collect_blocks(folder, work)
    assert len(corrections.read_corrections(work).blocks) == 2


def test_a_damaged_block_is_named(predicted, tmp_path):
    out, _, _ = predicted
    folder = export(out, tmp_path / "work", count=1)
    (folder / "done.txt").write_text("block_0001")
    kept = collect_blocks(folder, tmp_path / "work").folder
    tifffile.imwrite(kept / "block_0001.tif", np.zeros(BLOCK, np.uint8))
    with pytest.raises(ValueError, match=r"0001/block_0001\.tif: damaged"):
        corrections.read_corrections(tmp_path / "work").blocks[0].read()


def test_the_experiment_exports_and_collects(predicted, tmp_path, capsys):
    out, _, _ = predicted
    work = tmp_path / "work"
    config = correct.Config(prediction=str(out), export=2, block=BLOCK)
    folder = correct.run(config, work).folder
    assert "2 blocks to correct" in capsys.readouterr().out
    labels = labels_of(folder, "block_0001")
    save(folder, "block_0001", (labels + 1) % 3)
    result = correct.run(correct.Config(collect=str(folder)), work)
    assert result.failed == 0
    assert "160 corrected voxels" in capsys.readouterr().out
    starts = (work / "provenance.jsonl").read_text().splitlines()
    assert len(starts) == 2 and json.loads(starts[1])["varying"]["collect"] == str(folder)
    with pytest.raises(ValueError, match=r"one of --export=N"):
        correct.run(correct.Config(), work)
    with pytest.raises(ValueError, match=r"--export needs --prediction"):
        correct.run(correct.Config(export=2), work)
    assert few_steps(config).export == 2
