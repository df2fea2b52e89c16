"""One program over several processes by jax.distributed, such as one mesh over two hosts.

    srun --nodes=2 --ntasks-per-node=1 --kill-on-bad-exit=1 \\
        python -m launch.multihost --module=MODULE -- --flags

starts MODULE in each process after ``jax.distributed.initialize``: its ``jax.devices()`` are those
of all hosts. Under srun everything is found by itself. Elsewhere, on each host:

    python -m launch.multihost --coordinator=HOST0:12355 --processes=2 --process=0 --module=...

Sweeps of seeds do not need this, and are refused: launch.slurm gives each host its own seeds, so
that one host's trouble costs one block. GPUs are to be asked for by --gres=gpu:4, one process a
host, not by --gpus-per-task.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence

from launch import command, experiment

# Runs in the process of the experiment: nothing in this folder imports jax.
_START = """\
import json, runpy, sys
import jax
jax.distributed.initialize(**json.loads(sys.argv[1]))
sys.argv = sys.argv[2:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def run(arguments: Sequence[str]) -> int:
    """Run this process of the program; returns its exit code."""
    own, flags = command.divided(arguments)
    parser = command.parser_of(__doc__, "multihost")
    parser.add_argument("--module", required=True, help="program, such as my.package.program")
    parser.add_argument("--coordinator", help="host:port of process 0; under srun: found")
    parser.add_argument("--processes", type=int, help="of the program; under srun: found")
    parser.add_argument("--process", type=int, help="number of this one; under srun: found")
    parser.add_argument("--bind", help="address on which process 0 listens (default: all)")
    given = parser.parse_args(own)
    # Of a sweep, each process would train the same seeds into the same folder.
    if experiment.extends(given.module):
        raise ValueError(f"{given.module} is a sweep of seeds: python -m launch.slurm divides it")
    named = (given.coordinator, given.processes, given.process)
    if any(value is not None for value in named) and None in named:
        raise ValueError("--coordinator, --processes and --process go together")
    settings = {
        "coordinator_address": given.coordinator,
        "num_processes": given.processes,
        "process_id": given.process,
        "coordinator_bind_address": given.bind,
    }
    if given.coordinator is None and given.bind:
        settings["coordinator_bind_address"] = f"{given.bind}:{_port(os.environ)}"
    if given.coordinator is None and "SLURM_STEP_NUM_TASKS" not in os.environ:
        raise ValueError(
            "this is no step of a Slurm job: start it by srun, or name --coordinator, --processes "
            "and --process"
        )
    return _start(given.module, flags, {n: v for n, v in settings.items() if v is not None})


def _start(module: str, flags: Sequence[str], settings: Mapping[str, object]) -> int:
    environment = dict(os.environ)
    settings = dict(settings)
    visible = environment.get("CUDA_VISIBLE_DEVICES", "")
    if _alone_on_its_host(environment) and visible:
        # Under Slurm jax takes one accelerator a process, as if there were a process for each.
        settings["local_device_ids"] = list(range(len(visible.split(","))))
    if "SLURM_STEP_NUM_TASKS" in environment:
        # By default a port a job, on which two steps of one job would collide.
        environment.setdefault("JAX_COORDINATOR_PORT", str(_port(environment)))
    words = [sys.executable, "-c", _START, json.dumps(settings), module, *flags]
    return subprocess.run(words, env=environment).returncode


def _alone_on_its_host(environment: Mapping[str, str]) -> bool:
    """Whether each host of this step has one process: Slurm writes ``1`` or ``1(x2)``."""
    return (
        re.fullmatch(r"1(\(x\d+\))?", environment.get("SLURM_STEP_TASKS_PER_NODE", "")) is not None
    )


def _port(environment: Mapping[str, str]) -> int:
    """A port for each step of each job, the same in all of its processes."""
    job, step = (int(environment[name]) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    return 61440 + (job * 31 + step) % 4096


if __name__ == "__main__":
    command.main(run)
