"""What a session is made of."""

import io
from typing import Any

from rich.console import Console

from charactertrain.config import validate
from charactertrain.config.devices import cpus_at_once
from charactertrain.stages import start
from charactertrain.stages.start import open_session
from charactertrain.storage import open_directory


def test_metrics_are_sent_with_a_config_that_holds_no_keys(compose: Any) -> None:
    location = "s3://KEY:SECRET@bucket/run"
    config = validate(compose("experiment=smoke", f"run.dir={location}"))
    directory = open_directory(f"{location}?endpoint_override=http://127.0.0.1:9&scheme=http")
    session = open_session(config, directory, Console(file=io.StringIO()))
    sent = session.metrics._config
    assert sent["run"]["dir"] == "s3://bucket/run"
    assert "SECRET" not in str(sent)


def test_a_local_cluster_has_room_for_workers_and_all_engines(compose: Any) -> None:
    wide = compose("cluster.num_workers=[1,3]", "preference_model.ensemble=5")
    # Three workers, and engines: one of the policy, five of the model, one of the gold model.
    assert cpus_at_once(validate(wide), 3) == 3 + 7
    assert start._num_cpus(validate(wide)) >= 10
    assert start._num_cpus(validate(compose("cluster.num_cpus=20"))) == 20
    # Nothing is sampled beside it.
    assert cpus_at_once(validate(compose("objective=dpo", "preference_model.ensemble=5")), 3) == 4
