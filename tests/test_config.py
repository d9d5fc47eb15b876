import json
import math

import pytest

from musc.config import MuScConfig
from musc.errors import ConfigError


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
    ],
)
def test_a_value_that_cannot_work_is_named(setting, value):
    with pytest.raises(ConfigError, match=setting):
        MuScConfig(**{setting: value})


def test_unknown_settings_are_named():
    with pytest.raises(ConfigError, match="unknown settings degree"):
        MuScConfig.from_dict({"degree": (1,)})
