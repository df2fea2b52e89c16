"""Members are published once, whole, wherever an experiment puts them."""

import threading
from pathlib import Path

from launch import members


def member(run, path, text="DONE", marker="DONE"):
    folder = run / path
    (folder / "best").mkdir(parents=True)
    (folder / "best" / "array").write_text(text)
    (folder / marker).write_text("{}")


def test_members_of_every_layout(tmp_path):
    for path in ("seeds/0001", "seeds/0001,rate=0.1", "poisoned/seeds/0002", "a/b/seeds/0003"):
        member(tmp_path, path)
    member(tmp_path, "seeds/0004", marker="FAILED")
    for path in ("running/seeds/0005", "rounds/seeds/0006", "a/b/c/seeds/0007"):
        member(tmp_path, path)
    (tmp_path / "seeds" / "0008").mkdir()  # of an experiment that was stopped while it wrote
    found = list(members.members(tmp_path))
    assert sorted(map(members.seed_of, found)) == [1, 1, 2, 3, 4]
    assert members.pattern_of(Path("seeds/0001,rate=0.1")) == "seeds/,rate=0.1"
    assert members.pattern_of(Path("poisoned/seeds/0002")) == "poisoned/seeds/"


def test_published_once_by_many(tmp_path):
    spare, target = tmp_path / "spare", tmp_path / "target"
    spare.mkdir()
    runs = [tmp_path / f"run{number}" for number in range(6)]
    for run in runs:
        for seed in range(8):
            member(run, f"seeds/{seed:04d}", text=run.name)
    new = []
    start = threading.Barrier(len(runs))

    def publish(run):
        start.wait()
        new.extend(members.publish(run, target, spare=spare))

    threads = [threading.Thread(target=publish, args=(run,)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(new) == [Path(f"seeds/{seed:04d}") for seed in range(8)]
    assert sorted(path.name for path in (target / "seeds").iterdir()) == [
        f"{seed:04d}" for seed in range(8)
    ]
    for seed in range(8):
        assert (target / f"seeds/{seed:04d}/best/array").read_text() in {run.name for run in runs}
    assert not list(spare.iterdir())


def test_published_without_a_second_copy(tmp_path):
    (tmp_path / "spare").mkdir()
    member(tmp_path / "run", "seeds/0001")
    (tmp_path / "run/seeds/0001/checkpoints").mkdir()
    members.publish(tmp_path / "run", tmp_path / "target", spare=tmp_path / "spare")
    one, other = (tmp_path / name / "seeds/0001/best/array" for name in ("run", "target"))
    assert one.stat().st_ino == other.stat().st_ino
    assert not (tmp_path / "target/seeds/0001/checkpoints").exists()


def test_a_block_takes_over_its_own_seeds(tmp_path):
    (tmp_path / "spare").mkdir()
    for seed in range(4):
        member(tmp_path / "sweep", f"seeds/{seed:04d}")
    run = tmp_path / "run"
    members.take_over(tmp_path / "sweep", run, {1, 2, 9}, spare=tmp_path / "spare")
    assert [path.name for path in sorted((run / "seeds").iterdir())] == ["0001", "0002"]


def test_files_of_seeds_are_merged_and_none_is_written_over(tmp_path):
    for run, seed in (("one", 1), ("other", 2)):
        for name in (f"members/{seed}.npz", "problem.npz", "summary/a", ".b", "config.json"):
            (tmp_path / run / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / run / name).write_text(run)
        member(tmp_path / run, f"seeds/{seed:04d}")
        members.merge(tmp_path / run, tmp_path / "sweep")
    files = {path for path in (tmp_path / "sweep").rglob("*") if path.is_file()}
    found = {path.relative_to(tmp_path / "sweep").as_posix(): path.read_text() for path in files}
    assert found == {"members/1.npz": "one", "members/2.npz": "other", "problem.npz": "one"}


def test_a_file_system_without_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr("os.link", refuse)
    (tmp_path / "spare").mkdir()
    member(tmp_path / "run", "seeds/0001", text="copied")
    members.publish(tmp_path / "run", tmp_path / "target", spare=tmp_path / "spare")
    assert (tmp_path / "target/seeds/0001/best/array").read_text() == "copied"
