"""Labelled text: where it comes from, which role each example has, and pairs of twins told apart by one word.

A task is data, not a model: its texts, its classes and their label words, and which examples train, set baselines,
choose and are reported. No text serves two of these.

* The task: :class:`Task` (:data:`ROLES`, :func:`require_two_classes`), :func:`load_splits` (files and the hub).
* For chat models: :class:`Chat`, what stands around a text in a conversation.
* Built in: :func:`minimal_pairs`, texts whose twin differs in one word and has the other label.
* Questions with several choices: :func:`multiple_choice`.
* A model's own answers, judged: :func:`from_answers` (:class:`JudgedAnswers`).
* Examples that belong together: :meth:`Task.units`, :func:`near_duplicates`.
* Many classes as several tasks of two: :meth:`Task.binary_subtasks`; :func:`against_rest`, of labels alone.
"""

from tl_skillneurons._rooms import open_room

__getattr__, __dir__, __all__ = open_room(__name__, __file__)
