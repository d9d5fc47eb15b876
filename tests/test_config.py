import dataclasses
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musc.config import MuScConfig
from musc.errors import ConfigError
from musc.sources import meaning


def test_round_trip_through_json():
    config = MuScConfig(degrees=(1, 3), windows=(2, math.inf), stages=(3, 6), weights="w.pt", references=5)
    assert MuScConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("degrees", (2,)),
        ("degrees", ()),
        ("interval", (0.3, 0.3)),
        ("interval", (-0.1, 0.3)),
        ("windows", (0,)),
        ("windows", (2.5,)),
        ("stages", (0,)),
        ("precision", "int8"),
        ("reduction", "median"),
        ("mask_protocol", "none"),
        ("subsets", 0),
        ("image_size", 0),
        ("references", -1),
        ("workers", -1),
        ("seed", -1),
        ("tile_pool", "near"),
        ("consistency", "on"),
    ],
)
def test_a_value_that_cannot_work_is_named(setting, value):
    with pytest.raises(ConfigError, match=setting):
        MuScConfig(**{setting: value})


def test_unknown_settings_are_named():
    with pytest.raises(ConfigError, match="unknown settings degree"):
        MuScConfig.from_dict({"degree": (1,)})


def test_every_setting_is_documented():
    """The docstring's list is made from the fields: each is there with its help and what it is by default."""
    lines = MuScConfig.__doc__.splitlines()
    for field in dataclasses.fields(MuScConfig):
        (line,) = [line.strip() for line in lines if line.strip().startswith(f"{field.name}: ")]
        assert field.metadata["help"]
        assert field.metadata["help"] in line
        assert (field.metadata["unset"] if field.default is None else repr(field.default)) in line


def test_a_help_text_is_no_part_of_what_the_numbers_depend_on(tmp_path):
    """Editing it makes no result and no notebook stale; editing a default does."""
    texts = [
        'x = setting(1, help="a", unset="b")',
        'x = setting(1, help="c", unset="d")',
        'x = setting(2, help="a", unset="b")',
    ]
    digests = []
    for i, text in enumerate(texts):
        (tmp_path / f"{i}.py").write_text(text)
        digests.append(meaning(tmp_path / f"{i}.py"))
    assert digests[0] == digests[1] != digests[2]


WHOLE = st.integers(1, 9)
SETTINGS = {
    "degrees": st.lists(st.sampled_from([1, 3, 5, 7, 13]), min_size=1, max_size=4, unique=True).map(tuple),
    "interval": st.tuples(st.floats(0, 0.4), st.floats(0.5, 1)),
    "windows": st.lists(WHOLE | st.just(math.inf), max_size=3).map(tuple),
    "stages": st.none() | st.lists(WHOLE, min_size=1, max_size=4).map(tuple),
    "references": st.none() | WHOLE,
    "image_size": st.none() | WHOLE,
    "position_window": st.integers(0, 9) | st.just(math.inf),
    "tile_overlap": st.floats(0, 0.5),
    "full_scale": st.none() | st.floats(0.5, 1e6),
    "seed": st.integers(0, 2**40),
    "weights": st.none() | st.text(max_size=9),
}


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.fixed_dictionaries({}, optional=SETTINGS))
def test_settings_survive_json(chosen):
    config = MuScConfig(**chosen)
    assert MuScConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
