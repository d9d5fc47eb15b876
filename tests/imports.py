"""What Python files import and use of it, read from their syntax and without running them: inside of functions too."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def modules(*folders: str) -> dict[str, Path]:
    """The modules of packages in the repository, by their dotted names."""
    files = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in files}


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything a file imports, and of every attribute that it takes from such a name."""
    tree, names = ast.parse(path.read_text(encoding="utf-8")), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            assert not getattr(node, "level", 0), f"{path}:{node.lineno}: relative; name the module in full."
            for alias in node.names:
                dotted = alias.name if isinstance(node, ast.Import) else f"{node.module}.{alias.name}"
                names[alias.asname or alias.name] = dotted
                yield node.lineno, dotted
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in names:
            yield node.lineno, f"{names[node.value.id]}.{node.attr}"
