"""The command line: what it writes beside the stages."""

from typing import Any

from charactertrain.__main__ import _resolved_yaml
from charactertrain.config import validate


def test_the_resolved_config_holds_no_keys(compose: Any) -> None:
    location = "run.dir=s3://KEY:SECRET@bucket/run"
    text = _resolved_yaml(validate(compose("experiment=smoke", location))).decode()
    assert "dir: s3://bucket/run\n" in text
    assert "SECRET" not in text
