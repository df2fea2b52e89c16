"""The training step compiled ahead of time for TPUs that are not there; needs libtpu from pip.

pip install "libtpu==0.0.42.*"     (the version that jax 0.10.2 names; jax[tpu] brings it)
python -m pytest -q -m slow tests/segmentation/test_tpu_compile.py -s
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densejax.data.augment import training_arrays
from densejax.data.sampling import class_table
from densejax.segmentation import recipes
from densejax.training.task import _advance, empty_slot
from experiments import segment

DEVICES = 4
MEMORY = 16e9  # bytes of a v5e chip
PLANNED = recipes.settle(
    segment.Config(
        recipe_version=1,
        network="planned_unet",
        dimensions="2d",
        stem=4,
        strides=("1x4x4", "1x2x2", "1x2x2"),
        kernels=("1x3x3",) * 3,
        width=16,
        window=(1, 128, 128),
        norm="instance",
        batch=2,
        class_share=0.5,
        reject_empty=0.0,
        loss="dice",
        optimiser="adamw",
        schedule="polynomial",
        learning_rate=3e-3,
        steps=100,
        precision="bfloat16",
    ),
    None,
)
HYBRID = segment.Config(recipe="published", width=4, window=(5, 32, 32))


@pytest.mark.slow
@pytest.mark.parametrize("config", [PLANNED, HYBRID], ids=["planned", "hybrid"])
def test_a_step_compiles_for_four_tpus_and_fits_into_their_memory(config, monkeypatch):
    pytest.importorskip("libtpu", reason="libtpu is not installed: pip install 'libtpu==0.0.42.*'")
    from jax.experimental import topologies
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
    assert len(topology.devices) == DEVICES
    # Convolutions are then written as they are on a TPU.
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    model, task = segment.build(config, 5)
    mesh = Mesh(np.array(topology.devices), ("k",))
    spread, everywhere = PartitionSpec("k"), PartitionSpec()

    def shaped(leaf, spec, lead=()):
        sharding = NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct((*lead, *leaf.shape), leaf.dtype, sharding=sharding)

    labels = np.arange(8 * 160 * 160, dtype=np.int32).reshape(8, 160, 160) % 5
    data = training_arrays(labels.astype(np.float32), labels, weights=np.ones(labels.shape))
    data = {name: np.asarray(a) for name, a in data.items()} | class_table(labels, 5)
    slot = jax.eval_shape(
        lambda key: empty_slot(key, task, {}), jax.ShapeDtypeStruct((2,), np.uint32)
    )
    advance = _advance(task)

    def one(slot, steps, data):
        mine = jax.tree.map(lambda leaf: leaf[0], (slot, steps))
        return jax.tree.map(lambda leaf: leaf[None], advance(*mine, data))

    program = jax.jit(
        jax.shard_map(
            one, mesh=mesh, in_specs=(spread, spread, everywhere), out_specs=spread, check_vma=False
        )
    )
    compiled = program.lower(
        jax.tree.map(lambda leaf: shaped(leaf, spread, (DEVICES,)), slot),
        shaped(jnp.zeros((), jnp.int32), spread, (DEVICES,)),
        jax.tree.map(lambda leaf: shaped(leaf, everywhere), data),
    ).compile()
    memory = compiled.memory_analysis()
    held = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    print(f"\n{type(model).__name__}: {held / 1e6:.0f} MB a device (v5e, stated by the compiler)")
    assert 0 < held < MEMORY
