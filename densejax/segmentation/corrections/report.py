"""What the arms of the correction loop came to: a table, a page of findings, and the curves."""

import csv
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np

from densejax.plots.curves import round_curves
from densejax.segmentation.corrections.study import Row, paired_difference

SCORES = {
    "held_out": "MIoU, held-out world",
    "organelles": "MIoU(org), held-out world",
    "unseen": "MIoU, corrected world, as predicted",
    "repaired": "MIoU, corrected world, with the corrections",
}


def print_row(row: Row) -> None:
    """One line an ensemble."""
    wrong = f", {100 * row.wrong:.1f} % had been wrong" if np.isfinite(row.wrong) else ""
    print(
        f"repeat {row.repeat}, {row.arm}, round {row.round}: held-out MIoU {row.held_out:.4f} "
        f"(org {row.organelles:.4f}), corrected world {row.unseen:.4f} -> {row.repaired:.4f}, "
        f"{row.voxels:,} voxels corrected{wrong}",
        flush=True,
    )


def report(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write the summary of a study.

    Args:
      rows: of all repeats.
      folder: for the files; what an earlier summary left there is replaced.

    Returns:
      The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / "rows.csv"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    findings = folder / "findings.md"
    findings.write_text(_findings(rows))
    print(findings.read_text())
    files = [table, findings]
    for score in ("held_out", "repaired"):
        files.append(_curves(rows, score, folder / f"{score}.png"))
    return files


def _arms(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row.arm for row in rows))


def _means(rows: Sequence[Row], arm: str, score: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard error over repeats of one arm's score after each round, [t] each."""
    rounds = range(max(row.round for row in rows) + 1)
    values = [
        [getattr(r, score) for r in rows if r.arm == arm and r.round == number] for number in rounds
    ]
    errors = [np.std(v, ddof=1) / np.sqrt(len(v)) if len(v) > 1 else np.nan for v in values]
    return np.array([np.mean(v) for v in values]), np.array(errors)


def _findings(rows: Sequence[Row]) -> str:
    arms, last = _arms(rows), max(row.round for row in rows)
    repeats = len({row.repeat for row in rows})
    lines = [f"# The correction loop, {repeats} repeats, {last} rounds", ""]
    for score, title in SCORES.items():
        lines += [f"{title}, mean over repeats (standard error of the mean):", ""]
        lines += ["| arm | " + " | ".join(f"round {n}" for n in range(last + 1)) + " |"]
        lines += ["|---" * (last + 2) + "|"]
        for arm in arms:
            means, errors = _means(rows, arm, score)
            cells = [f"{m:.4f} ({e:.4f})" for m, e in zip(means, errors, strict=True)]
            lines.append(f"| {arm} | " + " | ".join(cells) + " |")
        lines.append("")
    lines += ["Share of the corrected voxels that had been wrong, per cent:", ""]
    lines += ["| arm | " + " | ".join(f"round {n}" for n in range(1, last + 1)) + " |"]
    lines += ["|---" * (last + 1) + "|"]
    for arm in arms:
        if arm != "none":
            shares = 100 * _means(rows, arm, "wrong")[0][1:]
            lines.append(f"| {arm} | " + " | ".join(f"{share:.1f}" for share in shares) + " |")
    lines += ["", f"Paired over repeats, after round {last}:", ""]
    for other in ("random", "none"):
        for arm in arms:
            if arm != other and other in arms and arm != "none":
                lines += [_contrast(rows, arm, other, score) for score in ("held_out", "repaired")]
    return "\n".join(lines) + "\n"


def _contrast(rows: Sequence[Row], arm: str, other: str, score: str) -> str:
    found = paired_difference(rows, arm, other, score=score)
    verdict = "told apart" if found["p"] < 0.05 else "not told apart"
    chance = f"p = {found['p']:.3f}" if found["p"] >= 0.001 else "p < 0.001"
    return (
        f"- {arm} - {other}, {SCORES[score]}: {found['mean']:+.4f} (error {found['error']:.4f}), "
        f"above in {found['wins']} of {found['repeats']}, {chance}: {verdict}"
    )


def _curves(rows: Sequence[Row], score: str, path: Path) -> Path:
    """Mean over repeats with its standard error, over the voxels corrected so far."""
    # The arm that corrects nothing is drawn beside the others, at the same rounds.
    steps = np.max([_means(rows, arm, "voxels")[0] for arm in _arms(rows)], axis=0)
    steps = steps if steps.any() else np.arange(len(steps))
    found = {arm: _means(rows, arm, score) for arm in _arms(rows)}
    names = {"none": "no corrections, trained as long"}
    round_curves(
        steps,
        {names.get(arm, arm): means for arm, (means, _) in found.items()},
        path=path,
        intervals={
            names.get(arm, arm): (means - errors, means + errors)
            for arm, (means, errors) in found.items()
            if np.isfinite(errors).all()
        }
        or None,
        label=SCORES[score],
        x_label="corrected voxels",
        band_label="standard error of the mean",
    )
    return path
