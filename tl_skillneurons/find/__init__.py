"""The whole discovery, from labelled text to skill neurons with their evidence, phase by phase, in a folder.

:func:`find_skill_neurons` runs what a folder does not hold yet and gives :class:`Findings`; :func:`load_run` gives them
of a finished run, without a model. How much is measured: :class:`Evidence`.

What the phases leave: :class:`PromptAnswers`, :class:`Readability`, :class:`Stability`, :class:`Price`, and panels of
effects. What they allow to say: a :class:`Verdict` for each question, by the rules in :data:`RULES`.
"""

from tl_skillneurons._rooms import open_room

__getattr__, __dir__, __all__ = open_room(__name__, __file__)
