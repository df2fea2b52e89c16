"""What the commands print and refuse, without a scheduler or with one that is played."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from densejax.lease import Holder
from launch import scheduler, slurm, status, sweeps, work

COUNTING = sweeps.Experiment("counting", ("--steps=3",), "/code", "python", True)


def test_no_scheduler_on_this_machine(tiny, tmp_path, monkeypatch):
    del tiny
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match=r"no sbatch.*--dry_run.*launch\.local"):
        slurm.run(["--module=counting", "--seeds=0:2", f"--workdir={tmp_path / 'a'}"])
    assert not (tmp_path / "a").exists()


@pytest.fixture
def written(tmp_path, monkeypatch):
    """A scheduler that takes arrays of four, and keeps the scripts in the folder ``sbatch``."""
    pytest.importorskip("submitit")
    programs, kept = tmp_path / "programs", tmp_path / "sbatch"
    for folder in (programs, kept):
        folder.mkdir()
    count = f"$(ls {kept} | wc -l)"
    submit = f'cp "$1" {kept}/{count}; echo Submitted batch job {count}'
    lines = {"sbatch": submit, "srun": "true", "squeue": "true"}
    for name, line in (lines | {"scontrol": "echo MaxArraySize = 4"}).items():
        (programs / name).write_text(f"#!/bin/sh\n{line}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return kept


def test_dry_run_shows_the_scripts_that_are_submitted(tiny, tmp_path, written, capsys):
    del tiny
    words = ["--module=counting", "--seeds=0:20", "--block=4", "--gres=gpu:4", "--parallel=9"]
    words += ["--modules=cuda", "--setup=export A='b c'", f"--workdir={tmp_path / 'with space'}"]
    words += ["--cpus_per_task=4", "--time=2:00:00"]
    assert slurm.run([*words, "--dry_run", "--", "--steps=7"]) == 0
    text = capsys.readouterr().out
    assert not (tmp_path / "with space").exists() and not list(written.iterdir())
    assert "#SBATCH --gres=gpu:4" in text and "module load cuda\nexport A='b c'\n" in text
    # Five blocks are an array of four and a job of its own; the collector waits for both.
    assert text.count("#!/bin/bash") == 3 and text.count("#SBATCH --array=0-3%4") == 1
    assert slurm.run([*words, "--", "--steps=7"]) == 0
    scripts = [path.read_text() for path in sorted(written.iterdir())]
    assert len(scripts) == 3
    for script in scripts:
        assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0
    expected = text.replace("afterany:JOB0:JOB1", "afterany:1:2")
    assert expected == "".join(f"{script}\n" for script in scripts)
    # Of blocks that have ended, or run, nothing is shown.
    for block in sweeps.open_sweep(tmp_path / "with space").blocks()[1:]:
        run, leases = work.work_folder(block.folder), work.leases_of(tmp_path)
        (run / "ENDED.json").write_text('{"failed": []}')
        work.end(run, leases, name=work.ENDED)
    capsys.readouterr()
    assert slurm.run([*words, "--dry_run", "--nocollect", "--", "--steps=7"]) == 0
    shown = capsys.readouterr()
    assert shown.out == f"{scripts[1]}\n" and "5 blocks, 1 to submit" in shown.err


def test_dry_run_needs_no_scheduler(tiny, tmp_path, monkeypatch, capsys):
    del tiny
    pytest.importorskip("submitit")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    words = ["--module=counting", "--seeds=0:10", "--block=4", "--dry_run", "--nocollect"]
    assert slurm.run(words) == 0
    text = capsys.readouterr().out
    assert "#SBATCH --array=0-2%3" in text and re.search(r"/runs/counting-[0-9a-f]{8}/", text)
    assert list(tmp_path.iterdir()) == [tmp_path / "trouble"]


def test_a_folder_in_the_memory_of_this_machine(tmp_path):
    table = tmp_path / "mounts"
    table.write_text(
        "a / ext4 rw\nb /dev/shm tmpfs rw\nc /home nfs4 rw\nd /with\\040space xfs rw\n"
    )
    with pytest.raises(ValueError, match="tmpfs: in the memory"):
        slurm.check_shared(Path("/dev/shm/runs"), table=table)
    assert not slurm.check_shared(Path("/home/me/runs"), table=table)
    assert "ext4" in slurm.check_shared(Path("/srv/runs"), table=table)[0]
    assert "xfs" in slurm.check_shared(Path("/with space/runs"), table=table)[0]


@pytest.fixture
def played(tmp_path, monkeypatch):
    """A submitted sweep of four blocks, and ``say(queue, accounts)`` for its scheduler."""
    sweep = sweeps.begin(tmp_path, COUNTING)
    blocks = sweep.add(range(8), 2)
    elements = {f"12_{number}": block.name for number, block in enumerate(blocks)}
    line = {"elements": elements, "resources": {"time": "1:00:00"}}
    sweeps.append(sweep.folder / "submissions.jsonl", line)

    def say(queue, accounts=None):
        monkeypatch.setattr(scheduler, "queue", lambda: queue)
        monkeypatch.setattr(scheduler, "ended", lambda jobs: accounts or {})
        return status.views(sweep)

    return sweep, blocks, say


def test_states_by_the_scheduler(played):
    _, blocks, say = played
    reason = "launch failed requeued held"
    queue = {
        "12_0": scheduler.Queued("PENDING", "Resources", ""),
        "12_1": scheduler.Queued("PENDING", reason, ""),
    }
    accounts = {"12_2": ("FAILED", "n1"), "12_3": ("CANCELLED by 0", "n2")}
    blocks[3].note("start", owner="job 12_3 on n2", limit=60.0)
    found = say(queue, accounts)
    assert [view.state for view in found] == ["queued", "held", "missing", "broken off"]
    assert found[1].said == f"{reason}; scontrol release 12_1"
    assert "never came to" in found[2].said and "FAILED on n1" in found[2].said
    assert "CANCELLED by 0 on n2" in found[3].said
    assert [view.submits for view in found] == [False, False, True, True]
    counts = status.summary(found)
    assert counts | {"queued": 2, "held": 2, "missing": 4, "done": 0} == counts


def test_states_without_a_scheduler(played):
    sweep, blocks, say = played
    leases = work.leases_of(sweep.folder, holder=Holder("elsewhere", 1))
    run = work.begin(blocks[0].folder, leases)
    blocks[0].note("start", owner="process 1 on elsewhere", limit=0.0, seeds=0.0)
    (run / "config.json").write_text('{"steps": 10}')
    (run / "running" / "0000").mkdir(parents=True)
    (run / "running" / "0000" / "metrics.jsonl").write_text('{"step": 5}\n{"st')
    time.sleep(0.1)
    found = say(None)
    assert [view.state for view in found] == ["running", *["missing"] * 3]
    assert found[0].part == {0: 0.5} and found[0].rate > 0
    counts = status.summary(found)
    # Seven and a half seeds are left.
    assert counts["eta_hours"] == pytest.approx(7.5 / counts["rate"], rel=0.01)
    assert sweep.workdir == blocks[0].folder.parents[2]


def test_a_cluster_of_words(monkeypatch, tmp_path):
    lines = ["12_0|RUNNING|None|n1", "12_1|PENDING|JobHeldUser|", "9_0|RUNNING|None|n2"]
    words = "".join(f"echo '{line}'\n" for line in lines)
    (tmp_path / "squeue").write_text(f"#!/bin/sh\n{words}")
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho 'MaxArraySize            = 77'\n")
    for name in ("squeue", "scontrol"):
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = scheduler.queue()
    assert list(found) == ["12_0", "12_1", "9_0"]
    assert [q.held for q in found.values()] == [False, True, False]
    assert scheduler.largest_array() == 77
    assert scheduler.words_of(RuntimeError("a\nsbatch: error: no\n")) == "sbatch: error: no"


def test_status_of_nothing(tmp_path, commands):
    said = commands("status", tmp_path, expect=2)
    assert "nothing was launched in" in said and sys.prefix not in said
