"""A folder that is watched: what arrives in it is scored against an earlier result, every file once.

The table of scores is all that is remembered: a row is appended in one piece when its image is done, and what a process
that was killed left of a row goes when the next one begins. A file is scored when it has not changed between two looks
and decodes as a whole; one that is still being written is left alone until then.

The report is a view of the table. Pictures are written once, before their row; the page is made anew from the rows, so
often that it takes a twentieth of the time at most.
"""

from __future__ import annotations

import csv
import io
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from musc.datasets.base import Category, Sample, Skipped
from musc.datasets.decode import content_key, describe, file_bytes
from musc.datasets.listing import Listing
from musc.datasets.values import as_read
from musc.errors import ConfigError, DataError, ResultError, cannot_write
from musc.results import MuScResult
from musc.results.folders import legal_names
from musc.results.pictures import LONGEST_SIDE, binary_mask, contour, overlay, shared_scale
from musc.results.report import write_page
from musc.results.report.images import Shown, copy_of, levels, save_image
from musc.saving import whole
from musc.stream import Against

COLUMNS = (
    "path", "score", "raw_score", "decision", "width", "height", "scored_at", "key", "bytes", "modified_ns",
)  # fmt: skip
TABLE, NOTE = "scores.csv", "watch.json"
PAGE_SHARE = 0.05  # of the time, at most, goes into writing the page
State = tuple[int, int]  # bytes, and when they changed in nanoseconds


@dataclass(frozen=True)
class Arrival:
    """An image that was scored, or (reason) why a file is left out: said once for each state of the file.

    size: (width, height) in pixels. key: of the content. note: what is odd about this image, said of the first alone.
    """

    name: str
    score: float = 0.0
    raw_score: float = 0.0
    decision: int | None = None
    size: tuple[int, int] = (0, 0)
    key: str = ""
    reason: str = ""
    note: str = ""


class Watch:
    """Scores what arrives in `folder` by the pool of `against`, and keeps the table in `out`.

    pictures: an overlay of every image below out/overlays, and report.html. Raises ConfigError where `out` holds the
    table of another folder or pool, ResultError where it cannot be written.
    """

    def __init__(self, folder: Path, against: Against, out: Path, *, pictures: bool = True) -> None:
        self.folder, self.against, self.out, self.pictures = folder, against, out, pictures
        self.scale = shared_scale(against.earlier)
        self.seen: dict[str, State] = {}  # at the last look
        self.done: dict[str, State] = {}
        self.left_out: dict[str, State] = {}
        self.reasons: dict[str, str] = {}  # of those
        self.keys: set[tuple[str, str]] = set()
        self.shown: dict[str, Arrival] = {}  # in the report: the newest picture under each name
        self.unseen: set[str] = set()  # scored without pictures
        self.noted = self.stale = False  # whether proportions were spoken of; whether the page lacks something
        self.written = self.cost = 0.0  # when the page was, and what it took, in seconds
        wanted = {"folder": os.path.abspath(folder), "against": against.earlier.fingerprint}
        try:
            _same(out / NOTE, wanted)
            self._read()
            with whole(out / NOTE) as path:
                path.write_text(json.dumps(wanted, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise ResultError(cannot_write(out, error)) from error

    def look(self) -> Iterator[Arrival]:
        """One look at the folder: scores what has settled since the last one, oldest first.

        Raises DataError where the folder is gone, ResultError where the table cannot be written.
        """
        listing = Listing(self.folder)
        found: list[tuple[State, str, Path]] = []
        mine = os.path.join(os.path.realpath(self.out), "")
        for path in listing.below(self.folder):
            if os.path.realpath(path).startswith(mine):  # our own pictures
                continue
            if (state := _state(path)) is not None and state[0]:
                found.append((state, listing.name(path), path))
        before, self.seen = self.seen, {name: state for state, name, _ in found}
        for state, name, path in sorted(found, key=lambda f: (f[0][1], f[1])):
            if state in (self.done.get(name), self.left_out.get(name)) or before.get(name) != state:
                continue
            arrival = self._score(name, path, state)
            if arrival is not None:
                yield arrival
                self._write_page_if_due()
        self._write_page_if_due()

    @property
    def settled(self) -> bool:
        """Whether everything that the last look saw is scored or left out."""
        return all(s in (self.done.get(name), self.left_out.get(name)) for name, s in self.seen.items())

    def _score(self, name: str, path: Path, state: State) -> Arrival | None:
        """Scores a file and appends its row; None where it changed meanwhile, or its content has a row already."""
        try:
            key = content_key(path)
            if (name, key) in self.keys:  # touched, or copied again
                self.done[name] = state
                return None
            _check_end(path)
            result = self.against.score(Category("watch", self.folder.name, (Sample(name, path),)))
            (sample,) = as_read([Sample(name, path)], result.config.full_scale)
            copy, size = copy_of(sample, result.anomaly_maps.shape[1:])
        except DataError as error:
            if _state(path) == state:  # else it was being written; the next looks will see
                self.left_out[name], self.reasons[name], self.stale = state, str(error), True
                return Arrival(name, reason=str(error))
            return None
        if _state(path) != state or result.keys != (key,):
            return None
        decisions = result.decisions
        squashed = [] if self.noted else self.against.squashed({name: size})
        done = Arrival(
            name, float(result.image_scores[0]), float(result.raw_image_scores[0]),
            None if decisions is None else int(decisions[0]), size, key, note=" ".join(squashed),
        )  # fmt: skip
        try:
            if self.pictures:
                self._draw(done, copy, result)
            self._append(done, state)
        except OSError as error:
            raise ResultError(cannot_write(self.out, error)) from error
        self.noted = self.noted or bool(squashed)
        self.reasons.pop(name, None)
        self._keep(done, state)
        return done

    def _draw(self, arrival: Arrival, copy: Image.Image, result: MuScResult) -> None:
        """Writes the overlay, and what the report shows; pictures of another content have other names there."""
        anomaly_map, place = result.anomaly_maps[0], self._at([arrival])
        files = (place.copies[0], place.thumbnails[0], place.maps[0])
        save_image(copy, levels(anomaly_map, self.scale), self.out, files)
        copy.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
        drawn = overlay(copy, anomaly_map, self.scale)
        if result.threshold is not None:
            drawn = contour(drawn, binary_mask(anomaly_map, result.threshold.value, drawn.size))
        with whole(self.out / "overlays" / legal_names([arrival.name], ".png")[0]) as partial:
            drawn.save(partial, format="png")

    def _at(self, arrivals: Sequence[Arrival]) -> Shown:
        """Where the report's pictures of these lie: by name and content, so that each is written once."""
        names = [f"{a.name}~{a.key[-8:]}" for a in arrivals]
        pictures, maps = ([legal_names([n], suffix)[0] for n in names] for suffix in (".jpg", ".png"))
        place = Shown.at(pictures, maps, self.scale)
        return replace(place, truths=[""] * len(names), sizes=[a.size for a in arrivals])

    def _keep(self, arrival: Arrival, state: State) -> None:
        """Takes a row in, a new one or one that was read, whose pictures may be gone."""
        name, place = arrival.name, self._at([arrival])
        self.keys.add((name, arrival.key))
        self.done[name] = state
        self.shown.pop(name, None)
        self.unseen.discard(name)
        if all((self.out / file).is_file() for file in (place.copies[0], place.thumbnails[0], place.maps[0])):
            self.shown[name], self.stale = arrival, True
        else:
            self.unseen.add(name)

    def _write_page_if_due(self) -> None:
        if self.stale and time.monotonic() - self.written >= self.cost / PAGE_SHARE:
            self.write_page()

    def write_page(self) -> Path | None:
        """Write report.html over all that was scored here, and return its path; None where there is nothing to show.

        Raises ResultError where it cannot be written.
        """
        if not self.pictures or not self.shown:
            return None
        start, earlier = time.monotonic(), self.against.earlier
        rows = [row for _, row in sorted(self.shown.items())]
        notes = [f"Scored against {len(self.against.pool)} images of {earlier.dataset} {earlier.category}, one by one."]
        notes += self.against.squashed({row.name: row.size for row in rows})
        if self.unseen:
            notes.append(f"{len(self.unseen)} images were scored without pictures: {TABLE} has them.")
        result = replace(
            earlier, dataset="watch", category=self.folder.name, paths=tuple(row.name for row in rows),
            image_scores=np.array([row.score for row in rows], dtype=np.float32),
            raw_image_scores=np.array([row.raw_score for row in rows], dtype=np.float32),
            anomaly_maps=earlier.anomaly_maps[:0], class_tokens=None, labels=None, defects=("",) * len(rows),
            metrics={}, timings={}, notes=tuple(notes), keys=tuple(row.key for row in rows),
            skipped=tuple(Skipped(name, why) for name, why in sorted(self.reasons.items()) if name in self.seen),
            fingerprint=f"{earlier.fingerprint} {os.path.abspath(self.folder)}", root=os.path.abspath(self.folder),
        )  # fmt: skip
        path = write_page(result, self._at(rows), self.out)
        self.written, self.stale = time.monotonic(), False
        self.cost = self.written - start
        return path

    def _append(self, arrival: Arrival, state: State) -> None:
        text, now = io.StringIO(), time.strftime("%Y-%m-%dT%H:%M:%S%z")
        decision = "" if arrival.decision is None else arrival.decision
        scores = (repr(arrival.score), repr(arrival.raw_score), decision)
        row = (arrival.name, *scores, *arrival.size, now, arrival.key, *state)
        csv.writer(text, lineterminator="\n").writerow(row)
        line = text.getvalue().encode("utf-8", "surrogateescape")
        file = os.open(self.out / TABLE, os.O_WRONLY | os.O_APPEND | getattr(os, "O_BINARY", 0))
        try:
            size = os.fstat(file).st_size
            try:
                if os.write(file, line) < len(line):
                    raise OSError(28, os.strerror(28), str(self.out / TABLE))
            except OSError:
                os.ftruncate(file, size)
                raise
            os.fsync(file)
        finally:
            os.close(file)

    def _read(self) -> None:
        """What earlier processes scored; half a row at the end goes. Raises ConfigError on a table that is not ours."""
        table = self.out / TABLE
        if not table.exists():
            with whole(table) as path:
                path.write_text(",".join(COLUMNS) + "\n", encoding="utf-8")
        content = table.read_bytes()
        if not content.endswith(b"\n"):
            content = content[: content.rfind(b"\n") + 1]
            os.truncate(table, len(content))
        rows = csv.DictReader(io.StringIO(content.decode("utf-8", "surrogateescape")))
        if tuple(rows.fieldnames or ()) != COLUMNS:
            raise ConfigError(f"{table} is no table of `musc watch`: choose another --out.")
        for row in rows:
            decision, size = int(row["decision"]) if row["decision"] else None, (int(row["width"]), int(row["height"]))
            known = Arrival(row["path"], float(row["score"]), float(row["raw_score"]), decision, size, row["key"])
            self._keep(known, (int(row["bytes"]), int(row["modified_ns"])))


def _same(note: Path, wanted: dict[str, str]) -> None:
    try:
        found = json.loads(note.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return
    for name, what in (("folder", "the folder"), ("against", "the result with the fingerprint")):
        if found.get(name) != wanted[name]:
            raise ConfigError(
                f"{note.parent} holds the scores of {what} {found.get(name)}, and here it is {wanted[name]}: choose "
                "another --out."
            )


def _check_end(path: Path) -> None:
    """Raises DataError where a PNG or a JPEG has no end: decoders are content when all pixels are there, and the rest
    would come later."""
    content = file_bytes(path)
    png = content.startswith(b"\x89PNG") and b"IEND\xaeB`\x82" not in content
    jpeg = content.startswith(b"\xff\xd8\xff") and content.rfind(b"\xff\xd9") <= content.rfind(b"\xff\xda")
    if png or jpeg:
        raise DataError(f"{describe(path)} is not complete: it waits until the rest is written.")


def _state(path: Path) -> State | None:
    try:
        found = path.stat()
    except OSError:  # gone again
        return None
    return found.st_size, found.st_mtime_ns
