"""What was asked of the CPU engine, beside what the rows of a run reached, and what stands in the way."""

from typing import Any

HEADER = ("N, grid and channels, tokens", "way", "asked", "reached", "what stands in the way")
MUTUAL, FIRST = "mutual scoring", "mutual scoring, first call with an empty cache"
LARGE, RANDOM = "N = 10, 37 x 37 x 1024, smooth", "N = 10, 37 x 37 x 1024, independent"
PRODUCTS = "integer products, which take most of a pair's time at the processor's rate, and preparing ten images"
RATE = "products at the processor's rate, and exact distances: margins leave more than one candidate for many patches"
KEEPING = "products and sums leave too little time for exact distances and for finding out which"
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
)


def table(rows: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Lines of targets.csv: those of `ASKED` for which there is a row; a target that is met has nothing in its way."""
    lines = [HEADER]
    for size, way, asked, why in ASKED:
        first = way == "float32"
        for row in rows:
            kind = FIRST if first else MUTUAL
            if row["benchmark"] == kind and row["ours"] == way and row["size"].startswith(size):
                value, unit = (row["ours_s"], " s") if first else (row["ratio"], "x")
                met = asked is not None and (value < asked if first else value >= asked)
                sought = "no slower than float32" if asked is None else f"under {asked} s" if first else f"{asked}x"
                lines.append((size, way, sought, f"{value:.3g}{unit}", "" if met else why))
    return lines
