"""The same sweep as one plain ``sbatch`` script, for login nodes without Python."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from launch.experiment import Experiment
from launch.resources import Options, Resources
from launch.seeds import write_seeds
from launch.task import AGAIN

_TEMPLATE = """\
#!/bin/bash
# {count} blocks of seeds of {module}. To submit, where this file is called sweep.sh:
#
#   mkdir -p {logs}
{submissions}
#   sbatch --array=0 --dependency=afterany{jobs} sweep.sh collect
#
# Once more submits what has not ended: a block that has ended, or that is running, does nothing.
{options}

blocks=({blocks})
workdir={workdir}

cd {folder} || exit 2
{setup}if [ "$1" = collect ]; then
  srun {python} -m launch.collect "$workdir"
  exit
fi
block=$((SLURM_ARRAY_TASK_ID + ${{FIRST:-0}}))
srun --kill-on-bad-exit=1{srun} {python} -m launch.task --workdir="$workdir" \\
  --module={module} --seeds="${{blocks[block]}}" --time={time} --signal_seconds={signal} -- {flags}
code=$?
# The time was up: this element alone goes back into the queue, and continues.
if [ $code -eq {again} ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit $code
"""


def sbatch_script(
    experiment: Experiment,
    workdir: Path,
    blocks: Sequence[Sequence[int]],
    resources: Resources,
    *,
    largest: int,
) -> str:
    """The script's text; it needs Python on the compute nodes alone.

    Args:
      experiment: what runs.
      workdir: the sweep's folder.
      blocks: seeds of each.
      resources: of a block.
      largest: elements that one array may have.
    """
    parts = [blocks[start : start + largest] for start in range(0, len(blocks), largest)]
    percent = f"%{resources.parallel}" if resources.parallel else ""
    logs = workdir / "launch" / "slurm"
    options: Options = {
        "job-name": workdir.name,
        "nodes": 1,
        "ntasks": 1,
        "time": resources.time,
        "array": f"0-{len(parts[0]) - 1}{percent}",
        "output": str(logs / "%A_%a.log"),
        "open-mode": "append",
        "requeue": True,
        "signal": f"USR2@{resources.signal_seconds}",
    }
    options |= resources.options()
    lines = [
        f"#   job{number}=$(sbatch --parsable --array=0-{len(part) - 1}{percent} "
        f"--export=ALL,FIRST={number * largest} sweep.sh)"
        for number, part in enumerate(parts)
    ]
    return _TEMPLATE.format(
        count=len(blocks),
        module=experiment.module,
        logs=shlex.quote(str(logs)),
        submissions="\n".join(lines),
        jobs="".join(f":$job{number}" for number in range(len(parts))),
        options="\n".join(_option(name, value) for name, value in options.items()),
        blocks=" ".join(write_seeds(block) for block in blocks),
        workdir=shlex.quote(str(workdir)),
        folder=shlex.quote(experiment.folder),
        setup="".join(f"{line}\n" for line in resources.setup_lines()),
        srun=f" --cpus-per-task={resources.cpus_per_task}" if resources.cpus_per_task else "",
        python=shlex.quote(experiment.python),
        time=shlex.quote(resources.time),
        signal=resources.signal_seconds,
        flags=shlex.join(experiment.flags),
        again=AGAIN,
    )


def _option(name: str, value: str | int | bool) -> str:
    return f"#SBATCH --{name}" if value is True else f"#SBATCH --{name}={shlex.quote(str(value))}"
