"""The examples in docstrings are true."""

import doctest
import importlib

import pytest

# Named one by one, so that no compiled kernel and no optional library is imported in search of examples.
MODULES = (
    "backbones", "compare", "datasets", "datasets.planted", "distributed", "distributed.blocks",
    "distributed.connection", "distributed.devices", "features", "fewshot", "lnamd", "methods.anomalydino",
    "methods.base", "methods.padim", "methods.patchcore", "methods.registry", "methods.subspacead", "methods.tokens",
    "methods.winclip", "metrics", "msm", "pipeline", "plugin.agreement", "plugin.class_tokens",
    "results.evaluation", "results.figures", "results.pictures", "results.thresholds", "rscin",
    "scoring.aggregation", "scoring.choices", "scoring.consistency", "scoring.links", "scoring.maps",
    "scoring.neighbours", "scoring.tiles", "snamd", "sources", "stream", "verdicts",
)  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_examples_are_true(name, capsys):
    found = doctest.testmod(importlib.import_module(f"musc.{name}"))
    assert found.attempted, "no example"
    assert not found.failed, capsys.readouterr().out
