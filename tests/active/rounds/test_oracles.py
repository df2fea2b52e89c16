"""Oracles: known labels, and a person's file with everything that can be wrong in it."""

import numpy as np
import pytest

from densejax.active.rounds.oracles import KnownLabels, LabelFile, LabelsNeededError

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
