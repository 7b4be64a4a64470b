"""Settings as the pages show them."""

from charactertrain.report.run_view import Setting
from charactertrain.report.settings import changed_settings, flat_settings


def test_settings_are_flat_and_json() -> None:
    values = {"a": {"b": 1, "c": {"d": [1, 2], "e": None}}, "t": [{"id": "warm"}], "n": {}}
    assert flat_settings(values) == {
        "a.b": "1",
        "a.c.d": "[1, 2]",
        "a.c.e": "null",
        "t.0.id": '"warm"',
        "n": "{}",
    }


def test_settings_hold_no_keys() -> None:
    assert flat_settings({"dir": "s3://KEY:SECRET@bucket/x"}) == {"dir": '"s3://bucket/x"'}


def test_changed_settings_leave_out_the_run_and_what_is_the_default() -> None:
    ours = {"run": {"dir": "b"}, "seed": 2, "lora": {"rank": 8}, "same": [1]}
    defaults = {"run": {"dir": "a"}, "seed": 1, "lora": None, "same": [1]}
    assert changed_settings(ours, defaults) == (
        Setting(key="lora", default="null", value="(none)"),
        Setting(key="lora.rank", default="(none)", value="8"),
        Setting(key="seed", default="1", value="2"),
    )
