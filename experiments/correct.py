"""Which parts of a predicted volume should an annotator correct, and what came back?

The correction loop (section 4.3.3 of Emam 2022): an ensemble labels a volume, an annotator corrects
the blocks on which its members disagree most, and the ensemble trains on with what was corrected.

Data: a prediction of ``experiments.predict``, with the volume that it labels.

    python -m experiments.correct --prediction=OUT --export=24 --workdir=corrections
    (correct the label stacks in corrections/export_0001; its README.txt says how)
    python -m experiments.correct --collect=corrections/export_0001 --workdir=corrections
    python -m experiments.segment --init_from=RUN --extra_labels=corrections \\
        --learning_rate=3e-4 --workdir=NEXT

``--export`` writes the most doubtful blocks that nobody has yet, far apart and never two
neighbouring sections of one place; the same command again gives the next ones. ``--collect`` takes
an export back, as often as the annotator likes: it prints what counts of each block, and keeps
everything that it was ever given. Several exports, of several predictions of one volume, go into
one ``--workdir``. Expected: a list of blocks within seconds for 10^8 voxels (the prediction is read
once), in less than 1 GB of memory for any volume.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from densejax.cli import main, option, start_folder
from densejax.segmentation.finetune.corrections import Collected, collect_blocks
from densejax.segmentation.finetune.export import export_blocks, open_predicted
from densejax.segmentation.sources import three


@dataclass(frozen=True)
class Config:
    """One step of the loop: give blocks to an annotator, or take them back."""

    prediction: str = option("", "folder of the prediction to export from")
    export: int = option(
        0,
        "blocks to give to an annotator; 0 exports none",
        unit="blocks",
        fast=lambda config: min(config.export, 2),
    )
    collect: str = option("", "folder of an export to take back")
    block: tuple[int, ...] = option((1, 256, 256), "size z,y,x of exported blocks", unit="voxels")
    by: Literal["disagreement", "entropy", "random"] = option(
        "disagreement", "what ranks the blocks; random is a fair sample"
    )
    seed: int = option(0, "of the order of --by=random")
    distance_nm: float | None = option(
        None,
        "least distance between centres of blocks; default: the longest side of a block, less "
        "where too few are left, and no neighbouring sections of one place (--by=random: 0)",
        unit="nm",
    )
    image: str = option("", "the image volume, where it has moved since the prediction")
    changed_only: bool = option(
        False, "count changed labels alone: members that train on with them unlearn the rest"
    )
    label_values: tuple[int, ...] = option(
        (), "values of the classes in labels that came back, such as 0,255; default: 0,1,..."
    )
    unlabelled: int | None = option(None, "value in them that does not count, besides 255 and -1")


# A folder of corrections is made by many commands: none of their settings holds for all.
VARYING = tuple(Config.__dataclass_fields__)


@dataclass(frozen=True)
class Result:
    """What was done."""

    folder: Path | None
    collected: Collected | None = None
    failed: int = 0


def run(config: Config, workdir: Path) -> Result:
    """Export or collect."""
    if bool(config.export) == bool(config.collect):
        raise ValueError(
            "one of --export=N (with --prediction=OUT) and --collect=FOLDER is needed; found "
            f"--export={config.export} --collect={config.collect!r}"
        )
    if config.collect:
        collected = collect_blocks(
            Path(config.collect),
            workdir,
            changed_only=config.changed_only,
            values=config.label_values,
            unlabelled=config.unlabelled,
        )
        start_folder(config, workdir, ignore=VARYING)
        print_collected(collected)
        return Result(collected.folder, collected)
    if not config.prediction:
        raise ValueError("--export needs --prediction, the folder of a prediction")
    folder = export_blocks(
        open_predicted(Path(config.prediction), by=config.by, image=config.image),
        workdir,
        count=config.export,
        shape=three(config.block, "--block"),
        by=config.by,
        seed=config.seed,
        least_distance_nm=config.distance_nm,
    )
    start_folder(config, workdir, ignore=VARYING)
    lines = (folder / "blocks.csv").read_text().splitlines()
    print("\n".join(lines[:11] + ["..."] * (len(lines) > 11)))
    print(f"{len(lines) - 1} blocks to correct in {folder}; see README.txt there")
    return Result(folder)


def print_collected(collected: Collected) -> None:
    """One line a block, and what came of all."""
    print(f"{'block':<14}{'counts':<14}{'corrected':>12}{'changed':>12}{'again':>10}{'other':>10}")
    for block in collected.blocks:
        again, other = (
            table.get(block.name, 0) for table in (collected.again, collected.conflicts)
        )
        rule = "as before" if block.name in collected.known else block.rule
        print(
            f"{block.name:<14}{rule:<14}{block.corrected:>12,}{block.changed:>12,}"
            f"{again:>10,}{other:>10,}"
        )
    untouched = sum(block.labels is not None and not block.corrected for block in collected.blocks)
    print(
        f"{sum(block.corrected for block in collected.blocks):,} corrected voxels; "
        f"{sum(collected.again.values()):,} had been corrected before, "
        f"{sum(collected.conflicts.values()):,} of them otherwise (the later counts); "
        f"{untouched} blocks as predicted and not in done.txt: not counted"
    )
    kept = "nothing new" if collected.folder is None else f"kept in {collected.folder}"
    print(kept)


if __name__ == "__main__":
    main(Config, run, description=__doc__)
