"""Tables and figures made again, on tiny data sets in the layouts of MVTec AD and VisA and on the synthetic one."""

import itertools
import math

import numpy as np
import pandas as pd
import plain
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score
from test_compare import small_clip  # noqa: F401

from musc import MuSc, cli, fewshot, reproduce, rscin
from musc.backbones import text
from musc.datasets.images import preprocess, read_image
from musc.errors import ConfigError, DataError
from musc.methods import winclip
from musc.methods.patchcore import PatchCore
from musc.reproduce import REGISTRY, charts, comparison, draw, gallery, measure, others, paper, registry

TINY = {"backbone": "deit_tiny_patch16_224", "weights": "random", "image_size": 64, "stages": (1, 2), "device": "cpu"}
WORDS = ["--backbone", "deit_tiny_patch16_224", "--weights", "random", "--image-size", "64", "--device", "cpu"]


def plant(folder, number, defect):
    rng = np.random.default_rng(number)
    pixels = np.linspace(60, 200, 64)[:, None, None] + rng.normal(0, 4, (64, 64, 3))
    mask = np.zeros((64, 64), np.uint8)
    if defect:
        pixels[16:48, 16 : 32 + 2 * number] = 10
        mask[16:48, 16 : 32 + 2 * number] = 255
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number:03}.png")
    return Image.fromarray(mask)


@pytest.fixture(scope="module")
def mvtec(tmp_path_factory):
    """Two categories in the layout of MVTec AD: 3 normal and 3 anomalous test images, 2 normal training images."""
    root = tmp_path_factory.mktemp("mvtec")
    for c, name in enumerate(("bottle", "screw")):
        for i in range(2):
            plant(root / name / "train" / "good", 100 + 10 * c + i, False)
        for i in range(3):
            plant(root / name / "test" / "good", 10 * c + i, False)
            mask = plant(root / name / "test" / "spot", i + 3, True)
            (root / name / "ground_truth" / "spot").mkdir(parents=True, exist_ok=True)
            mask.save(root / name / "ground_truth" / "spot" / f"{i + 3:03}_mask.png")
    return root


@pytest.fixture(scope="module")
def visa(tmp_path_factory):
    """One object in the layout in which VisA is published."""
    root, rows = tmp_path_factory.mktemp("visa"), ["object,split,label,image,mask"]
    for i in range(6):
        kind = "Anomaly" if i > 2 else "Normal"
        image = f"candle/Data/Images/{kind}/{i:03}.png"
        mask = plant(root / image.rsplit("/", 1)[0], i, kind == "Anomaly")
        if kind == "Anomaly":
            (root / "candle/Data/Masks/Anomaly").mkdir(parents=True, exist_ok=True)
            mask.save(root / f"candle/Data/Masks/Anomaly/{i:03}.png")
        where = f"candle/Data/Masks/Anomaly/{i:03}.png" if kind == "Anomaly" else ""
        rows.append(f"candle,test,{kind.lower()},{image},{where}")
    (root / "split_csv").mkdir()
    (root / "split_csv" / "1cls.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture(scope="module")
def lab(mvtec, visa, tmp_path_factory):
    return reproduce.profile("paper", [mvtec, visa], folder=tmp_path_factory.mktemp("out"), workers=0, **TINY)


@pytest.fixture(scope="module")
def small(mvtec, lab):
    return reproduce.profile("paper", mvtec, folder=lab.folder, workers=0, limit_categories=1, **TINY)


def test_registry_is_the_paper_and_every_notebook_shows_what_it_says():
    assert list(REGISTRY) == [f"table_{n}" for n in range(1, 19)] + [f"figure_{n}" for n in range(1, 17)]
    shown = [name for names in reproduce.NOTEBOOKS.values() for name in names]
    assert sorted(shown) == sorted(REGISTRY)
    assert set(registry.LAYOUT) == set(paper.TABLES)
    assert set(gallery.PAPER) == set(gallery.DEMO)
    for number in range(11, 17):  # the captions name the categories
        assert all(name in paper.FIGURES[number].replace("macaronil", "macaroni1") for name in gallery.PAPER[number])


@pytest.mark.parametrize(("given", "name"), [("Table 3", "table_3"), ("fig. 10", "figure_10"), ("TAB_1", "table_1")])
def test_names_are_understood(given, name):
    assert reproduce.find(given).name == name


@pytest.mark.parametrize("number", range(1, 19))
def test_comparison_keeps_every_printed_number_and_marks_the_rest(number):
    """Without any measurement: all cells of the paper, none of ours, other methods quoted."""
    empty = measure.frame_of([])
    run_here = (*comparison.OURS, *registry.RUN_HERE.get(number, ()))
    frame = comparison.compare(number, empty, run_here)
    source = paper.table(number)
    assert sorted(frame["paper"].dropna().unique()) == sorted(source["value"].dropna().unique())
    assert frame["here"].isna().all()
    assert set(frame["status"]) <= {"not run", "quoted"}
    assert (frame["status"] == "quoted").sum() == (~frame["method"].isin(run_here)).sum()
    table = side_by_side(frame, number).texts
    assert "here" not in table.index.get_level_values("source")
    cells = set(table.to_numpy().ravel()) - {"", "–"}
    printed = zip(frame["paper"], frame["spread"], strict=True)
    texts = {f"{v:.1f}±{s:.1f}" if pd.notna(s) else f"{v:.1f}" for v, s in printed if pd.notna(v)}
    others = [v for v in (*frame["released"].dropna(), *frame["elsewhere"].dropna()) if pd.notna(v)]
    allowed = texts | {f"{v:.1f}" for v in others}
    assert cells <= allowed | {v.removesuffix(".0") for v in allowed}
    if number != 6:
        assert texts <= cells | {f"{c}.0" for c in cells}


def side_by_side(frame, number):
    layout = registry.LAYOUT[number]
    return comparison.side_by_side(frame, layout.rows, layout.across, layout.best)


def test_ablations_have_one_block_per_data_set():
    table = side_by_side(comparison.compare(3, measure.frame_of([])), 3)
    assert list(dict.fromkeys(table.texts.columns.get_level_values(0))) == ["MVTec AD", "VisA"]
    assert table.texts.loc[("{5}", "paper"), ("VisA", "image AUROC")] == "82.2"
    best = table.marks.xs("paper", level="source") == "best"
    assert best["MVTec AD", "image AUROC"].idxmax() == "{1, 3}"
    assert list(best.index[best["MVTec AD", "pixel AUROC"]]) == ["{5}", "{3, 5}"]  # a tie


def test_main_table_keeps_deviations_and_the_papers_marks():
    """Bold and underlined as printed: MuSc's AP on VisA is the second best beside four-shot methods."""
    table = side_by_side(comparison.compare(1, measure.frame_of([])), 1)
    where = ("VisA", "4-shot", "APRIL-GAN", "paper")
    assert table.texts.loc[where, "image AP"] == "94.5±0.3"
    assert table.marks.loc[where, "image AP"] == "best"
    assert table.marks.loc[("VisA", "4-shot", "MuSc", "paper"), "image AP"] == "second"
    assert table.texts.loc[("MVTec AD", "0-shot", "WinCLIP", "paper"), "pixel AP"] == "–"


def test_less_time_is_better_and_sizes_are_not_ranked():
    table = side_by_side(comparison.compare(13, measure.frame_of([])), 13)
    best = table.marks["time [ms per image]"] == "best"
    assert list(best.index[best]) == [("APRIL-GAN", "ViT-B-16-plus-240", "paper")]
    sizes = side_by_side(comparison.compare(7, measure.frame_of([])), 7).marks
    assert set(sizes["most images"]) == {""}


def test_table_6_says_what_table_13_prints():
    table = side_by_side(comparison.compare(6, measure.frame_of([])), 6).texts
    assert table.loc[("s = 2", "paper, Tab. 13"), "time [ms per image]"] == "605.8"
    assert table.loc[("s = 1", "released code"), "time [ms per image]"] == "955"


def test_numbers_are_keyed_by_what_differs():
    frame = comparison.compare(1, measure.frame_of([]))
    found = reproduce.numbers(frame, row="0-shot block", metric="pro", dataset="mvtec_ad")
    assert found == {"WinCLIP": 64.6, "APRIL-GAN": 44.0, "ACR": 72.7, "MuSc": 93.8}
    assert math.isnan(found["PatchCore"])
    assert reproduce.numbers(frame, "here", metric="pro") == {}


def test_the_stand_in_shares_no_table_and_no_picture_with_the_paper():
    here = measure.frame_of([{"row": "{5}", "metric": "image_auroc", "value": 12.3}], dataset="synthetic")
    frame = comparison.compare(3, here)
    real, apart = comparison.on_real_data(frame), comparison.stand_in(frame)
    assert real["here"].isna().all()
    assert list(apart["here"]) == [12.3]
    drawn = [p[0] for ax in charts.dots(real, ["row"]).axes for c in ax.collections for p in c.get_offsets()]
    assert len(drawn) == 24 + 4  # and the released code's
    assert 12.3 not in drawn


def test_colour_never_tells_alone():
    figure = charts.dots(comparison.compare(3, measure.frame_of([])), ["row"])
    points = [c for ax in figure.axes for c in ax.collections if c.get_paths()]
    corners = {tuple(c.get_edgecolor()[0]): len(c.get_paths()[0].vertices) for c in points}
    assert len(corners) == len(set(corners.values())) == 2  # MVTec AD and VisA


def test_a_dumbbell_joins_before_and_after():
    frame = comparison.compare(5, measure.frame_of([]))
    ax = charts.dumbbells(frame, ["dataset", "row"], ("w/o", "w"), ["image_auroc"]).axes[0]
    assert [list(line.get_xdata()) for line in ax.lines] == [[97.4, 97.8], [90.0, 92.8]]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["MVTec AD", "VisA"]


def test_released_code_stands_beside_the_method_alone():
    frame = comparison.compare(3, measure.frame_of([]))
    known = frame.dropna(subset="released")
    assert set(known["row"]) == {"{1, 3, 5}"}
    assert known.set_index(["dataset", "metric"])["released"].to_dict() == {
        ("mvtec_ad", "image_auroc"): 97.77, ("mvtec_ad", "pixel_auroc"): 97.11,
        ("visa", "image_auroc"): 92.57, ("visa", "pixel_auroc"): 98.71,
    }  # fmt: skip


def test_main_table_is_the_mean_of_the_categories(lab):
    made = reproduce.make("table_1", lab)
    measured = made.frame.query("status == 'measured'")
    frame = measured[measured["row"] == "4-shot block"].set_index(["dataset", "metric"])["here"]
    config = lab.config.replace(windows=(2, 3))
    runs = [MuSc(config).run(lab.category("mvtec_ad", n)).metrics for n in ("bottle", "screw")]
    sources = {"image_auroc": ("image", "auroc"), "pixel_ap": ("pixel_official", "ap")}
    sources["pro"] = ("pixel_official", "pro_official")
    for metric, (group, key) in sources.items():
        expected = 100 * np.mean([run[group][key] for run in runs])
        assert frame["mvtec_ad", metric] == pytest.approx(expected)
    assert len(frame) == 14
    assert "2 of 15 categories" in made.notes[0]
    assert "1 of 12 categories" in made.notes[1]
    assert len(measured) == 28  # Tab. 1 prints MuSc in both of its blocks
    table = made.table.texts
    assert set(table.xs("WinCLIP", level="method").index.get_level_values("source")) == {"paper"}
    ours = table.xs("MuSc", level="method").index.get_level_values("source")
    assert set(ours) == {"paper", "released code", "here"}
    assert made.stand_in.texts.empty
    assert made.stand_in_figure is None


def test_ablations_agree_with_the_main_table(small):
    def here(name, row):
        frame = reproduce.make(name, small).frame
        mine = frame[(frame["row"] == row) & (frame["status"] == "measured")]
        return mine.set_index(["dataset", "metric"])["here"]

    main = reproduce.make("table_2", small).frame.set_index(["dataset", "method", "metric"])["here"].xs("MuSc", level=1)
    for name, row in {"table_3": "{1, 3, 5}", "table_5": "w", "table_7": "1"}.items():
        for key, value in here(name, row).items():
            if key in main.index:
                assert value == pytest.approx(main[key], abs=1e-3), (name, key)
    sizes = here("table_7", "3").xs("subset_images_max", level="metric")
    assert sizes.to_dict() == {"mvtec_ad": 2}  # six images in three parts


def test_windows_are_those_of_the_data_set(lab):
    assert lab.musc("mvtec_ad").config.windows == (2, 3)
    assert lab.musc("visa").config.windows == (8, 9)
    assert lab.musc("visa").backbone is lab.musc("mvtec_ad").backbone


def test_a_finished_result_is_not_computed_again(lab, monkeypatch):
    first = lab.result("mvtec_ad", "bottle")
    monkeypatch.setattr(MuSc, "run", None)
    again = lab.result("mvtec_ad", "bottle")
    assert np.array_equal(first.image_scores, again.image_scores)


@pytest.fixture
def bottle(small):
    """The one category of the figures: its result, its samples in the result's order, and masks of 64 px."""
    result = small.result("mvtec_ad", "bottle")
    by_name = {s.name: s for s in small.category("mvtec_ad", "bottle").samples}
    samples = [by_name[path] for path in result.paths]
    masks = [np.asarray(Image.open(s.mask)) > 0 if s.mask else np.zeros((64, 64), bool) for s in samples]
    return result, samples, np.stack(masks)


def make_figure(name, lab):
    made = reproduce.make(name, lab)
    assert len(made.frame) > 1
    assert list(made.frame.columns) == ["paper", "here"]
    assert made.datasets == ("mvtec_ad",)
    assert made.summary.endswith("drawn from MVTec AD data")
    return made.figure.axes, made.frame


def shown(ax):
    """The picture that stands in `ax`."""
    (image,) = ax.images
    return np.asarray(image.get_array())


def heights(ax, label, edges):
    """Of the bins of one histogram in `ax`: where its outline runs level above the middle of a bin."""
    (outline,) = [area for area in ax.collections if area.get_label() == label]
    corners = outline.get_paths()[0].vertices
    level = [(*sorted((x, after)), y) for (x, y), (after, same) in itertools.pairwise(corners) if y == same]
    return [max(y for x, after, y in level if x < at < after) for at in (edges[:-1] + edges[1:]) / 2]


def picture(sample):
    return np.asarray(Image.open(sample.image))


def test_figure_3_shows_the_maps_of_each_degree_from_small_to_large(small, bottle):
    _, samples, masks = bottle
    axes, frame = make_figure("figure_3", small)
    rows = [i for i in np.argsort(masks.sum(axis=(1, 2)), kind="stable") if masks[i].any()]
    one = {r: small.result("mvtec_ad", "bottle", degrees=(r,)).anomaly_maps for r in (1, 3, 5)}
    columns = [*one.values(), np.mean(list(one.values()), axis=0)]
    for line, i in zip(np.reshape(axes[:18], (3, 6)), rows, strict=True):
        np.testing.assert_array_equal(shown(line[0]), picture(samples[i]))
        np.testing.assert_array_equal(shown(line[1]), masks[i])
        for ax, maps in zip(line[2:], columns, strict=True):
            np.testing.assert_allclose(shown(ax), maps[i], atol=1e-6)
    ap = {f"r = {r}": average_precision_score(masks[rows[0]].ravel(), one[r][rows[0]].ravel()) for r in one}
    assert frame["here"].iloc[0] == max(ap, key=ap.get)
    assert list(frame["here"])[1:4] == pytest.approx(list(ap.values()), abs=1e-6)


def test_figure_4_counts_the_distances_of_normal_and_abnormal_patches(small, bottle):
    result, _, masks = bottle
    axes, frame = make_figure("figure_4", small)
    share = masks.reshape(6, 4, 16, 4, 16).mean(axis=(2, 4)).reshape(6, 16)  # anomalous, of a patch
    normal, abnormal = share == 0, share >= 0.5
    tokens = small.features("mvtec_ad", "bottle").patch_tokens[1]
    D = plain.distances(plain.aggregate(tokens, 3, (4, 4)))  # [N, N - 1, M]
    edges, single = np.linspace(0, D.max(), 49), D.transpose(0, 2, 1)
    expected = [(single, "normal", normal), (single, "anomalous", abnormal)]
    for averaged in (D.mean(axis=1), plain.interval_average(D)):
        expected += [(averaged, "normal", normal), (averaged, "anomalous", abnormal)]
    for (values, label, where), ax in zip(expected, [axes[0], axes[1], *axes[2:3] * 2, *axes[3:4] * 2], strict=True):
        counts = np.histogram(values[where], edges, density=True)[0]
        np.testing.assert_allclose(heights(ax, label, edges), counts, rtol=0.01)
    assert list(frame["here"])[2:] == [5, 1, normal.sum(), abnormal.sum()] == [5, 1, 84, 10]
    assert len(result.paths) == 6


def test_figure_5_shows_scores_before_and_after_and_a_neighbour(small, bottle):
    result, samples, _ = bottle
    axes, frame = make_figure("figure_5", small)
    raw, normal = result.raw_image_scores, result.labels == 0
    edges = np.linspace(0, 1, 21)
    for ax, values in zip(axes[:2], ((raw - raw.min()) / np.ptp(raw), result.image_scores), strict=True):
        for label, where in (("normal", normal), ("anomalous", ~normal)):
            np.testing.assert_allclose(heights(ax, label, edges), np.histogram(values[where], edges, density=True)[0])
    i = np.flatnonzero(normal)[raw[normal].argmax()]
    others = [n for n in np.flatnonzero(normal) if n != i]
    j = others[np.argmax(result.class_tokens[others] @ result.class_tokens[i])]
    for n, row in enumerate((i, j)):
        np.testing.assert_array_equal(shown(axes[2 + 2 * n]), picture(samples[row]))
        np.testing.assert_array_equal(shown(axes[3 + 2 * n]), result.anomaly_maps[row])
    assert list(frame["here"])[:3] == pytest.approx([raw[i], raw[j], result.class_tokens[i] @ result.class_tokens[j]])


def test_figure_6_shows_images_masks_and_maps(small, bottle):
    result, samples, masks = bottle
    made = reproduce.make("figure_6", small)
    rows = [i for i in np.argsort(masks.sum(axis=(1, 2)), kind="stable") if masks[i].any()]
    for column, i in zip(np.reshape(made.figure.axes[:9], (3, 3)).T, rows, strict=True):
        np.testing.assert_array_equal(shown(column[0]), picture(samples[i]))
        np.testing.assert_array_equal(shown(column[1]), masks[i])
        np.testing.assert_array_equal(shown(column[2]), result.anomaly_maps[i])
        assert column[0].get_title() == "bottle\nspot"
    maps = np.asarray(result.anomaly_maps)
    on_it = ["yes" if masks[i].ravel()[maps[i].argmax()] else "no" for i in rows]
    assert list(made.frame["highest point on the defect"]) == on_it
    ap = [100 * average_precision_score(masks[i].ravel(), maps[i].ravel()) for i in rows]
    assert list(made.frame["pixel AP [%]"]) == pytest.approx(ap)
    assert list(made.frame["of the image [%]"]) == pytest.approx([100 * masks[i].mean() for i in rows])


def test_figure_1_counts_the_look_alikes_of_a_normal_and_an_abnormal_patch(small, bottle):
    _, _, masks = bottle
    axes, frame = make_figure("figure_1", small)
    share = masks.reshape(6, 4, 16, 4, 16).mean(axis=(2, 4)).reshape(6, 16)
    D = plain.distances(plain.aggregate(small.features("mvtec_ad", "bottle").patch_tokens[1], 3, (4, 4)))
    limit = np.quantile(D.transpose(0, 2, 1)[share == 0], 0.99)
    scores = np.where(share >= 0.5, plain.interval_average(D), -1)
    i, patch = np.unravel_index(scores.argmax(), scores.shape)
    found = frame["here"]
    assert found["images with the like of the abnormal patch"] == (D[i, :, patch] < limit).sum()
    assert found["median distance of the abnormal patch"] == pytest.approx(np.median(D[i, :, patch]), abs=1e-5)
    assert found["other images"] == 5
    titles = [ax.get_title() for ax in axes]
    assert f"{np.sort(D[i, :, patch])[0]:.2f}" in titles


def test_figure_2_shows_the_steps_of_one_run(small, bottle):
    result, _, _ = bottle
    axes, frame = make_figure("figure_2", small)
    i = result.raw_image_scores.argmax()
    assert frame["here"]["score of the first image"] == result.raw_image_scores[i]
    assert frame["here"]["maximum of the first map"] == pytest.approx(result.anomaly_maps[i].max())
    tokens = result.class_tokens
    pictures = [np.asarray(ax.images[0].get_array()) for ax in axes if ax.images]
    assert any(p.shape == (64, 64) and np.array_equal(p, result.anomaly_maps[i]) for p in pictures)
    assert any(p.shape == (6, 6) and np.allclose(p, tokens @ tokens.T) for p in pictures)


def test_figure_8_draws_the_auroc_of_every_window(small, bottle):
    result, _, _ = bottle
    axes, frame = make_figure("figure_8", small)

    def auroc(*windows):
        raw, tokens = torch.from_numpy(result.raw_image_scores), torch.from_numpy(result.class_tokens)
        return 100 * roc_auc_score(result.labels, rscin.rescore(raw, tokens, [min(k, 6) for k in windows]))

    single, pair = axes[0].lines
    np.testing.assert_allclose(single.get_ydata(), [auroc(k) for k in (*range(2, 10), 6)])
    np.testing.assert_allclose(pair.get_ydata(), auroc(2, 3))
    assert frame["here"].iloc[0] == pytest.approx(auroc(2, 3))


def test_a_figure_without_its_categories_names_them(small):
    with pytest.raises(DataError, match="transistor, wood, zipper"):
        reproduce.make("figure_16", small)


def test_shared_area_of_histograms():
    labels = np.array([0, 0, 1, 1])
    edges = np.array([0.0, 1.0, 2.0, 3.0])
    assert draw.shared_area(np.array([0.5, 1.5, 1.5, 2.5]), labels, edges) == pytest.approx(0.5)
    assert draw.shared_area(np.array([0.5, 0.6, 2.1, 2.5]), labels, edges) == 0


def test_unions_of_degrees_are_means_of_maps(lab):
    """Eq. 3 averages over degrees, so the maps of {1, 3, 5} follow from the three single ones."""
    maps = draw.degree_maps(lab, "mvtec_ad", "bottle")
    alone = lab.result("mvtec_ad", "bottle", degrees=(1, 3, 5)).anomaly_maps
    np.testing.assert_allclose(maps["r in {1, 3, 5}"], alone, atol=1e-5)


def test_cost_needs_no_gpu_and_is_kept(small):
    time_ms, memory = small.cost("mvtec_ad", 2)
    assert time_ms > 0
    assert math.isnan(memory)
    assert small.cost("mvtec_ad", 2)[0] == time_ms


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "full"}, "profile = 'full'"),
        ({"name": "paper"}, "MVTec AD: CATEGORY/test/DEFECT"),
        ({"name": "paper", "data_root": "/nowhere"}, "/nowhere is no folder"),
        ({"categories": ["bottel"]}, "no category bottel: there are"),
        ({"protocol": "none"}, "protocol = 'none'"),
    ],
)
def test_bad_profiles_are_named(arguments, words):
    with pytest.raises(ConfigError, match=words):
        reproduce.profile(**arguments)


def test_a_folder_in_no_layout_is_refused(tmp_path, mvtec):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(ConfigError, match=r"none of the layouts(.|\n)*VisA"):
        reproduce.profile("paper", tmp_path)
    with pytest.raises(ConfigError, match="both in the layout mvtec_ad"):
        reproduce.profile("paper", [mvtec, mvtec])


def test_command_line_makes_a_table_and_reuses_it(mvtec, tmp_path, capsys):
    words = ["reproduce", "table_17", "--profile", "paper", "--data-root", str(mvtec), *WORDS, "--out", str(tmp_path)]
    assert cli.main([*words, "--limit-categories", "1"]) == 0
    said = capsys.readouterr().out
    assert (
        "Table 17: 14 of 112 cells run on MVTec AD; 0 quoted" in said
    )  # one category and the mean, seven metrics each
    (csv,) = tmp_path.rglob("table_17.csv")
    frame = pd.read_csv(csv).set_index(["category", "metric"])
    assert frame.loc[("bottle", "image_auroc"), "paper"] == 99.9
    assert frame.loc[("bottle", "image_auroc"), "here"] >= 0
    assert frame.loc[("cable", "image_auroc"), "status"] == "not run"
    with Image.open(csv.with_suffix(".png")) as picture:
        assert picture.size[0] > 300
    assert cli.main([*words, "--limit-categories", "1"]) == 0
    assert "Table 17: finished before" in capsys.readouterr().out
    assert cli.main([*words[:1], "table_18", *words[2:], "--limit-categories", "1"]) == 0
    assert "not run for want of data: visa" in capsys.readouterr().out


def test_command_line_names_what_is_wrong(capsys):
    assert cli.main(["reproduce", "table_19"]) == 1
    said = capsys.readouterr().err
    assert "table_18, figure_1" in said
    assert cli.main(["reproduce", "table_1", "--profile", "paper"]) == 1
    assert "https://github.com/amazon-science/spot-diff" in capsys.readouterr().err
    assert cli.main(["reproduce"]) == 1
    assert "--list" in capsys.readouterr().err
    assert cli.main(["reproduce", "--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 34


def test_remarks_are_computed_from_the_transcription():
    said = reproduce.remarks("table_3", "table_9")
    assert "- MuSc's image AUROC on MVTec AD with r in {1} (0-shot) is 96.8 in Tab. 3 but 96.9 in Tab. 9." in [
        line.removesuffix(" (Decimals that are not printed could explain it.)") for line in said.splitlines()
    ]
    assert reproduce.remarks("table_12").startswith(
        "Of 2 statements that the paper's text makes about these tables, the printed numbers bear out 2."
    )


def test_summary_counts_the_cells(small):
    made = reproduce.make("table_1", small)
    others = (paper.table(1)["method"] != "MuSc").sum()
    run = "14 of 28 cells run on MVTec AD and VisA"
    assert made.summary == f"Table 1: {run}; {others} quoted; synthetic stand-in, apart: 0"
    assert "MVTec" not in small.describe()
    assert small.describe().splitlines()[0] == "profile   paper, masks official"


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """One category in the layout of MVTec AD with 6 normal training images."""
    root = tmp_path_factory.mktemp("many")
    for i in range(6):
        plant(root / "screw" / "train" / "good", 50 + i, False)
    for i in range(3):
        plant(root / "screw" / "test" / "good", i, False)
        mask = plant(root / "screw" / "test" / "spot", i + 3, i > 0)
        (root / "screw" / "ground_truth" / "spot").mkdir(parents=True, exist_ok=True)
        mask.save(root / "screw" / "ground_truth" / "spot" / f"{i + 3:03}_mask.png")
    return root


def test_rivals_are_measured_with_k_shots_and_every_draw(many, tmp_path, monkeypatch):
    lab = reproduce.profile("paper", many, folder=tmp_path, **TINY)
    category = lab.category("mvtec_ad", "screw")
    musc = lab.musc("mvtec_ad")
    test, train = musc.features(category.samples), musc.features(category.train)
    labels = [sample.label for sample in test.samples]

    def auroc(rows):
        return 100 * roc_auc_score(labels, PatchCore().score(test, train.take(rows)).images)

    made = reproduce.make("table_1", lab)
    four = made.frame.query("method == 'PatchCore' and dataset == 'mvtec_ad'").set_index("metric")
    assert set(four["row"]) == {"4-shot block"}
    assert set(four["status"]) == {"measured"}
    expected = np.mean([auroc(fewshot.draw(6, 4, seed)) for seed in range(5)])
    assert four.loc["image_auroc", "here"] == pytest.approx(expected, abs=1e-3)
    assert set(made.frame.query("method == 'WinCLIP'")["status"]) == {"quoted"}  # no weights of CLIP here
    full = reproduce.make("table_2", lab).frame.query("method == 'PatchCore'").set_index("metric")["here"]
    assert full["image_auroc"] == pytest.approx(auroc(range(6)), abs=1e-3)
    monkeypatch.setattr(MuSc, "run", None)  # finished ones are read
    assert others.measured(lab, "mvtec_ad", "screw", "PatchCore", "4-shot")["image"]["auroc"] == pytest.approx(
        expected / 100, abs=1e-5
    )
    assert others.measured(lab, "mvtec_ad", "screw", "PatchCore", "8-shot") is None  # there are six


def test_winclip_is_measured_where_a_clip_is(many, tmp_path, small_clip):  # noqa: F811
    lab = reproduce.profile("paper", many, folder=tmp_path, backbone="small", weights="random", device="cpu")
    category = lab.category("mvtec_ad", "screw")
    labels = [sample.label for sample in category.samples]
    inputs = [preprocess(read_image(s.image), 24, small_clip.mean, small_clip.std) for s in category.samples]
    scores, _ = winclip.score(text.load_clip(small_clip, "random", 24), torch.stack(inputs), "screw")
    expected = 100 * roc_auc_score(labels, scores)
    for name in ("table_12", "table_13"):
        frame = reproduce.make(name, lab).frame.query("method == 'WinCLIP' and status == 'measured'")
        own = frame[(frame["metric"] == "image_auroc") & (frame["category"] != "mean of these 5")]["here"]
        assert own.tolist() == pytest.approx([expected] * len(own), abs=1e-3)
        assert len(own) == {"table_12": 2, "table_13": 1}[name]  # the category, and the mean of all there are
        if name == "table_13":
            assert frame.set_index("metric")["here"]["time_ms"] > 0


def test_the_stand_in_has_the_rivals_of_its_table(tmp_path):
    lab = reproduce.profile("demo", categories=["weave"], images=8, image_size=64, device="cpu", folder=tmp_path)
    made = reproduce.make("table_14", lab)
    shown = made.stand_in.texts.index.to_frame()[["method", "setting"]].drop_duplicates().to_numpy().tolist()
    rivals = [["PatchCore", "4-shot"], ["SPADE", "full-shot"], ["PaDiM", "full-shot"]]
    assert sorted(shown) == sorted([["MuSc", "0-shot"], *rivals])
    real = made.frame[made.frame["dataset"] != "synthetic"]
    assert set(real[real["method"] != "MuSc"]["status"]) == {"quoted"}
