"""What a study of queries leaves behind: a row a query, tables, pictures, and claims as told."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np

from densejax.active.rounds.curves import alc, break_even_interval, class_entropy, normalised_alc
from densejax.active.rounds.study import Member, Query, Study
from densejax.io import markdown, write_csv, write_text
from densejax.plots.curves import round_curves, score_of_setting
from densejax.stats import (
    NO_INTERVAL,
    Finding,
    Interval,
    PairedTest,
    bootstrap_mean,
    findings_table,
    paired_tests,
)

RANDOM = Query("random")


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
    final: Interval
    area: Interval
    seed_form: Interval
    break_even: Interval
    against_random: PairedTest | None
    balance: float
    spread: float

    @property
    def area_of(self) -> dict[int, float]:
        """``areas`` by seed."""
        return dict(zip(self.seeds, self.areas.tolist(), strict=True))

    @property
    def band(self) -> np.ndarray:
        """[3, t]: mean accuracy of each cycle and the ends of its interval."""
        return np.array([astuple(bootstrap_mean(column)) for column in self.accuracy.T]).T


@dataclass(frozen=True)
class Summary:
    """What a study came to."""

    rows: tuple[Row, ...]
    findings: tuple[Finding, ...]
    files: tuple[Path, ...]
    failed: int


def summarise(
    found: Sequence[Member],
    study: Study,
    *,
    claims: Callable[[Sequence[Row]], list[Finding]],
    remark: str,
    name: str,
    folder: Path,
) -> Summary:
    """Write tables, pictures and findings of all members that have ended.

    Args:
      found: members as ``Study.run`` returns them.
      study: for its labels, sizes and experts.
      claims: judges what the experiment asks.
      remark: on the sources of these claims.
      name: of the data set.
      folder: takes the files; made if absent.
    """
    folder.mkdir(parents=True, exist_ok=True)
    failed = [member for member in found if member.failed]
    rows = tabulate([member for member in found if not member.failed], study)
    findings = claims(rows)
    numbers = [f"{name}{end}" for name in NUMBERS for end in ("", "_low", "_high")]
    curves = [
        (row.width, row.query.name, labelled, *values)
        for row in rows
        for labelled, values in zip(study.setting.labelled, row.band.T, strict=True)
    ]
    files = [
        write_csv(
            folder / "queries.csv",
            ["width", "query", "seeds", *numbers, "p", "p_holm", "class_entropy", "spread"],
            map(_numbers, rows),
            form=".6g",
        ),
        write_csv(
            folder / "curves.csv",
            ["width", "query", "labelled", "accuracy", "low", "high"],
            curves,
            form=".6g",
        ),
        _write_findings(folder / "findings.md", findings, rows, study, name, failed, remark),
        *_draw(folder, rows, study, name),
    ]
    print(f"{len(rows)} queries, {len(failed)} members failed; see {folder}")
    return Summary(tuple(rows), tuple(findings), tuple(files), len(failed))


# ---- tables ----

NUMBERS = ("final", "alc", "alc_seed_form", "break_even", "above_random")


def tabulate(found: Iterable[Member], study: Study) -> list[Row]:
    """Return one row for each query and width, in the order of ``found``."""
    groups: dict[tuple[int, Query], dict[int, Member]] = {}
    for member in found:
        groups.setdefault((member.width, member.query), {})[member.seed] = member
    rows = []
    for width in dict.fromkeys(width for width, _ in groups):
        same = {query: members for (w, query), members in groups.items() if w == width}
        areas = {query: _areas(list(members.values()), study) for query, members in same.items()}
        random = same.get(RANDOM, {})
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
    random = same.get(RANDOM)
    if random is None or len(same) < 2:
        return {}
    seeds = sorted(set.intersection(*(set(members) for members in same.values())))
    if not seeds:
        return {}
    areas = {
        query: _areas([members[seed] for seed in seeds], study) for query, members in same.items()
    }
    base = areas.pop(RANDOM)
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
    both = sorted(set(members) & set(random))
    even = NO_INTERVAL
    if both and query != RANDOM:
        curves = [np.stack([m[seed].accuracy for seed in both]) for m in (members, random)]
        even = break_even_interval(labelled, *curves)
    lowest = float(accuracy[:, 0].mean())
    highest = float(np.mean([study.expert(width, seed)[0] for seed in members]))
    form = NO_INTERVAL
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


def _numbers(row: Row) -> list[object]:
    """Cells of ``queries.csv``."""
    test = row.against_random or PairedTest(NO_INTERVAL, np.nan, np.nan)
    intervals = (row.final, row.area, row.seed_form, row.break_even, test.difference)
    cells = [number for interval in intervals for number in astuple(interval)]
    name, seeds = row.query.name, len(row.seeds)
    return [row.width, name, seeds, *cells, test.p, test.p_holm, row.balance, row.spread]


def _write_findings(
    path: Path,
    findings: Sequence[Finding],
    rows: Sequence[Row],
    study: Study,
    name: str,
    failed: Sequence[Member],
    remark: str,
) -> Path:
    setting = study.setting
    seeds = max((len(row.seeds) for row in rows), default=0)
    lines = [
        f"# Queries on {name}",
        "",
        f"{setting.initial} random labels, then {setting.budget} a query, "
        f"{setting.labelled[-1]} in the end ({setting.cycles} trainings), of a pool of "
        f"{len(study.data['labels'])}; up to {seeds} seeds; accuracy on "
        f"{len(study.data['evaluation_labels'])} test pictures. All queries of a seed share its "
        "initial set and its initial weights.",
        "",
        "Areas are under the curve of accuracy over labels, divided by its width. Differences are "
        "paired by seed: mean, 95 % interval and p by Student's t, p adjusted by Holm within a "
        "group of claims; told apart is p (Holm) < 0.05. A claim that no source states is an "
        f"observation: above or below. {remark}",
        "",
    ]
    if failed:
        lines += [f"Failed: {', '.join(member.name for member in failed)}.", ""]
    lines += [
        *findings_table(findings, found="difference of areas (95 %)"),
        "",
        "Final accuracy, area and Chen's form with 95 % bootstrap intervals over seeds. "
        "Break-even: labels from which on the mean curve is nowhere below random's. "
        "Classes: entropy of the labelled classes / log c. "
        "Spread: distance of a queried picture to the nearest of its query, random = 1.",
        "",
    ]
    head = ["width", "query", "seeds", "final accuracy", "area", "Chen's form", "break-even"]
    table = []
    for row in rows:
        p = f"{row.against_random.p_holm:.2g}" if row.against_random else ""
        cells = [f"{row.final:.4f}", f"{row.area:.4f}", f"{row.seed_form:.1f}"]
        cells += [f"{row.break_even:.0f}", p, f"{row.balance:.3f}", f"{row.spread:.3f}"]
        table.append([row.width, row.query.name, len(row.seeds), *cells])
    lines += markdown([*head, "p against random (Holm)", "classes", "spread"], table)
    write_text(path, "\n".join(lines) + "\n")
    return path


# ---- pictures ----


def _draw(folder: Path, rows: Sequence[Row], study: Study, name: str) -> list[Path]:
    """A picture for every group of queries that has more than random."""
    labelled = study.setting.labelled
    widths = sorted({row.width for row in rows}, reverse=True)
    files = []
    for width in widths:
        same = [row for row in rows if row.width == width]
        for part, members in _parts(same).items():
            files.append(folder / f"{part}_w{width}.png")
            bands = {row.query.name: row.band for row in members}
            round_curves(
                labelled,
                {query: band[0] for query, band in bands.items()},
                intervals={query: (band[1], band[2]) for query, band in bands.items()},
                reference="random",
                ordered=part == "strides",
                title=f"{name}, width {width}",
                path=files[-1],
            )
    if not rows:
        return files
    wide = {row.query: row for row in rows if row.width == widths[0]}
    levels = {q.name: r.area.value for q, r in wide.items() if q.name in ("random", "entropy")}
    files += _draw_setting(
        folder / "temperatures.png",
        {
            f"step {move:g}": {
                q.temperature: r
                for q, r in wide.items()
                if q.move == move and q.kind in ("odin", "max_softmax") and q.stride == 1
            }
            for move in sorted({q.move for q in wide})
        },
        levels,
        "temperature of ODIN",
        name,
    )
    kinds = dict.fromkeys(q.kind for q in wide if q.stride > 1)
    files += _draw_setting(
        folder / "strides.png",
        {
            kind: {q.stride: r for q, r in wide.items() if q.kind == kind and not q.inverse}
            for kind in kinds
        },
        levels,
        "stride",
        name,
    )
    queries = [row.query for row in rows if row.width != widths[0]]
    files += _draw_setting(
        folder / "widths.png",
        {
            query.name: {row.width: row for row in rows if row.query == query}
            for query in dict.fromkeys(queries)
        },
        {},
        "hidden units",
        name,
    )
    return files


def _parts(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by picture, with random in each; parts of fewer than two others are left out."""
    random = [row for row in rows if row.query == RANDOM]
    oracles = [r for r in rows if r.query.inverse or r.query.kind in ("expert", "most_incorrect")]
    groups = {
        "strategies": [
            row
            for row in rows
            if row.query.kind in ("margin", "max_softmax", "entropy", "odin")
            and row.query in (Query(row.query.kind), Query("odin", temperature=0.1))
        ],
        "strides": [
            row
            for row in rows
            if any(other.query.kind == row.query.kind for other in rows if other.query.stride > 1)
        ],
        "oracles": [*(row for row in rows if oracles and row.query == Query("entropy")), *oracles],
    }
    return {part: [*random, *members] for part, members in groups.items() if len(members) > 1}


def _draw_setting(
    path: Path,
    series: dict[str, dict[float, Row]],
    levels: dict[str, float],
    x_label: str,
    name: str,
) -> list[Path]:
    """The areas over a setting; nothing where there are fewer than two settings."""
    x = sorted({setting for rows in series.values() for setting in rows})
    if len(x) < 2:
        return []
    scores = {}
    for label, rows in series.items():
        bands = np.full((3, len(x)), np.nan)
        for setting, row in rows.items():
            bands[:, x.index(setting)] = astuple(row.area)
        scores[label] = bands
    score_of_setting(
        x,
        scores,
        levels=levels,
        x_label=x_label,
        label="area under the curve / width",
        title=name,
        path=path,
    )
    return [path]
