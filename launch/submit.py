"""Blocks to the scheduler as arrays, through submitit, and the job that collects them."""

import shlex
import time
from collections.abc import Callable, Sequence
from typing import Any

from launch import scheduler, sweeps
from launch.resources import Resources, as_values, minutes
from launch.task import BlockTask, CollectTask

Task = BlockTask | CollectTask


def submit(
    sweep: sweeps.Sweep,
    blocks: Sequence[sweeps.Block],
    resources: Resources,
    *,
    collector: bool = True,
    say: Callable[[str], None] = print,
) -> list[str]:
    """Submit blocks, in as many arrays as the scheduler's MaxArraySize asks for.

    Args:
      sweep: whose blocks they are.
      blocks: at least one.
      resources: of each.
      collector: whether a job that writes the summary waits for the others.
      say: where a line for people goes.

    Returns:
      Numbers of the arrays.

    Raises:
      ImportError: submitit is not installed.
      ValueError: the scheduler refused, in its own words.
    """
    largest = scheduler.largest_array()
    jobs = []
    for start in range(0, len(blocks), largest):
        part = blocks[start : start + largest]
        tasks = [_task(sweep, block, resources) for block in part]
        elements = _send(sweep, tasks, resources, {})
        jobs.append(elements[0].partition("_")[0])
        _note(sweep, resources, elements={e: b.name for e, b in zip(elements, part, strict=True)})
        say(f"submitted {len(part)} blocks as job {jobs[-1]}")
    if collector:
        waits = {"dependency": "afterany:" + ":".join(jobs)}
        element = _send(sweep, [CollectTask(str(sweep.workdir))], resources, waits)[0]
        _note(sweep, resources, collector=element)
        say(f"submitted job {element}, which writes the summary when they have ended")
    return jobs


def _task(sweep: sweeps.Sweep, block: sweeps.Block, resources: Resources) -> BlockTask:
    seconds = resources.limit_seconds
    return BlockTask(str(sweep.workdir), block.name, seconds, resources.signal_seconds)


def _note(sweep: sweeps.Sweep, resources: Resources, **what: Any) -> None:
    line = {"time": time.time(), "resources": as_values(resources)} | what
    sweeps.append(sweep.folder / "submissions.jsonl", line)


def _send(
    sweep: sweeps.Sweep, tasks: Sequence[Task], resources: Resources, more: dict[str, str]
) -> list[str]:
    """Numbers of the elements that are submitted, in the tasks' order."""
    submitit = _submitit()
    folder = sweep.folder / "slurm"
    folder.mkdir(parents=True, exist_ok=True)
    executor = submitit.SlurmExecutor(folder=folder, max_num_timeout=resources.requeues)
    executor.python = sweep.experiment.python
    srun = ["--kill-on-bad-exit=1"]
    if resources.cpus_per_task:
        # Since Slurm 22.05 a step does not inherit it.
        srun.append(f"--cpus-per-task={resources.cpus_per_task}")
    executor.update_parameters(
        job_name=sweep.workdir.name,
        time=minutes(resources.time),
        signal_delay_s=resources.signal_seconds,
        array_parallelism=resources.parallel or len(tasks),
        setup=[f"cd {shlex.quote(sweep.experiment.folder)} || exit 2", *resources.setup_lines()],
        srun_args=srun,
        stderr_to_stdout=True,
        wckey=None,
        additional_parameters={"requeue": True} | resources.options() | more,
    )
    try:
        with executor.batch():
            jobs = [executor.submit(task) for task in tasks]
    except submitit.core.utils.FailedJobError as error:
        raise ValueError(
            f"the scheduler refused the submission:\n  {scheduler.words_of(error)}"
        ) from error
    return [job.job_id for job in jobs]


def _submitit() -> Any:
    try:
        import submitit
    except ImportError as error:
        raise ImportError(
            "submission needs submitit: pip install 'densejax[launch]', or take --dry_run for a "
            "plain script"
        ) from error
    return submitit
