"""Which pictures should be labelled next, and does the answer hold for narrow networks too?

Chen 2020, chapter 3: a network with one hidden layer starts from a few random labels, asks for more
by one of many queries, and learns anew from all labels so far; then again. Compared are random,
margin, max-softmax, entropy and ODIN; strides through a ranking for diversity; ODIN's temperature
and step; inverse, expert and oracle-error queries; and all that at widths from 512 down to 4. Every
query runs with every seed, all of one width in one program.

Data: the official files of Fashion-MNIST or MNIST in ``--data_folder``.

    python -m experiments.image_queries --data_folder=data/fashion_mnist --workdir=runs/fashion
    python -m experiments.image_queries --data=mnist --data_folder=data/mnist --workdir=runs/mnist
    ... --part=strides --seeds=0:10

The same command again continues, after a kill from the group of members that was in training; other
parts and more seeds extend a run. Initial set, budget, cycles and batch of the paper are not known
to us: the defaults are ours, cut alike for all queries, about 20 minutes a set on two idle cores.
``summary/findings.md`` holds each published claim and what is seen of it; ``summary/queries.csv``,
``summary/curves.csv`` and the pictures the rest.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import jax.numpy as jnp

from densejax.active.rounds import study_report as report
from densejax.active.rounds.study import Query, Setting, Study
from densejax.classification.task import ImageTask
from densejax.cli import main, option, seeds_option, start_folder
from densejax.data.vision import load_fashion_mnist, load_mnist
from densejax.models.mlp import CHEN_WIDTHS, MLP
from densejax.stats import Finding, Pair, judge_pairs

# Settings that change no trained number: a run may go on with others.
VARYING = ("part", "seeds", "slots", "data_folder")
PARTS = ("strategies", "strides", "widths", "temperatures", "oracles")

STRATEGIES = (
    Query("random"),
    Query("margin"),
    Query("max_softmax"),
    Query("entropy"),
    Query("odin", temperature=0.1),
)
STRIDES = tuple(2**i for i in range(9))
TEMPERATURES = tuple(10.0**i for i in range(-4, 4))
MOVES = (0.0, 0.0014)

REMARK = (
    "Cityscapes' tables are of another task (segmentation); that an order of them is here or not "
    "neither confirms nor refutes them."
)


@dataclass(frozen=True)
class Config:
    """Everything that decides a result."""

    data: Literal["fashion_mnist", "mnist"] = option("fashion_mnist", "what to learn")
    data_folder: str = option("", "folder of the four official .gz files")
    part: Literal["strategies", "strides", "widths", "temperatures", "oracles", "all"] = option(
        "all", "which queries to run; widths are the strategies at widths 32, 16, 8, 4"
    )
    seeds: tuple[int, ...] = seeds_option(0, 1, 2, 3, 4)
    initial: int = option(200, "random labels of the first cycle", unit="pictures", fast=20)
    budget: int = option(200, "labels that each query asks for", unit="pictures", fast=20)
    cycles: int = option(8, "trainings of each member; there is one query fewer", fast=2)
    epochs: int = option(20, "of each training", fast=1)
    batch: int = option(32, "pictures a step")
    expert_batch: int = option(128, "pictures a step of the networks that learn from all labels")
    learning_rate: float = option(1e-3, "of Adam")
    pool: int = option(
        0, "pictures to choose from, the first of the set; 0 is all", unit="pictures", fast=1000
    )
    slots: int = option(32, "members in one run of the program; 0 is all of a width")
    base_seed: int = option(0, "from which all seeds' keys are folded")


def build(config: Config, width: int, *, largest: int, expert: bool) -> ImageTask:
    """The network and its training; ``expert`` learns from all labels."""
    model = MLP(10, widths=(width,))
    return ImageTask(
        init_variables=lambda key: model.init(key, jnp.zeros((1, 28, 28, 1))),
        network=model.apply,
        classes=10,
        largest=largest,
        batch=config.expert_batch if expert else config.batch,
        epochs=config.epochs,
        optimiser="adam",
        learning_rate=config.learning_rate,
        schedule="constant",
    )


def queries(part: str) -> dict[tuple[Query, int], None]:
    """(query, width) of a part, in the order of its tables; each of ``all`` once."""
    if part == "all":
        return {pair: None for one in PARTS for pair in queries(one)}
    if part == "widths":
        return {(query, width): None for width in CHEN_WIDTHS[1:] for query in STRATEGIES}
    random = STRATEGIES[0]
    wanted = {
        "strategies": STRATEGIES,
        "strides": (random, *(Query("margin", stride=step) for step in STRIDES)),
        "temperatures": (random, *(odin(t, move) for move in MOVES for t in TEMPERATURES)),
        "oracles": (
            random,
            Query("entropy"),
            Query("entropy", inverse=True),
            Query("expert"),
            Query("most_incorrect"),
        ),
    }
    return {(query, CHEN_WIDTHS[0]): None for query in wanted[part]}


def odin(temperature: float, move: float) -> Query:
    """ODIN, or max-softmax where they are the same."""
    plain = temperature == 1 and not move
    return Query("max_softmax") if plain else Query("odin", temperature=temperature, move=move)


def run(config: Config, workdir: Path) -> report.Summary:
    """Train and query what is missing, then report on all that was asked for."""
    load = load_mnist if config.data == "mnist" else load_fashion_mnist
    train, test = load(config.data_folder)
    size = config.pool or len(train.labels)
    data = {
        "images": train.images[:size],
        "labels": train.labels[:size],
        "evaluation_images": test.images,
        "evaluation_labels": test.labels,
    }
    setting = Setting(config.initial, config.budget, config.cycles, config.base_seed, config.slots)
    start_folder(config, workdir, ignore=VARYING)
    study = Study(lambda width, **options: build(config, width, **options), data, setting, workdir)
    pairs = queries(config.part)
    found = study.run([(query, width, seed) for query, width in pairs for seed in config.seeds])
    name, folder = train.name.split()[0], workdir / "summary"
    return report.summarise(found, study, claims=claims, remark=REMARK, name=name, folder=folder)


def claims(rows: Sequence[report.Row]) -> list[Finding]:
    """Judge each claim whose queries are among the rows.

    Published are ODIN's temperature (recommended after Fashion-MNIST) and the order of the tables
    2.1 and 2.2, which are of whole images of Cityscapes. Of strides, widths, inverse, expert and
    oracle-error queries we know what was tried, not what was claimed: these are observations.
    """
    areas = {(row.query, row.width): row.area_of for row in rows}
    widths = sorted({row.width for row in rows}, reverse=True)
    random, margin, softmax, entropy, best = STRATEGIES
    tables, source = "tables 2.1, 2.2 (Cityscapes)", "T = 0.1 recommended after Fashion-MNIST"
    groups: list[list[Pair]] = []
    for width in widths:
        of = {query: areas.get((query, width)) for query in STRATEGIES}
        above: list[Pair] = [
            (f"width {width}: {query.name} above random", tables, of[query], of[random])
            for query in (margin, softmax, entropy, best)
        ]
        ordered: list[Pair] = [
            (f"width {width}: {a.name} above {b.name}", "table 2.2 (Cityscapes)", of[a], of[b])
            for a, b in pairwise((entropy, softmax, best, margin))
        ]
        groups.append(above + ordered)
    wide = {query: areas[query, width] for query, width in areas if width == widths[0]}
    temperatures: list[Pair] = [
        (f"ODIN T = 0.1 above T = {q.temperature:g}", source, wide.get(best), wide[q])
        for q in wide
        if q.kind in ("odin", "max_softmax") and not q.move and q != best
    ]
    moves: list[Pair] = [
        (
            f"ODIN T = {q.temperature:g}: without a move above {q.move:g}",
            tables if q.temperature == 1000 else "",
            wide.get(odin(q.temperature, 0.0)),
            wide[q],
        )
        for q in wide
        if q.kind == "odin" and q.move
    ]
    strides: list[Pair] = [
        (f"{q.name} above {q.kind}", "", wide[q], wide.get(Query(q.kind)))
        for q in wide
        if q.stride > 1
    ]
    oracles: list[Pair] = [
        (f"{q.name} above {other.name}", "", wide.get(q), wide.get(other))
        for q in (Query("entropy", inverse=True), Query("expert"), Query("most_incorrect"))
        for other in (random, entropy)
    ]
    every: list[list[Pair]] = [*groups, temperatures, moves, strides, oracles]
    return [finding for pairs in every for finding in judge_pairs(pairs)]


if __name__ == "__main__":
    main(Config, run, description=__doc__)
