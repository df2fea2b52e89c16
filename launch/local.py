"""Seeds of any experiment on this machine, block after block, in the folders that Slurm would fill.

    python -m launch.local --module=experiments.segment --seeds=0:500 --block=25 -- --width=8

One block at a time works on all local devices. --processes=4 runs four at once, each on an
accelerator of its own, or on a CPU on its share of the cores. --share=0/4 takes every fourth block,
for a host of several. The same command again continues; a block that fails leaves the others alone.
"""

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent import futures

from densejax.lease import HeldError, LostError
from launch import child, command, experiment, sweeps, work
from launch.attempt import Attempt, BlockFailedError
from launch.collect import collect

Place = tuple[dict[str, str], str]


def run(arguments: Sequence[str]) -> int:
    """Run the blocks, then the summary; returns 1 where a block or a member failed."""
    own, flags = command.divided(arguments)
    parser = command.parser_of(__doc__, "local")
    command.add_sweep_flags(parser)
    parser.add_argument("--processes", type=int, default=1, help="blocks at once (default: 1)")
    parser.add_argument("--share", type=_share, default=(0, 1), help="such as 0/4: blocks 0, 4, 8")
    parser.add_argument("--nocollect", action="store_true", help="write no summary at the end")
    given = parser.parse_args(own)
    where = places(given.processes)
    found = experiment.find(given.module, flags, python=given.python)
    sweep, blocks = command.begin(given, found)
    number, of = given.share
    failed = run_blocks(sweep, blocks[number::of], where)
    for line in failed:
        print(line, file=sys.stderr)
    if given.nocollect:
        return 1 if failed else 0
    return max(collect(sweep, local=True), 1 if failed else 0)


def run_blocks(
    sweep: sweeps.Sweep,
    blocks: Sequence[sweeps.Block],
    where: Sequence[Place],
    *,
    say: Callable[[str], None] = print,
) -> list[str]:
    """Run blocks, one at a time in each place; returns what went wrong, a line a block."""
    waiting = iter(blocks)
    failed: list[str] = []
    running: set[Attempt] = set()
    interrupted = threading.Event()
    owner = work.holder_of(os.environ, local=True)

    def work_off(place: Place) -> None:
        while not interrupted.is_set() and (block := next(waiting, None)) is not None:
            environment, cores = place
            attempt = Attempt(sweep, block, owner, environment=environment, cores=cores, say=say)
            running.add(attempt)
            try:
                attempt.run()
            except (BlockFailedError, HeldError, LostError, OSError) as error:
                failed.append(f"seeds {sweeps.write_seeds(block.seeds)}: {error}")
                say(failed[-1])
            running.discard(attempt)

    with futures.ThreadPoolExecutor(len(where)) as pool:
        workers = [pool.submit(work_off, place) for place in where]
        try:
            for worker in futures.as_completed(workers):
                worker.result()
        except KeyboardInterrupt:
            interrupted.set()
            for attempt in list(running):
                attempt.stop("interrupted")
            futures.wait(workers)
            raise
    return failed


def places(processes: int) -> list[Place]:
    """Environment and cores of each process; a ValueError where there are not enough for all."""
    if processes < 1:
        raise ValueError(f"processes must be at least 1, found {processes}")
    if processes == 1:
        return [({}, child.ALL)]
    accelerators = _accelerators()
    if accelerators:
        if processes > len(accelerators):
            raise ValueError(f"{processes} processes for {len(accelerators)} accelerators")
        return [({"CUDA_VISIBLE_DEVICES": name}, child.ALL) for name in accelerators[:processes]]
    # Not every system binds processes to cores; there the shares are numbers alone.
    known = hasattr(os, "sched_getaffinity")
    cores = sorted(os.sched_getaffinity(0)) if known else list(range(os.cpu_count() or 1))
    if processes > len(cores):
        raise ValueError(f"{processes} processes for {len(cores)} cores")
    shares = [cores[number::processes] for number in range(processes)]
    return [({}, ",".join(map(str, share))) for share in shares]


def _accelerators() -> list[str]:
    """Names of the GPUs that this process may use."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name.strip()]
    if shutil.which("nvidia-smi") is None:
        return []
    done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60)
    return [str(n) for n, line in enumerate(done.stdout.splitlines()) if line.startswith("GPU")]


def _share(text: str) -> tuple[int, int]:
    number, _, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal() and int(number) < int(of)):
        raise ValueError(text)
    return int(number), int(of)


if __name__ == "__main__":
    command.main(run)
