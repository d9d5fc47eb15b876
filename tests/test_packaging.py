"""What is installed: the wheel's files, and requirements that are exactly what the code imports."""

import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import PurePath
from shutil import copy, copytree, ignore_patterns

import pytest
import yaml
from imports import ROOT, imported, modules

import musc

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OURS = {"musc", "pretraining", "benchmarks", "tools"}
WITH_TORCH = {"triton"}  # comes with torch's builds for GPUs; the GPU kernels alone import it
PAIR = {"torchvision"}  # imported by open_clip and timm; required by us, since it must be of torch's release
OPTIONAL = {"skimage": ["scikit-image"]}  # where it is not installed
EXTRAS = {"dask", "distributed"}  # imported where it is asked for


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def names(requirements):
    return {canonical(re.match(r"[\w.-]+", line)[0]) for line in requirements}


def third_parties(*folders):
    """The distributions that modules import, by their canonical names, and where."""
    found, distributions = {}, packages_distributions()
    for path in modules(*folders).values():
        for line, dotted in imported(path):
            top = dotted.partition(".")[0]
            if top not in sys.stdlib_module_names and top not in OURS | WITH_TORCH:
                (distribution, *_) = distributions.get(top, OPTIONAL.get(top, [top]))
                found.setdefault(canonical(distribution), f"{path.relative_to(ROOT)}:{line}")
    return found


def test_the_package_requires_exactly_what_it_imports():
    used = third_parties("musc")
    required = names(PROJECT["dependencies"])
    assert {name: where for name, where in used.items() if name not in required | EXTRAS} == {}, (
        "imported and not required"
    )
    assert required - used.keys() == PAIR, "required and never imported"


@pytest.mark.parametrize(
    ("folder", "extras"), [("pretraining", ["pretrain"]), ("tools", ["book"]), ("benchmarks", ["pretrain"])]
)
def test_what_stands_beside_the_package_declares_what_it_imports(folder, extras):
    declared = names(PROJECT["dependencies"])
    for extra in extras:
        declared |= names(PROJECT["optional-dependencies"][extra])
    assert {name: where for name, where in third_parties(folder).items() if name not in declared} == {}


def test_one_version():
    """It stands in pyproject.toml; what is written for people repeats it."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert PROJECT["version"] == musc.__version__
    assert str(citation["version"]) == musc.__version__
    assert f"version {musc.__version__}}}" in (ROOT / "book/cite.md").read_text(encoding="utf-8")
    assert f"## [{musc.__version__}] - {citation['date-released']}" in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_workflows_try_the_versions_of_python_that_are_supported():
    workflow = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text(encoding="utf-8"))
    tried = workflow["jobs"]["test"]["strategy"]["matrix"]["python"]
    low, high = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", PROJECT["requires-python"]).groups()
    assert tried == [f"3.{minor}" for minor in range(int(low), int(high))]


def test_the_wheel_holds_the_package_and_nothing_else(tmp_path):
    """Built without a network from a copy, so that nothing is left in the working tree."""
    source, out = tmp_path / "source", tmp_path / "wheel"
    for folder in OURS | {"tests"}:
        copytree(ROOT / folder, source / folder, ignore=ignore_patterns("__pycache__", ".*"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        copy(ROOT / file, source)
    command = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", command, str(out)], cwd=source, check=True, capture_output=True)
    (wheel,) = out.glob("musc-*.whl")
    assert wheel.stat().st_size < 3_000_000

    files = {PurePath(name) for name in zipfile.ZipFile(wheel).namelist()}
    code = {path.relative_to(ROOT) for path in modules("musc").values()}
    tables = {path.relative_to(ROOT) for path in (ROOT / "musc/reproduce/paper").glob("*.csv")}
    tables.add(PurePath("musc/plugin/clip_agreement.csv"))
    data = {PurePath("musc/py.typed"), PurePath("musc/backbones/procedural.safetensors")}
    report = ROOT / "musc/results/report"
    data |= {path.relative_to(ROOT) for kind in ("css", "jinja", "js") for path in report.glob(f"*.{kind}")}
    about = {path for path in files if path.parts[0].endswith(".dist-info")}
    assert {str(path) for path in files - about} == {str(path) for path in code | tables | data}
    assert len(tables) >= 18
    assert any(path.name == "LICENSE" for path in about)
