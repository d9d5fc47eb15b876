"""What was asked of the CPU engine, beside what the rows of a run reached, and what stands in the way."""

from typing import Any

HEADER = ("N, grid and channels, tokens", "way", "asked", "reached", "what stands in the way")
MUTUAL, FIRST = "mutual scoring", "mutual scoring, first call with an empty cache"
SNAMD, ONE_PASS = "aggregation by SNAMD instead of LNAMD", "snamd, float32"
LARGE, RANDOM = "N = 10, 37 x 37 x 1024, smooth", "N = 10, 37 x 37 x 1024, independent"
PRODUCTS = "integer products, which take most of a pair's time at the processor's rate, and preparing ten images"
RATE = "products at the processor's rate, and exact distances: margins leave more than one candidate for many patches"
KEEPING = "products and sums leave too little time for exact distances and for finding out which"
ALONE = (
    "integer products of one degree alone take 0.40 of the time of all three, at the processor's rate, and SNAMD and "
    "preparation 0.05; fewer channels in 16 bits leave many more distances to compute"
)
SUMS = "box sums and scores of 32 x 32 x 32 x 32 x 3 cosines take as long as products of 96 channels"
ASKED = (  # what a row's size begins with, its way, times the plain way (seconds for the first call), and why not
    (LARGE, "float32, AVX2", 15, PRODUCTS),
    (LARGE, "bfloat16, AVX2", None, ""),
    (LARGE, "float32, AVX-512", 19, PRODUCTS),
    (LARGE, "bfloat16, AVX-512", 25, PRODUCTS),
    (RANDOM, "float32, AVX2", 6, RATE),
    (RANDOM, "float32, AVX-512", 6, RATE),
    ("N = 100, 14 x 14 x 192, smooth", "float32, AVX2", 10, KEEPING),
    ("N = 60, 14 x 14 x 768, smooth", "float32, AVX2", 10, KEEPING),
    ("N = 12, 32 x 32 x 96, smooth", "float32, AVX2", 8, SUMS),
    ("N = 20, 32 x 32 x 96", "float32", 3, "torch computes meanwhile, slower than kernels"),
    ("N = 40, 37 x 37 x 384, smooth", ONE_PASS, 0.45, ALONE),
)


def table(rows: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Lines of targets.csv: those of `ASKED` for which there is a row; a target that is met has nothing in its way."""
    lines = [HEADER]
    for size, way, asked, why in ASKED:
        kind = {"float32": FIRST, ONE_PASS: SNAMD}.get(way, MUTUAL)
        for row in rows:
            if row["benchmark"] == kind and row["ours"] == way and row["size"].startswith(size):
                if kind == SNAMD:
                    value, unit, sought = row["share"], " of the time", f"{asked} of the default's time"
                elif kind == FIRST:
                    value, unit, sought = row["ours_s"], " s", f"under {asked} s"
                else:
                    value, unit, sought = row["ratio"], "x", f"{asked}x" if asked else "no slower than float32"
                met = asked is not None and (value >= asked if kind == MUTUAL else value <= asked)
                lines.append((size, way, sought, f"{value:.3g}{unit}", "" if met else why))
    return lines
