"""Pictures of landscapes: they show the values they are given, at their places, and no others."""

import colorsys

import matplotlib
import matplotlib.colors
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from mpl_toolkits.mplot3d import proj3d

from densejax.plots import boundaries, relief, scales, scenes, style, surfaces

X, Y = np.linspace(-1, 2, 13), np.linspace(-2, 1, 17)
LOG, BARE = surfaces.SurfaceStyle(log=True), surfaces.SurfaceStyle(levels=())


def bowl(x, y):
    """Neither symmetric nor the same along both axes, so that nothing can be mixed up unseen."""
    return 0.1 + (x - 0.3) ** 2 + 3 * (y + 0.4) ** 2 + 0.5 * x * y


def grid(function=bowl, x=X, y=Y):
    return function(*np.meshgrid(x, y, indexing="ij"))


def colour_of(figure, axes, x, y):
    """The pixel that is drawn at a place of the axes."""
    figure.canvas.draw()
    column, row = axes.transData.transform((x, y))
    pixels = np.asarray(figure.canvas.buffer_rgba())
    return pixels[int(pixels.shape[0] - row), int(column), :3] / 255


def expected_colour(value, low, high):
    return np.array(scales.palette()((value - low) / (high - low))[:3])


def draw_all(folder):
    generator = np.random.default_rng(0)
    run = np.stack([np.linspace(-0.8, 0.3, 9), np.linspace(0.8, -0.4, 9)], axis=1)
    coarse = np.full((13, 17), np.nan)
    coarse[::4, ::4] = grid()[::4, ::4]
    holes = grid()
    holes[:4, :5] = np.nan
    cloud = generator.uniform(-1, 1, (40, 2))
    sides = np.sign(cloud[:, 0]).clip(0).astype(int)
    field = grid(lambda x, y: 1 / (1 + np.exp(-4 * (x + y))))
    places = {p: generator.normal(size=(12, 2)) for p in (5, 30, 50, 100)}
    seeds = {"natural": generator.random((5, 13)) + 1, "poisoned": generator.random(13) + 2}
    several = {f"seed {i}": grid() + i for i in range(5)}
    return {
        "contour": surfaces.contour(
            X,
            Y,
            grid(),
            trajectory=run,
            losses=bowl(*run.T) + 0.2,
            residuals=np.linspace(1, 0, 9),
            minima={"natural": (0.3, -0.4), "poisoned": (1.7, -1.8)},
            title="A bowl",
            path=folder / "contour.png",
        ),
        "coarse": surfaces.contour(X, Y, coarse, style=LOG, path=folder / "coarse.png"),
        "holes": surfaces.contour(X, Y, holes, title="Holes", path=folder / "holes.png"),
        "contours": surfaces.contours(
            X, Y, {**several, "coarse": coarse}, title="Seeds", path=folder / "seeds.png"
        ),
        "relief": relief.surface_3d(
            X,
            Y,
            holes,
            style=surfaces.SurfaceStyle(log=True, limits=(None, 5)),
            trajectory=run,
            losses=bowl(*run.T),
            minima={"m": (0.3, -0.4, 0.1)},
            title="Relief",
            path=folder / "relief.png",
        ),
        "lines": surfaces.line_profiles(
            X,
            seeds,
            accuracies={name: 1 / v for name, v in seeds.items()},
            marks={"minimum": 0.0},
            log=True,
            title="Lines",
            path=folder / "lines.png",
        ),
        "boundary": boundaries.decision_boundary(
            cloud,
            sides,
            X,
            Y,
            field,
            unseen=cloud[:, 1] > 0,
            title="97 %",
            x_label="x",
            y_label="y",
            path=folder / "boundary.png",
        ),
        "boundaries": boundaries.decision_boundaries(
            cloud,
            sides,
            X,
            Y,
            {f"seed {i}, 97 %": field for i in range(7)},
            title="Seven seeds",
            path=folder / "boundaries.png",
        ),
        "minefield": boundaries.minefield(
            places,
            ["good"] * 4 + ["bad"] * 8,
            np.linspace(0, 1, 12),
            final=3,
            joined=["good"],
            title="Minefield",
            path=folder / "minefield.png",
        ),
    }


def test_every_picture_is_a_png_whose_texts_are_seen_and_settings_stay(tmp_path, assert_readable):
    before = dict(matplotlib.rcParams)
    for figure in draw_all(tmp_path / "made").values():
        assert_readable(figure)
    for path in (tmp_path / "made").iterdir():
        pixels = matplotlib.image.imread(path)
        assert min(pixels.shape[:2]) > 300 and pixels.std() > 0.01, path.name
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("log", [False, True])
def test_colours_and_lines_of_a_contour_are_those_of_the_values(log):
    x, y = np.linspace(-1, 2, 151), np.linspace(-2, 1, 131)
    look = surfaces.SurfaceStyle(log=log, levels=[0.5, 2, 5])
    figure = surfaces.contour(x, y, grid(bowl, x, y), style=look)
    axes = figure.axes[0]
    form = np.log10 if log else np.asarray
    low, high = form(grid(bowl, x, y).min()), form(grid(bowl, x, y).max())
    for place in ((-0.9, -1.9), (1.9, -1.7), (-0.7, 0.9), (0.25, -0.4), (1.2, 0.3)):
        found = colour_of(figure, axes, *place)
        wanted = expected_colour(form(bowl(*place)), low, high)
        np.testing.assert_allclose(found, wanted, atol=0.03)
    lines = axes.collections[-1]
    for path, level in zip(lines.get_paths(), (0.5, 2, 5), strict=True):
        assert len(path.vertices) > 50
        np.testing.assert_allclose(bowl(*path.vertices.T), level, rtol=0.02)


def test_a_coarse_grid_is_drawn_as_it_is_and_says_so():
    coarse = np.full((13, 17), np.nan)
    coarse[::4, ::4] = grid()[::4, ::4]
    part = scales.known(X, Y, coarse)
    np.testing.assert_array_equal(part.values, grid()[::4, ::4])
    assert part.complete and part.note == "20 of 221 points computed"
    assert scales.known(X, Y, grid()).note == ""
    title = surfaces.contour(X, Y, coarse, title="A").axes[0].get_title(loc="left")
    assert title == "A\n20 of 221 points computed"


def test_holes_are_hatched_and_no_value_is_invented():
    holes = grid()
    holes[3:5, 2] = np.nan
    figure = surfaces.contour(X, Y, holes)
    cells = figure.axes[0].collections[0]
    np.testing.assert_array_equal(cells.get_array().mask.reshape(17, 13).T, np.isnan(holes))
    np.testing.assert_array_equal(cells.get_array().compressed(), holes.T[~np.isnan(holes.T)])
    assert any(isinstance(p, Rectangle) and p.get_hatch() for p in figure.axes[0].patches)
    assert "hatched: not yet" in figure.axes[0].get_title(loc="left")


def test_diverged_points_lie_beyond_the_scale():
    values = grid()
    values[0, 0], values[1, 1] = np.inf, 0.0
    finite = scales.scale([values], logarithmic=True)
    assert finite.extend == "both"
    assert finite.heights(np.inf) > finite.high and finite.heights(0.0) < finite.low
    assert finite.high == pytest.approx(np.log10(np.sort(values.ravel())[-2]))
    surfaces.contour(X, Y, values, style=LOG).canvas.draw()


def test_a_logarithmic_scale_leaves_out_a_long_tail_and_says_so():
    # A narrow minimum in a wide plain: eight decades hold a hundredth of the points.
    plain = np.geomspace(1, 100, 990)
    deep = np.concatenate([np.geomspace(1e-8, 0.1, 10), plain])
    found = scales.scale([deep], logarithmic=True)
    assert -1.1 < found.low < 0.1 and found.high == pytest.approx(2)
    assert found.below and not found.above and found.extend == "min"
    steep = scales.scale([np.concatenate([plain, [1e6, 1e8]])], logarithmic=True)
    assert steep.extend == "max" and steep.high == pytest.approx(2, abs=0.1)
    # What is asked for stays, and what is no tail, and scales that are not logarithmic.
    asked = scales.scale([deep], logarithmic=True, limits=(1e-8, None))
    assert asked.low == pytest.approx(-8) and asked.extend == "neither"
    assert scales.scale([plain], logarithmic=True).extend == "neither"
    assert scales.scale([deep]).extend == "neither"
    assert scales.scale([deep], logarithmic=True, robust=False).extend == "neither"


def test_iterates_have_the_colour_of_their_own_loss_and_grow_off_the_plane():
    run = np.stack([np.linspace(-0.8, 0.3, 9), np.linspace(0.8, -0.4, 9)], axis=1)
    losses, away = np.linspace(20, 15, 9), np.linspace(3, 0, 9)
    figure = surfaces.contour(X, Y, grid(), trajectory=run, losses=losses, residuals=away)
    dots = figure.axes[0].collections[-1]
    np.testing.assert_allclose(dots.get_offsets(), run)
    low, high = grid().min(), max(grid().max(), 20)
    np.testing.assert_allclose(dots.to_rgba(losses)[0, :3], expected_colour(20, low, high))
    np.testing.assert_allclose(dots.get_array(), losses)
    assert (np.diff(dots.get_sizes()) < 0).all()
    texts = [t.get_text() for t in figure.axes[0].get_legend().get_texts()]
    assert texts == ["iterate, coloured by its own loss", "off the plane by 3"]


def test_panels_share_one_scale():
    figure = surfaces.contours(X, Y, {"a": grid(), "b": 2 * grid()}, style=BARE)
    low, high = grid().min(), 2 * grid().max()
    for axes, times in zip(figure.axes, (1, 2), strict=False):
        value = times * bowl(X[3], Y[3])
        found = colour_of(figure, axes, X[3], Y[3])
        np.testing.assert_allclose(found, expected_colour(value, low, high), atol=0.03)


@pytest.fixture(params=["matplotlib", "pyvista"])
def back_end(request, monkeypatch):
    if request.param == "matplotlib":
        monkeypatch.setattr(scenes, "why_not", lambda: "it is not asked")
    elif scenes.why_not():
        pytest.skip(scenes.why_not())


def seen(figure, x, y, height):
    """The pixel that is drawn where a point of three-dimensional axes is projected."""
    figure.canvas.draw()
    axes = figure.axes[0]
    across, up, _ = proj3d.proj_transform(x, y, height, axes.get_proj())
    return colour_of(figure, axes, across, up)


def hue(colour):
    return colorsys.rgb_to_hsv(*colour)[0]


def test_relief_shows_its_values_at_their_places(back_end):
    heights = grid(lambda x, y: np.where(x > 0.5, 1.0, 0.0) + 0 * y)
    figure = relief.surface_3d(X, Y, heights, view=(70.0, -60.0), style=BARE)
    for i, j in ((2, 3), (2, 13), (10, 3), (10, 13)):
        found = seen(figure, X[i], Y[j], heights[i, j])
        # Light changes how bright a colour is, not which one it is.
        wanted = scales.palette()(heights[i, j])[:3]
        assert hue(found) == pytest.approx(hue(wanted), abs=0.04)


def test_relief_is_bright_where_it_faces_the_light(back_end):
    roof = grid(lambda x, y: -abs(x - 0.5) + 0 * y)
    sides = {}
    for azimuth in (0.0, 180.0):  # of the light, in the axes
        look = {"view": (70.0, -90.0), "light": (30.0, azimuth + 90.0), "style": BARE}
        figure = relief.surface_3d(X, Y, roof, **look)
        sides[azimuth] = [seen(figure, X[i], Y[8], roof[i, 8]).sum() for i in (3, 9)]
    left, right = zip(sides[0.0], sides[180.0], strict=True)
    assert right[0] > 1.1 * right[1] and left[1] > 1.1 * left[0]


def test_relief_leaves_holes_open_and_near_slopes_hide_far_ones(back_end):
    holes = np.zeros((13, 17))
    holes[5:8, 5:8] = np.nan
    # Three points missing a side take four cells a side with them.
    assert len(relief.cells(holes)) == 12 * 16 - 16
    figure = relief.surface_3d(X, Y, holes, view=(80.0, -60.0), style=BARE)
    assert seen(figure, X[6], Y[6], 0.0).min() > 0.85
    assert seen(figure, X[3], Y[6], 0.0).min() < 0.7
    # A wall stands before a deep floor: seen from the front only the wall's colour is there.
    wall = np.zeros((13, 17))
    wall[:, 2:4] = 1.0
    figure = relief.surface_3d(X, Y, wall, view=(1.0, -90.0), style=BARE)
    behind = seen(figure, 0.5, Y[2], 0.9)
    assert behind[0] > behind[2]  # yellow of the wall, not the violet of the floor


def test_the_eye_looks_over_the_lowest_quarter():
    for azimuth, (right, back) in {-58: (1, 0), 32: (1, 1), 122: (0, 1), -148: (0, 0)}.items():
        heights = np.ones((10, 8))
        heights[5 * right : 5 * right + 5, 4 * back : 4 * back + 4] = 0.0
        assert relief._open_view(heights)[1] == azimuth
        # That quarter is indeed nearest to an eye at this azimuth.
        corner = np.array([2 * right - 1, 2 * back - 1])
        eye = [np.cos(np.radians(azimuth)), np.sin(np.radians(azimuth))]
        assert corner @ eye > 1


def test_bands_are_median_and_quartiles():
    lines = np.random.default_rng(0).random((20, 13))
    lines[3, 5] = np.inf
    figure = surfaces.line_profiles(X, {"a": lines}, accuracies={"a": lines[:1]})
    low, middle, high = np.nanquantile(
        np.where(np.isfinite(lines), lines, np.nan), (0.25, 0.5, 0.75), axis=0
    )
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), middle)
    band = figure.axes[0].collections[0].get_paths()[0].vertices
    for place, edges in zip(X, np.stack([low, high], axis=1), strict=True):
        at = band[np.isclose(band[:, 0], place), 1]
        np.testing.assert_allclose([at.min(), at.max()], edges)
    assert not figure.axes[1].collections  # one line has no band


def test_a_boundary_is_where_the_classes_tie():
    x = y = np.linspace(-2, 2, 101)
    inside = grid(lambda x, y: 1 / (1 + np.exp(-8 * (1.2 - np.hypot(x, y - 0.3)))), x, y)
    both = np.stack([1 - inside, inside], axis=-1)
    points, labels = np.array([[0.0, 0.3], [1.8, 1.8]]), np.array([1, 0])
    for probabilities in (inside, both):
        figure = boundaries.decision_boundary(points, labels, x, y, probabilities)
        axes = figure.axes[0]
        line = axes.collections[0].get_paths()[0].vertices
        np.testing.assert_allclose(np.hypot(line[:, 0], line[:, 1] - 0.3), 1.2, atol=1e-3)
        for place, label in (((0.0, 1.0), 1), ((0.0, -1.6), 0)):
            hue = np.array(matplotlib.colors.to_rgb(style.series_colour(label)))
            tint = 1 - boundaries.STRENGTH * (1 - hue)
            np.testing.assert_allclose(colour_of(figure, axes, *place), tint, atol=0.02)


def test_places_are_white_at_a_tie_and_tinted_by_the_lead():
    hues = ["#FF0000", "#00FF00", "#0000FF"]
    found = boundaries._shades([[[0.4, 0.4, 0.2], [0.0, 0.0, 1.0], [0.6, 0.1, 0.3]]], hues)[0]
    strength = boundaries.STRENGTH
    expected = [
        [1, 1, 1],
        [1 - strength, 1 - strength, 1],
        [1, 1 - 0.3 * strength, 1 - 0.3 * strength],
    ]
    np.testing.assert_allclose(found, expected)


def test_three_classes_meet_and_a_diverged_network_is_hatched():
    x = y = np.linspace(-2, 2, 41)
    centres = np.array([[0, 1.5], [-1.3, -0.7], [1.3, -0.7]])
    places = np.stack(np.meshgrid(x, y, indexing="ij"), axis=-1)
    near = np.exp(-np.linalg.norm(places[:, :, None] - centres, axis=-1))
    three = near / near.sum(-1, keepdims=True)
    figure = boundaries.decision_boundary(centres, [0, 1, 2], x, y, three, class_names="abc")
    assert sum("Contour" in type(c).__name__ for c in figure.axes[0].collections) == 3
    lost = {"fine": three, "diverged": np.full_like(three, np.nan)}
    panels = boundaries.decision_boundaries(centres, [0, 1, 2], x, y, lost).axes
    assert [any(p.get_hatch() for p in axes.patches) for axes in panels[:2]] == [False, True]


def test_minefields_have_a_panel_a_perplexity_and_say_what_they_cannot():
    generator = np.random.default_rng(1)
    places = {p: generator.normal(size=(10, 2)) for p in (5, 30, 50)}
    places[30][7] = np.nan
    accuracy = generator.random(10)
    kinds = np.array(["good"] * 4 + ["bad"] * 6)
    figure = boundaries.minefield(places, kinds, accuracy, final=3, joined=["good"])
    titles = [axes.get_title(loc="left") for axes in figure.axes[:3]]
    assert titles == ["perplexity 5", "perplexity 30 (1 outlier left out)", "perplexity 50"]
    good, bad, star = figure.axes[2].collections
    np.testing.assert_allclose(good.get_offsets(), places[50][:4])
    np.testing.assert_allclose(bad.get_array(), accuracy[4:])
    np.testing.assert_allclose(star.get_offsets(), places[50][3:4])
    np.testing.assert_allclose(figure.axes[2].lines[0].get_xydata(), places[50][:4])
    assert any("no meaning" in text.get_text() for text in figure.texts)


def test_round_values_are_written_shortly():
    texts = {0.5: "0.5", 1000: "1000", 0: "0", 1e5: "$10^{5}$", 2.5e-7: r"$2.5\times10^{-7}$"}
    assert {value: scales.short(value) for value in texts} == texts
    wide = scales.scale([[1e-9, 1e3]], logarithmic=True)
    heights, _ = wide.ticks()
    assert 3 <= len(heights) <= 7 and all(h == round(h) for h in heights)
    for low, high in ((1, 1.2), (0.11, 0.9), (0.02, 70)):
        heights, words = scales.scale([[low, high]], logarithmic=True).ticks()
        assert len(words) >= 2
        np.testing.assert_allclose(10 ** np.array(heights), [float(w) for w in words])


def test_a_flat_surface_is_drawn():
    surfaces.contour(X, Y, np.full((13, 17), 0.3), style=LOG).canvas.draw()
    relief.surface_3d(X, Y, np.zeros((13, 17))).canvas.draw()


def test_errors_name_what_was_wrong(tmp_path):
    with pytest.raises(ValueError, match=r"values has shape \(17, 13\): expected \[p, q\]"):
        surfaces.contour(X, Y, grid().T)
    with pytest.raises(ValueError, match=r"x is .*rising"):
        surfaces.contour(X[::-1], Y, grid())
    with pytest.raises(ValueError, match="no computed point: all 221"):
        surfaces.contour(X, Y, np.full((13, 17), np.nan))
    with pytest.raises(ValueError, match="below zero"):
        surfaces.contour(X, Y, grid() - 5, style=LOG)
    with pytest.raises(ValueError, match="limits are 3 and 1"):
        surfaces.contour(X, Y, grid(), style=surfaces.SurfaceStyle(limits=(3, 1)))
    with pytest.raises(ValueError, match=r"losses has shape \(3,\): expected \(2,\)"):
        surfaces.contour(X, Y, grid(), trajectory=np.zeros((2, 2)), losses=np.zeros(3))
    with pytest.raises(ValueError, match="without a trajectory"):
        surfaces.contour(X, Y, grid(), losses=np.zeros(3))
    with pytest.raises(ValueError, match="without losses"):
        relief.surface_3d(X, Y, grid(), trajectory=np.zeros((2, 2)))
    with pytest.raises(ValueError, match="b has shape"):
        surfaces.contours(X, Y, {"a": grid(), "b": grid()[1:]})
    with pytest.raises(ValueError, match=r"expected \[p\] and \[k, p\]"):
        surfaces.line_profiles(X, {"a": np.zeros((2, 5))})
    points = np.zeros((3, 2))
    with pytest.raises(ValueError, match=r"labels are 0\.\.2: expected 0\.\.1"):
        boundaries.decision_boundary(points, [0, 1, 2], X, Y, grid())
    with pytest.raises(ValueError, match="on a grid of 13 by 17"):
        boundaries.decision_boundary(points, [0, 1, 1], X, Y, grid().T)
    with pytest.raises(ValueError, match="unseen has shape"):
        boundaries.decision_boundary(points, [0, 1, 1], X, Y, grid(), unseen=[True])
    with pytest.raises(ValueError, match=r"\[n, 2\] for each perplexity"):
        boundaries.minefield({5: np.zeros((3, 2))}, ["a"] * 2, [0, 1])
    with pytest.raises(ValueError, match="joined names"):
        boundaries.minefield({5: np.zeros((2, 2))}, ["a"] * 2, [0, 1], joined=["b"])
    with pytest.raises(ValueError, match=r"\.png"):
        surfaces.contour(X, Y, grid(), path=tmp_path / "a.pdf")
    assert isinstance(surfaces.contour(X, Y, grid()), Figure)
