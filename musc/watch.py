"""A folder that is watched: what arrives in it is scored against an earlier result, every file once.

The table of scores is all that is remembered: a row is appended in one piece when its image is done, and what a process
that was killed left of a row goes when the next one begins. A file is scored when it has not changed between two looks
and decodes as a whole; one that is still being written is left alone until then.
"""

from __future__ import annotations

import csv
import io
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from musc.datasets.base import Category, Sample
from musc.datasets.decode import content_key, describe, file_bytes
from musc.datasets.images import read_image
from musc.datasets.listing import Listing
from musc.errors import ConfigError, DataError, ResultError
from musc.results import MuScResult
from musc.results.folders import legal_names
from musc.results.pictures import LONGEST_SIDE, binary_mask, contour, overlay, shared_scale
from musc.saving import abandoned, marked, whole
from musc.stream import Against

COLUMNS = ("path", "score", "raw_score", "decision", "scored_at", "key", "bytes", "modified_ns")
TABLE, NOTE, LOCK = "scores.csv", "watch.json", "watch.lock"
State = tuple[int, int]  # bytes, and when they changed in nanoseconds


@dataclass(frozen=True)
class Arrival:
    """An image that was scored, or (reason) why a file is left out: said once for each state of the file."""

    name: str
    score: float = 0.0
    raw_score: float = 0.0
    decision: int | None = None
    reason: str = ""


class Watch:
    """Scores what arrives in `folder` by the pool of `against`, and keeps the table in `out`.

    pictures: an overlay of every image below out/overlays. Raises ConfigError where `out` holds the table of another
    folder or pool, ResultError where it cannot be written.
    """

    def __init__(self, folder: Path, against: Against, out: Path, *, pictures: bool = True) -> None:
        self.folder, self.against, self.out, self.pictures = folder, against, out, pictures
        self.scale = shared_scale(against.earlier)
        self.seen: dict[str, State] = {}  # at the last look
        self.done: dict[str, State] = {}
        self.left_out: dict[str, State] = {}
        self.keys: set[tuple[str, str]] = set()
        wanted = {"folder": os.path.abspath(folder), "against": against.earlier.fingerprint}
        try:
            _same(out / NOTE, wanted)
            self._read()
            with whole(out / NOTE) as path:
                path.write_text(json.dumps(wanted, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise ResultError(f"{out} cannot be written ({error.strerror or error}): choose another --out.") from error

    def look(self) -> Iterator[Arrival]:
        """One look at the folder: scores what has settled since the last one, oldest first.

        Raises DataError where the folder is gone, ResultError where the table cannot be written.
        """
        listing = Listing(self.folder)
        found: list[tuple[State, str, Path]] = []
        mine = self.out.resolve()
        for path in listing.below(self.folder):
            if path.resolve().is_relative_to(mine):  # our own pictures
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
            picture = self._picture(path, result) if self.pictures else None
        except DataError as error:
            if _state(path) == state:  # else it was being written; the next looks will see
                self.left_out[name] = state
                return Arrival(name, reason=str(error))
            return None
        if _state(path) != state or result.keys != (key,):
            return None
        decisions = result.decisions
        done = Arrival(
            name, float(result.image_scores[0]), float(result.raw_image_scores[0]),
            None if decisions is None else int(decisions[0]),
        )  # fmt: skip
        try:
            if picture is not None:
                with whole(self.out / "overlays" / legal_names([name], ".png")[0]) as partial:
                    partial.write_bytes(picture)
            self._append(done, key, state)
        except OSError as error:
            raise ResultError(f"{self.out} cannot be written ({error.strerror or error}): free some space.") from error
        self.keys.add((name, key))
        self.done[name] = state
        return done

    def _picture(self, path: Path, result: MuScResult) -> bytes:
        image = read_image(path)
        image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
        drawn = overlay(image, result.anomaly_maps[0], self.scale)
        if result.threshold is not None:
            drawn = contour(drawn, binary_mask(result.anomaly_maps[0], result.threshold.value, drawn.size))
        file = io.BytesIO()
        drawn.save(file, format="png")
        return file.getvalue()

    def _append(self, arrival: Arrival, key: str, state: State) -> None:
        text, now = io.StringIO(), time.strftime("%Y-%m-%dT%H:%M:%S%z")
        decision = "" if arrival.decision is None else arrival.decision
        row = (arrival.name, repr(arrival.score), repr(arrival.raw_score), decision, now, key, *state)
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
            self.keys.add((row["path"], row["key"]))
            self.done[row["path"]] = int(row["bytes"]), int(row["modified_ns"])


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Holds `out` for this process. Raises ConfigError where another one that is alive watches there."""
    lock = out / LOCK
    out.mkdir(parents=True, exist_ok=True)
    with marked() as mark:
        while True:
            try:
                file = os.open(lock, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
                break
            except FileExistsError:
                if not abandoned(_text(lock)):
                    raise ConfigError(
                        f"{out}: another process watches there; end it, or choose another --out. If there is none, "
                        f"remove {lock}."
                    ) from None
                lock.unlink(missing_ok=True)
        try:
            os.write(file, mark.encode())
        finally:
            os.close(file)
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


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


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
