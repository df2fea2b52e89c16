"""An evaluation as one HTML page: tables, pictures inside it, nothing from the network."""

import base64
import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from densejax.segmentation.evaluation.pictures import Picture

STYLE = """
:root { color-scheme: light; }
body { margin: 2.5rem auto; max-width: 62rem; padding: 0 1.25rem; color: #22262b;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .2rem; }
h2 { font-size: 1.15rem; margin: 2.6rem 0 .6rem; padding-top: .9rem;
  border-top: 1px solid #e4e7eb; }
p { max-width: 46rem; }
.lead, .note, figcaption, td.words { color: #5d646d; }
.note, figcaption, td.words { font-size: .87rem; }
.scores { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1.2rem 0; padding: 0; }
.scores div { background: #f5f6f8; border-radius: 6px; padding: .6rem .95rem; min-width: 7.5rem; }
.scores b { display: block; font-size: 1.45rem; font-variant-numeric: tabular-nums; }
.scores span { font-size: .84rem; color: #5d646d; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .6rem 0 1rem; }
th, td { padding: .28rem .8rem .28rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid #eceef1; }
th { font-weight: 600; font-size: .87rem; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
figure { margin: 1.1rem 0; }
figure img { max-width: 100%; height: auto; }
.pair { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; }
.pair figure { flex: 1 1 24rem; margin: .6rem 0; }
code { font-size: .85rem; overflow-wrap: anywhere; }
details { margin: .4rem 0; }
.warning { background: #fff4e0; border-left: 4px solid #e69f00; padding: .5rem .9rem; }
"""

TITLES = {
    "miou_all": "MIoU(all)",
    "miou_organelles": "MIoU(org)",
    "test_score": "Test score",
    "accuracy": "Accuracy",
    "adjusted_rand": "Adjusted Rand",
}
OBJECT_TITLES = {
    "rand_error": "Adapted Rand error",
    "rand_precision": "Rand precision",
    "rand_recall": "Rand recall",
    "rand_error_singletons": "Adapted Rand error, singletons",
    "split_bits": "Variation, splits (bits)",
    "merge_bits": "Variation, mergers (bits)",
    "split_bits_everywhere": "Variation everywhere, splits (bits)",
    "merge_bits_everywhere": "Variation everywhere, mergers (bits)",
    "true_objects": "True objects",
    "predicted_objects": "Predicted objects",
}
SHARE_DIGITS = 3


def page(report: Mapping[str, Any], pictures: Sequence[Picture]) -> str:
    """The page of a report.

    Args:
      report: as ``report.json`` holds it.
      pictures: PNGs, put into the page.

    Returns:
      HTML that needs no other file.
    """
    sections: list[tuple[str, Callable[..., str]]] = [
        ("scores", _scores),
        ("classes", _classes),
        ("cut", lambda _: "<h2>In the volume</h2>"),
        ("fractions", _fractions),
        ("objects", _objects),
        ("pairwise", _pairwise),
        ("threshold_sweep", _sweep),
        ("provenance", _provenance),
    ]
    body = [_head(report)]
    for name, write in sections:
        shown = [picture for picture in pictures if picture.section == name]
        if name in report or shown:
            body.append(f'<section id="{name}">{write(report)}{_figures(shown)}</section>')
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Evaluation</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _head(report: Mapping[str, Any]) -> str:
    region, voxels = report["region"], report["voxels"]
    true, predicted = list(report["fractions"]["value"])[:2]
    size = " x ".join(f"{v:g}" for v in region["voxel_nm"])
    lines = [
        "<h1>Evaluation</h1>",
        f"<p><code>{_safe(report['inputs'][predicted]['path'])}</code> against "
        f"<code>{_safe(report['inputs'][true]['path'])}</code></p>",
        f'<p class="lead">{_times(region["shape"])} voxels of {size} nm (z, y, x), '
        f"{voxels['counted']['value']:,} of them counted.</p>",
    ]
    if not report["complete"]:
        lines.append('<p class="warning">Only the first blocks were counted.</p>')
    missing = voxels["not_predicted"]["value"]
    if missing:
        lines.append(
            f'<p class="warning">{missing:,} labelled voxels were not predicted and count '
            "nowhere.</p>"
        )
    lines += [f'<p class="warning">{_safe(note)}</p>' for note in report.get("notes", ())]
    return "\n".join(lines)


def _scores(report: Mapping[str, Any]) -> str:
    found = report["scores"]
    shown = [name for name in TITLES if name in found]
    cards = "".join(
        f"<div><b>{_number(found[name]['value'])}</b><span>{TITLES[name]}</span></div>"
        for name in shown
    )
    words = _table(
        ("score", "what it is"), [(TITLES[name], found[name]["definition"]) for name in shown]
    )
    return f'<div class="scores">{cards}</div>{_folded("What these are", words)}'


def _classes(report: Mapping[str, Any]) -> str:
    found = report["classes"]
    columns = [name for name in found if name != "names"]
    rows = [
        (name, *(_number(found[column]["value"][i]) for column in columns))
        for i, name in enumerate(found["names"])
    ]
    words = "; ".join(
        f"{_column(name)}: {found[name]['definition'].rstrip('.').lower()}" for name in columns
    )
    return (
        f"<h2>Classes</h2>{_table(('class', *map(_column, columns)), rows, numbers=True)}"
        f'<p class="note">{_safe(words)}.</p>'
    )


def _fractions(report: Mapping[str, Any]) -> str:
    found = report["fractions"]
    names = list(found["value"])
    classes = list(next(iter(found["value"].values())))
    rows = [(k, *(_percent(found["value"][name][k]) for name in names)) for k in classes]
    return (
        f"<h2>Volume fractions</h2>{_table(('class', *names), rows, numbers=True)}"
        f'<p class="note">{_safe(found["definition"])}</p>'
    )


def _objects(report: Mapping[str, Any]) -> str:
    found = report["objects"]
    rows = [
        (title, _number(found[name]["value"]), found[name]["definition"])
        for name, title in OBJECT_TITLES.items()
    ]
    matches = found["matches"]
    columns = list(matches["value"][0])
    table = [
        (f"{row['threshold']:g}", *(_number(row[column]) for column in columns[1:]))
        for row in matches["value"]
    ]
    titles = [column.replace("_", " ").replace("iou", "IoU") for column in columns]
    return (
        f"<h2>Objects</h2>{_table(('score', 'value', 'what it is'), rows, numbers=True)}"
        f"<h3>Matched objects</h3>{_table(titles, table, numbers=True)}"
        f'<p class="note">{_safe(matches["definition"])}</p>'
    )


def _pairwise(report: Mapping[str, Any]) -> str:
    found = report["pairwise"]
    names, parts = found["names"], ["<h2>Everybody with everybody</h2>"]
    for score in TITLES:
        entry = found["scores"].get(score)
        if entry is None:
            continue
        rows = [
            (name, *("" if i == j else _number(v) for j, v in enumerate(entry["value"][i])))
            for i, name in enumerate(names)
        ]
        table = _table((TITLES[score], *names), rows, numbers=True)
        parts.append(f'{table}<p class="note">{_safe(entry["definition"])}</p>')
    return "".join(parts)


def _sweep(report: Mapping[str, Any]) -> str:
    found = report["threshold_sweep"]
    columns = ("miou", "iou_cell", "iou_background", "precision", "recall")
    thresholds = found["thresholds"]["value"]
    wanted = [round(t * (len(thresholds) - 1) / 10) for t in range(1, 10)]
    rows = [
        (f"{thresholds[i]:.2f}", *(_number(found[column]["value"][i]) for column in columns))
        for i in wanted
    ]
    best, labels = found["best"], found["labels"]
    lines = (
        f"Best: MIoU {_number(best['value']['miou'])} at {best['value']['threshold']:.3f}. "
        f"{best['definition']}",
        f"Most probable class: MIoU {_number(labels['value']['miou'])}. {labels['definition']}",
    )
    titles = ("threshold", "MIoU", "IoU of the cell", "IoU of the background", *columns[3:])
    return f"<h2>Cell or not, by threshold</h2>{_table(titles, rows, numbers=True)}" + "".join(
        f'<p class="note">{_safe(line)}</p>' for line in lines
    )


def _provenance(report: Mapping[str, Any]) -> str:
    parts = ["<h2>Where this comes from</h2>"]
    for name, entry in report["inputs"].items():
        rows = [(key, _text(value)) for key, value in entry.items() if value is not None]
        parts.append(f"<h3>{_safe(name)}</h3>{_table((), rows)}")
    rows = [(key, _text(value)) for key, value in report["provenance"].items()]
    parts.append(_folded("Program, versions, machine", _table((), rows)))
    return "".join(parts)


def _figures(pictures: Iterable[Picture]) -> str:
    parts = []
    for picture in pictures:
        data = base64.b64encode(picture.path.read_bytes()).decode()
        parts.append(
            f'<figure><img alt="{_safe(picture.caption)}" src="data:image/png;base64,{data}">'
            f"<figcaption>{_safe(picture.caption)}</figcaption></figure>"
        )
    return f'<div class="pair">{"".join(parts)}</div>' if parts else ""


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: bool = False) -> str:
    """A table; with ``numbers`` every column but the first stands at the right, unless words."""

    def cell(tag: str, place: int, text: str) -> str:
        words = len(text) > 40
        kind = ' class="words"' if words else ' class="number"' if numbers and place else ""
        return f"<{tag}{kind}>{_safe(text)}</{tag}>"

    head = "".join(cell("th", i, title) for i, title in enumerate(titles))
    body = "".join(
        f"<tr>{''.join(cell('td', i, text) for i, text in enumerate(row))}</tr>" for row in rows
    )
    head = f"<thead><tr>{head}</tr></thead>" if head else ""
    return f'<div class="wide"><table>{head}<tbody>{body}</tbody></table></div>'


def _folded(title: str, inner: str) -> str:
    return f"<details><summary>{title}</summary>{inner}</details>"


def _column(name: str) -> str:
    return {"iou": "IoU", "dice": "Dice"}.get(name, name)


def _number(value: float | None) -> str:
    if value is None:
        return "none"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _percent(value: float | None) -> str:
    return "none" if value is None else f"{100 * value:.{SHARE_DIGITS}g} %"


def _times(values: Iterable[int]) -> str:
    return " x ".join(f"{value:,}" for value in values)


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{key} {_text(entry)}" for key, entry in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_text(entry) for entry in value)
    return "none" if value is None else str(value)


def _safe(text: str) -> str:
    return html.escape(str(text))
