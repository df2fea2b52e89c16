"""An experiment without JAX, which starts in no time: its seeds count, and keep house like a sweep.

Troubles as in ``tiny_sweep``: ``crash-3`` ends the process that has seed 3, ``nan-4`` makes seed 4
fail, ``slow`` holds the seconds that a step takes, ``stuck`` keeps checkpoints from being written.
"""

import json
import shutil
import sys
import time
from pathlib import Path

from absl import app, flags

VARYING = ("seeds", "slots")

flags.DEFINE_string("seeds", "0", "seeds")
flags.DEFINE_string("workdir", "", "folder")
flags.DEFINE_integer("steps", 20, "of each seed")
flags.DEFINE_string("trouble", "/none", "folder of troubles")
FLAGS = flags.FLAGS


def train(seed, workdir, trouble):
    """Ends with DONE or FAILED; checkpoints every fifth step."""
    published = workdir / "seeds" / f"{seed:04d}"
    if published.exists():
        return
    folder = workdir / "running" / f"{seed:04d}"
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    kept = sorted((folder / "checkpoints").iterdir())
    step, value = json.loads(kept[-1].read_text()) if kept else (0, seed)
    rows = (folder / "metrics.jsonl").read_text().splitlines() if kept else []
    (folder / "metrics.jsonl").write_text("".join(f"{row}\n" for row in rows[:step]))
    while step < FLAGS.steps:
        if (trouble / f"crash-{seed}").exists():
            raise RuntimeError(f"seed {seed} brings the whole process down")
        step, value = step + 1, (value * 6364136223846793005 + 1442695040888963407) % 2**64
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, "loss": value / 2**64}) + "\n")
        if step % 5 == 0 and not (trouble / "stuck").exists():
            partial = folder / f".{step:010d}"
            partial.write_text(json.dumps([step, value]))
            partial.rename(folder / "checkpoints" / f"{step:010d}")
        if (trouble / "slow").exists():
            time.sleep(float((trouble / "slow").read_text()))
    status = "FAILED" if (trouble / f"nan-{seed}").exists() else "DONE"
    (folder / status).write_text(json.dumps({"step": step, "value": value}))
    published.parent.mkdir(exist_ok=True)
    folder.rename(published)
    shutil.rmtree(published / "checkpoints", ignore_errors=True)


def main(_):
    workdir, trouble = Path(FLAGS.workdir), Path(FLAGS.trouble)
    workdir.mkdir(exist_ok=True)
    (workdir / "config.json").write_text(json.dumps({"steps": FLAGS.steps}))
    seeds = []
    for part in FLAGS.seeds.split(","):
        first, _, stop = part.partition(":")
        seeds += range(int(first), int(stop or int(first) + 1))
    for seed in seeds:
        train(seed, workdir, trouble)
    published = [workdir / "seeds" / f"{seed:04d}" for seed in sorted(seeds)]
    (workdir / "summary").mkdir(exist_ok=True)
    lines = [f"{p.name} {'DONE' if (p / 'DONE').exists() else 'FAILED'}\n" for p in published]
    (workdir / "summary" / "scores.txt").write_text("".join(lines))
    sys.exit(1 if any("FAILED" in line for line in lines) else 0)


if __name__ == "__main__":
    app.run(main)
