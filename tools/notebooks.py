"""Notebooks: the `.py` script is the source, the executed `.ipynb` beside it is generated from it and committed.

    python -m tools.notebooks check               which executed notebooks are missing or stale; exit status 1 if any
    python -m tools.notebooks execute [NAME ...]  execute those that are stale (--force: all that are named)
    python -m tools.notebooks execute NAME --to DIR -p profile=paper -p data_root=/data  the same with other data
    python -m tools.notebooks smoke [NAME ...]    run each with the small parameters of its header, for CI

A script is in jupytext's py:percent format. Its header may say, below `musc:`, which parameters `smoke` passes.
Executing the same script twice gives the same bytes: no time, no machine and no random cell id is stored in it. Times,
versions and hardware go to notebooks/execution.json instead.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import yaml
from tqdm import tqdm

from musc import verdicts
from musc.sources import meaning
from tools import kernels

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "notebooks"
RECORD = FOLDER / "execution.json"
VERSIONS = ("musc", "torch", "torchvision", "numpy", "scipy", "scikit-learn", "pandas", "matplotlib", "timm")
# What a module reads by other means than Python's, or imports only on some machines: whoever imports it depends on it.
READS = {
    "musc/backbones/embedded.py": "musc/backbones/*.safetensors",
    "musc/engines/__init__.py": "musc/engines/**/*.py",
}
GENERATED = ("_build", "results")  # folders of the root that runs write, and read again
GPU = "musc/engines/gpu/"  # not what a machine without one computes with
ENVIRONMENT = {"TQDM_DISABLE": "1", "PYTHONHASHSEED": "0", "MPLBACKEND": "module://matplotlib_inline.backend_inline"}

# Colab opens a notebook without its package; elsewhere this cell does nothing, and the book hides it.
SETUP = """\
import importlib.util

if importlib.util.find_spec("musc") is None:
    {remedy}\
"""
INSTALL = '%pip install --quiet "musc @ git+{repository}"'
CLONE = 'raise SystemExit("musc is not installed: run `pip install .` in the folder that holds its pyproject.toml")'
# Run first, and not stored: note every file that is opened for reading from here on (flags: O_RDONLY is 0).
WATCH = """\
import os as _o, sys as _s
_opened = set()
def _watch(event, args):
    if event == "open" and isinstance(args[0], (str, _o.PathLike)) and not args[2] & 3:
        _opened.add(_o.path.abspath(_o.fspath(args[0])))
_s.addaudithook(_watch)
"""
# Run last, and not stored: which of our files the kernel loaded and read, and on what it ran.
PROBE = """\
import json as _j, sys as _s
_f = [m.__dict__.get("__file__") for m in list(_s.modules.values()) if hasattr(m, "__dict__")]
_t = _s.modules.get("torch")
_g = _t.cuda.get_device_name() if _t is not None and _t.cuda.is_available() else None
print(_j.dumps({"files": [f for f in _f if f], "opened": sorted(map(str, _opened)), "gpu": _g}))\
"""


class NotebookError(Exception):
    """A notebook that failed or that cannot be used; the text says where and why."""


def scripts(names: list[str] | None = None) -> list[Path]:
    """The notebooks' scripts, sorted; only those whose name starts with one of `names`, if any are given."""
    every = sorted(FOLDER.glob("[0-9]*.py"))
    if not names:
        return every
    stems = [Path(name).stem for name in names]
    for stem in stems:
        if not any(path.stem.startswith(stem) for path in every):
            raise NotebookError(f"no notebook {stem}: there are {', '.join(p.stem for p in every) or 'none'}.")
    return [path for path in every if any(path.stem.startswith(stem) for stem in stems)]


def repository() -> str:
    """The address that _config.yml names, empty if none; MUSC_REPOSITORY replaces it."""
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    return os.environ.get("MUSC_REPOSITORY", config["repository"]["url"])


def as_notebook(script: Path) -> Any:
    """The script as an unexecuted notebook, with numbered cell ids and the set-up cell for Colab."""
    import jupytext
    from nbformat import v4

    source = jupytext.reads(script.read_text(encoding="utf-8"), fmt="py:percent")
    configured = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))["repository"]["url"]
    remedy = INSTALL.format(repository=configured) if configured else CLONE
    setup = v4.new_code_cell(SETUP.format(remedy=remedy), metadata={"tags": ["remove-cell", "setup"]})
    # After the title, so that the page keeps its heading first.
    cells = [*source.cells[:1], setup, *source.cells[1:]]
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number:03d}"
    metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "musc": dict(source.metadata.get("musc", {})),
    }
    return v4.new_notebook(cells=cells, metadata=metadata)


def fingerprint(script: Path, sources: list[str]) -> str:
    """SHA-256 over the script, and over what every file of ours that its kernel used means (relative to the root)."""
    digest = hashlib.sha256(script.read_bytes())
    for name in sorted(sources):
        path = ROOT / name
        digest.update(f"{name}\0{_meaning(path) if path.is_file() else 'missing'}\0".encode())
    return digest.hexdigest()


def _meaning(path: Path) -> str:
    """Of code, `meaning`; of a table, its lines however they end; of JSON, its values; of any other file, its bytes."""
    if path.suffix not in (".csv", ".json"):
        return meaning(path)
    content = path.read_bytes().replace(b"\r\n", b"\n")
    if path.suffix == ".json":
        content = json.dumps(json.loads(content)).encode()
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def libraries() -> dict[str, str | None]:
    """The versions, major and minor, of the libraries that numbers and figures come from."""
    return {name: v and ".".join(v.split(".")[:2]) for name in VERSIONS if name != "musc" for v in [_version(name)]}


def stale(script: Path, *, elsewhere: bool = False) -> str | None:
    """Why the executed notebook does not belong to its script and to the present code; None if it does.

    elsewhere: other versions of libraries than it was executed with are no reason. A checkout is in order with any that
    pyproject.toml allows, and nbval tells whether they give the same outputs.
    """
    import nbformat

    target = script.with_suffix(".ipynb")
    if not target.is_file():
        return "not executed yet"
    try:
        done = nbformat.read(target, as_version=4)
    except (ValueError, nbformat.reader.NotJSONError) as error:
        return f"unreadable ({error})"
    stamp = done.metadata.get("musc", {}).get("execution")
    if not stamp:
        return "executed by other means than this tool"
    if [_outline(c) for c in done.cells] != [_outline(c) for c in as_notebook(script).cells]:
        return "its script has changed"
    if fingerprint(script, stamp["sources"]) != stamp["fingerprint"]:
        return "code or data that it uses has changed"
    if not elsewhere and (other := {k for k, v in libraries().items() if v != stamp["libraries"].get(k)}):
        return f"executed with another version of {', '.join(sorted(other))}"
    return None


def _outline(cell: Any) -> tuple[str, str, dict[str, Any]]:
    return cell.cell_type, cell.source, dict(cell.metadata)


def run(notebook: Any, parameters: dict[str, Any] | None, cwd: Path) -> Any:
    """The notebook, executed in a kernel of its own. Raises NotebookError with the failing cell."""
    import papermill
    from papermill.exceptions import PapermillExecutionError

    # A sentence about the committed run need not hold for other parameters: then it is marked, else it stops the run.
    environment = {**ENVIRONMENT, verdicts.SWITCH: "report" if parameters else "raise"}
    known = {c.id for c in notebook.cells if "parameters" in c.metadata.get("tags", [])}
    if parameters and not known:
        raise NotebookError("parameters were given, but no cell is tagged `parameters`.")
    try:
        with kernels.forked(), mock.patch.dict(os.environ, environment):  # the kernel's
            return papermill.execute_notebook(
                notebook,
                None,
                parameters or {},
                kernel_name="python3",
                cwd=cwd,
                progress_bar=False,
                extra_arguments=["--IPKernelApp.log_level=ERROR"],
            )
    except PapermillExecutionError as error:
        source = "\n".join(f"    | {line}" for line in error.source.splitlines())
        trace = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback))
        raise NotebookError(f"this cell failed:\n{source}\n{trace}") from None


def execute(script: Path) -> dict[str, Any]:
    """Execute the script, write the `.ipynb` beside it in one step, and return what execution.json records."""
    import nbformat
    from nbformat import v4

    clean = as_notebook(script)
    trial = as_notebook(script)
    trial.cells[1].source = WATCH + trial.cells[1].source  # the set-up cell: the counts of the others stay
    trial.cells.append(v4.new_code_cell(PROBE))
    begun, start = time.time(), time.perf_counter()
    ran = run(trial, None, cwd=script.parent)
    seconds = time.perf_counter() - start

    probe = json.loads(ran.cells[-1].outputs[0].text)
    for cell, result in zip(clean.cells, ran.cells[:-1], strict=True):
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = _tidy(result.outputs), result.execution_count
            _refuse(cell)
    sources = _ours(probe["files"], probe["opened"], gpu=probe["gpu"] is not None)
    if edited := [name for name in sources if (ROOT / name).stat().st_mtime > begun]:
        raise NotebookError(f"{', '.join(edited)} changed while it ran: execute it again.")
    clean.metadata.musc["execution"] = {
        "fingerprint": fingerprint(script, sources),
        "libraries": libraries(),
        "sources": sources,
    }
    nbformat.validate(clean)
    _write(script.with_suffix(".ipynb"), nbformat.writes(clean) + "\n")
    return {
        "seconds": round(seconds, 1),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in VERSIONS},
        "hardware": {"cpu": _cpu(), "cores": os.cpu_count(), "gpu": probe["gpu"]},
        "system": f"{platform.system()} {platform.machine()}",
    }


def _tidy(outputs: list[Any]) -> list[Any]:
    """Join neighbouring pieces of one stream: where a stream is cut depends on timing."""
    joined: list[Any] = []
    for output in outputs:
        same = joined and output.output_type == "stream" == joined[-1].output_type and output.name == joined[-1].name
        if same:
            joined[-1].text += output.text
        else:
            joined.append(output)
    return joined


def _refuse(cell: Any) -> None:
    """A warning or a path of this machine has no place in a published page."""
    for output in cell.outputs:
        text = json.dumps(output)
        if output.output_type == "stream" and output.name == "stderr":
            raise NotebookError(f"this cell wrote to stderr:\n{cell.source}\n{output.text}")
        if str(ROOT) in text:
            raise NotebookError(f"this cell's output names a path of this machine ({ROOT}):\n{cell.source}")


def _ours(files: list[str], opened: list[str], *, gpu: bool) -> list[str]:
    """Modules and data files of the repository among those loaded and opened; relative to the root, sorted."""
    modules = {path for f in files if (path := Path(f).resolve()).suffix == ".py"}
    data = {path for f in opened if (path := Path(f).resolve()).suffix not in (".py", ".pyc") and path.is_file()}
    below = {p.relative_to(ROOT) for p in modules | data if p.is_relative_to(ROOT)}
    below -= {p for p in below if p.parts[0] in GENERATED or any(part.startswith(".") for part in p.parts)}  # .venv
    mine = {p.as_posix() for p in below}
    for module, pattern in READS.items():
        if module in mine:
            mine |= {path.relative_to(ROOT).as_posix() for path in ROOT.glob(pattern)}
    return sorted(name for name in mine if gpu or not name.startswith(GPU))


def _write(path: Path, text: str) -> None:
    """All or nothing: an interrupted run leaves the old file."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8", newline="\n")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except ImportError:
        return None


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.is_file() else []
    return names[0] if names else platform.processor() or platform.machine()


def _record(name: str, entry: dict[str, Any]) -> None:
    known = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.is_file() else {}
    known = {stem: value for stem, value in known.items() if (FOLDER / f"{stem}.py").is_file()}
    _write(RECORD, json.dumps({**known, name: entry}, indent=1, sort_keys=True) + "\n")


def command_check(chosen: list[Path]) -> int:
    reasons = {path.stem: reason for path in chosen if (reason := stale(path, elsewhere=True))}
    for name, reason in reasons.items():
        print(f"notebooks/{name}: {reason}. Run: python -m tools.notebooks execute {name}")
    if not reasons:
        print(f"{len(chosen)} notebooks, all up to date")
    return 1 if reasons else 0


def command_execute(chosen: list[Path], force: bool) -> int:
    todo = [path for path in chosen if force or stale(path)]
    failed = 0
    with tqdm(todo, unit="notebook", disable=not todo) as bar:
        for path in bar:
            bar.set_postfix_str(path.stem)
            try:
                entry = execute(path)
            except NotebookError as error:
                failed += 1
                tqdm.write(f"notebooks/{path.name}: {error}", file=sys.stderr)
                continue
            _record(path.stem, entry)
            tqdm.write(f"notebooks/{path.stem}.ipynb: {entry['seconds']} s")
    print(f"{len(todo) - failed} executed, {len(chosen) - len(todo)} up to date, {failed} failed")
    return 1 if failed else 0


def command_elsewhere(chosen: list[Path], folder: Path, given: dict[str, Any] | None) -> int:
    """Run with other parameters and write to `folder`; None takes the smoke parameters of each header."""
    import nbformat

    folder.mkdir(parents=True, exist_ok=True)
    failed = 0
    for path in tqdm(chosen, unit="notebook"):
        notebook = as_notebook(path)
        parameters = given
        if parameters is None:
            parameters = notebook.metadata.musc.get("smoke")
            if parameters is None:
                failed += 1
                tqdm.write(f"notebooks/{path.name}: its header gives no `smoke` parameters.", file=sys.stderr)
                continue
        try:
            # In the scripts' folder: relative paths mean the same as in the committed run.
            result = run(notebook, parameters, cwd=path.parent)
        except NotebookError as error:
            failed += 1
            tqdm.write(f"notebooks/{path.name} with {parameters}: {error}", file=sys.stderr)
            continue
        _write(folder / f"{path.stem}.ipynb", nbformat.writes(result) + "\n")
    print(f"{len(chosen) - failed} ran, {failed} failed; written to {folder}")
    return 1 if failed else 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.notebooks", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("check", "execute", "smoke"):
        sub = commands.add_parser(name)
        sub.add_argument("names", nargs="*", help="start of a notebook's name, such as 03; default: all")
        if name == "execute":
            sub.add_argument("--force", action="store_true", help="execute also what is up to date")
            sub.add_argument("--to", type=Path, help="write there instead of beside the script")
            sub.add_argument("-p", dest="parameters", action="append", default=[], metavar="NAME=VALUE")
    args = parser.parse_args(argv)
    try:
        chosen = scripts(args.names)
        if args.command == "check":
            return command_check(chosen)
        if args.command == "smoke":
            with tempfile.TemporaryDirectory() as folder:
                return command_elsewhere(chosen, Path(folder), None)
        pairs = [text.partition("=") for text in args.parameters]
        if pairs and not args.to:
            raise NotebookError("-p needs --to DIR: the committed notebooks are run with their own parameters.")
        if args.to:
            given = {name: yaml.safe_load(value) for name, _, value in pairs}
            return command_elsewhere(chosen, args.to, given)
        return command_execute(chosen, args.force)
    except NotebookError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: notebooks that were finished are kept, the others are as before", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
