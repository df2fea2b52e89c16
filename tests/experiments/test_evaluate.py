"""Evaluation end to end on a made world: the report's numbers, its page, and what is refused."""

import dataclasses
import html.parser
import json
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
import tifffile
from sklearn import metrics as reference

from densejax.cli import few_steps
from densejax.data import ome_zarr
from densejax.data.synthetic import platelet_world
from experiments import evaluate

SHAPE = (8, 64, 72)
OFFSET = (2, 8, 0)


@pytest.fixture(scope="module")
def world():
    return platelet_world(jax.random.key(0), shape=(12, 80, 72))


@pytest.fixture(scope="module")
def predicted(world):
    """A part of the world, perturbed: moved by two voxels, two classes taken for one another."""
    inside = tuple(slice(o, o + s) for o, s in zip(OFFSET, SHAPE, strict=True))
    labels = np.roll(world.labels[inside], 2, axis=2)
    labels[:, :20] = np.array([0, 1, 3, 2, 4, 5, 6])[labels[:, :20]]
    labels[0, :5] = 255
    return labels.astype(np.uint8)


@pytest.fixture
def folders(tmp_path, world, predicted):
    """A prediction's folder, a file of true labels, true instances."""
    out = tmp_path / "out"
    out.mkdir()
    names, voxel = world.class_names, world.voxel_nm
    tifffile.imwrite(tmp_path / "image.tif", world.images, photometric="minisblack")
    tifffile.imwrite(
        tmp_path / "truth.tif", world.labels.astype(np.int16), photometric="minisblack"
    )
    about = {
        "volume": str(tmp_path / "image.tif"),
        "shape": SHAPE,
        "voxel_nm": voxel,
        "offset": OFFSET,
        "class_names": names,
        "organelles": [2, 3, 4, 5, 6],
        "not_predicted": 255,
    }
    (out / "prediction.json").write_text(json.dumps(about))
    common = {"chunks": (4, 32, 32), "voxel_nm": voxel, "offset": OFFSET, "dtype": "uint8"}
    none = {"not_predicted": 255}
    ome_zarr.create_image(
        out / "labels.zarr",
        shape=SHAPE,
        kind="labels",
        class_names=names,
        attributes=none,
        **common,
    )
    ome_zarr.open_level(out / "labels.zarr", write=True)[...] = predicted
    ome_zarr.create_image(
        out / "instances.zarr", shape=SHAPE, kind="labels", **common | {"dtype": "uint32"}
    )
    ome_zarr.open_level(out / "instances.zarr", write=True)[...] = np.where(
        predicted == 255, 0, predicted
    ).astype(np.uint32)
    ome_zarr.create_image(
        out / "probabilities.zarr", shape=(7, *SHAPE), channel_names=names, **common
    )
    ome_zarr.open_level(out / "probabilities.zarr", write=True)[...] = probabilities(predicted)
    return tmp_path


def probabilities(labels):
    """Bytes whose largest is the label, not always by much."""
    chances = np.random.default_rng(0).random((7, *labels.shape))
    for k in range(7):
        chances[k] += 1.2 * (labels == k)
    return np.round(255 * chances / chances.sum(0)).astype(np.uint8)


def configured(folders, **options):
    given = {"prediction": str(folders / "out"), "labels": str(folders / "truth.tif")}
    given |= {"labels_offset": (0, 0, 0)}
    return evaluate.Config(**given | options)


def truth_of(world):
    return world.labels[tuple(slice(o, o + s) for o, s in zip(OFFSET, SHAPE, strict=True))]


def test_truth_and_annotators_with_values_of_their_own(folders, world, predicted):
    values = (10, 20, 30, 40, 50, 60, 255)
    stored = np.array(values, np.uint8)[world.labels]
    stored[:, :12] = 7
    tifffile.imwrite(folders / "own.tif", stored, photometric="minisblack")
    tifffile.imwrite(folders / "second.tif", stored, photometric="minisblack")
    said = {"label_values": values, "unlabelled": 7}
    config = configured(folders, labels=str(folders / "own.tif"), **said)
    config = dataclasses.replace(config, pairwise=(f"second:{folders / 'second.tif'}",))
    report = evaluate.run(config, folders / "out" / "evaluation").report
    truth = truth_of(world)
    both = (predicted != 255) & (np.arange(SHAPE[1])[:, None] + OFFSET[1] >= 12)
    table = reference.confusion_matrix(truth[both], predicted[both], labels=range(7))
    np.testing.assert_array_equal(report["confusion"]["value"], table)
    wrong = dataclasses.replace(config, label_values=(), unlabelled=None, pairwise=())
    with pytest.raises(ValueError, match=r"expected 0\.\.6.*In this block: The values are 7, 10"):
        evaluate.run(wrong, folders / "out" / "wrong")


class Tags(html.parser.HTMLParser):
    """Opened and closed tags, sources of pictures and links."""

    def __init__(self):
        super().__init__()
        self.open, self.sources, self.faults = [], [], []

    def handle_starttag(self, tag, attrs):
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append(tag)


def test_the_whole_report(folders, world, predicted, capsys):
    workdir = folders / "out" / "evaluation"
    config = configured(
        folders,
        instance_labels=str(folders / "truth.tif"),
        cell_mask_nm=60.0,
        pairwise=(f"second:{folders / 'truth.tif'}", f"net:{folders / 'out'}"),
        threshold_sweep=True,
    )
    result = evaluate.run(config, workdir)
    assert result.failed == 0
    report = json.loads((workdir / "report.json").read_text())
    truth = truth_of(world)
    both = predicted != 255
    t, p = truth[both], predicted[both]
    table = reference.confusion_matrix(t, p, labels=range(7))
    np.testing.assert_array_equal(report["confusion"]["value"], table)
    ious = reference.jaccard_score(t, p, average=None, labels=range(7))
    np.testing.assert_allclose(report["classes"]["iou"]["value"], ious)
    f1 = reference.f1_score(t, p, average=None, labels=range(7))
    np.testing.assert_allclose(report["classes"]["dice"]["value"], f1)
    scores = {name: entry["value"] for name, entry in report["scores"].items()}
    assert scores["miou_all"] == pytest.approx(ious.mean())
    assert scores["miou_organelles"] == pytest.approx(ious[2:].mean())
    assert scores["adjusted_rand"] == pytest.approx(reference.adjusted_rand_score(t, p))
    inside = reference.jaccard_score(t[t > 0], p[t > 0], average=None, labels=range(2, 7))
    assert scores["test_score"] == pytest.approx(inside.mean())
    missing = report["voxels"]["not_predicted"]["value"]
    assert missing == (predicted == 255).sum() and report["complete"]
    assert report["voxels"]["counted"]["value"] == both.sum()

    fractions = report["fractions"]["value"]
    true = np.bincount(truth.ravel(), minlength=7)
    assert fractions["second"]["mitochondrion"] == pytest.approx(true[2] / true[1:].sum())
    # Renamed, not added: the two volumes were there already.
    assert report["pairwise"]["names"] == ["second", "net"]
    assert report["pairwise"]["scores"]["miou_all"]["value"][0][1] == scores["miou_all"]

    objects = report["objects"]
    assert objects["true_objects"]["value"] == 6
    skimage = pytest.importorskip("skimage.metrics")
    error = skimage.adapted_rand_error(t, p)[0]
    assert objects["rand_error"]["value"] == pytest.approx(error)

    sweep = report["threshold_sweep"]
    cell = 255 - probabilities(predicted)[0].astype(int)
    for at in (0, 100, 128, 254):
        miou = reference.jaccard_score(t > 0, (cell >= at)[both], average="macro")
        expected = np.mean(
            reference.jaccard_score(t > 0, (cell >= at)[both], average=None, labels=[0, 1])
        )
        assert miou == pytest.approx(expected)
        assert sweep["miou"]["value"][at] == pytest.approx(expected)
    best = sweep["best"]["value"]
    assert best["miou"] == max(sweep["miou"]["value"])
    merged = reference.jaccard_score(t > 0, p > 0, average=None, labels=[0, 1]).mean()
    assert sweep["labels"]["value"]["miou"] == pytest.approx(merged)

    printed = capsys.readouterr().out
    for text in ("MIoU(org)", "mitochondrion", "rand error", "best threshold", "report.html"):
        assert text in printed
    assert not (workdir / "blocks").exists()


def test_the_page_stands_alone(folders):
    workdir = folders / "e"
    evaluate.run(
        configured(folders, threshold_sweep=True, pairwise=("a:" + str(folders / "truth.tif"),)),
        workdir,
    )
    text = (workdir / "report.html").read_text()
    tags = Tags()
    tags.feed(text)
    assert not tags.faults and not tags.open
    assert len(tags.sources) == len(list((workdir / "pictures").glob("*.png"))) >= 6
    assert all(source.startswith("data:image/png;base64,") for source in tags.sources)
    without = re.sub(r'src="data:[^"]*"', "", text)
    assert "http" not in without and "<script" not in without and "None" not in without
    for title in ("MIoU(org)", "Volume fractions", "Cell or not", "sha256", "versions"):
        assert title in without, title
    report = json.loads((workdir / "report.json").read_text())
    assert report["inputs"]["a"]["files"]["sha256"]
    assert report["provenance"]["versions"]["densejax"]


def test_the_same_command_again_shows_the_report_and_another_input_is_refused(folders, capsys):
    workdir = folders / "e"
    evaluate.run(configured(folders), workdir)
    before = (workdir / "report.json").read_bytes()
    first = capsys.readouterr().out
    evaluate.run(configured(folders), workdir)
    assert (workdir / "report.json").read_bytes() == before
    again = capsys.readouterr().out
    assert again.split("\nclass  ")[1] == first.split("\nclass  ")[1]
    with pytest.raises(ValueError, match="comes from another configuration: background was 0"):
        evaluate.run(configured(folders, background=1), workdir)
    tifffile.imwrite(folders / "truth.tif", np.zeros((12, 80, 72), np.int16))
    with pytest.raises(ValueError, match=r"another evaluation: labels\..* was .* and is "):
        evaluate.run(configured(folders), workdir)


def test_plain_volumes_need_names_only(folders, world, predicted):
    tifffile.imwrite(folders / "p.tif", predicted, photometric="minisblack")
    tifffile.imwrite(folders / "t.tif", truth_of(world).astype(np.uint8), photometric="minisblack")
    config = evaluate.Config(
        prediction=str(folders / "p.tif"),
        labels=str(folders / "t.tif"),
        voxel_nm=(50, 10, 10),
        class_names=world.class_names,
        not_predicted=255,
    )
    report = evaluate.run(config, folders / "e").report
    both = predicted != 255
    table = reference.confusion_matrix(truth_of(world)[both], predicted[both], labels=range(7))
    np.testing.assert_array_equal(report["confusion"]["value"], table)
    assert "miou_organelles" not in report["scores"]
    quick = evaluate.run(few_steps(config), folders / "f").report
    assert not quick["complete"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels_offset": (0, 0, 5)}, r"expected one of them within the other"),
        ({"labels_offset": (0, 0)}, r"--labels_offset takes three numbers z,y,x"),
        ({"class_names": ("a", "b")}, r"has 7 classes .*--class_names names 2: a, b"),
        ({"organelles": (2, 7)}, r"--organelles has \[7\]; expected classes in 0\.\.6"),
        ({"background": 9}, r"--background has \[9\]"),
        ({"instances": "x.tif"}, "--instances=x.tif needs --instance_labels"),
        ({"cell_mask_nm": -1.0}, "--cell_mask_nm is -1.0; expected 0 nm or more"),
        ({"pairwise": ("alone",)}, "--pairwise: 'alone'; expected name:path"),
        ({"pairwise": ("labels:x.tif",)}, "the name 'labels' is taken"),
        ({"labels": ""}, "--prediction and --labels are needed"),
    ],
)
def test_bad_input_is_refused_before_any_work(folders, options, message):
    with pytest.raises(ValueError, match=message):
        evaluate.run(configured(folders, **options), folders / "e")
    assert not (folders / "e").exists()


def test_labels_of_the_whole_volume_find_their_place(folders):
    placed = evaluate.run(configured(folders), folders / "e").report
    report = evaluate.run(configured(folders, labels_offset=()), folders / "f").report
    assert report["confusion"] == placed["confusion"]
    assert report["inputs"]["labels"]["offset"] == [0, 0, 0]
    (folders / "image.tif").unlink()
    with pytest.raises(ValueError, match="shapes differ, and nothing says where labels lies"):
        evaluate.run(configured(folders, labels_offset=()), folders / "g")


def test_thresholds_need_probabilities_of_the_right_shape(folders, predicted):
    (folders / "out" / "probabilities.zarr").rename(folders / "elsewhere.zarr")
    with pytest.raises(FileNotFoundError, match=r"probabilities\.zarr: no probabilities"):
        evaluate.run(configured(folders, threshold_sweep=True), folders / "e")
    ome_zarr.create_image(
        folders / "out" / "probabilities.zarr",
        shape=(2, *SHAPE),
        dtype="uint8",
        chunks=(4, 32, 32),
        voxel_nm=(50, 10, 10),
        channel_names=("a", "b"),
    )
    with pytest.raises(ValueError, match=r"\(2, 8, 64, 72\) uint8; expected \(7, 8, 64, 72\)"):
        evaluate.run(configured(folders, threshold_sweep=True), folders / "e")


def test_an_image_that_is_gone_is_noted_and_one_that_is_named_is_needed(folders):
    (folders / "image.tif").unlink()
    report = evaluate.run(configured(folders), folders / "e").report
    assert "Without the image" in report["notes"][0]
    with pytest.raises(FileNotFoundError, match=r"image\.tif"):
        evaluate.run(configured(folders, image=str(folders / "image.tif")), folders / "f")


def test_exit_code_of_a_label_out_of_range(folders, world):
    labels = world.labels.astype(np.int16)
    labels[5, 30, 40] = 9
    tifffile.imwrite(folders / "truth.tif", labels, photometric="minisblack")
    command = [
        *(sys.executable, "-m", "experiments.evaluate", f"--prediction={folders / 'out'}"),
        *(f"--labels={folders / 'truth.tif'}", "--labels_offset=0,0,0"),
        f"--workdir={folders / 'e'}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "label 9 at (z, y, x) (5, 30, 40), in the block" in done.stderr
