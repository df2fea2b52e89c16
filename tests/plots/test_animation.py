"""Moving pictures: every frame in its time and colours, one in memory, and nothing half written."""

import importlib.util
import stat
import sys
import weakref

import numpy as np
import pytest
from PIL import Image

from densejax.plots import animation, style, surfaces

SIZE = (48, 64)


def frame(index):
    """A still ramp with a square that moves over its lower half."""
    picture = np.full((*SIZE, 3), 255, np.uint8)
    picture[4:20, :, 0] = np.linspace(0, 255, SIZE[1]).astype(np.uint8)
    picture[4:20, :, 1] = 90
    picture[28:36, 5 * index : 5 * index + 8] = (213, 94, 0)
    return picture


def decoded(path):
    with Image.open(path) as film:
        for index in range(film.n_frames):
            film.seek(index)
            yield np.asarray(film.convert("RGB")).astype(int), dict(film.info)


def test_a_gif_shows_every_frame_in_its_time_and_repeats(tmp_path):
    path = animation.animate(map(frame, range(9)), tmp_path / "a/b.gif", seconds=0.125, hold=1)
    found = list(decoded(path))
    assert len(found) == 9
    assert found[0][1]["loop"] == 0
    times = [info["duration"] for _, info in found]
    # Hundredths of a second, rounded where they end: no drift.
    assert sum(times) == pytest.approx(9 * 125 + 1000, abs=10) and set(times[:-1]) <= {120, 130}
    for index, (shown, _) in enumerate(found):
        assert abs(shown - frame(index)).max() <= 8


def test_colours_of_what_stands_still_never_change(tmp_path):
    found = [
        shown for shown, _ in decoded(animation.animate(map(frame, range(9)), tmp_path / "a.gif"))
    ]
    for shown in found[1:]:
        np.testing.assert_array_equal(shown[:26], found[0][:26])
    assert (found[0][0] == 255).all()  # white stays white
    # A colour of the last frame alone is in the palette as well.
    late = [frame(0), frame(1)]
    late[1][40:44, 40:44] = (0, 158, 115)
    last = list(decoded(animation.animate(iter(late), tmp_path / "b.gif")))[-1][0]
    assert abs(last[42, 42] - (0, 158, 115)).max() <= 8


def test_one_frame_is_alive_at_a_time(tmp_path):
    class Tracked(np.ndarray):
        pass

    alive = []

    def frames():
        for index in range(12):
            assert sum(one() is not None for one in alive) <= 1
            made = frame(index).view(Tracked)
            alive.append(weakref.ref(made))
            yield made
            del made

    animation.animate(frames(), tmp_path / "a.gif")
    assert len(alive) == 12


def test_equal_frames_and_single_ones_are_films_too(tmp_path):
    # Frames that are equal are one that is seen longer.
    same = animation.animate([frame(0)] * 3, tmp_path / "same.gif", seconds=0.1, hold=1)
    ((shown, info),) = decoded(same)
    assert abs(shown - frame(0)).max() <= 8 and info["duration"] == 1300
    assert len(list(decoded(animation.animate([frame(2)], tmp_path / "one.gif")))) == 1


def test_what_fails_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "a.gif"
    animation.animate(map(frame, range(2)), path)
    before = path.read_bytes()

    def broken():
        yield frame(0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        animation.animate(broken(), path)
    with pytest.raises(
        ValueError, match=r"frame 1 has shape \(10, 10, 3\): expected \(48, 64, 3\)"
    ):
        animation.animate([frame(0), np.zeros((10, 10, 3), np.uint8)], path)
    with pytest.raises(ValueError, match="float64"):
        animation.animate([np.zeros((10, 10, 3))], path)
    with pytest.raises(ValueError, match="no frame"):
        animation.animate([], path)
    with pytest.raises(ValueError, match=r"expected \.gif or \.mp4"):
        animation.animate([frame(0)], tmp_path / "a.avi")
    with pytest.raises(ValueError, match=r"seconds is 0\.001"):
        animation.animate([frame(0)], path, seconds=0.001)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_an_mp4_without_ffmpeg_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(animation.shutil, "which", lambda name: None)
    monkeypatch.setattr(animation.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="imageio-ffmpeg"):
        animation.animate(map(frame, range(2)), tmp_path / "a.mp4")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("code", [0, 3])
def test_an_mp4_is_made_of_all_frames_in_their_order(tmp_path, monkeypatch, code):
    """By a stand-in for ffmpeg that writes down what it is given."""
    program = tmp_path / "ffmpeg"
    program.write_text(
        f"#!{sys.executable}\nimport sys\ncontent = sys.stdin.buffer.read()\n"
        "open(sys.argv[-1], 'wb').write(content)\n"
        "open(sys.argv[0] + '.said', 'w').write('\\n'.join(sys.argv))\n"
        f"print('out of tape', file=sys.stderr)\nsys.exit({code})\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(animation.shutil, "which", lambda name: str(program))
    path = tmp_path / "film" / "a.mp4"
    if code:
        with pytest.raises(RuntimeError, match=r"failed \(3\): out of tape"):
            animation.animate(map(frame, range(3)), path)
        assert not list(path.parent.iterdir())
        return
    animation.animate(map(frame, range(3)), path, seconds=0.1, hold=0.2)
    given = np.frombuffer(path.read_bytes(), np.uint8).reshape(-1, *SIZE, 3)
    np.testing.assert_array_equal(given, [frame(i) for i in (0, 1, 2, 2, 2)])
    said = (tmp_path / "ffmpeg.said").read_text().split("\n")
    assert said[said.index("-s") + 1] == "64x48" and said[said.index("-r") + 1] == "10"


@pytest.mark.skipif(
    importlib.util.find_spec("imageio_ffmpeg") is None, reason="imageio-ffmpeg is not installed"
)
def test_a_real_mp4_is_read_back(tmp_path):
    import imageio_ffmpeg

    path = animation.animate(map(frame, range(9)), tmp_path / "a.mp4", seconds=0.1)
    reader = imageio_ffmpeg.read_frames(str(path))
    about = next(reader)
    assert about["size"] == (64, 48) and about["fps"] == pytest.approx(10)
    shown = [np.frombuffer(one, np.uint8).reshape(*SIZE, 3).astype(int) for one in reader]
    assert len(shown) == 9
    assert abs(shown[7] - frame(7)).mean() < 12


def test_a_swing_has_no_seam():
    positions = animation.swing(0.5, frames=40)
    assert len(positions) == 40 and positions[0] == 0
    assert positions.max() == pytest.approx(0.5) and positions.min() == pytest.approx(-0.5)
    around = np.concatenate([positions, positions[:1]])
    assert abs(np.diff(around)).max() == pytest.approx(abs(around[-1] - around[-2]), rel=0.02)


def test_a_walk_grows_over_a_surface_that_stands_still(tmp_path):
    x = y = np.linspace(-1, 1, 21)
    values = 0.1 + x[:, None] ** 2 + 2 * y**2
    run = np.linspace([-0.9, 0.8], [0, 0], 30)
    losses = 0.1 + run[:, 0] ** 2 + 2 * run[:, 1] ** 2
    log = surfaces.SurfaceStyle(log=True)
    path = animation.walk(
        x, y, values, run, tmp_path / "w.gif", losses=losses, style=log, frames=5, title="Walk"
    )
    shown = [one for one, _ in decoded(path)]
    assert len(shown) == 5
    changed = [(one != shown[0]).any(axis=-1).sum() for one in shown]
    assert changed[0] == 0 and (np.diff(changed) > 0).all()
    # Below the title nothing changes but along the trajectory, in the left upper quarter.
    moved = np.argwhere((shown[-1] != shown[0]).any(axis=-1))
    below = moved[moved[:, 0] > 60]
    assert len(below) and below[:, 1].max() < 0.56 * shown[0].shape[1]
    assert below[:, 0].max() < 0.6 * shown[0].shape[0]
    with pytest.raises(ValueError, match=r"trajectory has shape"):
        animation.walk(x, y, values, np.zeros(3), tmp_path / "w.gif")


def draw(position):
    figure = style.new_figure(1.0, 0.8)
    figure.add_subplot().plot([0, 1], [0, position])
    return figure


def test_a_wiggle_without_widgets_is_an_animation_in_the_given_order():
    asked = []

    def noted(position):
        asked.append(position)
        return draw(position)

    moving = animation.wiggle(noted, [0.0, 0.5, -0.5], slider=False)
    assert asked == [0.0, 0.5, -0.5] and all(isinstance(one, float) for one in asked)
    assert moving.content[:6] == b"GIF89a"
    assert "data:image/gif;base64," in moving._repr_html_()
    with pytest.raises(ValueError, match="at least one"):
        animation.wiggle(draw, [])


def test_a_slider_needs_its_package(monkeypatch):
    monkeypatch.setattr(animation.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="ipywidgets"):
        animation.wiggle(draw, [0.0], slider=True)
    assert isinstance(animation.wiggle(draw, [0.0]), animation.Moving)


def test_a_slider_draws_a_position_once_when_it_is_asked_for():
    pytest.importorskip("ipywidgets", reason="ipywidgets is not installed (the notebook extra)")
    asked = []

    def noted(position):
        asked.append(position)
        return draw(position)

    slider, picture = animation.wiggle(noted, [0.0, 0.5, -0.5], slider=True).children
    first = picture.value
    assert asked == [0.0] and bytes(first[:4]) == b"\x89PNG"
    slider.value = 2
    assert asked == [0.0, 0.5] and picture.value != first
    slider.value = 1
    assert asked == [0.0, 0.5] and picture.value == first
