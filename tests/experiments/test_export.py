"""Ensembles for other programs: each format in its program, against densejax' own prediction."""

import importlib.util
import json
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densejax.cli import main, save_config
from densejax.models.layers import draw_parameters
from densejax.segmentation import export, recipes
from densejax.segmentation.networks import network_of
from densejax.segmentation.runs import LEARNED_FROM
from densejax.training.checkpoint import save_tree
from experiments import export as experiment
from experiments import segment

CLASSES = ("background", "mitochondrion", "alpha granule")
GREY = (121.5, 43.25)
PLANNED = {
    "network": "planned_unet",
    "width": 4,
    "norm": "instance",
    "strides": ("1x2x2", "1x2x2"),
    "kernels": ("1x3x3", "1x3x3"),
    "neighbours": 1,
    "block": "residual",
    "window": (3, 16, 16),
    "prediction_window": (4, 24, 32),
}
NETWORKS = {
    "planned": segment.Config(recipe="planned", seeds=(0, 1), **PLANNED),
    "planned 3d": segment.Config(
        recipe="planned",
        seeds=(0, 1),
        **PLANNED
        | {"neighbours": 0, "kernels": ("1x3x3", "3x3x3"), "block": "plain", "norm": "group"}
        | {"window": (4, 16, 16), "deep_supervision": True},
    ),
    "hybrid": segment.Config(recipe="published", network="hybrid", width=2, window=(3, 20, 24)),
    "unet": segment.Config(recipe="published", network="unet", width=2, window=(2, 32, 32)),
}


def moved(params, seed):
    """Parameters as training leaves them: biases and shifts are not zero."""
    noise = np.random.default_rng(seed)
    leaves, structure = jax.tree.flatten(jax.device_get(params))
    leaves = [leaf + 0.1 * noise.standard_normal(leaf.shape, np.float32) for leaf in leaves]
    return jax.tree.unflatten(structure, leaves)


def make_run(folder, settings, *, done=2):
    """Members that were not trained: a run's folder without the minutes."""
    if settings.recipe == "published":
        settings = recipes.settle(settings, None)
    save_config(settings, folder / "config.json")
    model = network_of(settings, len(CLASSES))
    for seed in range(done):
        place = folder / "seeds" / f"{seed:04d}"
        place.mkdir(parents=True)
        params = draw_parameters(jax.random.key(seed), model, (1, *settings.window, 1))
        save_tree(place / "best", moved(params, seed))
        marker = {"step": 1, "best_score": seed / 10, "best_step": 1, "reason": "all steps made"}
        (place / "DONE").write_text(json.dumps(marker))
    learned = {"class_names": CLASSES, "voxel_nm": (50.0, 10.0, 10.0)}
    learned |= {"mean": GREY[0], "deviation": GREY[1]}
    (folder / LEARNED_FROM).write_text(json.dumps(learned))
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    place, made = tmp_path_factory.mktemp("runs"), {}

    def of(name):
        if name not in made:
            made[name] = make_run(place / name, NETWORKS[name])
        return made[name]

    return of


def need(format):
    """Skip where a format's packages are not installed; ``experiments.export`` names the extra."""
    try:
        export.require(format)
    except ModuleNotFoundError as error:
        pytest.skip(str(error))


def exported(run, workdir, **options):
    config = experiment.Config(run=str(run), **{"top_k": 2} | options)
    return experiment.run(config, workdir)


def windows(graph, count):
    """Windows of grey levels whose spread is not the run's."""
    noise = np.random.default_rng(3).standard_normal((count, 1, *graph.window), np.float32)
    return 100 + 60 * noise


def softmax_by_hand(logits):
    exponents = np.exp(np.float64(logits) - np.max(logits, axis=-1, keepdims=True))
    return exponents / exponents.sum(-1, keepdims=True)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_graph_is_the_mean_of_the_members_on_standardised_grey_levels(runs, name):
    trained = export.open_trained(runs(name), top_k=2)
    architecture = experiment.build(experiment.Config(run=str(runs(name))), trained)
    window = architecture.larger or architecture.window
    graph = export.graph_of(trained, architecture, trained.members, window=window, grey=GREY)
    image = windows(graph, 2)
    found = np.asarray(jax.jit(graph.call)(image))
    expected = 0
    for place in range(2):
        one = jax.tree.map(
            lambda a, p=place: a[p], trained.load(trained.members, architecture.init_params)
        )
        standard = ((image - GREY[0]) / GREY[1]).transpose(0, 2, 3, 4, 1)
        expected = (
            expected + softmax_by_hand(architecture.networks["float32"](one, standard)[0]) / 2
        )
    np.testing.assert_allclose(found, np.moveaxis(expected, -1, 1), atol=2e-5)
    np.testing.assert_allclose(found, graph.expected(image), atol=2e-5)
    assert found.shape == (2, 3, *graph.output) and graph.facts["scores"] == [0.1, 0.0]


@pytest.mark.parametrize("name", NETWORKS)
def test_onnx_in_onnx_runtime(runs, tmp_path, name):
    need("onnx")
    import onnx

    result = exported(runs(name), tmp_path)
    print(f"{name}: {result.difference:.1e}")
    assert result.difference < 2e-5
    model = onnx.load(result.file)
    onnx.checker.check_model(model, full_check=True)
    kept = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert kept["class_names"] == list(CLASSES) and kept["grey_levels"] == list(GREY)
    assert kept["window"] == list(result.graph.window) and kept["members"] == ["0001", "0000"]
    assert [value.name for value in model.graph.input] == ["image"]
    for count in (1, 3):  # the batch is free
        image = windows(result.graph, count)
        found = export.onnx_runner(result.file)(image)
        np.testing.assert_allclose(found, result.graph.expected(image), atol=2e-5)


@pytest.mark.parametrize("name", ["planned", "hybrid"])
def test_a_package_that_bioimageio_core_tests_and_runs(runs, tmp_path, name):
    need("bioimageio")
    from bioimageio.core import test_model
    from bioimageio.spec import load_model_description

    said = {"authors": ("A. Author",), "license": "MIT", "description": "What it is."}
    result = exported(runs(name), tmp_path, format="bioimageio", **said)
    print(f"{name}: {result.difference:.1e}")
    assert result.difference < 2e-5
    assert test_model(result.file).status == "passed"
    with zipfile.ZipFile(result.file) as package:
        assert "rdf.yaml" in {name.rpartition("/")[2] for name in package.namelist()}
    model = load_model_description(result.file)
    axes = {str(axis.id): axis for axis in model.outputs[0].axes}
    assert axes["channel"].channel_names == ["background", "mitochondrion", "alpha_granule"]
    assert [axes[n].scale for n in "zyx"] == [50.0, 10.0, 10.0]
    offsets = [axes[n].size.offset for n in "zyx"]
    sizes = zip(result.graph.output, result.graph.window, strict=True)
    assert offsets == [out - size for out, size in sizes]
    assert tuple(getattr(axes[n], "halo", 0) for n in "zyx") == result.graph.halo
    assert model.license == "MIT" and model.authors[0].name == "A. Author"


@pytest.mark.parametrize("name", ["planned", "hybrid"])
def test_stablehlo_for_all_platforms_is_called_again(runs, tmp_path, name):
    need("jax")
    from jax import export as jax_export

    result = exported(runs(name), tmp_path, format="jax")
    assert result.difference < 2e-5
    stored = jax_export.deserialize(bytearray(result.file.read_bytes()))
    assert stored.platforms == ("cpu", "cuda", "tpu")
    image = windows(result.graph, 2)
    found = export.jax_runner(result.file)(image)
    np.testing.assert_allclose(found, result.graph.expected(image), atol=2e-5)
    facts = json.loads((tmp_path / "model.jax.json").read_text())
    assert facts["class_names"] == list(CLASSES) and facts["halo"] == list(result.graph.halo)


def test_several_formats_share_a_folder_and_nothing_is_replaced_unasked(runs, tmp_path, capsys):
    need("jax")
    run = runs("planned")
    first = exported(run, tmp_path, format="jax")
    assert "differ from densejax' own by at most" in capsys.readouterr().out
    stamp = first.file.stat().st_mtime_ns
    with pytest.raises(FileExistsError, match=r"model\.jax is there; --overwrite replaces it"):
        exported(run, tmp_path, format="jax")
    (first.file).rename(tmp_path / "other")
    with pytest.raises(ValueError, match="top_k was 2 and is 1"):
        exported(run, tmp_path, format="jax", top_k=1)
    (tmp_path / "other").rename(first.file)
    again = exported(run, tmp_path, format="jax", top_k=1, overwrite=True)
    assert again.file.stat().st_mtime_ns != stamp and again.graph.facts["members"] == ["0001"]
    assert json.loads((tmp_path / "config.json").read_text())["top_k"] == 1


def test_the_caller_may_standardise_or_name_the_grey_levels(runs, tmp_path):
    need("jax")
    run = runs("planned")
    bare = exported(run, tmp_path / "a", format="jax", normalise="none")
    named = exported(run, tmp_path / "b", format="jax", grey_levels=(10.0, 2.0))
    assert bare.graph.facts["standardised"] == "by the caller"
    image = windows(bare.graph, 1)
    own, other = (export.jax_runner(result.file) for result in (bare, named))
    np.testing.assert_allclose(own((image - 10) / 2), other(image), atol=2e-5)


def test_the_halo_is_half_of_what_windows_of_a_prediction_share(runs):
    trained = export.open_trained(runs("hybrid"), top_k=1)
    architecture = experiment.build(experiment.Config(run=str(runs("hybrid"))), trained)
    one = trained.members[:1]
    graph = export.graph_of(trained, architecture, one, window=(5, 64, 128), grey=GREY)
    # The hybrid sees farther than a third of these windows: (5, 64, 128) // 3 is (1, 21, 42).
    assert graph.halo == (1, 11, 21)
    assert graph.facts["pooling"] == [1, 8, 8]


CASES = {
    "no run": ({"run": ""}, "--run is needed"),
    "nothing there": ({"run": "nowhere"}, r"nowhere/config\.json: no such file"),
    "too many": ({"top_k": 5}, r"--top_k=5: .* has 2 members that are done"),
    "none": ({"top_k": 0}, "--top_k=0"),
    "window": ({"window": (4, 17, 32)}, r"--window=4,17,32: .*multiples of"),
    "grey": ({"grey_levels": (1.0, 0.0)}, "a deviation above 0"),
    "both": ({"grey_levels": (1.0, 1.0), "normalise": "none"}, "exclude each other"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_be_exported_is_refused_before_anything_is_written(
    runs, tmp_path, monkeypatch, case
):
    monkeypatch.setattr(export, "PACKAGES", {"jax": ()})
    options, said = CASES[case]
    settings = {"run": str(runs("planned")), "top_k": 2, "format": "jax"} | options
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        experiment.run(experiment.Config(**settings), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_runs_that_are_not_finished_or_of_another_task_are_named(tmp_path):
    young = make_run(tmp_path / "young", NETWORKS["unet"], done=1)
    (young / "running" / "0001").mkdir(parents=True)
    with pytest.raises(
        ValueError, match=r"has 1 members that are done and 1 that are not; its own"
    ):
        export.open_trained(young, top_k=2)
    empty = make_run(tmp_path / "empty", NETWORKS["unet"], done=0)
    with pytest.raises(ValueError, match="no member is done"):
        export.open_trained(empty, top_k=1)
    (tmp_path / "minima").mkdir()
    (tmp_path / "minima" / "config.json").write_text('{"epochs": 3, "data": "svhn"}')
    with pytest.raises(ValueError, match=r"minima/config\.json is of another experiment"):
        export.open_trained(tmp_path / "minima", top_k=1)


def test_a_missing_library_names_its_extra(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(export.PACKAGES, "onnx", ("numpy", "no_such_package.core"))
    words = [f"--run={runs('planned')}", f"--workdir={tmp_path / 'out'}"]
    with pytest.raises(SystemExit) as ended:
        main(experiment.Config, experiment.run, description="", trains=False, argv=["x", *words])
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert "--format=onnx needs no_such_package.core: pip install 'densejax[export]'" in said
    with pytest.raises(SystemExit) as ended:
        words.append("--format=torchscript")
        main(experiment.Config, experiment.run, description="", trains=False, argv=["x", *words])
    assert ended.value.code == 2 and "torchscript" in capsys.readouterr().err


def test_an_export_that_differs_is_not_kept(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "PACKAGES", {"jax": ()})
    if importlib.util.find_spec("flatbuffers") is None:
        pytest.skip("no flatbuffers, with which jax.export writes")
    call = export.jax_runner
    monkeypatch.setattr(export, "jax_runner", lambda path: lambda image: call(path)(image) + 1e-2)
    with pytest.raises(ValueError, match=r"differs from densejax' own by 1\.0e-02"):
        exported(runs("planned"), tmp_path, format="jax")
    assert not list(tmp_path.glob("*model*"))


def test_portable_convolutions_are_the_same_bits_of_operations_that_others_know():
    from densejax.ops.convolution import convolution, portable

    x = jax.random.normal(jax.random.key(0), (2, 4, 9, 8, 3))
    w = jax.random.normal(jax.random.key(1), (3, 3, 3, 3, 5))

    def traced(x, w):
        with portable():
            return convolution(x, w)

    assert "densejax" in str(jax.make_jaxpr(convolution)(x, w))
    assert "densejax" not in str(jax.make_jaxpr(traced)(x, w))
    np.testing.assert_array_equal(jax.jit(traced)(x, w), jax.jit(convolution)(x, w))
    assert "densejax" in str(jax.make_jaxpr(convolution)(x, w))  # nothing of it stays
    assert jnp.isfinite(traced(x, w)).all()
