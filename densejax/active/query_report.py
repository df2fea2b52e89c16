"""What a study of queries leaves behind: tables, pictures, and each claim with its verdict."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from densejax.active.curves import Estimate
from densejax.active.query_program import Query
from densejax.active.query_study import Member, Study
from densejax.active.query_tables import Finding, Row, bootstrap_mean, find, tabulate
from densejax.plots.curves import round_curves, score_of_setting


@dataclass(frozen=True)
class Summary:
    """What a study came to."""

    rows: tuple[Row, ...]
    findings: tuple[Finding, ...]
    files: tuple[Path, ...]
    failed: int


def summarise(found: Sequence[Member], study: Study, *, name: str, folder: Path) -> Summary:
    """Tables, pictures and findings of all members that have ended.

    Args:
      found: members as ``Study.run`` returns them.
      study: for its labels, sizes and experts.
      name: of the data set.
      folder: takes the files; made if absent.
    """
    folder.mkdir(parents=True, exist_ok=True)
    failed = [member for member in found if member.failed]
    rows = tabulate([member for member in found if not member.failed], study)
    findings = find(rows)
    files = [
        _write_rows(folder / "queries.csv", rows),
        _write_curves(folder / "curves.csv", rows, study),
        _write_findings(folder / "findings.md", findings, rows, study, name, failed),
        *_draw(folder, rows, study, name),
    ]
    print(f"{len(rows)} queries, {len(failed)} members failed; see {folder}")
    return Summary(tuple(rows), tuple(findings), tuple(files), len(failed))


# ---- files ----


def _write_rows(path: Path, rows: Sequence[Row]) -> Path:
    head = ["width", "query", "seeds"]
    for name in ("final", "alc", "alc_seed_form", "break_even"):
        head += [name, f"{name}_low", f"{name}_high"]
    head += ["above_random", "above_random_low", "above_random_high", "p", "p_holm"]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*head, "class_entropy", "spread"])
        for row in rows:
            cells: list[object] = [row.width, row.query.name, len(row.seeds)]
            for estimate in (row.final, row.area, row.seed_form, row.break_even):
                cells += [f"{v:.6g}" for v in (estimate.value, estimate.low, estimate.high)]
            test = row.against_random
            numbers = (np.nan,) * 5
            if test is not None:
                gap = test.difference
                numbers = (gap.value, gap.low, gap.high, test.p, test.p_holm)
            cells += [f"{v:.6g}" for v in (*numbers, row.balance, row.spread)]
            writer.writerow(cells)
    return path


def _write_curves(path: Path, rows: Sequence[Row], study: Study) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["width", "query", "labelled", "accuracy", "low", "high"])
        for row in rows:
            for labelled, values in zip(study.setting.labelled, _band(row).T, strict=True):
                cells = [f"{value:.6g}" for value in values]
                writer.writerow([row.width, row.query.name, labelled, *cells])
    return path


def _band(row: Row) -> np.ndarray:
    """[3, t]: mean, low, high."""
    estimates = [bootstrap_mean(column) for column in row.accuracy.T]
    return np.array([[e.value, e.low, e.high] for e in estimates]).T


def _estimate(estimate: Estimate, digits: int = 4) -> str:
    low, high = (f"{v:.{digits}f}" for v in (estimate.low, estimate.high))
    return f"{estimate.value:.{digits}f} ({low} to {high})"


def _write_findings(
    path: Path,
    findings: Sequence[Finding],
    rows: Sequence[Row],
    study: Study,
    name: str,
    failed: Sequence[Member],
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
        "observation: above or below. Cityscapes' tables are of another task "
        "(segmentation); that an order of them is here or not neither confirms nor refutes them.",
        "",
    ]
    if failed:
        lines += [f"Failed: {', '.join(member.name for member in failed)}.", ""]
    lines += [
        "| claim | published | verdict | difference of areas (95 %) | p | p (Holm) |",
        "|---|---|---|---|---|---|",
    ]
    for one in findings:
        lines.append(
            f"| {one.claim} | {one.published or 'no'} | {one.verdict} | "
            f"{_estimate(one.test.difference)} | {one.test.p:.2g} | {one.test.p_holm:.2g} |"
        )
    lines += [
        "",
        "Final accuracy, area and Chen's form with 95 % bootstrap intervals over seeds. "
        "Break-even: labels from which on the mean curve is nowhere below random's. "
        "Classes: entropy of the labelled classes / log c. "
        "Spread: distance of a queried picture to the nearest of its query, random = 1.",
        "",
        "| width | query | seeds | final accuracy | area | Chen's form | break-even | p against "
        "random (Holm) | classes | spread |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        p = f"{row.against_random.p_holm:.2g}" if row.against_random else ""
        lines.append(
            f"| {row.width} | {row.query.name} | {len(row.seeds)} | {_estimate(row.final)} | "
            f"{_estimate(row.area)} | {_estimate(row.seed_form, 1)} | "
            f"{_estimate(row.break_even, 0)} | {p} | {row.balance:.3f} | {row.spread:.3f} |"
        )
    path.write_text("\n".join(lines) + "\n")
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
            bands = {row.query.name: _band(row) for row in members}
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
    random = [row for row in rows if row.query == Query("random")]
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
            bands[:, x.index(setting)] = row.area.value, row.area.low, row.area.high
        scores[label] = bands
    where = {"levels": levels, "x_label": x_label, "label": "area under the curve / width"}
    score_of_setting(x, scores, path=path, **where, title=name)  # type: ignore[arg-type]
    return [path]
