"""Checkpoints: what comes back is what was saved, or it is said that it does not."""

import errno
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from densejax.training.checkpoint import restore_newest, restore_tree, save_step, save_tree


def tree_of(seed=0):
    params = {"w": np.random.default_rng(seed).normal(size=(7, 3)).astype(np.float32)}
    moments = optax.adam(1e-3).init(jax.tree.map(jnp.asarray, params))
    return {
        "params": params,
        "moments": moments,
        "key": jax.random.key_data(jax.random.key(seed)),
        "step": jnp.int32(seed),
        "half": jnp.bfloat16(0.1) + jnp.zeros((2, 1), jnp.bfloat16),
        "odd": np.float32([np.nan, -np.inf, -0.0]),
        "flag": np.array([True, False]),
    }


def assert_same_bits(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        other = np.asarray(other)
        assert isinstance(one, np.ndarray | np.generic)
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        assert one.tobytes() == other.tobytes()


def test_every_kind_of_leaf_comes_back_bit_for_bit(tmp_path):
    tree = tree_of(3)
    save_tree(tmp_path / "one", tree)
    assert_same_bits(restore_tree(tmp_path / "one", tree), tree)
    shapes = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, tree))
    assert_same_bits(restore_tree(tmp_path / "one", shapes), tree)


def test_nothing_is_written_over(tmp_path):
    save_tree(tmp_path / "one", tree_of(1))
    with pytest.raises(FileExistsError, match="one exists already"):
        save_tree(tmp_path / "one", tree_of(2))
    assert_same_bits(restore_tree(tmp_path / "one", tree_of(1)), tree_of(1))


def test_the_newest_are_kept(tmp_path):
    for step in (5, 10, 900):
        path = save_step(tmp_path, step, tree_of(step))
        assert path.is_dir()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0000000010", "0000000900"]
    # The same step again keeps what stands.
    save_step(tmp_path, 900, tree_of(1))
    assert_same_bits(restore_newest(tmp_path, tree_of()), tree_of(900))


def test_nothing_saved_is_none(tmp_path):
    assert restore_newest(tmp_path / "absent", tree_of()) is None
    assert restore_newest(tmp_path, tree_of()) is None
    with pytest.raises(FileNotFoundError, match="absent"):
        restore_tree(tmp_path / "absent", tree_of())


def test_another_template_is_refused_by_name(tmp_path):
    save_tree(tmp_path / "one", tree_of())
    wider = tree_of() | {"params": {"w": np.zeros((7, 4), np.float32)}}
    with pytest.raises(ValueError, match=r"one, array .*w.*float32\[7, 3\].*float32\[7, 4\]"):
        restore_tree(tmp_path / "one", wider)
    with pytest.raises(ValueError, match=r"step.*int32\[\].*float32\[\]"):
        restore_tree(tmp_path / "one", tree_of() | {"step": np.float32(0)})
    with pytest.raises(ValueError, match="extra"):
        restore_tree(tmp_path / "one", tree_of() | {"extra": np.zeros(1)})
    with pytest.raises(ValueError, match=r"such as \['flag'\]"):
        restore_tree(tmp_path / "one", {"step": np.int32(0)})


def test_another_template_deletes_nothing(tmp_path):
    save_step(tmp_path, 1, tree_of(1))
    with pytest.raises(ValueError, match="extra"):
        restore_newest(tmp_path, tree_of() | {"extra": np.zeros(1)})
    assert_same_bits(restore_newest(tmp_path, tree_of()), tree_of(1))


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("steps")
    save_step(folder, 1, tree_of(1))
    save_step(folder, 2, tree_of(2))
    return folder


def files_of(folder):
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size]


# The storage library's reader may end after the event loop that it reported to.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
def test_a_damaged_file_never_gives_other_numbers(tmp_path, two_steps, damage):
    """Every file of a checkpoint in turn: harmless, or passed over for the checkpoint before."""
    fell_back = 0
    for number in range(len(files_of(two_steps / "0000000002"))):
        folder = tmp_path / str(number)
        shutil.copytree(two_steps, folder)
        victim = files_of(folder / "0000000002")[number]
        damage(victim)
        said = []
        found = restore_newest(folder, tree_of(), report=said.append)
        assert_same_bits(found, tree_of(1 if said else 2))
        if said:
            fell_back += 1
            assert "damaged" in said[0] and str(folder / "0000000002") in said[0]
            # Out of the way, so that the step can be saved again.
            assert not (folder / "0000000002").exists()
    assert fell_back


def test_the_arrays_own_bytes_are_guarded(tmp_path, two_steps):
    """Any byte of the largest file, which holds arrays."""
    places = np.random.default_rng(0).random(5)
    for number, place in enumerate(places):
        folder = tmp_path / str(number)
        shutil.copytree(two_steps, folder)
        victim = max(files_of(folder / "0000000002"), key=lambda path: path.stat().st_size)
        content = bytearray(victim.read_bytes())
        content[int(place * len(content))] ^= 1
        victim.write_bytes(content)
        said = []
        found = restore_newest(folder, tree_of(), report=said.append)
        assert_same_bits(found, tree_of(1 if said else 2))


def test_half_written_folders_are_passed_over(tmp_path, two_steps):
    folder = tmp_path / "steps"
    shutil.copytree(two_steps, folder)
    shutil.copytree(folder / "0000000002", folder / "0000000004.orbax-checkpoint-tmp")
    (folder / "0000000003").mkdir()
    said = []
    assert_same_bits(restore_newest(folder, tree_of(), report=said.append), tree_of(2))
    assert len(said) == 1 and "0000000003" in said[0]


def test_nothing_whole_is_none_and_said_twice(tmp_path, two_steps):
    folder = tmp_path / "steps"
    shutil.copytree(two_steps, folder)
    for step in folder.iterdir():
        for path in files_of(step):
            cut(path)
    said = []
    assert restore_newest(folder, tree_of(), report=said.append) is None
    assert len(said) == 2
    save_step(folder, 2, tree_of(2))
    assert_same_bits(restore_newest(folder, tree_of(), report=said.append), tree_of(2))


def test_a_full_disk_is_said_and_costs_nothing_written_before(tmp_path, monkeypatch):
    save_step(tmp_path, 1, tree_of(1))

    def full(self, *arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr(ocp.StandardCheckpointer, "save", full)
        with pytest.raises(OSError, match=r"0000000002 \(\d+\.\d MB; \d+\.\d MB free.*No space"):
            save_step(tmp_path, 2, tree_of(2))
    assert [path.name for path in tmp_path.iterdir()] == ["0000000001"]
    assert_same_bits(restore_newest(tmp_path, tree_of()), tree_of(1))
    save_step(tmp_path, 2, tree_of(2))
    assert_same_bits(restore_newest(tmp_path, tree_of()), tree_of(2))
