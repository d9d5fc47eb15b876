"""The usual names of folders: of normal and of anomalous images, of masks, and of nothing in particular."""

from __future__ import annotations

import re
from collections.abc import Iterable

from musc.errors import DataError


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


GOOD = _words(
    "good ok okay normal norm pass passed passing clean fine io healthy perfect intact undamaged nondefective nodefect "
    "nodefects defectfree faultless flawless accept accepted approved conforming conform conforme correct regular gut "
    "inordnung fehlerfrei bon bonne bueno buena buono goed goede iot anomalyfree noanomaly nonanomalous 良品 正常 合格 "
    "양품 정상 正常品 良好 норма годные годен хорошие dobry dobre dobra bom boa iyi saglam"
)
BAD = _words(
    "bad ng nok nio ko notok notgood nogood defect defects defective defectives def anomaly anomalies anomalous "
    "anomal abnormal abnormality abnormalities anormal fail failed failing failure failures fault faults faulty reject "
    "rejected scrap damaged damage faulted flaw flaws flawed outlier outliers schlecht defekt defekte ausschuss "
    "fehler fehlerhaft nichtio mauvais defaut malo mala defecto difettoso scarto slecht unhealthy nonconforming "
    "nonconform notnormal incorrect notpass notpassed 不良 不良品 不合格 异常 異常 缺陷 불량 비정상 "
    "欠陥 欠陥品 異常品 次品 брак дефект дефекты плохие wadliwe zly zle zły złe ruim defeituoso kotu kusurlu hatali"
)
NOUNS = _words(
    "images image imgs img parts part samples sample pieces pics pictures photos data items class products product "
    "test train"
)
MASKS = _words(
    "mask masks ground_truth ground_truths groundtruth groundtruths gt gts label labels annotation annotations "
    "annotated seg segs segmentation segmentations segmentation_mask segmentation_masks mask_images mask_image "
    "image_masks binary_mask binary_masks defect_mask defect_masks pixel_labels truth"
)
# Folders that only say that images are in them.
NEUTRAL = _words(
    "image images img imgs rgb photo photos picture pictures data color colour input inputs test original originals "
    "raw jpg jpeg png"
)
# Other measurements of the same scene, stored beside the pictures of it.
OTHER_MODALITIES = _words("xyz depth pc pcd pointcloud pointclouds point_cloud points")


def plain(name: str) -> str:
    """A folder's name in small letters, words joined by "_"."""
    return "_".join(re.findall(r"[^\W_]+", name.casefold())) or name.casefold()


def kind(name: str) -> str | None:
    """ "good" or "bad" where a folder's name is a usual word for normal or anomalous images, in any case, else None.

    Numbers before it and nouns such as "images" after it do not count.

    Example:
        >>> [kind(name) for name in ("OK", "n.i.O.", "0_Normal", "defect images", "scratch")]
        ['good', 'bad', 'good', 'bad', None]
    """
    words = plain(name).split("_")
    while len(words) > 1 and words[0].isdigit():
        words = words[1:]
    while len(words) > 1 and (words[-1] in NOUNS or words[-1].isdigit()):
        words = words[:-1]
    joined = "".join(words)
    joined = joined.rstrip("0123456789") or joined
    plurals = (joined, joined.removesuffix("s"))
    return "good" if GOOD.intersection(plurals) else "bad" if BAD.intersection(plurals) else None


def is_masks(name: str) -> bool:
    """Whether a folder is called as folders of masks are."""
    return plain(name) in MASKS


def normal_folders(names: Iterable[str], where: str, certain: bool) -> list[str]:
    """Those of the folders of a test set that hold normal images.

    Where none has a usual name, one that begins with such a word ("ok_front") counts. `certain`: something else says
    that all of `names` may be defects.

    Raises DataError where no folder is normal by its name and nothing says that all are anomalous.
    """
    names = list(names)
    if found := [name for name in names if kind(name) == "good"]:
        return found
    others = [name for name in names if kind(name) != "bad"]
    first = [name for name in others if plain(name).split("_")[0] in ("good", "ok", "normal")]
    if first and (len(first) < len(names)):
        return first
    if certain or not others:
        return []
    raise DataError(
        f"{where} holds {', '.join(names)}, and no folder with a usual name for normal images (good, ok, normal, "
        "pass, ...): every image would count as anomalous. Call the folder of normal images good, or use the layout "
        "`folder` for images without labels."
    )
