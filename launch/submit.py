"""Blocks to the scheduler as arrays, through submitit, and the job that collects them."""

import shlex
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any, NoReturn

from launch import scheduler, sweeps
from launch.resources import Resources, minutes
from launch.task import BlockTask, CollectTask

# What sbatch makes of them in the name of a log; submitit replaces %j, %t, %A and %a in the folder.
_EXPANDED = {
    "%": "sbatch and submitit replace % and what follows it by numbers of the job",
    "\\": "sbatch takes it as an escape, and then names the log literally",
}
# Blanked by sbatch wherever they stand in a line of its own, also within quotes.
_BLANKED = ("packjob", "hetjob")


def check_name(what: str, name: str) -> None:
    """Refuse a name that the scheduler would read as another one.

    Spaces, quotes, ``$`` and all letters are quoted where they are written, and stay as they are.

    Args:
      what: the flag that says it, such as ``--workdir``.
      name: such as the sweep's folder.

    Raises:
      ValueError: it holds ``%``, a backslash, a line's end or another control character, or a word
        that sbatch blanks; the message says which and why.
    """
    for letter in name:
        if letter in _EXPANDED:
            _refuse_name(what, name, f"{letter!r}: {_EXPANDED[letter]}")
        if unicodedata.category(letter) in ("Cc", "Zl", "Zp"):
            _refuse_name(what, name, f"{letter!r}: a line for sbatch ends there, or is cut short")
    if (word := next((w for w in _BLANKED if w in name.lower()), None)) is not None:
        _refuse_name(what, name, f"{word!r}: sbatch takes it out of its lines")


def _refuse_name(what: str, name: str, why: str) -> NoReturn:
    raise ValueError(
        f"{what}={name!r} has {why}. Its logs would go elsewhere, or nowhere. "
        "Name another one without it."
    )


def submit(
    sweep: sweeps.Sweep,
    blocks: Sequence[sweeps.Block],
    resources: Resources,
    *,
    collector: bool = True,
    say: Callable[[str], None] = print,
) -> list[str]:
    """Submit blocks, in as many arrays as MaxArraySize asks for; returns the arrays' numbers.

    Raises:
      ImportError: submitit is not installed.
      ValueError: the scheduler refused, in its own words, or would read the folder's name as
        another one.
    """
    check_name("--workdir", str(sweep.workdir))
    jobs = []
    for part in _arrays(blocks):
        seconds, warning = 60.0 * minutes(resources.time), resources.signal_seconds
        tasks = [BlockTask(str(sweep.workdir), block.name, seconds, warning) for block in part]
        elements = _send(_executor(sweep, resources, array=len(part)), tasks)
        jobs.append(elements[0].partition("_")[0])
        _note(sweep, resources, elements={e: b.name for e, b in zip(elements, part, strict=True)})
        say(f"submitted {len(part)} blocks as job {jobs[-1]}")
    if collector:
        executor = _executor(sweep, resources, after=jobs)
        element = _send(executor, [CollectTask(str(sweep.workdir))])[0]
        _note(sweep, resources, collector=element)
        say(f"submitted job {element}, which writes the summary when they have ended")
    return jobs


def scripts(
    sweep: sweeps.Sweep, blocks: Sequence[Any], resources: Resources, *, collector: bool = True
) -> Iterator[str]:
    """Scripts that ``submit`` would hand to sbatch, but for the jobs for which the last waits."""
    parts = list(_arrays(blocks))
    executors = [_executor(sweep, resources, array=len(part)) for part in parts]
    if collector and parts:
        names = [f"JOB{number}" for number in range(len(parts))]
        executors.append(_executor(sweep, resources, after=names))
    for executor, part in zip(executors, [*parts, [()]], strict=False):
        if len(part) > 1:
            executor.parameters["map_count"] = len(part)  # as submitit does for a batch
        yield executor._make_submission_file_text(executor._submitit_command_str, "")


def _arrays(blocks: Sequence[Any]) -> Iterator[Sequence[Any]]:
    largest = scheduler.largest_array()
    yield from (blocks[start : start + largest] for start in range(0, len(blocks), largest))


def _note(sweep: sweeps.Sweep, resources: Resources, **what: Any) -> None:
    line = {"time": time.time(), "resources": asdict(resources)} | what
    sweeps.append(sweep.folder / "submissions.jsonl", line)


def _executor(
    sweep: sweeps.Sweep, resources: Resources, *, array: int = 1, after: Sequence[str] = ()
) -> Any:
    try:
        import submitit
    except ImportError as error:
        raise ImportError("submission needs submitit: pip install 'densejax[launch]'") from error

    class SlurmExecutor(submitit.SlurmExecutor):
        @classmethod
        def affinity(cls) -> int:
            return 2  # scripts are shown where there is no srun, too

    executor = SlurmExecutor(sweep.folder / "slurm", max_num_timeout=resources.requeues)
    executor.python = shlex.quote(sweep.experiment.python)  # submitit takes a line of the shell
    srun = ["--kill-on-bad-exit=1"]
    if resources.cpus_per_task:
        # Since Slurm 22.05 a step does not inherit it.
        srun.append(f"--cpus-per-task={resources.cpus_per_task}")
    waits: dict[str, Any] = {"dependency": "afterany:" + ":".join(after)} if after else {}
    executor.update_parameters(
        job_name=sweep.workdir.name,
        time=minutes(resources.time),
        signal_delay_s=resources.signal_seconds,
        array_parallelism=resources.parallel or array,
        setup=[f"cd {shlex.quote(sweep.experiment.folder)} || exit 2", *resources.setup_lines()],
        srun_args=srun,
        stderr_to_stdout=True,
        wckey=None,
        additional_parameters={"requeue": True} | resources.options() | waits,
    )
    return executor


def _send(executor: Any, tasks: Sequence[BlockTask | CollectTask]) -> list[str]:
    """Submit; numbers of the elements, in the tasks' order."""
    from submitit.core.utils import FailedJobError

    executor.folder.mkdir(parents=True, exist_ok=True)
    try:
        with executor.batch():
            jobs = [executor.submit(task) for task in tasks]
    except FailedJobError as error:
        raise ValueError(
            f"the scheduler refused the submission:\n  {scheduler.words_of(error)}"
        ) from error
    return [job.job_id for job in jobs]
