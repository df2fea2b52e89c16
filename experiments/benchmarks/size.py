"""How large is the repository? Lines, files and tokens of every room, as a Markdown table.

Counts the Python files of this folder's repository (or of the one that is named). Tokens are those
of Python's own tokenizer without comments, docstrings, line ends and indentation: what is left when
prose and layout do not count.

    python -m experiments.benchmarks.size
    python -m experiments.benchmarks.size ../before

Needs nothing but the standard library; a few seconds.
"""

import ast
import io
import sys
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TOPS = ("densejax", "experiments", "launch", "tests")
LAYOUT = (
    *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT),
    *(tokenize.ENCODING, tokenize.ENDMARKER),
)


@dataclass(frozen=True)
class Size:
    """Of one file or of many."""

    files: int = 0
    lines: int = 0
    tokens: int = 0

    def __add__(self, other: "Size") -> "Size":
        return Size(self.files + other.files, self.lines + other.lines, self.tokens + other.tokens)


def size_of(text: str) -> Size:
    """Count one file's lines and tokens."""
    spans = set(_docstrings(ast.parse(text)))
    read = tokenize.generate_tokens(io.StringIO(text).readline)
    tokens = sum(token.type not in LAYOUT and token.start not in spans for token in read)
    return Size(1, len(text.splitlines()), tokens)


def _docstrings(tree: ast.AST) -> Iterator[tuple[int, int]]:
    """Where docstrings begin, and other strings that stand alone as a statement."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            if isinstance(node.value.value, str):
                yield node.lineno, node.col_offset


def room_of(path: Path) -> str:
    """``densejax/models/unet.py`` is in ``densejax/models``; a file on top is a room of its own."""
    return "/".join(path.parts[:2]) if path.parts[0] == "densejax" else _outside(path)


def _outside(path: Path) -> str:
    return "/".join(path.parts[:2]) if len(path.parts) > 2 else path.parts[0]


def sizes(root: Path) -> dict[str, Size]:
    """Size of each room of a repository, by name."""
    found: dict[str, Size] = defaultdict(Size)
    for top in TOPS:
        for path in sorted((root / top).rglob("*.py")):
            found[room_of(path.relative_to(root))] += size_of(path.read_text())
    return dict(sorted(found.items()))


def table(found: dict[str, Size]) -> str:
    """Markdown: a room a row, and a sum of each folder on top."""
    lines = ["| room | files | lines | tokens |", "|---|--:|--:|--:|"]
    for top in TOPS:
        rooms = {name: size for name, size in found.items() if name.split("/")[0] == top}
        for name, size in rooms.items():
            lines.append(f"| {name} | {size.files} | {size.lines:,} | {size.tokens:,} |")
        total = sum(rooms.values(), Size())
        lines.append(
            f"| **{top}, all** | **{total.files}** | **{total.lines:,}** | **{total.tokens:,}** |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(sizes(Path(sys.argv[1] if len(sys.argv) > 1 else "."))))
