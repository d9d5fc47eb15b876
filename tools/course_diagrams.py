"""Two diagrams of the book, drawn by code: a vision transformer, and MuSc from images to scores.

python -m tools.course_diagrams     writes book/_static/vit.svg and book/_static/method.svg
"""

from __future__ import annotations

from html import escape

from tools.notebooks import ROOT

FOLDER = ROOT / "book" / "_static"
BLUE, ORANGE, GREY, PALE = "#0072b2", "#b34700", "#404040", "#eaf3f9"
ARROW = (
    '<defs><marker id="a" orient="auto" markerWidth="9" markerHeight="8" refX="8" refY="4">'
    f'<path d="M0 0 9 4 0 8z" fill="{GREY}"/></marker></defs>'
)
STYLE = "font: 15px 'Noto Sans', Helvetica, Arial, sans-serif; fill: #1a1a1a"


class Drawing:
    """Shapes of an SVG, in pixels from the top left."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.size, self.title = (width, height), title
        self.parts: list[str] = []

    def rect(self, x: float, y: float, w: float, h: float, fill: str = PALE, edge: str = BLUE) -> None:
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="4" fill="{fill}" stroke="{edge}"/>'
        )

    def text(self, x: float, y: float, *lines: str, colour: str = "", anchor: str = "middle") -> None:
        for n, line in enumerate(lines):
            style = f' style="fill: {colour}"' if colour else ""
            self.parts.append(f'<text x="{x:g}" y="{y + 19 * n:g}" text-anchor="{anchor}"{style}>{escape(line)}</text>')

    def box(self, x: float, y: float, w: float, h: float, *lines: str, edge: str = BLUE, fill: str = PALE) -> None:
        self.rect(x, y, w, h, fill, edge)
        self.text(x + w / 2, y + h / 2 + 5 - 9.5 * (len(lines) - 1), *lines)

    def arrow(self, *points: tuple[float, float], colour: str = GREY) -> None:
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        self.parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6" marker-end="url(#a)"/>'
        )

    def svg(self) -> str:
        w, h = self.size
        start = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w} {h}" width="{w}" height="{h}" style="{STYLE}">'
        )
        lines = [start, f"<title>{escape(self.title)}</title>", ARROW, f'<rect width="{w}" height="{h}" fill="#fff"/>']
        return "\n".join([*lines, *self.parts, "</svg>", ""])


def vit() -> str:
    """A vision transformer, as far as this book needs it."""
    d = Drawing(900, 330, "A vision transformer: patches, tokens, blocks in four stages")
    d.text(75, 60, "image")
    for n in range(9):
        row, column = divmod(n, 3)
        d.rect(30 + 30 * column, 75 + 30 * row, 30, 30, "#fdebd9" if n == 5 else "#fff", ORANGE if n == 5 else GREY)
    d.text(75, 190, "M patches")
    d.arrow((130, 120), (170, 120))
    d.text(205, 60, "tokens")
    d.rect(190, 70, 30, 18, "#dfeee4", "#2e7d4f")
    d.text(205, 84, "cls")
    for n in range(6):
        d.rect(190, 94 + 20 * n, 30, 16, "#fdebd9" if n == 3 else PALE, ORANGE if n == 3 else BLUE)
    d.text(205, 232, "+ position")
    for n in range(4):
        x = 260 + 140 * n
        d.arrow((x - 35, 140), (x, 140))
        d.box(x, 70, 100, 145, "blocks of", f"stage {n + 1}", "", "attention", "+ MLP")
        d.arrow((x + 50, 215), (x + 50, 255))
        d.text(x + 50, 275, "patch tokens", "[M, C]", colour=BLUE)
    d.arrow((780, 140), (810, 140))
    d.box(812, 118, 76, 44, "class", "token", edge="#2e7d4f", fill="#dfeee4")
    d.text(450, 30, "frozen: trained before, on other pictures; each token takes in something of all others")
    return d.svg()


def method() -> str:
    """MuSc, box by box."""
    d = Drawing(900, 330, "MuSc: from unlabeled images to maps and scores")
    d.box(15, 110, 110, 60, "N unlabeled", "images")
    d.arrow((125, 140), (155, 140))
    d.box(155, 110, 110, 60, "frozen", "network")
    d.arrow((265, 125), (300, 90))
    d.text(300, 40, "patch tokens, 4 stages", anchor="start", colour=BLUE)
    d.box(300, 55, 125, 70, "LNAMD", "r = 1, 3, 5", "Sec. 3.1")
    d.arrow((425, 90), (455, 90))
    d.box(455, 55, 145, 70, "mutual scoring", "Eq. 1, 2, 3", "Sec. 3.2")
    d.arrow((600, 90), (630, 90))
    d.box(630, 55, 110, 70, "anomaly", "maps", "(upsampled)", edge=ORANGE, fill="#fdebd9")
    d.arrow((685, 125), (685, 205))
    d.text(695, 170, "maximum", anchor="start")
    d.box(630, 205, 110, 60, "image", "scores C")
    d.arrow((740, 235), (770, 235))
    d.box(770, 200, 115, 70, "RsCIN", "Eq. 4, 5", "Sec. 3.3")
    d.arrow((210, 170), (210, 295), (827, 295), (827, 270))
    d.text(300, 285, "class tokens", anchor="start", colour="#2e7d4f")
    d.arrow((827, 200), (827, 125))
    d.box(770, 55, 115, 70, "scores that", "order the", "images", edge=ORANGE, fill="#fdebd9")
    d.text(520, 150, "each patch asks every other image:", "have you something like me?", colour=GREY)
    return d.svg()


def main() -> None:
    for make in (vit, method):
        (FOLDER / f"{make.__name__}.svg").write_text(make(), encoding="utf-8")


if __name__ == "__main__":
    main()
