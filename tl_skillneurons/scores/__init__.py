"""How well each neuron tells labels apart, what luck gives, and which neurons are chosen.

Predictivity (Wang et al., 2022) and other scores come from streaming passes over a task's roles; each has a null of
labels dealt out to the task's units, a selection and a file. No score shows that a neuron is used: interventions do.

- Measure: ``score_neurons`` ``score_classes`` (predictivity), ``score_labels`` (AUC, mutual information, ...),
  ``score_targets`` with ``answer_targets`` and ``Targets`` (any number per text), ``score_gradients``;
  ``score_activations`` of activations that were read before.
- Results: ``NeuronScores`` (predictivity), ``NeuronStatistic`` (the others; ``Scored`` is either), ``PermutationNull``
  (what luck gives), ``RuleOutcomes`` (every rule's answer on every example), ``top_union`` (the best of several
  classes).
- On examples that chose nothing: ``evaluate_rules`` gives ``RuleAccuracy`` of a set, or ``AllRules``.
- Is it sound: ``check_calibration`` gives ``Calibration``, ``score_agreement`` gives ``Agreement``.
"""

from tl_skillneurons._rooms import open_room

__getattr__, __dir__, __all__ = open_room(__name__, __file__)
