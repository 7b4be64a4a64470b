"""The errors: what they are caught as, and that they survive the way to another process."""

import pickle

import pytest

from charactertrain import exceptions

HIERARCHY = [
    (exceptions.CharacterTrainError, Exception, Exception),
    (exceptions.ConfigError, exceptions.CharacterTrainError, ValueError),
    (exceptions.ConstitutionError, exceptions.ConfigError, ValueError),
    (exceptions.ArtifactError, exceptions.CharacterTrainError, RuntimeError),
    (exceptions.UnavailableError, exceptions.ArtifactError, RuntimeError),
    (exceptions.ModelError, exceptions.CharacterTrainError, ValueError),
    (exceptions.SamplingError, exceptions.CharacterTrainError, RuntimeError),
    (exceptions.ChoiceError, exceptions.SamplingError, RuntimeError),
    (exceptions.TrainingError, exceptions.CharacterTrainError, RuntimeError),
]


@pytest.mark.parametrize(("error_type", "parent", "standard"), HIERARCHY)
def test_error_is_caught_as_its_parent_and_as_a_standard_error(
    error_type: type[Exception], parent: type[Exception], standard: type[Exception]
) -> None:
    assert error_type.__bases__[0] is parent
    with pytest.raises(parent, match="step 3"):
        raise error_type("step 3: the loss is nan")
    with pytest.raises(standard, match="step 3"):
        raise error_type("step 3: the loss is nan")


@pytest.mark.parametrize("error_type", [row[0] for row in HIERARCHY])
def test_error_survives_pickling(error_type: type[Exception]) -> None:
    copy = pickle.loads(pickle.dumps(error_type("rank 1: no gradient")))
    assert type(copy) is error_type
    assert str(copy) == "rank 1: no gradient"


def test_every_error_of_the_package_is_in_the_hierarchy() -> None:
    defined = {item for item in vars(exceptions).values() if isinstance(item, type)}
    assert defined == {row[0] for row in HIERARCHY}
