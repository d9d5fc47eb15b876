"""The plan of the course, the decks, the diagrams and the figure pack."""

import json
import re

import pytest
import yaml

from tools import book, course, course_diagrams, course_figures, course_slides, gate, notebooks
from tools.notebooks import ROOT

TEACH = ROOT / "book" / "teach"
SESSIONS = sorted(TEACH.glob("session_*.md"))
DECKS = sorted(course_slides.FOLDER.glob("session_*.md"))


def test_three_sessions_each_with_its_deck():
    assert [path.stem for path in SESSIONS] == [path.stem for path in DECKS] == ["session_1", "session_2", "session_3"]


@pytest.mark.parametrize("path", SESSIONS, ids=lambda path: path.stem)
def test_the_minutes_of_a_session_are_ninety_and_its_slides_are_all_used(path):
    text = path.read_text(encoding="utf-8")
    assert text.startswith(book.LECTURERS)
    table = text.split("## Minute by minute")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (\d+) \| (.+?) \| (\d+)(?:-(\d+))? \|", table, re.M)
    assert sum(int(minutes) for minutes, *_ in rows) == 90
    shown = [n for _, _, first, last in rows for n in range(int(first), int(last or first) + 1)]
    slides = course_slides.slides(course_slides.FOLDER / path.name)
    assert shown == list(range(1, len(slides) + 1))
    assert 25 <= len(slides) <= 40
    for part in (
        "**Objectives.**",
        "**Prerequisites.**",
        "## Questions that students ask",
        "## Wrong answers to expect",
    ):
        assert part in text
    for minutes, what, first, last in rows:  # nobody shows a slide in half a minute
        assert int(minutes) / (int(last or first) - int(first) + 1) >= 1, what


@pytest.mark.parametrize("path", DECKS, ids=lambda path: path.stem)
def test_no_result_is_typed_on_a_slide(path):
    for number, text in enumerate(course_slides.slides(path), 1):
        prose = re.sub(r"\$\$.*?\$\$|\$[^$]*\$|```.*?```|^:: .*$", "", text.partition("\nNote:")[0], flags=re.S | re.M)
        assert not re.search(r"\d+\.\d|\d\d %(?<!30 %)", prose), (path.name, number)
        assert "\nNote:" in text or ":: figure" in text, (path.name, number)  # a caption is said too


def test_what_a_slide_takes_must_be_there_once(tmp_path):
    for line, message in (
        (":: say 03 the", "found .* times"),
        (":: say 03 no such words", "found 0 times"),
        (":: figure 03 fig-none", "no figure"),
        (":: poem 03 x", "unknown directive"),
    ):
        with pytest.raises(course_slides.SlideError, match=message):
            course_slides.slide(f"## Title\n\n{line}\n", tmp_path, tmp_path)
    made = course_slides.slide("## T\n\n:: figure 03 fig-msm-pair\n\n?? Is $x$?\n\nNote: Say.", tmp_path, tmp_path)
    assert (tmp_path / "figures/fig-msm-pair.png").stat().st_size > 1000
    assert '<p class="ask">Is <span class="math inline">\\(x\\)</span>?</p>' in made
    assert "Say." in made.split('<aside class="notes">')[1]
    vectors = tmp_path / "vectors"
    (vectors / "03").mkdir(parents=True)
    (vectors / "03" / "fig-msm-pair.svg").write_text("<svg/>")
    assert "fig-msm-pair.svg" in course_slides.slide("## T\n\n:: figure 03 fig-msm-pair", tmp_path, vectors)


def test_decks_fit_their_slides(chromium, tmp_path):
    """At 1280 x 720 nothing overflows, no letter is below 18 px, nothing is fetched; the gate sees what is too long."""
    decks = course_slides.build(tmp_path / "slides", tmp_path)
    page = chromium.open("about:blank")
    assert [fault for deck in decks for fault in course_slides.look(page, deck)] == []
    bad = tmp_path / "slides" / "session_1.html"
    text = bad.read_text(encoding="utf-8")
    long = "<ul>" + "<li>a line</li>" * 30 + "</ul><p style='font-size: 12px'>small</p><img alt='' src='none.png'>"
    white = "<style>.reveal-viewport { background: #fff !important }</style></head>"
    bad.write_text(text.replace("</h2>", f"</h2>{long}", 1).replace("</head>", white), encoding="utf-8")
    found = " ".join(course_slides.look(page, bad))
    for fault in (
        "overflows by",
        "12px" if "12px" in found else "12 px",
        "no alt text",
        "missing picture",
        "dark: contrast of 1",
    ):
        assert fault in found
    page.close()


def test_the_student_build_leaves_the_lecturers_pages_out(monkeypatch, tmp_path):
    monkeypatch.setattr(book, "STUDENT", tmp_path)
    tree = book.student_tree()
    toc = yaml.safe_load((tree / "_toc.yml").read_text(encoding="utf-8"))
    listed = gate.pages(toc)
    assert "book/teach/labs" in listed
    assert not [name for name in listed if "session_" in name]
    assert not list(tree.rglob("session_*"))
    shown = r"^(?:```\{(?:literal)?include\}|:file:) (\S+)"
    for page in (tree / "book").rglob("*.md"):
        for name in re.findall(shown, page.read_text(encoding="utf-8"), re.M):
            assert (page.parent / name).is_file(), (page.name, name)
    everything = "".join(path.read_text(encoding="utf-8") for path in (tree / "book").rglob("*.md"))
    assert not re.search(r"\]\([^)]*session_\d", everything)
    assert not [p for p in tree.rglob("*") if "answers" in p.name or p.parent.name == "quizzes"]


def test_estimates_of_energy_follow_from_the_measured_seconds():
    text = (TEACH / "limits.md").read_text(encoding="utf-8")
    rows = json.loads((ROOT / "benchmarks/results/gpu_cost.json").read_text(encoding="utf-8"))["rows"]
    measured = {row["backbone_precision"]: row["seconds"] for row in rows if row["s"] == 1}
    (watts,) = map(int, re.findall(r"(\d+) W, the most", text))
    table = text[text.index("| 200 images") :].split("\n\n")[0].splitlines()
    head, _, *rows = [line.strip("| ").split(" | ") for line in table]
    grams = [int(number) for number in re.findall(r"\((\d+) g/kWh\)", " ".join(head))]
    for name, seconds, energy, *carbon in rows:
        assert float(seconds) == measured.pop(name)
        hours = float(seconds) * watts / 3600
        assert energy == f"{hours:.2g} Wh"
        assert [float(text.split()[0]) for text in carbon] == [float(f"{hours / 1000 * g:.2g}") for g in grams]
    assert not measured


def test_diagrams_are_what_their_code_draws():
    for make in (course_diagrams.vit, course_diagrams.method):
        assert (course_diagrams.FOLDER / f"{make.__name__}.svg").read_text(encoding="utf-8") == make()


def test_the_figure_pack_names_each_figure_once_with_its_source():
    rows = course_figures.index()
    assert len({row["figure"] for row in rows}) == len(rows) > 50
    for row in rows:
        assert all(row[column] for column in course_figures.COLUMNS)
        assert (ROOT / row["notebook"]).is_file()


def test_vectors_join_the_pack_while_their_notebook_stays_the_same(monkeypatch, tmp_path):
    script = notebooks.scripts(["15"])[0]
    monkeypatch.setattr(notebooks, "scripts", lambda names=None: [script])
    folder = tmp_path / "vectors" / "15"
    folder.mkdir(parents=True)
    name = course_figures.index()[0]["figure"]
    (folder / f"{name}.svg").write_text("<svg/>")
    for mark, there in (("old", False), (course_figures.stamp(script), True)):
        (folder / "stamp").write_text(mark)
        archive = course_figures.build(tmp_path / "figures", tmp_path / "vectors")
        assert (tmp_path / "figures" / "15" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (tmp_path / "figures" / "15" / f"{name}.svg").is_file() == there
        assert archive.stat().st_size > 10_000
    assert not course_figures.draw(script, tmp_path / "vectors")  # nothing to do


@pytest.mark.nightly
def test_the_cells_of_a_notebook_draw_its_vectors(monkeypatch, tmp_path):
    script = notebooks.scripts(["22"])[0]
    monkeypatch.setattr(notebooks, "scripts", lambda names=None: [script])
    course_figures.draw_all(tmp_path)
    for row in course_figures.index():
        picture = (tmp_path / "22" / f"{row['figure']}.svg").read_text(encoding="utf-8")
        assert picture.lstrip().startswith("<?xml")
        assert "<image" not in picture  # curves stay curves
        assert (tmp_path / "22" / f"{row['figure']}.pdf").read_bytes().startswith(b"%PDF")
    assert course_figures.current(script, tmp_path)


def test_notebooks_without_outputs(monkeypatch, tmp_path):
    monkeypatch.setattr(course, "OUT", tmp_path)
    course.clean()
    for kind in ("all", "student"):
        made = sorted((tmp_path / "notebooks" / kind).glob("*.ipynb"))
        assert len(made) == len(notebooks.scripts())
        text = made[3].read_text(encoding="utf-8")
        assert '"output_type"' not in text
        assert ("solution-start" in text) == (kind == "all")
        assert (tmp_path / "notebooks" / f"{kind}.zip").stat().st_size > 10_000


def test_the_glossary_has_the_fields_words():
    text = (ROOT / "book/glossary.md").read_text(encoding="utf-8")
    for term in ("CLIP", "memory bank", "prompt", "one-class", "zero-shot", "few-shot", "full-shot"):
        assert re.search(rf"^{term}\n  \w", text, re.M), term
