"""Who may know whom: the imports of every module, read from its syntax tree."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# A room may import the rooms of lower rank and its own files; siblings don't know each other.
RANKS = [
    {"typing", "trees", "io", "lease", "stats", "ops"},
    {"population", "losses", "metrics", "optim", "data", "models", "plots"},
    {"training", "inference"},
    {"cli"},
    {"segmentation", "landscape", "classification"},
    {"active", "minima"},
    {"experiments"},
]
RANK = {room: rank for rank, rooms in enumerate(RANKS) for room in rooms}

# In the lowest column the names of values and the writing of files are for everybody.
FOR_ALL = {"typing", "io"}

# What starts jobs may import, and so must start without an array library.
FOR_LAUNCH = {"io", "lease"}
ARRAY_LIBRARIES = ("jax", "jaxlib", "flax", "optax")

# What only some files may import, by the start of its dotted name.
ONLY = {
    "orbax": ("densejax/training/checkpoint.py",),
    "flax": ("densejax/models/",),
    "jax.pmap": ("densejax/population.py",),
    "jax.sharding": ("densejax/population.py",),
    "jax.experimental.shard_map": ("densejax/population.py",),
    "jax.experimental.mesh_utils": ("densejax/population.py",),
}
# Whatever they are reached through; a bare "Mesh" may be a surface of triangles.
MESH_NAMES = {"pmap", "shard_map", "make_mesh", "create_device_mesh", "PmapSharding"}


def modules() -> list[Path]:
    folders = ("densejax", "experiments", "launch", "tests")
    found = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return sorted(path.relative_to(ROOT) for path in found)


def room_of(path: Path) -> str:
    """``densejax/models/unet.py`` is in ``models``, ``experiments/x.py`` in ``experiments``."""
    inside = path.parts[0] == "densejax" and len(path.parts) > 1
    return Path(path.parts[1]).stem if inside else path.parts[0]


def imported(tree: ast.AST, path: Path) -> Iterator[str]:
    """Dotted names of everything imported anywhere in a file, functions included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = path.parts[: len(path.parts) - node.level] if node.level else ()
            base = ".".join([*package, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def violations(source: str, path: Path) -> list[str]:
    """What a file does that the house forbids; empty for a good file."""
    tree = ast.parse(source)
    found = []
    for name in imported(tree, path):
        found += _wrong_arrow(name, path) + _wrong_library(name, path)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            found += _wrong_library(ast.unparse(node), path)
    if path.parts[0] != "tests" and path.as_posix() != "densejax/population.py":
        names = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
        names |= {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
        found += [f"{path} names {name}" for name in sorted(names & MESH_NAMES)]
    return found


def _wrong_arrow(name: str, path: Path) -> list[str]:
    parts = name.split(".")
    room, top = room_of(path), path.parts[0]
    arrow = [f"{path} imports {name}"]
    if parts[0] == "experiments":
        allowed = top == "tests" or path.parts[:2] == ("experiments", "benchmarks")
        return [] if allowed else arrow
    if parts[0] in ARRAY_LIBRARIES:
        return arrow if top == "launch" or room in FOR_LAUNCH else []
    if top == "launch":
        allowed = parts[0] != "densejax" or (len(parts) > 1 and parts[1] in FOR_LAUNCH)
        return [] if allowed else arrow
    if parts[0] == "launch":
        return [] if top == "tests" else arrow
    if parts[0] != "densejax" or top == "tests" or len(parts) == 1:
        return []
    target = parts[1]
    if target == "__version__" or target == room or target in FOR_ALL:
        return []
    if target not in RANK:
        return [f"{path} imports {name}: {target} has no place in the order"]
    return arrow if RANK[target] >= RANK[room] else []


def _wrong_library(name: str, path: Path) -> list[str]:
    if path.parts[0] == "tests":
        return []
    for start, allowed in ONLY.items():
        if name == start or name.startswith(start + "."):
            if not path.as_posix().startswith(allowed):
                return [f"{path} imports {name}, which is for {', '.join(allowed)} alone"]
    return []


def test_importing_starts_no_device():
    # A key or an array made while a module is imported starts JAX with one device a host, and
    # ``use_all_cores`` comes too late, without a word.
    code = """
import importlib, pkgutil, jax, densejax, experiments
for package in (densejax, experiments):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        try:
            importlib.import_module(module.name)
        except ImportError as error:
            assert not error.name.startswith(("densejax", "experiments")), error
jax.config.update("jax_num_cpu_devices", 3)
assert len(jax.devices("cpu")) == 3
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", modules(), ids=str)
def test_arrows_point_one_way(path):
    if path.parts[0] == "densejax" and len(path.parts) > 1 and path.stem != "__init__":
        assert room_of(path) in RANK, f"{path} has no place in the order"
    assert not violations((ROOT / path).read_text(), path)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("densejax/trees.py", "import densejax.losses"),
        ("densejax/ops/pooling.py", "from densejax import models"),
        ("densejax/data/windows.py", "from densejax.models.unet import UNet"),
        ("densejax/data/windows.py", "def f():\n    from densejax.metrics import mean_iou"),
        ("densejax/plots/curves.py", "from ..metrics import mean_iou"),
        ("densejax/training/sweep.py", "from densejax.inference import rank"),
        ("densejax/training/sweep.py", "import densejax.segmentation.task"),
        ("densejax/training/sweep.py", "from densejax.cli import option"),
        ("densejax/landscape/slices.py", "import densejax.segmentation.task"),
        ("densejax/active/scores.py", "from experiments import segment"),
        ("densejax/active/scores.py", "from densejax.unheard_of import x"),
        ("experiments/other.py", "from experiments.segment import Config"),
        ("densejax/training/sweep.py", "import orbax.checkpoint as ocp"),
        ("experiments/segment.py", "from flax import linen"),
        ("densejax/metrics.py", "import jax\njax.pmap(f)"),
        ("densejax/metrics.py", "from jax import pmap"),
        ("densejax/metrics.py", "import jax\njax.sharding.Mesh(devices, axes)"),
        ("densejax/metrics.py", "import jax as j\nj.shard_map(f)"),
        ("densejax/metrics.py", "from jax.sharding import Mesh"),
        ("launch/local.py", "import jax"),
        ("launch/local.py", "from densejax.training import folders"),
        ("launch/local.py", "import densejax"),
        ("densejax/io.py", "import jax"),
        ("densejax/lease.py", "def f():\n    from jax import numpy"),
        ("densejax/lease.py", "from densejax import losses"),
        ("densejax/training/sweep.py", "import launch.slurm"),
    ],
)
def test_a_planted_violation_is_caught(path, source):
    assert violations(source, Path(path))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("densejax/ops/pooling.py", "from densejax.ops.convolution import convolve"),
        ("densejax/trees.py", "from densejax.typing import Tree"),
        ("densejax/lease.py", "from densejax.io import write_text"),
        ("launch/local.py", "from densejax import io, lease"),
        ("densejax/models/unet.py", "from flax import linen"),
        ("densejax/training/provenance.py", "from densejax import __version__"),
        ("densejax/active/scores.py", "from densejax.landscape import slices"),
        (
            "densejax/segmentation/rendering/meshes.py",
            "import trimesh\nclass Mesh: ...\ntrimesh.Mesh()\nMesh()",
        ),
        ("experiments/benchmarks/speed.py", "from experiments.segment import Config"),
        ("tests/experiments/test_segment.py", "from experiments import segment"),
        ("launch/work.py", "from densejax.lease import Leases"),
    ],
)
def test_a_good_import_is_not(path, source):
    assert not violations(source, Path(path))
