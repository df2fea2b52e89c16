"""What the tests of pictures share."""

import itertools

import pytest


def words(figure):
    """The texts that are seen; ticks outside the view exist but are not drawn."""
    found = [*figure.texts, *(t for legend in figure.legends for t in legend.get_texts())]
    found += [figure._suptitle] if figure._suptitle else []
    for axes in figure.axes:
        found += [axes.title, axes._left_title]
        # Texts in three dimensions tell no place on the paper.
        found += [] if axes.name == "3d" else axes.texts
        found += axes.get_legend().get_texts() if axes.get_legend() else []
        for axis in axes._axis_map.values():
            low, high = sorted(axis.get_view_interval())
            slack = 1e-9 * (high - low)
            ticks = [
                t for t in axis.get_major_ticks() if low - slack <= t.get_loc() <= high + slack
            ]
            found += [axis.label, *(label for t in ticks for label in (t.label1, t.label2))]
    found = [text for text in found if text.get_text().strip() and text.get_visible()]
    return list(dict.fromkeys(text for text in found if text.axes is None or seen(text.axes)))


def seen(axes):
    return axes.get_visible() and axes.axison


@pytest.fixture
def assert_readable():
    """A check that a figure has texts, that none is cut, and that none lies on another."""

    def check(figure, *, least=5):
        figure.canvas.draw()
        boxes = [(text, text.get_window_extent()) for text in words(figure)]
        assert len(boxes) > least
        for text, box in boxes:
            inside = box.x0 > -1 and box.y0 > -1
            inside = inside and box.x1 < figure.bbox.x1 + 1 and box.y1 < figure.bbox.y1 + 1
            assert inside, f"{text.get_text()!r} is cut"
        # Slanted labels, such as those of three axes, have upright boxes that cross where their
        # letters do not.
        upright = [] if any(axes.name == "3d" for axes in figure.axes) else boxes
        upright = [(text, box) for text, box in upright if text.get_rotation() % 90 == 0]
        for (text, box), (other, second) in itertools.combinations(upright, 2):
            assert not box.overlaps(second), f"{text.get_text()!r} on {other.get_text()!r}"

    return check
