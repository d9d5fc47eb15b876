"""Every setting of a run, in one frozen record that travels with its results."""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from musc.errors import ConfigError
from musc.sizes import as_size

PRECISIONS = ("float32", "bfloat16", "float16")
BACKBONE_PRECISIONS = ("float32", "float16", "int8")
REDUCTIONS = ("mean", "min", "max")
MASK_PROTOCOLS = ("clean", "official")
TILE_POOLS = ("position", "all")
CONSISTENCY = ("off", "warn", "correct")
AGGREGATIONS = ("lnamd", "snamd")
RESCORINGS = ("rscin", "rscon")
DECODINGS = ("threads", "processes")
OTHER_METHODS = ("anomalydino", "subspacead", "patchcore", "spade", "padim", "winclip")  # no mutual scoring
# What a method by name sets, where it is at its default.
PRESETS: dict[str, dict[str, Any]] = {
    "musc+": {"references": 0, "interval": (0.0, 1.0), "reduction": "min"},
    "muscv2": {"aggregation": "snamd", "rescoring": "rscon", "windows": (7,)},
}
NEED_REFERENCES = ("musc+", "patchcore", "spade", "padim")
METHODS = ("musc", *PRESETS, *OTHER_METHODS)
PAPER_WINDOWS: dict[str, tuple[float, ...]] = {"mvtec_ad": (2, 3), "btad": (2, 3), "visa": (8, 9)}

# Settings of mutual scoring, which other methods leave at their defaults.
MUTUAL_ONLY = (
    "degrees", "aggregation", "interval", "reduction", "rescoring", "references", "subsets", "precision",
    "position_window", "tiles", "consistency", "roi", "neighbours", "max_memory",
)  # fmt: skip


def _setting(
    default: Any, help: str, *, unset: str = "", metavar: str | None = None, choices: tuple[str, ...] = (),
    least: int | None = None,
) -> Any:  # fmt: skip
    """A field and what is known of it: the checks, the docstring and the command line's options are made from this.

    help: what the value does, with its unit. unset: what the default None means. metavar: how the help shows a value.
    choices: the only values, if only some are possible. least: the smallest whole number.
    """
    known = {"help": help, "unset": unset, "metavar": metavar, "choices": choices, "least": least}
    return field(default=default, metadata=known)


@dataclass(frozen=True)
class MuScConfig:
    """The settings of MuSc; the defaults are the paper's (Sec. 4) wherever the paper names a value.

    Raises ConfigError naming the setting, its value and the remedy.

    Example:
        >>> MuScConfig(degrees=[1, 3]).degrees
        (1, 3)
        >>> MuScConfig(seed=-1)
        Traceback (most recent call last):
        musc.errors.ConfigError: seed = -1: give a whole number from 0.
    """

    backbone: str = _setting(
        "procedural", help="the network, by a name that `musc backbones` lists, or auto: "
        "the best whose weights are on this machine, of dinov2_vits14, focus_vits14 and the embedded one",
    )  # fmt: skip
    weights: str | None = _setting(
        None, help='local weight file, or "random" for an untrained network', metavar="FILE", unset="the backbone's own"
    )
    image_size: int | tuple[int, int] | str | None = _setting(
        None, help="side of the square input in pixels; HxW for rows and columns of a rectangle, or short:448 for the "
        "images' own proportions (of most of them; the others are squashed to these) with a short side of 448",
        metavar="PX", unset="the backbone's own",
    )  # fmt: skip
    stages: tuple[int, ...] | None = _setting(
        None, help="blocks whose tokens are used, counted from 1", metavar="L,..", unset="the backbone's own"
    )
    degrees: tuple[int, ...] = _setting((1, 3, 5), help="aggregation degrees r of LNAMD (Sec. 3.1)", metavar="R,..")
    interval: tuple[float, float] = _setting(
        (0.0, 0.3), help="the part of the sorted distances that MSM averages (Eq. 2)", metavar="LO,HI"
    )
    reduction: str = _setting(
        "mean", help="of the distances in the interval; min and max are Tab. 4", choices=REDUCTIONS
    )
    windows: tuple[float, ...] = _setting(
        (2, 3), help="k of RsCIN, counting the image itself; the paper has 8,9 on VisA; inf for all images, empty for "
        "no RsCIN", metavar="K,..",
    )  # fmt: skip
    references: int | None = _setting(
        None, help="score against so many randomly drawn images; 0: against given reference images alone",
        metavar="R", least=0, unset="all images",
    )  # fmt: skip
    neighbours: str | float = _setting(
        "exact", help="score against so many look-alikes of each image, as a share or a number of the others, found by "
        "coarse tokens; coreset:R: against the same R for all, that cover all kinds; exact: against all",
        metavar="SHARE|S|coreset:R",
    )  # fmt: skip
    subsets: int = _setting(1, help="score in so many parts (Tab. 6, 7 and 13)", metavar="S", least=1)
    precision: str = _setting(
        "float32", help="of the distances in MSM: float32 is exact, the others may be off by 1e-3 where that is faster",
        choices=PRECISIONS,
    )  # fmt: skip
    backbone_precision: str = _setting(
        "float32", help="float16 runs the network under autocast on a GPU, as the released code does; int8 rounds the "
        "linear layers on a CPU, which takes less time and moves scores a little",
        choices=BACKBONE_PRECISIONS,
    )  # fmt: skip
    mask_protocol: str = _setting(
        "clean", help="which of the two kinds of resized masks heads the table (both are measured)",
        choices=MASK_PROTOCOLS,
    )  # fmt: skip
    position_window: float = _setting(
        math.inf, help="compare a patch only within so many patches of its own place, for aligned parts; inf: anywhere",
        metavar="W",
    )  # fmt: skip
    tiles: int = _setting(
        1, help="cut images into T x T overlapping tiles, for small defects in large images", metavar="T", least=1
    )
    tile_overlap: float = _setting(0.25, help="overlap of tiles, as a share of a tile's side", metavar="SHARE")
    tile_pool: str = _setting(
        "position", help="what a tile is compared with: tiles at its position, or all", choices=TILE_POOLS
    )
    consistency: str = _setting(
        "off", help="warn of images that share a defect and so vouch for each other, or correct their scores too",
        choices=CONSISTENCY,
    )  # fmt: skip
    full_scale: float | None = _setting(
        None, help="what white is in images of more than 8 bits, such as 4095 for a camera of 12; the result's "
        "configuration holds what was decided", metavar="WHITE", unset="from the values of all images and their tags",
    )  # fmt: skip
    map_size: int | None = _setting(
        None, help="side of the anomaly maps in pixels, the short one of rectangles", metavar="PX", least=1,
        unset="the image size, which with tiles is that of each tile",
    )  # fmt: skip
    batch_size: int = _setting(8, help="images per forward pass", metavar="B", least=1)
    workers: int = _setting(2, help="threads that decode images; 0: none of their own", metavar="W", least=0)
    decoding: str = _setting(
        "threads", help="processes: workers are processes, each of which takes seconds to start; for many processors "
        "that feed a GPU", choices=DECODINGS,
    )  # fmt: skip
    block: int | None = _setting(None, help="images per block of MSM", metavar="B", least=1, unset="by memory")
    max_memory: int | None = _setting(
        None, help="bound of what MSM takes beyond the tokens, such as 2GiB; it changes the time and no score",
        metavar="SIZE", least=1, unset="half of what is free",
    )  # fmt: skip
    device: str = _setting("auto", help="auto, cpu, cuda, cuda:1, ...; several, such as cuda:0,cuda:1, share MSM")
    seed: int = _setting(0, help="of subsets, drawn references and shots", least=0)
    method: str = _setting(
        "musc", help="musc; musc+, by reference images alone (Eq. 9-11); muscv2, which is snamd, rscon and windows 7; "
        "or another method on the same tokens, with its paper's settings and not those of MuSc", choices=METHODS,
    )  # fmt: skip
    aggregation: str = _setting(
        "lnamd", help="of neighbouring patches: lnamd scores every degree by itself (Sec. 3.1), snamd averages them "
        "first, as MuSc-V2 does: one pass per stage instead of one per stage and degree", choices=AGGREGATIONS,
    )  # fmt: skip
    rescoring: str = _setting(
        "rscin", help="by class tokens (rscin, Sec. 3.3), or by the tokens of the most anomalous patches (rscon, as "
        "MuSc-V2 does, whose windows are 7), for networks without a class token too", choices=RESCORINGS,
    )  # fmt: skip
    roi: str | None = _setting(
        None, help="region of interest: a mask that is white where it counts, a folder of masks by image name, or auto "
        "for the foreground; patches outside neither score nor are scored, and maps are 0 there", metavar="MASK",
        unset="the whole image",
    )  # fmt: skip

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            object.__setattr__(self, f.name, _plain(getattr(self, f.name)))
        if self.image_size is not None:
            object.__setattr__(self, "image_size", as_size(self.image_size))
        self._check_fields()
        for name, value in PRESETS.get(self.method, {}).items():
            if getattr(self, name) == _DEFAULTS[name]:
                object.__setattr__(self, name, value)
        if not self.mutual:
            self.check_unused(MUTUAL_ONLY, f"the method {self.method}")
        self._check_values()
        self._check_together()

    def _require(self, ok: bool, name: str, remedy: str) -> None:
        if not ok:
            raise ConfigError(f"{name} = {getattr(self, name)!r}: {remedy}")

    def _check_fields(self) -> None:
        """By what each field says of itself."""
        for f in dataclasses.fields(self):
            value, choices, least = getattr(self, f.name), f.metadata["choices"], f.metadata["least"]
            self._require(not choices or value in choices, f.name, f"choose one of {', '.join(choices)}.")
            fits = least is None or (isinstance(value, Integral) and int(value) >= least)
            if f.default is None:
                self._require(fits or value is None, f.name, f"give a whole number from {least}, or leave it out.")
            else:
                self._require(fits, f.name, f"give a whole number from {least}.")
            _check_kind(f.name, value)

    def _check_values(self) -> None:
        """Of each setting by itself."""
        self._require(self.seed < 2**64, "seed", "give a whole number below 2^64.")
        low, high = self.interval
        ok = 0 <= low < high <= 1
        self._require(ok, "interval", "give two fractions, 0 <= low < high <= 1; the paper's is (0, 0.3).")
        ok = bool(self.degrees) and all(r > 0 and r % 2 for r in self.degrees)
        self._require(ok, "degrees", "give odd whole numbers, such as 1, 3, 5.")
        self._require(len(set(self.degrees)) == len(self.degrees), "degrees", "name each one once.")
        ok = all(k >= 1 and (k == math.inf or k == int(k)) for k in self.windows)
        self._require(ok, "windows", "give whole numbers from 1 (the image itself), or inf for all images.")
        ok = self.stages is None or (bool(self.stages) and all(s >= 1 for s in self.stages))
        self._require(ok, "stages", "blocks are counted from 1.")
        ok = self.full_scale is None or 0 < self.full_scale < math.inf
        self._require(ok, "full_scale", "give the value that is white, such as 4095 or 1.")
        window = self.position_window
        ok = window == math.inf or (window >= 0 and window == int(window))
        self._require(ok, "position_window", "give a whole number of patches from 0, or inf for none.")
        ok = 0 <= self.tile_overlap <= 0.5
        self._require(ok, "tile_overlap", "give a share of the tile's side, from 0 to 0.5.")
        few = self.neighbours
        whole = isinstance(few, Integral) and not isinstance(few, bool) and int(few) >= 1
        named = isinstance(few, str) and bool(re.fullmatch(r"exact|coreset:[1-9]\d*", few))
        self._require(
            whole or named or (isinstance(few, float) and 0 < few <= 1),
            "neighbours",
            'give a share of the images such as 0.1, a number of them such as 40, "coreset:40", or "exact".',
        )

    def _check_together(self) -> None:
        """Of settings that exclude each other."""
        everywhere, exact = self.position_window == math.inf, self.neighbours == "exact"
        by_position = self.tiles == 1 or self.tile_pool == "position"
        self._require(
            exact or self.references is None,
            "neighbours",
            'they are chosen among all images: leave references out, or neighbours at "exact".',
        )
        self._require(
            by_position or (everywhere and self.subsets == 1 and not self.references and exact),
            "tile_pool",
            'with position_window, subsets, references or neighbours only "position" works.',
        )
        self._require(
            self.roi is None or self.consistency == "off" or (everywhere and by_position),
            "roi",
            "with consistency, leave position_window at inf and compare tiles by position.",
        )
        self._require(
            self.roi != "auto" or everywhere,
            "roi",
            "a position_window wants one region for all images: give a mask, or leave it at inf.",
        )
        self._require(
            self.consistency == "off" or (self.references is None and exact),
            "consistency",
            "every image must score every other: leave the numbers of references and of neighbours out.",
        )

    @property
    def mutual(self) -> bool:
        """Whether the method is mutual scoring; the others use no setting of it."""
        return self.method not in OTHER_METHODS

    def check_mutual(self, where: str) -> None:
        """Raises ConfigError where the method is none of mutual scoring, which `where` is made for."""
        if not self.mutual:
            raise ConfigError(f"method = {self.method!r} is not for {where}: choose musc, musc+ or muscv2.")

    def replace(self, **changes: Any) -> MuScConfig:
        """The same settings but for `changes`."""
        return dataclasses.replace(self, **changes)

    def check_unused(self, names: Iterable[str], where: str) -> None:
        """Raises ConfigError where one of these settings, which `where` ignores, is not at its default."""
        for f in dataclasses.fields(self):
            if f.name in names and getattr(self, f.name) != f.default:
                raise ConfigError(
                    f"{f.name} = {getattr(self, f.name)!r} is not for {where}: leave it at {f.default!r}."
                )

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, for JSON; infinity is written "inf"."""
        plain = dataclasses.asdict(self)
        plain["windows"] = ["inf" if k == math.inf else k for k in self.windows]
        if self.position_window == math.inf:
            plain["position_window"] = "inf"
        return {k: list(v) if isinstance(v, tuple) else v for k, v in plain.items()}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> MuScConfig:
        """The inverse of `to_dict`. Raises ConfigError as the class does, and on a name that is no setting."""
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(plain) - known):
            raise ConfigError(f"unknown settings {', '.join(unknown)}; the known ones are {', '.join(sorted(known))}.")
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()
        }
        if isinstance(values.get("windows"), tuple):
            values["windows"] = tuple(math.inf if k == "inf" else k for k in values["windows"])
        if values.get("position_window") == "inf":
            values["position_window"] = math.inf
        for name, value in values.items():
            _check_kind(name, value)
        return cls(**values)


@cache
def _hints() -> dict[str, Any]:
    return get_type_hints(MuScConfig)


def _check_kind(name: str, value: Any) -> None:
    if not _is_of(value, _hints()[name]):
        about = next(f.metadata["help"] for f in dataclasses.fields(MuScConfig) if f.name == name)
        raise ConfigError(f"{name} = {value!r}: that is no value of this setting; {about}.")


def _is_of(value: Any, hint: Any) -> bool:
    """Whether a value is of the kind that a setting's type names."""
    kinds = get_args(hint)
    if hint is NoneType:
        return value is None
    if get_origin(hint) is UnionType:
        return any(_is_of(value, kind) for kind in kinds)
    if get_origin(hint) is tuple:
        fixed = Ellipsis not in kinds
        right = isinstance(value, tuple) and (not fixed or len(value) == len(kinds))
        return right and all(_is_of(v, kinds[0]) for v in value)
    if hint is str:
        return isinstance(value, str)
    return isinstance(value, Integral if hint is int else Real) and not isinstance(value, bool)


def _plain(value: Any) -> Any:
    """A value in plain types, which JSON knows, of NumPy's numbers and arrays, lists, paths and torch's devices."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple | range):
        return tuple(map(_plain, value))
    return str(value) if isinstance(value, Path) or type(value).__name__ == "device" else value


_DEFAULTS = {f.name: f.default for f in dataclasses.fields(MuScConfig)}

# The list of settings in the docstring is made from the fields, so that it names all of them with their defaults.
MuScConfig.__doc__ = f"{inspect.cleandoc(MuScConfig.__doc__ or '')}\n\nAttributes:\n" + "\n".join(
    f"    {f.name}: {f.metadata['help']} (default: {f.metadata['unset'] or repr(f.default)})."
    for f in dataclasses.fields(MuScConfig)
)
