"""How the house is built, as far as the contracts for `lint-imports` in pyproject.toml cannot say it."""

import ast
from graphlib import TopologicalSorter

import pytest
from imports import ROOT, imported, modules

OURS = modules("musc", "pretraining", "benchmarks", "tools")
LONGEST = 400  # lines of a file of the package; near 250 is the aim
WITH_EXAMPLES = ("musc.lnamd", "musc.msm", "musc.rscin", "musc.metrics", "musc.fewshot")


def owner_of_private(dotted: str) -> str | None:
    """What stands before the first underscore name: the module or package that it is private to."""
    parts = dotted.split(".")
    private = [n for n, part in enumerate(parts) if part.startswith("_") and not part.startswith("__")]
    return ".".join(parts[: private[0]]) if private else None


def module_of(dotted: str) -> str | None:
    """The module of ours that a dotted name lies in."""
    while dotted and dotted not in OURS:
        dotted = dotted.rpartition(".")[0]
    return dotted or None


@pytest.mark.parametrize("name", sorted(OURS))
def test_no_module_uses_an_underscore_name_of_another(name):
    for line, dotted in imported(OURS[name]):
        owner = owner_of_private(dotted)
        if module_of(dotted) and owner is not None:
            assert f"{name}.".startswith(f"{owner}."), f"{OURS[name]}:{line} uses {dotted}: give it a public name"


def test_no_module_imports_itself_by_way_of_others():
    """Inside of functions and for type checkers too; a circle would raise CycleError, which names it."""
    graph = {name: {module_of(dotted) for _, dotted in imported(path)} - {None, name} for name, path in OURS.items()}
    assert len(graph["musc.pipeline"]) > 5
    TopologicalSorter(graph).prepare()


def test_no_file_of_the_package_is_long():
    lines = {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in OURS.values()}
    assert not {path: n for path, n in lines.items() if path.startswith("musc/") and n > LONGEST}


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_public_functions_have_an_example(name):
    """What the examples say is checked too: the examples are run with the tests (test_examples)."""
    functions = [node for node in ast.parse(OURS[name].read_text()).body if isinstance(node, ast.FunctionDef)]
    public = [node for node in functions if not node.name.startswith("_")]
    assert public
    assert [node.name for node in public if ">>>" not in (ast.get_docstring(node) or "")] == []
