"""Character training: from traits to a trained policy and a report on what each trait changed."""

__version__ = "0.1.0"
