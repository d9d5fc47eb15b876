"""An executed notebook goes stale by what its code means, not by how it is written."""

import shutil

import pytest

from tools import notebooks

KERNELS = "musc/engines/cpu/preparation.py"


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A copy of the package, of the notebooks and of the data that they read, to be edited."""
    for part in ("musc", "notebooks", "benchmarks/results"):
        shutil.copytree(notebooks.ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(notebooks.ROOT / "_config.yml", tmp_path)
    monkeypatch.setattr(notebooks, "ROOT", tmp_path)
    monkeypatch.setattr(notebooks, "FOLDER", tmp_path / "notebooks")
    assert stale() == {}
    return tmp_path


def stale():
    return {s.stem: why for s in notebooks.scripts() if (why := notebooks.stale(s, elsewhere=True))}


def add(path, text):
    path.write_text(path.read_text(encoding="utf-8") + text, encoding="utf-8")


def test_comments_docstrings_and_layout_make_nothing_stale(tree):
    text = (tree / "musc/msm.py").read_text(encoding="utf-8")
    first, rest = text.split("\n", 1)
    assert first.startswith('"""')
    changed = f'"""Another first line of the docstring.\n{rest}\n\n\n# and a comment\n'
    (tree / "musc/msm.py").write_text(changed, encoding="utf-8")
    assert stale() == {}


def test_a_gpu_file_makes_nothing_stale_that_ran_without_one(tree):
    add(tree / "musc/engines/gpu/kernels.py", "\nANOTHER = 1\n")
    assert stale() == {}


def test_a_kernel_makes_stale_what_uses_it(tree):
    add(tree / KERNELS, "\nANOTHER = 1\n")
    found = stale()
    assert set(found.values()) == {"code or data that it uses has changed"}
    assert {"03_msm", "05_pipeline", "10_main_results"} <= set(found)
    assert "06_metrics" in found  # its maps come from the pipeline


def test_a_measured_table_makes_stale_what_shows_it(tree):
    add(tree / "benchmarks/results/scale_time.csv", "4000,exact,1.0\n")
    assert stale() == {"22_scale": "code or data that it uses has changed"}


def test_other_libraries_are_a_reason_to_execute_again(tree, monkeypatch):
    monkeypatch.setattr(notebooks, "libraries", lambda: {"torch": "9.9"})
    script = notebooks.scripts(["03"])[0]
    assert notebooks.stale(script) == "executed with another version of torch"
    assert notebooks.stale(script, elsewhere=True) is None


def test_versions_count_to_the_minor_number():
    found = notebooks.libraries()
    assert found["torch"].count(".") == found["numpy"].count(".") == 1
    assert "musc" not in found
