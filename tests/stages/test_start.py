"""What a session is made of."""

import io
from typing import Any

from rich.console import Console

from charactertrain.config import RunConfig, validate
from charactertrain.config.devices import cpus_at_once
from charactertrain.runtime.wandb_run import WandbSettings
from charactertrain.stages import start
from charactertrain.stages.start import open_session
from charactertrain.storage import Directory, open_directory

FINGERPRINTS = {"traits": "a" * 32, "report": "b" * 32}


def wandb_settings(config: RunConfig, directory: Directory) -> WandbSettings:
    """What a run of the config is on wandb."""
    session = open_session(config, directory, Console(file=io.StringIO()), FINGERPRINTS)
    assert session.metrics.wandb_settings is not None
    return session.metrics.wandb_settings


def offline(compose: Any, *overrides: str, experiment: str = "smoke") -> WandbSettings:
    """The same, of an experiment and some settings."""
    config = validate(compose(f"experiment={experiment}", "logging.wandb=offline", *overrides))
    return wandb_settings(config, open_directory(config.run.dir))


def test_a_run_has_one_id_and_another_run_another(compose: Any) -> None:
    found = offline(compose, "run.dir=runs/a").run_id
    assert offline(compose, "run.dir=runs/a", "cluster.max_failures=7").run_id == found
    assert offline(compose, "run.dir=runs/b").run_id != found
    config = validate(compose("experiment=smoke", "logging.wandb=offline", "run.dir=runs/a"))
    session = open_session(
        config,
        open_directory("runs/a"),
        Console(file=io.StringIO()),
        FINGERPRINTS | {"report": "c" * 32},
    )
    assert session.metrics.wandb_settings is not None
    assert session.metrics.wandb_settings.run_id != found


def test_a_control_is_in_the_group_of_what_it_controls(compose: Any) -> None:
    plain = offline(compose)
    placebo = offline(compose, experiment="[smoke,placebo]")
    assert plain.group == placebo.group == "demo-tiny_random"
    assert (plain.job_type, placebo.job_type) == ("traits", "placebo")
    assert offline(compose, "logging.group=mine").group == "mine"


def test_wandb_is_off_unless_it_is_asked_for(compose: Any) -> None:
    config = validate(compose("experiment=smoke"))
    session = open_session(
        config, open_directory("runs/a"), Console(file=io.StringIO()), FINGERPRINTS
    )
    assert session.metrics.wandb_settings is None


def test_metrics_are_sent_with_a_config_that_holds_no_keys(compose: Any) -> None:
    location = "s3://KEY:SECRET@bucket/run"
    config = validate(compose("experiment=smoke", f"run.dir={location}", "logging.wandb=offline"))
    directory = open_directory(f"{location}?endpoint_override=http://127.0.0.1:9&scheme=http")
    settings = wandb_settings(config, directory)
    sent = settings.config
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
