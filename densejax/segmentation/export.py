"""An ensemble for other programs: ONNX, a bioimage.io package, or StableHLO that JAX calls again.

One graph takes a window of grey levels, standardises it, and returns the mean of all members'
probabilities. Its window is fixed and its batch free. What a caller must know besides (grey levels,
voxels, margin, classes) is in ``Graph.facts``, which travels with every format.

The formats need packages that densejax does not: ``pip install 'densejax[export]'``.
"""

import importlib.util
import json
import logging
import shutil
import string
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from densejax.data.windows import Sizes
from densejax.inference.members import member_probabilities
from densejax.inference.receptive_field import blind_margin, choose_overlap
from densejax.inference.tiles import pooling_factor
from densejax.inference.whole_volume import checksum
from densejax.io import read_json, replacing, write_json, write_text
from densejax.ops.convolution import portable
from densejax.segmentation.loading import Architecture
from densejax.segmentation.runs import TrainedRun, open_run
from densejax.typing import Array, Params

Format = Literal["onnx", "bioimageio", "jax"]
Grey = tuple[float, float]

# What each format is written and tried with.
PACKAGES: dict[str, tuple[str, ...]] = {
    "onnx": ("onnx", "onnxruntime", "jax2onnx"),
    "bioimageio": ("onnx", "onnxruntime", "jax2onnx", "bioimageio.core"),
    "jax": ("flatbuffers",),
}
PROGRAMS = {"onnx": "ONNX Runtime", "bioimageio": "bioimageio.core", "jax": "jax.export"}
FILES = {"onnx": "model.onnx", "bioimageio": "model.bioimageio.zip", "jax": "model.jax"}
INPUT, OUTPUT = "image", "probabilities"
PLATFORMS = ("cpu", "cuda", "tpu")
OPSET = 21
# Probabilities of the same graph by another program's kernels. Sums in another order, in the
# moments of norms, come to 3e-5 in trained networks; bioimage.io tolerates as much, too.
LARGEST_DIFFERENCE = 1e-3


@dataclass(frozen=True)
class Graph:
    """An ensemble as one function, and what a caller must know of it.

    Attributes:
      call: [b, 1, z, y, x] float32 grey levels -> [b, c, z', y', x'] float32 probabilities.
      reference: [z, y, x] float32 grey levels -> [z', y', x', c], by densejax' own prediction.
      window: (z, y, x) of the input.
      output: (z', y', x') of the output, centred in the input.
      halo: (z, y, x) voxels at each face of the output that a caller who tiles should drop.
      facts: what JSON can hold of the run, its members and the above.
    """

    call: Callable[[Array], jax.Array]
    reference: Callable[[np.ndarray], np.ndarray]
    window: Sizes
    output: Sizes
    halo: Sizes
    facts: Mapping[str, Any]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the c classes."""
        return tuple(self.facts["class_names"])

    def example(self) -> np.ndarray:
        """Grey levels to try the graph with, [1, 1, z, y, x] float32: noise of the run's spread."""
        mean, deviation = self.facts["grey_levels"] or (0.0, 1.0)
        noise = np.random.default_rng(0).standard_normal((1, 1, *self.window), np.float32)
        return np.float32(mean) + np.float32(deviation) * noise

    def expected(self, image: np.ndarray) -> np.ndarray:
        """What densejax itself says of a batch of windows, in the layout of ``call``."""
        found = np.stack([self.reference(one[0]) for one in image])
        return np.moveaxis(found, -1, 1)


def require(format: Format) -> None:
    """Refuse a format whose packages are not installed.

    Raises:
      ModuleNotFoundError: they are named, with the extra that brings them.
    """
    missing = [name for name in PACKAGES[format] if not _installed(name)]
    if missing:
        raise ModuleNotFoundError(
            f"--format={format} needs {', '.join(missing)}: pip install 'densejax[export]'"
        )


def open_trained(folder: str | Path, *, top_k: int) -> TrainedRun:
    """Open a run whose ``top_k`` best members are to be exported.

    Raises:
      FileNotFoundError: there is no run in the folder.
      ValueError: it is a run of another task, or too few of its members are done.
    """
    folder = Path(folder)
    config = folder / "config.json"
    if config.is_file() and not {"network", "window", "data"} <= read_json(config).keys():
        raise ValueError(
            f"{config} is of another experiment: expected the folder of a run of "
            "experiments.segment, whose networks take windows of a volume"
        )
    run = open_run(folder)
    if not 1 <= top_k <= len(run.members):
        running = folder / "running"
        left = len(list(running.iterdir())) if running.is_dir() else 0
        still = f" and {left} that are not; its own command again goes on with them" if left else ""
        raise ValueError(
            f"--top_k={top_k}: {folder} has {len(run.members)} members that are done{still}"
        )
    return run


def graph_of(
    run: TrainedRun,
    architecture: Architecture,
    members: Sequence[str],
    *,
    window: Sizes,
    grey: Grey | None,
    notes: Mapping[str, Any] | None = None,
) -> Graph:
    """Make one function of a run's members.

    Args:
      run: a run of ``experiments.segment``.
      architecture: its network.
      members: names of those that take part.
      window: (z, y, x) of the input.
      grey: mean and deviation by which the graph standardises; None: it takes standardised values.
      notes: further facts of the run, which JSON can hold.

    Raises:
      ValueError: the network does not take the window, or a checkpoint is damaged.
    """
    params = run.load(members, architecture.init_params)
    network = architecture.networks["float32"]
    factor = pooling_factor(architecture.output_window, window)
    windowing = architecture.windowing(window, blend="centre", views="one")
    blind = blind_margin(network, _member(params, 0), windowing, factor=factor)
    overlap = choose_overlap("auto", output=windowing.output, blind=blind)
    mean, deviation = grey or (0.0, 1.0)

    def call(image: Array) -> jax.Array:
        volume = jnp.moveaxis(jnp.asarray(image, jnp.float32), 1, -1)
        if grey is not None:
            volume = (volume - np.float32(mean)) / np.float32(deviation)
        total: Any = 0.0
        with jax.default_matmul_precision("float32"), portable():
            for place in range(len(members)):
                logits = network(_member(params, place), volume)[0]
                total = total + jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
        return jnp.moveaxis(total / np.float32(len(members)), -1, 1)

    own = member_probabilities(network, params)

    def reference(image: np.ndarray) -> np.ndarray:
        standard = (image - np.float32(mean)) / np.float32(deviation)
        return own(standard.astype(np.float32)).mean(0)

    halo = tuple(-(-shared // 2) for shared in overlap)
    facts = {
        "run": run.folder.resolve().name,
        "members": list(members),
        "scores": [run.scores[run.members.index(name)] for name in members],
        "members_checksum": checksum(params),
        "class_names": list(run.class_names),
        "voxel_nm": list(run.voxel_nm or ()),
        "axes": {INPUT: "b, 1, z, y, x", OUTPUT: "b, c, z, y, x"},
        "window": list(window),
        "output": list(windowing.output),
        "halo": list(halo),
        "blind_margin": list(blind),
        "pooling": list(factor),
        "grey_levels": list(grey or ()),
        "standardised": "in the graph" if grey is not None else "by the caller",
        **(notes or {}),
    }
    return Graph(call, reference, window, windowing.output, (halo[0], halo[1], halo[2]), facts)


def largest_difference(graph: Graph, other: Callable[[np.ndarray], np.ndarray]) -> float:
    """The largest difference of a probability between densejax and an exported graph.

    Args:
      graph: what was exported.
      other: runs the export, [1, 1, z, y, x] -> [1, c, z', y', x'].

    Raises:
      ValueError: it is more than rounding explains; the message has it.
    """
    image = graph.example()
    found = other(image)
    expected = graph.expected(image)
    if found.shape != expected.shape:
        raise ValueError(f"the export returns {found.shape}, and densejax {expected.shape}")
    difference = float(np.max(np.abs(found - expected)))
    if not difference <= LARGEST_DIFFERENCE:
        raise ValueError(
            f"a probability of the export differs from densejax' own by {difference:.1e}; "
            f"expected at most {LARGEST_DIFFERENCE:.0e}. Nothing is kept of it"
        )
    return difference


def write_onnx(graph: Graph, path: Path, *, overwrite: bool = False) -> float:
    """Write a graph as ONNX and try it in ONNX Runtime.

    Args:
      graph: of an ensemble.
      path: of the file; its metadata hold ``graph.facts``.
      overwrite: replace a file that is there.

    Returns:
      The largest difference of a probability from densejax' own.

    Raises:
      FileExistsError: the file is there.
      ValueError: a probability differs by more than rounding.
    """
    import onnx

    with replacing(path, overwrite=overwrite) as partial:
        onnx.save(_onnx_model(graph), partial)
        return largest_difference(graph, onnx_runner(partial))


def onnx_runner(path: str | Path) -> Callable[[np.ndarray], np.ndarray]:
    """A file of ``write_onnx`` as a function of windows, by ONNX Runtime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda image: session.run(None, {name: np.asarray(image, np.float32)})[0]


def write_jax(graph: Graph, path: Path, *, overwrite: bool = False) -> float:
    """Write a graph as StableHLO for CPU, CUDA and TPU, load it again and try it.

    Args:
      graph: of an ensemble.
      path: of the file; ``graph.facts`` lie beside it in a file of its name with ``.json`` added.
      overwrite: replace a file that is there.

    Returns:
      The largest difference of a probability from densejax' own.

    Raises:
      FileExistsError: the file is there.
      ValueError: a probability differs by more than rounding.
    """
    from jax import export

    (batch,) = export.symbolic_shape("b")
    shape = jax.ShapeDtypeStruct((batch, 1, *graph.window), jnp.float32)
    with replacing(path, overwrite=overwrite) as partial:
        partial.write_bytes(
            export.export(jax.jit(graph.call), platforms=PLATFORMS)(shape).serialize()
        )
        difference = largest_difference(graph, jax_runner(partial))
        write_json(path.with_name(f"{path.name}.json"), dict(graph.facts))
    return difference


def jax_runner(path: str | Path) -> Callable[[np.ndarray], np.ndarray]:
    """A file of ``write_jax`` as a function of windows; needs JAX and nothing of densejax."""
    from jax import export

    call = jax.jit(export.deserialize(bytearray(Path(path).read_bytes())).call)
    return lambda image: np.asarray(call(np.asarray(image, np.float32)))


def write_bioimageio(
    graph: Graph,
    path: Path,
    *,
    authors: Sequence[str] = (),
    license: str = "",
    description: str = "",
    overwrite: bool = False,
) -> float:
    """Write a graph as a package of bioimage.io, and have ``bioimageio.core`` test and run it.

    The package holds ``rdf.yaml``, the weights as ONNX, a window with what densejax says of it, and
    a page that says how the model was made.

    Args:
      graph: of an ensemble.
      path: of the zip file.
      authors: names of the model's authors.
      license: of the model, by its SPDX name.
      description: of the model, one sentence.
      overwrite: replace a file that is there.

    Returns:
      The largest difference of a probability from densejax' own.

    Raises:
      FileExistsError: the file is there.
      ValueError: the package is not valid, or a probability differs by more than rounding.
    """
    import onnx
    from bioimageio.core import test_model
    from bioimageio.spec import save_bioimageio_package

    with tempfile.TemporaryDirectory() as place, replacing(path, overwrite=overwrite) as partial:
        folder = Path(place)
        onnx.save(_onnx_model(graph), folder / "weights.onnx")
        image = graph.example()
        np.save(folder / "test_input.npy", image)
        np.save(folder / "test_output.npy", graph.expected(image))
        write_text(folder / "README.md", _page(graph, description))
        said = _description(graph, folder, authors, license, description)
        package = save_bioimageio_package(said, output_path=folder / FILES["bioimageio"])
        tested = test_model(package, weight_format="onnx")
        if tested.status != "passed":
            raise ValueError(f"bioimageio.core refuses the package: {tested.format()}")
        difference = largest_difference(graph, bioimageio_runner(package))
        shutil.copyfile(package, partial)
    return difference


def bioimageio_runner(path: str | Path) -> Callable[[np.ndarray], np.ndarray]:
    """A package of ``write_bioimageio`` as a function of windows, by ``bioimageio.core``."""
    from bioimageio.core import create_prediction_pipeline, load_model_description
    from bioimageio.core.digest_spec import create_sample_for_model

    model = load_model_description(path)

    def run(image: np.ndarray) -> np.ndarray:
        sample = create_sample_for_model(model, inputs={INPUT: np.asarray(image, np.float32)})
        # A window as it is: else the halo is added by mirroring, and cropped again.
        whole = {"skip_input_padding": True, "skip_output_cropping": True}
        with create_prediction_pipeline(model) as pipeline:
            found = pipeline.predict_sample_without_blocking(sample, **whole)
        return np.asarray(next(iter(found.members.values())).data)

    return run


def _description(
    graph: Graph, folder: Path, authors: Sequence[str], license: str, description: str
) -> Any:
    """What ``rdf.yaml`` says, in the classes of the specification."""
    from bioimageio.spec.model import v0_5 as spec

    units: dict[str, Any] = {axis: {} for axis in "zyx"}
    if graph.facts["voxel_nm"]:
        units = {
            axis: {"unit": "nanometer", "scale": length}
            for axis, length in zip("zyx", graph.facts["voxel_nm"], strict=True)
        }
    inputs: list[Any] = [spec.BatchAxis(), spec.ChannelAxis(channel_names=["grey"])]
    names = [_identifier(name) for name in graph.classes]
    outputs: list[Any] = [spec.BatchAxis(), spec.ChannelAxis(channel_names=names)]
    sizes = zip("zyx", graph.window, graph.output, graph.halo, strict=True)
    for axis, size, out, halo in sizes:
        said: dict[str, Any] = {"id": axis, **units[axis]}
        inputs.append(spec.SpaceInputAxis(**said, size=size, concatenable=True))
        said["size"] = spec.SizeReference(tensor_id=INPUT, axis_id=axis, offset=out - size)
        kind = spec.SpaceOutputAxisWithHalo if halo else spec.SpaceOutputAxis
        outputs.append(kind(**said, **({"halo": halo} if halo else {})))
    facts = json.loads(json.dumps(graph.facts))
    return spec.ModelDescr(
        name=f"densejax {_plain(graph.facts['run'])}"[:128],
        description=description or _sentence(graph),
        authors=[spec.Author(name=name) for name in authors or ("anonymous",)],
        license=license or None,
        documentation=spec.FileDescr(source=folder / "README.md"),
        tags=["semantic-segmentation", "electron-microscopy", "3d", "ensemble", "jax"],
        inputs=[
            spec.InputTensorDescr(
                id=INPUT,
                axes=inputs,
                description="grey levels",
                data=spec.IntervalOrRatioDataDescr(type="float32"),
                test_tensor=spec.FileDescr(source=folder / "test_input.npy"),
            )
        ],
        outputs=[
            spec.OutputTensorDescr(
                id=OUTPUT,
                axes=outputs,
                description="mean probability of each class over the members",
                data=spec.IntervalOrRatioDataDescr(type="float32", range=(0.0, 1.0)),
                test_tensor=spec.FileDescr(source=folder / "test_output.npy"),
            )
        ],
        weights=spec.WeightsDescr(
            onnx=spec.OnnxWeightsDescr(source=folder / "weights.onnx", opset_version=OPSET)
        ),
        config=spec.Config(densejax=facts),
    )


def _sentence(graph: Graph) -> str:
    count = len(graph.facts["members"])
    whose = "one network" if count == 1 else f"the mean of {count} networks"
    return f"Probabilities of {', '.join(graph.classes)} in electron microscopy by {whose}."


def _page(graph: Graph, description: str) -> str:
    """The documentation of a package."""
    facts = graph.facts
    rows = [f"- {name.replace('_', ' ')}: {json.dumps(facts[name])}" for name in facts]
    return "\n".join(
        [
            f"# {facts['run']}",
            "",
            description or _sentence(graph),
            "",
            "Exported by densejax (`experiments.export`). Standardisation of the grey levels is "
            + f"{facts['standardised']}. The output's halo is what windows should share where a "
            + "volume is tiled.",
            "",
            *rows,
            "",
            "# Validation",
            "",
            "Members are ranked on an evaluation volume that training has not seen (`scores`). "
            "Compare the model's labels with your own on some sections before you rely on it.",
            "",
        ]
    )


def _identifier(name: str) -> str:
    """A class's name as the specification takes those of channels."""
    found = "".join(letter if letter.isalnum() else "_" for letter in name)
    return found if found.isidentifier() else f"class_{found}"


def _plain(name: str) -> str:
    """A folder's name in the letters that the specification takes in a model's."""
    known = f"{string.ascii_letters}{string.digits}_-+ ()"
    return "".join(letter if letter in known else "-" for letter in name)


def _onnx_model(graph: Graph) -> Any:
    """A model of ONNX whose batch is free and whose metadata are the graph's facts."""
    # They tell of every plugin for a library that is not there, and of every shape without a type.
    for name in ("jax2onnx", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.ERROR)
    import jax2onnx

    spec: list[Any] = [("B", 1, *graph.window)]
    model = jax2onnx.to_onnx(
        graph.call,
        inputs=spec,
        model_name="densejax",
        opset=OPSET,
        input_names=[INPUT],
        output_names=[OUTPUT],
    )
    model.producer_name = "densejax"
    for name, value in graph.facts.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = name, json.dumps(value)
    return model


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # of the package that holds it
        return False


def _member(params: Params, place: int) -> Params:
    return jax.tree.map(lambda leaf: leaf[place], params)
