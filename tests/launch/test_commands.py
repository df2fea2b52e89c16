"""What the commands print and refuse, without a scheduler or with one that is played."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch import claims, scheduler, shared, slurm, state, status, sweeps, tpu
from launch.resources import Resources
from launch.script import sbatch_script
from launch.seeds import in_blocks

COUNTING = sweeps.Experiment("counting", ("--steps=3",), "/code", "python", True)


def test_no_scheduler_on_this_machine(tiny, tmp_path, monkeypatch):
    del tiny
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match=r"no sbatch.*--dry_run.*launch\.local"):
        slurm.run(["--module=counting", "--seeds=0:2", f"--workdir={tmp_path / 'a'}"])
    assert not (tmp_path / "a").exists()


def test_dry_run_touches_nothing(tiny, tmp_path, monkeypatch, capsys):
    del tiny
    monkeypatch.chdir(tmp_path)
    words = ["--module=counting", "--seeds=0:10", "--block=4", "--gres=gpu:4", "--dry_run"]
    assert slurm.run([*words, "--time=2:00:00", "--", "--steps=7"]) == 0
    text = capsys.readouterr().out
    assert "#SBATCH --gres=gpu:4" in text and "blocks=(0:4 4:8 8:10)" in text
    assert re.search(r"workdir=\S+/runs/counting-[0-9a-f]{8}\n", text)
    assert list(tmp_path.iterdir()) == [tmp_path / "trouble"]


def test_script_is_bash_and_splits_at_the_largest_array(tmp_path):
    resources = Resources(
        time="2:00:00", modules=("cuda",), setup=("export A='b c'",), parallel=9, cpus_per_task=4
    )
    blocks = in_blocks(range(100), 10)
    text = sbatch_script(COUNTING, tmp_path / "with space", blocks, resources, largest=4)
    assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0
    head = [line for line in text.splitlines() if "sbatch --parsable" in line]
    assert [re.search(r"--array=(\S+) .*FIRST=(\d+)", line).groups() for line in head] == [
        ("0-3%9", "0"),
        ("0-3%9", "4"),
        ("0-1%9", "8"),
    ]
    assert "--dependency=afterany:$job0:$job1:$job2" in text
    assert "module load cuda\nexport A='b c'\n" in text


def test_script_names_the_block_that_its_element_is(tmp_path):
    text = sbatch_script(
        sweeps.Experiment("counting", ("--name=a b",), str(tmp_path), "python", True),
        tmp_path / "a",
        in_blocks(range(10), 2),
        Resources(),
        largest=3,
    )
    (tmp_path / "srun").write_text('#!/bin/sh\nfor word in "$@"; do echo "<$word>"; done\n')
    (tmp_path / "srun").chmod(0o755)
    environment = {"SLURM_ARRAY_TASK_ID": "1", "FIRST": "3", "PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run(["bash"], input=text, text=True, env=environment, capture_output=True)
    assert "<--seeds=8:10>" in done.stdout and "<--name=a b>" in done.stdout


def test_a_folder_in_the_memory_of_this_machine(tmp_path):
    table = tmp_path / "mounts"
    table.write_text(
        "a / ext4 rw\nb /dev/shm tmpfs rw\nc /home nfs4 rw\nd /with\\040space xfs rw\n"
    )
    with pytest.raises(ValueError, match="tmpfs: in the memory"):
        shared.check(Path("/dev/shm/runs"), table=table)
    assert not shared.check(Path("/home/me/runs"), table=table)
    assert "ext4" in shared.check(Path("/srv/runs"), table=table)[0]
    assert "xfs" in shared.check(Path("/with space/runs"), table=table)[0]


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
        return state.views(sweep)

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
    work = claims.claim(blocks[0].folder, claims.Owner("local", "-", "elsewhere", 1))
    blocks[0].note("start", owner="process 1 on elsewhere", limit=0.0, seeds=0.0)
    (work / "config.json").write_text('{"steps": 10}')
    (work / "running" / "0000").mkdir(parents=True)
    (work / "running" / "0000" / "metrics.jsonl").write_text('{"step": 5}\n{"st')
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


def test_tpu_prints_commands_that_a_shell_reads(tiny, capsys):
    del tiny
    words = ["--module=counting", "--seeds=0:8", "--block=2", "--hosts=2", "--tpu=v4", "--zone=z"]
    assert tpu.run([*words, "--", "--steps=3"]) == 0
    commands, sky = capsys.readouterr().out.split("# or, as sweep.yaml:")
    assert subprocess.run(["bash", "-n"], input=commands, text=True).returncode == 0
    assert "--share=0/2" in commands and "--share=1/2" in commands and "num_nodes: 2" in sky


def test_a_sweep_is_no_program_of_several_hosts(tiny, commands):
    del tiny
    said = commands("multihost", "--module=counting", expect=2)
    assert "sweep of seeds" in said
    said = commands("multihost", "--module=json.tool", expect=2)
    assert "start it by srun" in said


def test_status_of_nothing(tmp_path, commands):
    said = commands("status", tmp_path, expect=2)
    assert "nothing was launched in" in said and sys.prefix not in said
