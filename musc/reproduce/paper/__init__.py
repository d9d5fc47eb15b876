"""The numbers that the paper prints, as data: Tab. 1-18, the figures' captions, and what contradicts what.

`table(n)` is table n in long form, one row per printed number:

- dataset (mvtec_ad, visa, btad), category ("mean" is the mean over the data set's categories), method, setting
  (0-shot, ..., full-shot) and backbone (empty where the paper names none) say what was measured, and so do the table's
  own columns: degrees ("1,3,5"), interval_low and interval_high (percent), reduction, rscin, subsets (s), ...;
- metric is image_auroc, image_f1_max, image_ap, pixel_auroc, pixel_f1_max, pixel_ap or pro, in percent, or else time_ms
  (per image), gpu_mb, subset_images_min or subset_images_max;
- value is the number as printed, spread what stands behind its ±, gain (Tab. 1) what stands behind its +;
- status is "printed"; "inferred" (a legible number whose row is not: the note says why it was put there); "dash" (the
  paper gives no number) or "missing" (the table has one, our copy of the paper has not). The last two have no value.

Figures are transcribed once per table: where two tables disagree, each keeps what it prints, and `contradictions()`
finds the disagreement. The tables are quoted from Li, Huang, Xue, Zhou: "MuSc", ICLR 2024.
"""

from musc.reproduce.paper._claims import claims
from musc.reproduce.paper._contradictions import contradictions, means, quantities
from musc.reproduce.paper._tables import FIGURES, METRICS, TABLES, captions, figures, released_code, table, tables

__all__ = [
    "FIGURES",
    "METRICS",
    "TABLES",
    "captions",
    "claims",
    "contradictions",
    "figures",
    "means",
    "quantities",
    "released_code",
    "table",
    "tables",
]
