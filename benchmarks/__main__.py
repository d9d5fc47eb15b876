"""Runs the benchmarks in one process, prints a table and writes it beside this file, with the machine it is from.

Rows of an earlier run that this one does not measure stay.

python -m benchmarks [--quick] [--most 400] [--out FOLDER] [msm metrics ablations]
"""

import argparse
import csv
import importlib
import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

from benchmarks import targets

MODULES = ("msm", "metrics", "ablations")
COLUMNS = ("benchmark", "size", "ours", "plain", "ours (s)", "plain (s)", "ratio")
HERE = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    flags = next((set(line.split()) for line in lines if line.startswith("flags")), set())
    vector = next((name for name in ("avx512f", "avx2") if name in flags), "")
    return {
        "cpu": models[0] if models else platform.processor() or platform.machine(),
        "vector": vector,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def table(rows: list[dict[str, Any]], about: dict[str, Any]) -> str:
    """Rows and machine as Markdown."""

    def seconds(value: float | None) -> str:
        return "–" if value is None else f"{value:.3g} s"

    lines = [
        f"{about['cpu']} {about['vector']}, {about['cores']} cores, {about['threads']} threads, "
        f"Python {about['python']}, torch {about['torch']}" + (f"; {about['note']}" if "note" in about else ""),
        "",
        "| benchmark | size | ours | plain way | ours | plain | ratio | note |",
        "|---|---|---|---|---:|---:|---:|---|",
    ]
    for row in rows:
        ratio = row.get("ratio")
        cells = [row["benchmark"], row["size"], row["ours"], row["plain"]]
        cells += [seconds(row["ours_s"]), seconds(row.get("plain_s")), "–" if ratio is None else f"{ratio:.1f}"]
        lines.append(f"| {' | '.join([*cells, row.get('note', '')])} |")
    return "\n".join(lines) + "\n"


def write(rows: list[dict[str, Any]], about: dict[str, Any], folder: Path) -> None:
    """results.csv as in the table, notes.csv with its last column, scaling.csv with every size of the runs over N and
    M, targets.csv, machine.json, results.json."""
    (folder / "machine.json").write_text(json.dumps(about, indent=2) + "\n")
    (folder / "results.json").write_text(json.dumps({"machine": about, "rows": rows}, indent=2) + "\n")
    with (folder / "results.csv").open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS)
        for row in rows:
            figures = (row["ours_s"], row.get("plain_s"), row.get("ratio"))
            shown = ["" if x is None else f"{x:.3g}" for x in figures]
            table.writerow([row["benchmark"], row["size"], row["ours"], row["plain"], *shown])
    with (folder / "targets.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(targets.table(rows))
    with (folder / "notes.csv").open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow((*COLUMNS[:3], "note"))
        table.writerows((row["benchmark"], row["size"], row["ours"], row["note"]) for row in rows if "note" in row)
    with (folder / "scaling.csv").open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("over", "size", "seconds", "fitted exponent", "benchmark"))
        for row in rows:
            for size, seconds in zip(row.get("sizes", ()), row.get("all_s", ()), strict=True):
                table.writerow((row["over"], size, f"{seconds:.3g}", f"{row['exponent']:.2f}", row["benchmark"]))


def kept(rows: list[dict[str, Any]], path: Path) -> list[dict[str, Any]]:
    """Rows of an earlier run that this one does not replace, as where a processor lacks AVX-512; their notes say so."""
    if not path.exists():
        return []
    earlier = json.loads(path.read_text())
    new = {(row["benchmark"], row["size"], row["ours"]) for row in rows}
    out = [row for row in earlier["rows"] if (row["benchmark"], row["size"], row["ours"]) not in new]
    for row in out:
        row.setdefault("machine", earlier["machine"])
        note = f"an earlier run, on {row['machine']['cpu']} {row['machine']['vector']}"
        if note not in row.get("note", ""):
            row["note"] = "; ".join(filter(None, [row.get("note", ""), note]))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument(
        "modules", nargs="*", metavar="MODULE", help=f"of {', '.join(MODULES)}; all where none is named"
    )
    parser.add_argument("--quick", action="store_true", help="small sizes: does everything run?")
    parser.add_argument("--most", type=int, default=50, help="images of the largest run over N, up to 400")
    parser.add_argument("--note", default="", help="what else is to be said of the machine, such as other load")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the results")
    arguments = parser.parse_args()
    if unknown := set(arguments.modules) - set(MODULES):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}: choose from {', '.join(MODULES)}")
    rows: list[dict[str, Any]] = []
    for name in arguments.modules or MODULES:
        module = importlib.import_module(f"benchmarks.{name}")
        rows += module.run(arguments.quick, arguments.most) if name == "msm" else module.run(arguments.quick)
    rows += kept(rows, arguments.out / "results.json")
    about = machine() | ({"note": arguments.note} if arguments.note else {})
    text = table(rows, about)
    print(text)
    arguments.out.mkdir(parents=True, exist_ok=True)
    write(rows, about, arguments.out)
    (arguments.out / "results.md").write_text(text)


if __name__ == "__main__":
    main()
