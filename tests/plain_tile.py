"""MuSc on magnetic tiles with Pillow, timm, SciPy and scikit-learn alone, scores in float64.

`python tests/plain_tile.py ../shared > tests/magnetic_tile.csv` wrote the expectation of test_pipeline, and printed the
figures that stand there: every fourth photograph by name, 224 px, stages 3, 6, 9 and 12, masks at nearest neighbour.
"""

import csv
import sys
from pathlib import Path

import numpy as np
import plain
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from sklearn.metrics import average_precision_score, roc_auc_score

from musc.backbones.torchvision_guard import ready_torchvision

SIDE, STAGES, DEGREES, WINDOWS = 224, (3, 6, 9, 12), (1, 3, 5), (2, 3)
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def photographs(shared, step):
    """Every `step`-th photograph, sorted by name."""
    return sorted((shared / "data/magnetic_tile/tile/test").glob("*/*.jpg"))[::step]


@torch.no_grad()
def tokens(paths, shared):
    """Patch tokens of the stages, [N, 196, 192] each, and class tokens [N, 192] after the last LayerNorm, unit."""
    ready_torchvision()  # timm is not imported before
    from timm import create_model

    net = create_model("deit_tiny_patch16_224", num_classes=0).eval()
    state = load_file(shared / "weights/deit_tiny_patch16_224.safetensors")
    net.load_state_dict({name: value for name, value in state.items() if not name.startswith("head.")})
    seen = {}
    for stage in STAGES:
        net.blocks[stage - 1].register_forward_hook(lambda _, __, out, stage=stage: seen.update({stage: out}))
    found, classes = {stage: [] for stage in STAGES}, []
    for path in paths:
        pixels = np.asarray(Image.open(path).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)) / 255
        net(torch.from_numpy((pixels - MEAN) / STD).permute(2, 0, 1)[None].float())
        classes.append(F.normalize(net.norm(seen[STAGES[-1]])[0, 0], dim=0))
        for stage in STAGES:
            found[stage].append(seen[stage][0, 1:])
    return [torch.stack(stage).double().numpy() for stage in found.values()], torch.stack(classes).double().numpy()


def rescored(scores, classes):
    """Eq. 5: the windows count the image itself."""
    scaled = (scores - scores.min()) / (scores.max() - scores.min())
    similarity = classes @ classes.T
    total = scaled.copy()
    for k in WINDOWS:
        for i, row in enumerate(similarity):
            near = np.argsort(-row)[:k]
            total[i] += row[near] @ scaled[near] / row[near].sum()
    return total / (len(WINDOWS) + 1)


def score(paths, shared):
    """Image scores before and after RsCIN [N], and anomaly maps [N, 224, 224]."""
    stages, classes = tokens(paths, shared)
    patches = torch.from_numpy(plain.mutual_scores(stages, DEGREES, (14, 14)))
    maps = F.interpolate(patches.reshape(-1, 1, 14, 14), (SIDE, SIDE), mode="bilinear", align_corners=True)[
        :, 0
    ].numpy()
    raw = maps.max(axis=(1, 2))
    return raw, rescored(raw, classes), maps


def mask(path):
    """True where the photograph shows a defect."""
    truth = path.parents[2] / "ground_truth" / path.parent.name / f"{path.stem}_mask.png"
    if not truth.exists():
        return np.zeros((SIDE, SIDE), bool)
    return np.asarray(Image.open(truth).convert("L").resize((SIDE, SIDE), Image.Resampling.NEAREST)) > 127


def main():
    shared = Path(sys.argv[1])
    paths = photographs(shared, 4)
    raw, scores, maps = score(paths, shared)
    labels = [path.parent.name != "good" for path in paths]
    masks = np.stack([mask(path) for path in paths])
    figures = {
        "image AUROC before RsCIN": roc_auc_score(labels, raw),
        "image AUROC": roc_auc_score(labels, scores),
        "pixel AUROC": roc_auc_score(masks.ravel(), maps.ravel()),
        "pixel AP": average_precision_score(masks.ravel(), maps.ravel()),
    }
    print({name: round(float(value), 5) for name, value in figures.items()}, file=sys.stderr)
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["photograph", "raw_score", "score"])
    for path, r, s in zip(paths, raw, scores, strict=True):
        writer.writerow([f"{path.parent.name}/{path.name}", f"{r:.7f}", f"{s:.7f}"])


if __name__ == "__main__":
    main()
