"""Chance, intervals and tests: numbers in, numbers out; nothing here knows a model.

Every number of this package stands beside what luck gives and how sure it is; these are the functions that say so.
They take plain tensors and lists, so they serve any other number just as well.

* What belongs together: :class:`Units`.
* Chance: :func:`best_of_chance` -> :class:`ChanceLevel` (how high the best of many predictivities reaches by luck).
* Intervals: :func:`clopper_pearson` (of a rate), :func:`bootstrap_mean` (of anything; :func:`bootstrap_counts`),
  :func:`ratio_interval` (of a recovered fraction; :func:`doubtful_gap`).
* Over several prompts: :func:`two_level_bootstrap`, :func:`two_level_calibration`, :func:`interval_scope`.
* Beside random controls: :func:`rank_p_value`, :func:`require_draws`.
* Two runs on the same examples: :func:`mcnemar` -> :class:`McNemar`, :func:`equivalence` -> :class:`Equivalence`,
  :func:`sign_flip_test` (of anything).
* Two labels: :func:`permutation_difference` -> :class:`LabelDifference`.
* Many tests at once: :func:`benjamini_hochberg`, :func:`family_wise_p`, :func:`critical_level`.
* Permutations: :func:`permuted_labels`, :func:`random_orders`, :func:`row_orders`.
* Ranks: :func:`average_ranks`, :func:`spearman`, :func:`correlation`, :func:`median`.
* What is read from class logits: :func:`per_example`, :func:`value_of`, :func:`answer_confidence`,
  :func:`calibration_error`.
"""

from tl_skillneurons._rooms import open_room

__getattr__, __dir__, __all__ = open_room(__name__, __file__)
