"""A refusal to load a model."""


class Refused(ValueError):
    """It says everything already."""
