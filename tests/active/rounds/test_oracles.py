"""Oracles: known labels, and a person's file or folder with all that can be wrong in it."""

import numpy as np
import pytest
from PIL import Image

from densejax.active.rounds import oracles
from densejax.active.rounds.oracles import KnownLabels, LabelFile, LabelFolder, LabelsNeededError
from densejax.data.units import whole_pictures
from densejax.io import read_csv

NAMES = ("cat", "dog", "frog")
ASKED = np.array([3, 8, 40])


def test_known_labels_answer_and_refuse_what_they_do_not_know(tmp_path):
    oracle = KnownLabels(np.array([2, -1, 0]), classes=3)
    np.testing.assert_array_equal(oracle.reveal(np.array([0, 2]), folder=tmp_path), [2, 0])
    with pytest.raises(ValueError, match=r"1 of the samples .* no label, the first is 1"):
        oracle.reveal(np.array([0, 1]), folder=tmp_path)


def ask(folder, text=None, **options):
    if text is not None:
        (folder / "labels.csv").write_text(text)
    return LabelFile(class_names=NAMES, **options).reveal(ASKED, folder=folder)


def test_a_query_is_written_and_waits(tmp_path):
    oracle = LabelFile(class_names=NAMES, files=[f"p{i}.png" for i in range(50)])
    with pytest.raises(LabelsNeededError, match=r"3 samples want a label: .*query\.csv"):
        oracle.reveal(ASKED, folder=tmp_path / "new", predicted=np.array([1, -1, 2]))
    lines = (tmp_path / "new/query.csv").read_text().splitlines()
    assert lines == ["index,predicted,file", "3,dog,p3.png", "8,,p8.png", "40,frog,p40.png"]


@pytest.mark.parametrize(
    "text",
    [
        "index,label\n8,1\n3,0\n40,2\n",
        "label,index\nfrog,40\ndog,8\n cat ,3\n",
        "\ufeffindex,label,remark\r\n3,cat,?\r\n8,1,\r\n40,2,\r\n",
    ],
)
def test_answers_are_read_by_number_or_name_in_any_order(tmp_path, text):
    np.testing.assert_array_equal(ask(tmp_path, text), [0, 1, 2])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("index,label\n3,0\n9,1\n", "line 3: index 9 is none of the 3 samples"),
        ("index,label\n3,0\n3,0\n", "line 3: index 3 occurs twice, first in line 2"),
        ("index,label\n3,0\n8,1\n", "no label for 1 of 3 samples, the first is index 40"),
        ("index,label\n3,5\n", "line 2: label '5' is outside the classes; expected 0 to 2"),
        ("index,label\n3,-1\n", "label '-1' is outside"),
        ("index,label\n3\n", "label '' is outside"),
        ("index,label\nx,1\n", "index 'x'; expected a whole number"),
        ("3,1\n", "expected index,label"),
        ("", "expected index,label"),
    ],
)
def test_a_wrong_answer_is_refused_with_its_line(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as caught:
        ask(tmp_path, text)
    assert "labels.csv" in str(caught.value)


def six_units(channels=3):
    images = np.random.default_rng(0).integers(0, 256, (6, 4, 5, channels), np.uint8)
    return whole_pictures(
        images,
        np.full((6, 4, 5), -1, np.int8),
        names=[f"p{n}" for n in range(6)],
        groups=["s"] * 6,
        class_names=NAMES,
    )


def draw(folder, name, fill):
    codes = np.full((4, 5), fill, np.uint8)
    codes[0, 0] = 1
    (folder / "masks").mkdir(parents=True, exist_ok=True)
    Image.fromarray(codes).save(folder / f"masks/{name}.png")


@pytest.mark.parametrize("channels", [1, 3])
def test_a_folder_asks_waits_and_goes_on(tmp_path, channels):
    units, first, second = six_units(channels), tmp_path / "rounds/00", tmp_path / "rounds/01"
    guesses = {4: np.full((1, 4, 5), 2), 1: None}
    guesses[4][0, 3, 4] = -1
    oracle = LabelFolder(units, tmp_path, guesses.get)
    assert not hasattr(oracle, "labels")
    with pytest.raises(
        LabelsNeededError, match=r"2 of 2 masks are missing, the first is .*p1\.png"
    ):
        oracle.reveal(np.array([1, 4]), folder=first)
    assert read_csv(first / "query.csv") == [
        {"index": n, "name": f"p{n}", "image": f"pictures/p{n}.png", "mask": f"masks/p{n}.png"}
        for n in "14"
    ]
    shown = np.asarray(Image.open(first / "pictures/p4.png"))
    np.testing.assert_array_equal(shown.reshape(4, 5, channels), units.images[4, 0])
    predicted = np.asarray(Image.open(first / "predicted/p4.png"))
    assert predicted[3, 4] == 255 and (predicted == 2).sum() == 19
    assert not (first / "predicted/p1.png").exists()
    text = (first / "README.txt").read_text()
    assert "5 x 4 pixels" in text and "2  frog" in text and "255  void" in text
    draw(first, "p1", 255)
    with pytest.raises(
        LabelsNeededError, match=r"1 of 2 masks are missing, the first is .*p4\.png"
    ):
        oracle.reveal(np.array([1, 4]), folder=first)
    draw(first, "p4", 2)
    answers = oracle.reveal(np.array([1, 4]), folder=first)
    assert answers.dtype == np.int32 and answers.tolist() == [0, 0]
    # A later process: only what no earlier round has is asked for, and all masks are found.
    oracle = LabelFolder(units, tmp_path)
    with pytest.raises(LabelsNeededError, match="1 of 1 masks"):
        oracle.reveal(np.array([0, 4]), folder=second)
    draw(second, "p0", 0)
    assert oracle.reveal(np.array([0, 4]), folder=second).tolist() == [0, 0]
    assert [line["index"] for line in read_csv(second / "query.csv")] == ["0"]
    expected = np.full((1, 4, 5), -1)
    expected[0, 0, 0] = 1
    found = oracle.mask(1)
    assert found.dtype == np.int8
    np.testing.assert_array_equal(found, expected)
    assert oracle.mask(4)[0, 3, 4] == 2 and oracle.mask(0).sum() == 1
    with pytest.raises(LabelsNeededError, match=r"no round has masks/p5\.png"):
        oracle.mask(5)


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (Image.new("L", (4, 5)), "4 x 5 pixels; expected 5 x 4"),
        (Image.new("P", (5, 4)), "mode P; expected one channel"),
        (Image.new("RGB", (5, 4)), "mode RGB; expected one channel"),
        (Image.new("I;16", (5, 4)), r"mode I;16; expected one channel"),
        (Image.new("1", (5, 4)), "mode 1; expected one channel"),
        (Image.new("L", (5, 4), 3), "20 pixels are outside the classes, the first is 3; .*0 to 2"),
        (Image.new("L", (5, 4), 255), "every pixel is void"),
        (None, "cannot be read as a picture"),
    ],
)
def test_a_wrong_mask_is_refused(tmp_path, picture, message):
    oracle, folder = LabelFolder(six_units(), tmp_path), tmp_path / "rounds/00"
    path = folder / "masks/p1.png"
    path.parent.mkdir(parents=True)
    if picture is None:
        path.write_bytes(b"no picture")
    else:
        picture.save(path)
    # Before those that are still missing: a person may draw the rest in the same way.
    with pytest.raises(ValueError, match=rf"p1\.png: .*{message}") as caught:
        oracle.reveal(np.array([1, 4]), folder=folder)
    assert not isinstance(caught.value, LabelsNeededError)
    with pytest.raises(ValueError, match=message):
        oracle.mask(1)


def test_a_mask_that_nobody_asked_for_is_refused(tmp_path):
    draw(tmp_path / "rounds/00", "P1", 0)
    with pytest.raises(ValueError, match=r"P1\.png: no unit of this name was asked for"):
        LabelFolder(six_units(), tmp_path).reveal(np.array([1]), folder=tmp_path / "rounds/00")


def test_a_kill_while_a_folder_is_written_leaves_no_trace(tmp_path, monkeypatch):
    rows = np.array([0, 2, 5])
    whole, killed = tmp_path / "a/rounds/00", tmp_path / "b/rounds/00"
    with pytest.raises(LabelsNeededError):
        LabelFolder(six_units(), tmp_path / "a").reveal(rows, folder=whole)
    write, written = oracles._write_png, []

    def dies(path, pixels):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path)
        write(path, pixels)

    monkeypatch.setattr(oracles, "_write_png", dies)
    with pytest.raises(KeyboardInterrupt):
        LabelFolder(six_units(), tmp_path / "b").reveal(rows, folder=killed)
    assert not (killed / "query.csv").exists()
    monkeypatch.undo()
    with pytest.raises(LabelsNeededError):
        LabelFolder(six_units(), tmp_path / "b").reveal(rows, folder=killed)

    def content(folder):
        return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    assert content(whole) == content(killed)
    stamp = (killed / "pictures/p0.png").stat().st_mtime_ns
    with pytest.raises(LabelsNeededError):
        LabelFolder(six_units(), tmp_path / "b").reveal(rows, folder=killed)
    assert (killed / "pictures/p0.png").stat().st_mtime_ns == stamp


def test_units_that_no_folder_can_show_are_refused(tmp_path):
    with pytest.raises(ValueError, match="1 sections, 2 channels and 3 classes"):
        LabelFolder(six_units(2), tmp_path)
    odd = whole_pictures(
        np.zeros((1, 4, 5, 3), np.uint8),
        np.zeros((1, 4, 5), np.int8),
        names=["a/b"],
        groups=["s"],
        class_names=NAMES,
    )
    with pytest.raises(ValueError, match="'a/b': expected a name without folders"):
        LabelFolder(odd, tmp_path)
