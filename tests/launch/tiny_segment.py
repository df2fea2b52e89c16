"""``experiments.segment``, that fails while a file ``crash-13`` in ``TROUBLE`` names its seed."""

import os
from pathlib import Path

from densejax.cli import main
from experiments import segment

VARYING = ("seeds", "slots", "strategy", "grid", "overlap")


def run(config, workdir):
    for seed in config.seeds:
        if Path(os.environ.get("TROUBLE", "/none"), f"crash-{seed}").exists():
            raise RuntimeError(f"seed {seed} brings the whole process down")
    return segment.run(config, workdir)


if __name__ == "__main__":
    main(segment.Config, run, description=segment.__doc__)
