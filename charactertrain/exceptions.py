"""The errors that a caller may act on; each is a standard error too, and crosses processes."""


class CharacterTrainError(Exception):
    """Catch this at the outermost boundary, to show the message without a traceback."""


class ConfigError(CharacterTrainError, ValueError):
    """What the user asked for cannot be run: change the setting that the message names."""


class ConstitutionError(ConfigError):
    """A trait file is missing or wrong: mend the places that the message lists."""


class ArtifactError(CharacterTrainError, RuntimeError):
    """An artifact is missing, damaged or another run's: make it again or look elsewhere."""


class UnavailableError(ArtifactError):
    """Storage failed, or another process took over: the same command may succeed in a while."""


class ModelError(CharacterTrainError, ValueError):
    """A model cannot be found or used as configured: install or choose another."""


class SamplingError(CharacterTrainError, RuntimeError):
    """Sampling or scoring failed: retry, or turn the row into a reject."""


class ChoiceError(SamplingError):
    """A model cannot answer with one of the given letters: ask it in another way."""


class TrainingError(CharacterTrainError, RuntimeError):
    """Training stopped itself: resume from the last checkpoint with other settings."""
