"""Print the commands that run a sweep on Cloud TPU hosts, and the SkyPilot file; runs nothing.

    python -m launch.tpu --module=experiments.segment --seeds=0:128 --block=8 --tpu=NAME \\
        --zone=us-central2-b --hosts=4 --bucket=gs://BUCKET/sweep -- --width=32

Each host trains a share of the blocks by itself (launch.local --share), without jax.distributed: a
host that is taken back costs its own blocks. Not tried on a TPU. The Cloud TPU API is no longer
developed, and newer TPUs are had through Compute Engine or GKE; SkyPilot knows those, and starts
hosts again that were taken back.
"""

import argparse
import shlex
from collections.abc import Sequence

from launch import command, experiment
from launch.seeds import in_blocks, write_seeds

_FOLDER = "densejax"
_SKYPILOT = """\
# sky jobs launch sweep.yaml    starts the hosts again when they are taken back
name: {name}
num_nodes: {hosts}
resources:
  accelerators: {accelerator}
  use_spot: true
workdir: .
file_mounts:
  /sweep:
    source: {bucket}
    mode: MOUNT_CACHED
setup: |
  {setup}
run: |
  {run}
"""


def run(arguments: Sequence[str]) -> int:
    """Print; returns 0."""
    own, flags = command.divided(arguments)
    parser = command.parser_of(__doc__, "tpu")
    command.add_sweep_flags(parser)
    parser.add_argument("--tpu", default="TPU_NAME", help="name of the TPU")
    parser.add_argument("--zone", default="ZONE")
    parser.add_argument("--hosts", type=int, default=1, help="of the slice")
    parser.add_argument("--accelerator", default="tpu-v5litepod-8", help="as SkyPilot names it")
    parser.add_argument("--bucket", default="gs://BUCKET/sweep", help="where results are copied")
    given = parser.parse_args(own)
    if given.hosts < 1:
        raise ValueError(f"hosts must be at least 1, found {given.hosts}")
    found = experiment.find(given.module, flags)
    experiment.check(found, str(given.seeds[0]))
    blocks = in_blocks(given.seeds, given.block)
    print(f"# {len(blocks)} blocks of seeds {write_seeds(given.seeds)} on {given.hosts} hosts")
    print("\n".join(_commands(given, flags)))
    print("\n# or, as sweep.yaml:\n")
    print(_skypilot(given, flags), end="")
    return 0


def _commands(given: argparse.Namespace, flags: Sequence[str]) -> list[str]:
    """Shell lines for a TPU that exists: the code, the sweep on every host, the results."""
    ssh = f"gcloud compute tpus tpu-vm ssh {shlex.quote(given.tpu)} --zone={given.zone}"
    copy = f"gcloud compute tpus tpu-vm scp --recurse --worker=all --zone={given.zone}"
    lines = [
        "# the code on every host: one that lacks it waits for ever",
        f"{copy} . {shlex.quote(given.tpu)}:{_FOLDER}",
        f"{ssh} --worker=all --command={shlex.quote(f'cd {_FOLDER} && {_setup()}')}",
        "# every host its share, going on when this terminal closes",
    ]
    for host in range(given.hosts):
        work = _local(given, flags, share=f"{host}/{given.hosts}", workdir="sweep")
        inner = f"cd {_FOLDER} && (nohup {work} > sweep.log 2>&1 < /dev/null &)"
        lines.append(f"{ssh} --worker={host} --command={shlex.quote(inner)}")
    inner = f"tail -n 3 {_FOLDER}/sweep.log"
    sync = f"gcloud storage rsync --recursive {_FOLDER}/sweep/seeds {given.bucket}/seeds"
    return [
        *lines,
        "# how it goes, and at the end the results; the seeds of the hosts are different",
        f"{ssh} --worker=all --command={shlex.quote(inner)}",
        f"{ssh} --worker=all --command={shlex.quote(sync)}",
    ]


def _skypilot(given: argparse.Namespace, flags: Sequence[str]) -> str:
    share = f'"$SKYPILOT_NODE_RANK/{given.hosts}"'
    # A folder for each host: a bucket knows no rename, by which hosts agree in a shared folder.
    work = _local(given, flags, share=share, workdir='"$HOME/sweep"')
    keep = 'rsync -a "$HOME/sweep/" /sweep/$SKYPILOT_NODE_RANK/'
    return _SKYPILOT.format(
        name=given.module.rpartition(".")[2].replace("_", "-"),
        hosts=given.hosts,
        accelerator=given.accelerator,
        bucket=given.bucket,
        setup=_setup(),
        run="\n  ".join(
            [
                'mkdir -p "$HOME/sweep" && rsync -a /sweep/$SKYPILOT_NODE_RANK/ "$HOME/sweep/"',
                f"(while sleep 300; do {keep}; done) &",
                work,
                keep,
            ]
        ),
    )


def _setup() -> str:
    return "python3 -m venv .venv && .venv/bin/pip install -q -r requirements.txt -e '.[tpu]'"


def _local(given: argparse.Namespace, flags: Sequence[str], *, share: str, workdir: str) -> str:
    return (
        f".venv/bin/python -m launch.local --module={given.module} "
        f"--seeds={write_seeds(given.seeds)} --block={given.block} --share={share} "
        f"--workdir={workdir} --nocollect -- {shlex.join(flags)}"
    )


if __name__ == "__main__":
    command.main(run)
