"""What a study of queries has found, in numbers: a row for each query, and claims with verdicts."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from densejax.active.curves import (
    Estimate,
    PairedTest,
    alc,
    break_even_interval,
    class_entropy,
    normalised_alc,
    paired_tests,
)
from densejax.active.query_program import Query
from densejax.active.query_study import Member, Study

LEVEL = 0.05  # of adjusted p, below which two queries are told apart


@dataclass(frozen=True)
class Row:
    """One query at one width.

    Attributes:
      accuracy: [k, t] of each seed and cycle.
      areas: [k], ALC / X.
      final: accuracy of the last cycle.
      area: mean of ``areas``.
      seed_form: ALC in the form of Chen 2020, in labels; nan where the expert is no better than
        the first cycle.
      break_even: labels from which on it is nowhere below random.
      against_random: of the areas, paired by seed; None of random itself or without it.
      balance: entropy of the labelled classes in the end / log c.
      spread: mean distance of a queried picture to the nearest of its own query, in units of what
        a random query has; nan without random.
    """

    query: Query
    width: int
    seeds: tuple[int, ...]
    accuracy: np.ndarray
    areas: np.ndarray
    final: Estimate
    area: Estimate
    seed_form: Estimate
    break_even: Estimate
    against_random: PairedTest | None
    balance: float
    spread: float


@dataclass(frozen=True)
class Finding:
    """A claim, and what is seen of it.

    Attributes:
      claim: in words.
      published: where it is stated; empty for an observation that no source foretells.
      verdict: ``seen``, ``not seen`` or ``not told apart`` of a published claim; ``above``,
        ``below`` or ``not told apart`` of an observation.
      test: the difference of areas behind it, and its p.
    """

    claim: str
    published: str
    verdict: str
    test: PairedTest


def bootstrap_mean(scores: np.ndarray, *, seed: int = 0, resamples: int = 5000) -> Estimate:
    """Mean of [k] scores and its 95 % percentile bootstrap interval over the k seeds.

    With five seeds it is narrower than it should be; tests use Student's t instead.
    """
    values = np.asarray(scores, np.float64)
    drawn = np.random.default_rng(seed).integers(0, len(values), (resamples, len(values)))
    low, high = np.quantile(values[drawn].mean(axis=1), (0.025, 0.975)).tolist()
    return Estimate(float(values.mean()), low, high)


# ---- tables ----


def tabulate(found: Iterable[Member], study: Study) -> list[Row]:
    """One row for each query and width, in the order of ``found``; seeds that random has too."""
    groups: dict[tuple[int, Query], dict[int, Member]] = {}
    for member in found:
        groups.setdefault((member.width, member.query), {})[member.seed] = member
    rows = []
    for width in dict.fromkeys(width for width, _ in groups):
        same = {query: members for (w, query), members in groups.items() if w == width}
        areas = {query: _areas(list(members.values()), study) for query, members in same.items()}
        random = same.get(Query("random"), {})
        tests = _tests_against_random(same, study)
        spreads = [_spread(member, study) for member in random.values()]
        usual = float(np.mean(spreads)) if spreads else float("nan")
        for query, members in same.items():
            test = tests.get(query)
            rows.append(_row(width, query, members, areas[query], random, test, usual, study))
    return rows


def _areas(members: Sequence[Member], study: Study) -> np.ndarray:
    return alc(study.setting.labelled, np.stack([member.accuracy for member in members]))


def _tests_against_random(
    same: dict[Query, dict[int, Member]], study: Study
) -> dict[Query, PairedTest]:
    """Holm's adjustment is over all queries of one width."""
    random = same.get(Query("random"))
    if random is None or len(same) < 2:
        return {}
    seeds = sorted(set.intersection(*(set(members) for members in same.values())))
    if not seeds:
        return {}
    areas = {
        query: _areas([members[seed] for seed in seeds], study) for query, members in same.items()
    }
    base = areas.pop(Query("random"))
    found = paired_tests({query.name: values for query, values in areas.items()}, base)
    return {query: found[query.name] for query in areas}


def _row(
    width: int,
    query: Query,
    members: dict[int, Member],
    areas: np.ndarray,
    random: dict[int, Member],
    test: PairedTest | None,
    usual: float,
    study: Study,
) -> Row:
    labelled, labels = study.setting.labelled, np.asarray(study.data["labels"])
    accuracy = np.stack([member.accuracy for member in members.values()])
    nan = Estimate(np.nan, np.nan, np.nan)
    both = sorted(set(members) & set(random))
    even = nan
    if both and query != Query("random"):
        curves = [np.stack([m[seed].accuracy for seed in both]) for m in (members, random)]
        even = break_even_interval(labelled, *curves)
    lowest = float(accuracy[:, 0].mean())
    highest = float(np.mean([study.expert(width, seed)[0] for seed in members]))
    form = nan
    if highest > lowest:
        form = bootstrap_mean(normalised_alc(labelled, accuracy, lowest=lowest, highest=highest))
    classes = int(labels.max()) + 1
    counts = np.stack(
        [np.bincount(labels[member.labelled], minlength=classes) for member in members.values()]
    )
    spreads = [_spread(m, study) for m in members.values()]
    return Row(
        query,
        width,
        tuple(members),
        accuracy,
        areas,
        bootstrap_mean(accuracy[:, -1]),
        bootstrap_mean(areas),
        form,
        even,
        test,
        float(class_entropy(counts, relative=True).mean()),
        float(np.mean(spreads)) / usual,
    )


def _spread(member: Member, study: Study) -> float:
    """Mean distance of a picture to the nearest of its query, over all queries; nan without one."""
    setting, found = study.setting, []
    for start in range(setting.initial, len(member.labelled), setting.budget):
        rows = member.labelled[start : start + setting.budget]
        pixels = np.asarray(study.data["images"])[rows].reshape(len(rows), -1) / 255.0
        squares = (pixels**2).sum(axis=1)
        between = squares[:, None] + squares - 2 * pixels @ pixels.T
        np.fill_diagonal(between, np.inf)
        if len(rows) > 1:
            found.append(np.sqrt(np.maximum(between.min(axis=1), 0)).mean())
    return float(np.mean(found)) if found else float("nan")


# ---- claims ----


def find(rows: Sequence[Row]) -> list[Finding]:
    """Each claim whose queries are among the rows.

    Published are ODIN's temperature (recommended after Fashion-MNIST) and the order of the tables
    2.1 and 2.2, which are of whole images of Cityscapes. Of strides, widths, inverse, expert and
    oracle-error queries we know what was tried, not what was claimed: these are observations.
    """
    table = {(row.query, row.width): row for row in rows}
    found = []
    wide = max((row.width for row in rows), default=0)
    for width in sorted({row.width for row in rows}, reverse=True):
        found += _of_strategies(table, width)
    found += _of_temperatures(table, wide) + _of_strides(table, wide) + _of_oracles(table, wide)
    return found


def _compare(pairs: Sequence[tuple[str, str, Row | None, Row | None]]) -> list[Finding]:
    """Findings of (claim, published, above, below); Holm's adjustment is over these."""
    gaps: dict[str, np.ndarray] = {}
    sources: dict[str, str] = {}
    for claim, published, above, below in pairs:
        if above is None or below is None or not set(above.seeds) & set(below.seeds):
            continue
        a, b = (dict(zip(row.seeds, row.areas, strict=True)) for row in (above, below))
        gaps[claim] = np.array([a[seed] - b[seed] for seed in a if seed in b])
        sources[claim] = published
    longest = max((len(gap) for gap in gaps.values()), default=0)
    # Not a number is no seed to ``paired_tests``.
    padded = {
        claim: np.pad(gap, (0, longest - len(gap)), constant_values=np.nan)
        for claim, gap in gaps.items()
    }
    return [
        Finding(claim, sources[claim], verdict(test, published=bool(sources[claim])), test)
        for claim, test in paired_tests(padded, np.zeros(longest)).items()
    ]


def verdict(test: PairedTest, *, published: bool) -> str:
    """Words for a difference that is claimed (or asked) to be above 0; not of a nan p."""
    if not test.p_holm < LEVEL:
        return "not told apart"
    above = test.difference.value > 0
    return ("seen" if above else "not seen") if published else ("above" if above else "below")


Table = dict[tuple[Query, int], Row]


def _of_strategies(table: Table, width: int) -> list[Finding]:
    named = {name: table.get((Query(name), width)) for name in ("margin", "max_softmax", "entropy")}  # type: ignore[arg-type]
    named["odin-T0.1"] = table.get((Query("odin", temperature=0.1), width))
    random, source = table.get((Query("random"), width)), "tables 2.1, 2.2 (Cityscapes)"
    pairs = [
        (f"width {width}: {name} above random", source, row, random) for name, row in named.items()
    ]
    order = ("entropy", "max_softmax", "odin-T0.1", "margin")
    for above, below in pairwise(order):
        where = "table 2.2 (Cityscapes)"
        claim = f"width {width}: {above} above {below}"
        pairs.append((claim, where, named[above], named[below]))
    return _compare(pairs)


def _of_temperatures(table: Table, width: int) -> list[Finding]:
    best = table.get((Query("odin", temperature=0.1), width))
    source = "T = 0.1 recommended after Fashion-MNIST"
    pairs = []
    for query, w in table:
        if w == width and query.kind in ("odin", "max_softmax") and not query.move:
            other = None if query.temperature == 0.1 else table[query, w]
            claim = f"ODIN T = 0.1 above T = {query.temperature:g}"
            pairs.append((claim, source, best, other))
    found = _compare(pairs)
    moved = []
    for query, w in table:
        if w == width and query.kind == "odin" and query.move:
            plain = Query("odin", temperature=query.temperature)
            plain = Query("max_softmax") if query.temperature == 1 else plain
            claim = f"ODIN T = {query.temperature:g}: without a move above {query.move:g}"
            where = "tables 2.1, 2.2 (Cityscapes)" if query.temperature == 1000 else ""
            moved.append((claim, where, table.get((plain, w)), table[query, w]))
    return found + _compare(moved)


def _of_strides(table: Table, width: int) -> list[Finding]:
    pairs = [
        (f"{query.name} above {query.kind}", "", table[query, w], table.get((Query(query.kind), w)))
        for query, w in table
        if w == width and query.stride > 1
    ]
    return _compare(pairs)


def _of_oracles(table: Table, width: int) -> list[Finding]:
    own, random = (table.get((Query(kind), width)) for kind in ("entropy", "random"))  # type: ignore[arg-type]
    others = (Query("entropy", inverse=True), Query("expert"), Query("most_incorrect"))
    pairs = [
        (f"{query.name} above {name}", "", table.get((query, width)), row)
        for query in others
        for name, row in (("random", random), ("entropy", own))
    ]
    return _compare(pairs)
