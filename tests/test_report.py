"""report.html in a real browser, from the disk: every control, against what the result itself says."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import axe_core_python
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from musc.config import MuScConfig
from musc.datasets.base import Sample, Skipped
from musc.datasets.memory import in_memory
from musc.errors import ResultError
from musc.results import MuScResult
from musc.results.pictures import binary_mask, shared_scale
from musc.results.regions import save_regions
from musc.results.report import write_index, write_report
from musc.results.report.images import levels
from musc.results.thresholds import f1_max_threshold

EVIL = "</script><script>document.title='broken'</script>.png"
N, SIDE = 14, 24
NAMES = (
    EVIL,
    'a "b" & <i>c</i>.png',
    "100 %#?.png",
    "ünï/日本.png",
    "=1+1,2.png",
    *(f"part_{i:02d}.png" for i in range(5, N)),
)


def made(names=NAMES, seed=0):
    """A result and its images: the score grows with the row; the second half is anomalous, but for one of each."""
    g, n = np.random.default_rng(seed), len(names)
    maps = (0.1 + 0.05 * g.random((n, SIDE, SIDE))).astype(np.float32)
    labels = (np.arange(n) >= n // 2).astype(np.int64)
    labels[[0, n - 2]] = labels[[n - 2, 0]]  # one anomaly that scores lowest, one normal image that scores high
    samples = []
    for i, name in enumerate(names):
        maps[i, 6:10, 3 : 5 + i % 7] = 0.2 + 0.6 * i / n
        picture = np.full((30, 40, 3), 60 + 5 * (i % 30), np.uint8)
        mask = np.zeros((30, 40), bool)
        mask[8:14, 4:12] = True
        truth = in_memory(mask, "mask") if labels[i] else None
        defect = ("good", "scr<b>atch" if i % 2 else "dent")[labels[i]]
        samples.append(Sample(name, in_memory(picture, name), int(labels[i]), defect, truth))
    raw = maps.max(axis=(1, 2))
    result = MuScResult(
        dataset="folder",
        category="cups <b>",
        paths=tuple(names),
        image_scores=(raw - raw.min()) / np.ptp(raw),
        raw_image_scores=raw,
        anomaly_maps=maps,
        class_tokens=None,
        labels=labels,
        defects=tuple(s.defect for s in samples),
        config=MuScConfig(degrees=(1, 3)),
        metrics={"image": {"auroc": 0.9}},
        weights="none <i>",
        notes=("a note <script>document.title='broken'</script>",),
        skipped=(Skipped("x", "x.png was cut short."),),
        timings={"msm": 1.25},
        fingerprint="f1",
    )
    result.decide(0.45)
    return result, samples


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    result, samples = made()
    folder = result.save(tmp_path_factory.mktemp("out") / "folder/cups")
    return result, write_report(result, samples, folder, regions=save_regions(result, samples, folder))


@pytest.fixture
def page(written, tab):
    tab.go(written[1].as_uri())
    yield tab
    assert tab.errors == []
    assert {address.split(":")[0] for address in tab.requests} <= {"file", "data", "blob"}
    tab.evaluate("localStorage.clear()")


def shown(page):
    return page.evaluate("[...document.querySelectorAll('#grid .name')].map(e => e.textContent)")


def choose(page, name, value):
    page.evaluate(
        f"(e => {{ e.value = {json.dumps(value)}; e.dispatchEvent(new Event('input')); "
        f"e.dispatchEvent(new Event('change')); }})(document.getElementById('{name}'))"
    )


def press(page, key):
    code = {"Enter": 13, "Escape": 27, "ArrowRight": 39, "ArrowLeft": 37, "ArrowDown": 40, "ArrowUp": 38}.get(key, 0)
    more = {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
    for kind in ("keyDown", "keyUp"):
        page.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code,
                  **(more if kind == "keyDown" else {}))  # fmt: skip


def text(page, selector):
    return page.evaluate(f"document.querySelector({json.dumps(selector)}).textContent")


def by_score(result, chosen=None):
    order = np.argsort(-result.raw_image_scores, kind="stable")
    return [result.paths[i] for i in order if chosen is None or chosen[i]]


def test_images_stand_by_falling_score_and_names_are_text(page, written):
    assert shown(page) == by_score(written[0])
    assert page.evaluate("document.title") == "cups <b>: anomalies"
    assert text(page, "h1") == "cups <b> folder"
    assert "7 of 14" in text(page, "#counts") or str(int(written[0].decisions.sum())) in text(page, "#counts")
    page.wait("[...document.images].every(i => i.complete)")
    assert page.evaluate("[...document.images].filter(i => !i.naturalWidth).map(i => i.src)") == []
    for fact in ("degrees", "1, 3", "none <i>", "1.25", "x.png was cut short.", "90.0 %", "0.45"):
        assert fact in text(page, "#about")
    assert "a note <script>" in text(page, "header")


def test_filters(page, written):
    result = written[0]
    flagged, labels = result.decisions.astype(bool), result.labels.astype(bool)
    for which, chosen in (("anomalous", flagged), ("normal", ~flagged), ("wrong", flagged != labels)):
        choose(page, "which", which)
        assert shown(page) == by_score(result, chosen)
    choose(page, "which", "near")
    away = np.abs(result.raw_image_scores - 0.45)
    assert set(shown(page)) == {result.paths[i] for i in np.argsort(away)[:5]}
    choose(page, "which", "all")
    choose(page, "defect", "scr<b>atch")
    assert shown(page) == by_score(result, np.array(result.defects) == "scr<b>atch")
    choose(page, "defect", "")
    choose(page, "text", "PART_1")
    assert shown(page) == by_score(result, np.array(["part_1" in p for p in result.paths]))
    choose(page, "text", "nothing is called so")
    assert shown(page) == []
    assert "loosen the filters" in text(page, "#status")
    choose(page, "text", "")
    choose(page, "order", "name")
    assert shown(page) == sorted(result.paths)
    choose(page, "order", "near")
    assert shown(page)[0] == result.paths[int(away.argmin())]
    choose(page, "order", "random")
    assert sorted(shown(page)) == sorted(result.paths)
    assert shown(page) != by_score(result)


def test_the_threshold_moves_decisions_and_counts(page, written):
    result = written[0]
    labels = result.labels.astype(bool)
    for t in (0.3, 0.45, 0.7):
        choose(page, "slider", t)
        page.wait(f"Math.abs(state.threshold - {t}) < 1e-6")
        t = page.evaluate("state.threshold")
        flagged = result.raw_image_scores >= t
        assert [int(text(page, f"#{name}")) for name in ("tp", "fn", "fp", "tn")] == [
            (flagged & labels).sum(), (~flagged & labels).sum(), (flagged & ~labels).sum(), (~flagged & ~labels).sum()
        ]  # fmt: skip
        f1 = 2 * (flagged & labels).sum() / (flagged.sum() + labels.sum())
        assert f"F1{100 * f1:.1f} %" in text(page, "#rates")
        assert page.evaluate("document.querySelectorAll('#grid li.anomalous').length") == flagged.sum()
    page.click("#best")
    assert page.evaluate("state.threshold") == f1_max_threshold(labels, result.raw_image_scores).value
    page.click("#saved")
    assert page.evaluate("state.threshold") == result.threshold.value
    assert page.evaluate("document.querySelectorAll('#histogram rect').length") >= 8


def test_pro_at_the_threshold_is_the_mean_overlap_of_the_true_regions(page, written):
    """Brute force, on the maps in float64 and the masks at their size."""
    result, _ = written
    _, samples = made()
    shares, normal = [], []
    for m, s in zip(result.anomaly_maps, samples, strict=True):
        mask = np.zeros((SIDE, SIDE), bool)
        if s.mask is not None:
            mask = np.asarray(Image.fromarray(np.array(s.mask())).resize((SIDE, SIDE), Image.Resampling.NEAREST)) > 0
        marks, count = ndimage.label(mask, np.ones((3, 3)))
        shares += [(m[marks == k] >= 0.45).mean() for k in range(1, count + 1)]
        normal.append(m[~mask] >= 0.45)
    said = text(page, "#rates")
    assert f"PRO: overlap of true regions{100 * np.mean(shares):.1f} %" in said
    assert f"normal pixels above{100 * np.concatenate(normal).mean():.1f} %" in said


def test_views_by_click_and_key(page):
    layers = "[...document.querySelectorAll('#grid li:first-child img')].map(e => e.className)"
    page.evaluate("setCurrent(state.shown[0])")
    for key, view, expected in (
        ("1", "image", ["photo"]),
        ("3", "mask", ["map cut"]),
        ("4", "side", ["photo", "photo", "map heat"]),
        ("2", "overlay", ["photo", "map heat"]),
    ):
        press(page, key)
        assert page.evaluate(layers) == expected
        assert page.evaluate(f"document.querySelector('#views [data-view={view}]').ariaPressed") == "true"
    page.click("#views [data-view=mask]")
    assert page.evaluate(layers) == ["map cut"]


def pixels(page, tmp_path, selector):
    box = page.evaluate(
        f"(e => {{ const b = e.getBoundingClientRect(); return [b.x, b.y, b.right, b.bottom] }})"
        f"(document.querySelector({json.dumps(selector)}))"
    )
    shot = Image.open(page.screenshot(tmp_path / "shot.png")).convert("RGB").crop([round(v) for v in box])
    return np.asarray(shot).astype(int)


def test_what_is_drawn_is_the_mask_at_the_threshold_and_the_map(page, written, tmp_path):
    """The mask's white area on the screen against the map itself, at two thresholds; opacity 0 leaves the outline."""
    result = written[0]
    i = int(result.raw_image_scores.argmax())
    page.evaluate("setView('mask'); openViewer(0)")
    page.wait("[...stage.querySelectorAll('img')].every(i => i.complete)")
    for t in (0.45, 0.7):
        page.evaluate(f"setThreshold({t})")
        page.settle()
        white = pixels(page, tmp_path, "#stage img.map").mean(axis=2) > 127
        expected = binary_mask(result.anomaly_maps[i], t, white.shape[::-1])
        assert (white & expected).sum() / (white | expected).sum() > 0.95
    page.evaluate("setView('overlay'); setOpacity(0)")
    page.settle()
    plain = pixels(page, tmp_path, "#stage img.map")
    cyan = (np.abs(plain - (0, 229, 255)) < 30).all(axis=2)
    assert 0.001 < cyan.mean() < 0.05
    page.evaluate("setOpacity(1)")
    page.settle()
    assert np.abs(pixels(page, tmp_path, "#stage img.map") - plain).max() > 100


def test_the_viewer_steps_zooms_and_gives_the_focus_back(page, written):
    order = by_score(written[0])
    page.click("#grid li:first-child button")
    assert page.evaluate("viewer.open")
    assert text(page, "#v-name") == order[0]
    press(page, "ArrowRight")
    assert text(page, "#v-name") == order[1]
    page.click("#v-before")
    page.click("#v-full")
    assert page.evaluate("stage.querySelector('figure').firstChild.offsetWidth") == 40  # the image's own pixels
    page.click("#v-in")
    assert page.evaluate("stage.querySelector('figure').firstChild.offsetWidth") == 60
    page.click("#v-fit")
    assert page.evaluate("stage.querySelector('figure').firstChild.offsetWidth") > 500
    press(page, "4")
    assert page.evaluate("[...stage.querySelectorAll('figcaption')].map(e => e.textContent)")[:3] == [
        "image", "overlay", "mask",
    ]  # fmt: skip
    assert "1 region" in text(page, "#v-regions")
    press(page, "b")
    assert "marked bad" in text(page, "#v-said")
    press(page, "Escape")
    page.wait("!viewer.open")
    assert page.evaluate("document.activeElement.closest('li').querySelector('.name').textContent") == order[0]


def test_marks_by_key_are_kept_downloaded_and_read_again(page, written):
    result = written[0]
    order = by_score(result)
    page.evaluate("setCurrent(state.shown[0])")
    for key in ("b", "ArrowRight", "g", "ArrowDown", "b", "u", "ArrowUp", "ArrowRight", "b"):
        press(page, key)
    expected = {order[0]: 1, order[1]: 0, order[2]: 1}
    rows = list(csv.DictReader(io.StringIO(page.evaluate("marksAsCsv()"))))
    assert {row["path"]: int(row["label"]) for row in rows} == expected
    assert [float(row["raw_score"]) for row in rows] == result.raw_image_scores[
        [result.paths.index(row["path"]) for row in rows]
    ].tolist()
    page.evaluate("URL.createObjectURL = blob => { window.saved = blob.text(); return 'blob:none' };"
                  "HTMLAnchorElement.prototype.click = function () { window.called = this.download }")  # fmt: skip
    page.click("#download")
    assert page.evaluate("window.called") == "marked.csv"
    assert page.evaluate("window.saved") == page.evaluate("marksAsCsv()")
    page.go(written[1].as_uri())
    assert text(page, "#marked") == "1 good, 2 bad."
    choose(page, "which", "marked")
    assert sorted(shown(page)) == sorted(expected)
    table = page.evaluate("marksAsCsv()")
    page.click("#clear")
    assert text(page, "#marked") == "Nothing is marked."
    assert page.evaluate(f"marksFromCsv({json.dumps(table)})") == 3
    assert page.evaluate("marksAsCsv()") == table
    assert page.evaluate("marksFromCsv('path,label\\r\\nno such.png,1\\r\\npart_05.png,perhaps\\r\\n')") == 0


def test_marks_stand_in_for_labels_that_are_not_there(tab, tmp_path):
    result, samples = made()
    result.labels, result.defects = None, ("",) * N
    path = write_report(result, samples, tmp_path / "r", marks={NAMES[0]: 0, NAMES[N - 1]: 1, NAMES[N - 2]: 0})
    tab.go(path.as_uri())
    assert text(tab, "#h-truth") == "Against your marks"
    assert [text(tab, f"#{n}") for n in ("tp", "fn", "fp", "tn")] == ["1", "0", "1", "1"]
    result.threshold = None
    result.notes = ()
    tab.go(write_report(result, samples, tmp_path / "r").as_uri())
    assert "not decided" in text(tab, "header")
    assert tab.evaluate("document.getElementById('truth').hidden")
    assert tab.errors == []


@pytest.mark.parametrize("look", [{}, {"dark": True}, {"width": 390, "height": 844}], ids=["light", "dark", "phone"])
def test_no_rule_of_accessibility_is_broken(page, look):
    """axe-core's own rules on the page, and on it with an image opened."""
    axe = Path(axe_core_python.__file__).with_name("axe.min.js").read_text(encoding="utf-8")
    page.look(**{"width": 1280, "height": 900} | look)
    page.evaluate("byId('controls').open = true; setMark(0, 1); setMark(1, 0)")
    page.evaluate(axe + "; 0")
    rules = "{runOnly: ['color-contrast']}" if "dark" in look else "{}"  # the rest is as in the light
    broken = f"axe.run({rules}).then(r => r.violations.map(v => v.id + ': ' + v.nodes.map(n => n.target).join(' ')))"
    assert page.evaluate(broken) == []
    page.evaluate("openViewer(0)")
    assert page.evaluate(broken) == []
    page.evaluate("viewer.close()")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_new_threshold_keeps_the_pictures_and_other_scores_do_not(tmp_path):
    result, samples = made()
    folder = tmp_path / "r"
    write_report(result, samples, folder)
    stamps = {p: p.stat().st_mtime_ns for p in folder.rglob("*.jpg")}
    assert len(stamps) == 2 * N
    result.decide(0.3)
    write_report(result, [], folder)  # the images themselves are gone
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*.jpg")} == stamps
    next(folder.rglob("*.jpg")).unlink()
    write_report(result, samples, folder)
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*.jpg")} != stamps
    other = replace(result, raw_image_scores=result.raw_image_scores + 1)
    stamps = {p: p.stat().st_mtime_ns for p in folder.rglob("*.jpg")}
    write_report(other, [], folder)
    assert all(p.stat().st_mtime_ns != stamp for p, stamp in stamps.items())
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultError, match="report in"):
        write_report(result, samples, tmp_path / "file")


def test_levels_never_lose_what_reaches_a_threshold():
    result, _ = made()
    scale = shared_scale(result)
    drawn = levels(result.anomaly_maps, scale)
    for t in np.linspace(scale.vmin + 1e-3, scale.vmax, 23):
        step = np.ceil(255 * (t - scale.vmin) / (scale.vmax - scale.vmin) - 1e-9)
        assert (drawn >= step)[result.anomaly_maps >= t].all()
        assert ((drawn >= step) & (result.anomaly_maps < t - (scale.vmax - scale.vmin) / 255)).sum() == 0


def test_the_index_lists_results_and_leaves_the_page_of_others(tab, tmp_path):
    result, samples = made()
    assert write_index(tmp_path) is None
    for name in ("cups", "a b#"):
        write_report(result, samples, replace(result, category=name).save(tmp_path / "folder" / name))
    tab.go(write_index(tmp_path).as_uri())
    assert tab.evaluate("[...document.querySelectorAll('h2 a')].map(a => a.textContent)") == ["a b#", "cups"]
    assert tab.evaluate("[...document.images].every(i => i.complete && i.naturalWidth)")
    tab.click("h2 a")
    tab.wait("document.title.includes('anomalies')")
    assert tab.errors == []
    watched = tmp_path / "watch/belt"
    watched.mkdir(parents=True)
    (watched / "watch.json").write_text('{"folder": "/line/belt 2", "against": ""}')
    (watched / "scores.csv").write_text('path,score\n"a\nb.png",1\nc.png,0\n')
    (watched / "report.html").touch()
    index = write_index(tmp_path).read_text()
    assert '<a href="watch/belt/report.html">belt 2</a>' in index
    assert "2 images scored as they arrived" in index
    for page in tmp_path.rglob("report.html"):
        page.unlink()
    assert write_index(tmp_path) is None
    assert not (tmp_path / "index.html").exists()
    (tmp_path / "index.html").write_text("<p>somebody's own")
    assert write_index(tmp_path) is None
    assert (tmp_path / "index.html").read_text() == "<p>somebody's own"


def many(n):
    return made(tuple(f"part_{i:04d}.png" for i in range(n)))


def test_images_are_made_as_far_as_one_scrolls(tab, tmp_path):
    result, samples = many(400)
    folder = result.save(tmp_path / "many")
    tab.go(write_report(result, samples, folder).as_uri())
    made_at_first = tab.evaluate("document.querySelectorAll('#grid li').length")
    assert made_at_first < 200
    tab.evaluate("scrollTo(0, 1e9)")
    tab.wait(f"document.querySelectorAll('#grid li').length > {made_at_first}")
    choose(tab, "text", "part_0399")
    assert shown(tab) == ["part_0399.png"]
    assert tab.errors == []


@pytest.mark.nightly
def test_two_thousand_images_are_fluid(chromium, tmp_path):
    """First paint under 2 s, a filter, a threshold and a search under 100 ms of the page's own time."""
    result, samples = many(2000)
    path = write_report(result, samples, result.save(tmp_path / "many"))
    page = chromium.open(path.as_uri())
    page.call("Performance.enable", timeDomain="threadTicks")

    def spent():
        metrics = {m["name"]: m["value"] for m in page.call("Performance.getMetrics")["metrics"]}
        return 1000 * metrics["TaskDuration"]

    assert page.evaluate("performance.getEntriesByType('paint')[0].startTime") < 2000
    for act in ("byId('which').value = 'anomalous'; show()", "byId('text').value = '12'; show()", "setThreshold(0.5)"):
        before = spent()
        page.evaluate(f"{act}; new Promise(done => requestAnimationFrame(() => setTimeout(done)))")
        assert spent() - before < 100, act
    page.close()
