"""Chance, intervals and tests: numbers in, numbers out; nothing here knows a model.

Every number of this package stands beside what luck gives and how sure it is; these are the functions that say so.
They take plain tensors and lists, so they serve any other number just as well.

* What belongs together: :class:`Units`.
* Chance: :func:`best_of_chance` -> :class:`ChanceLevel` (how high the best of many predictivities reaches by luck).
* Intervals: :func:`clopper_pearson` and, by units, :func:`rate_interval` (of a rate), :func:`bootstrap_mean` (of
  anything; :func:`bootstrap_counts`, :func:`bootstrap_ends`), :func:`ratio_interval` (of a recovered fraction;
  :func:`doubtful_gap`).
* Over several prompts: :func:`two_level_bootstrap`, :func:`two_level_calibration`, :func:`interval_scope`.
* Beside random controls: :func:`rank_p_value`, :func:`require_draws`.
* Two runs on the same examples: :func:`mcnemar` -> :class:`McNemar`, :func:`equivalence` -> :class:`Equivalence`,
  :func:`sign_flip_test` (of anything).
* Two labels: :func:`permutation_difference` -> :class:`LabelDifference`.
* Two labels told apart by a number: :func:`auroc` -> :class:`Auroc`.
* Many tests at once: :func:`benjamini_hochberg`, :func:`family_wise_p`, :func:`critical_level`.
* Permutations: :func:`permuted_labels`, :func:`random_orders`, :func:`row_orders`.
* Ranks: :func:`average_ranks`, :func:`spearman`, :func:`correlation`, :func:`mantel`, :func:`median`.
* What is read from class logits: :func:`per_example`, :func:`value_of`, :func:`answer_confidence`,
  :func:`calibration_error`.

What each test claims, and what it does when nothing is there. Sizes (the share of 500 shuffles that erred at 0.05) and
power, of something planted at 0.65 beside a chance of 0.5, were printed by ``python tests/calibration/run.py``, with
their 95 % intervals; a size of 0.05 is seen as 0.033 to 0.073. A unit is what :class:`Units` says: a text, group, pair
of twins or word pair. Settings, from left to right: 160 texts, 60 groups of 8, 80 pairs of twins, 26 word pairs over
100 pairs of twins.

==============================  ====================================  ====================================
test                            size                                  power
==============================  ====================================  ====================================
permutation null, 40 neurons    0.050, 0.052, 0.034, 0.048            0.71, 0.30, 0.69, 0.18
label difference, 40 rows       0.042, 0.054, 0.052, 0.068            0.67, 0.23, 0.71, 0.19
sign flips                      0.032, 0.046, 0.038, 0.052            0.87, 0.46, 0.55, 0.25
McNemar, 0.4 of answers change  0.030, 0.020, 0.044, 0.028            0.66, 0.24, 0.33, 0.12
equivalence within 0.1          0.048, 0.034, 0.040, 0.000            1.00, 0.87, 1.00, 0.00
bootstrap, 1 - coverage         0.054, 0.040, 0.050, 0.046            0.83, 0.47, 0.56, 0.20
==============================  ====================================  ====================================

On 160 texts with rounded values, with 15 % of one class, of one class of four against the rest, and over 3 prompts the
sizes of the permutation null are 0.024, 0.022, 0.034 and 0.050 (power 0.76, 0.69, 0.72, 0.91), of sign flips 0.042,
0.058, 0.046 and 0.052, of the bootstrap 0.054, 0.062, 0.060 and 0.050, of the label difference (not of four classes)
0.050, 0.058 and 0.042. Where each text is a unit permutations and signs are the bits that they are without units, and
so is their power.

Permutation null (:func:`family_wise_p` over :meth:`Units.permuted`; :func:`permutation_difference`)
    No neuron's activation has anything to do with the labels. Units are exchanged. Exact, whatever the activations'
    law, and for the largest of all neurons. Few units have few ways to be labelled: all are counted then, once each,
    and p is no smaller than two over their number where all labels may turn at once, else one over it. Texts permuted
    one by one where groups share a label: size 0.33 for 60 groups of 2, 1.00 for groups of 8; twins turned one by one
    where word pairs repeat: 0.84. Movie reviews through
    MiniLM of random weights (``--real``, 100 shuffles): 0.04 (0.011 to 0.099; power 0.37) by the 12 word pairs of 100
    pairs of twins, 1.00 twin by twin. With weights that are the target's own size each target takes its weight along:
    0.056 (power 0.07, since few texts count), without it 0.26. It does not show that the units are independent, that a
    neuron is used, or how good it is on other texts.

Sign flips (:func:`sign_flip_test`)
    A unit's difference could as well have the other sign. Units are turned. Exact where differences are symmetric about
    zero, which a mean of zero alone does not say. It does not show how large the difference is.

McNemar (:func:`mcnemar`)
    A changed answer is as likely lost as gained. Units change sides as a whole. Exact, and cautious, for answers are
    few whole numbers. A large p is no evidence that two runs are equal: that is equivalence.

Equivalence (:func:`equivalence`)
    Two runs' accuracies differ by the margin or more; a small p refutes it. Units count as one answer each. Exact at
    the margin, cautious where a unit changes in part. No fewer than 29 units can show equivalence within 0.1, and 59
    within 0.05, even where nothing changes: hence the 0.00; the result says what so few could have shown at
    best. It does not show that the same answers are right.

Rank among controls (:func:`rank_p_value`)
    The set is one more of its controls. Exact where it is, over distinct controls: of 5 neurons of 200 with 20 controls
    the size is 0.046 (power 1.00). One neuron of nine has 8 controls, so p is never below 1/9 and the size at 0.05 is
    0.000, at 1/9 0.112 (power 0.98); 20 draws from these 8 give 0.12 at 0.05. It does not show that set and controls
    are alike in anything but what they were drawn by.

Intervals (:func:`bootstrap_mean`, :func:`ratio_interval`)
    Where the mean of other units of this kind lies, or the ratio of two. Units are drawn, and the ends reach further on
    the side of a long tail. Approximate: of 20 groups 0.048 of the intervals leave out the true mean, of 8 normal
    numbers 0.042, where 0.05 may; fewer than 8 are too few (of 5 0.067). Of exponential values 0.070 (8), 0.053 (12)
    and 0.038 (26; power 0.59 against 0.6 of their mean), of lognormal ones still 0.102 (8), 0.077 (26) and 0.055 (60).
    Quantiles alone give 0.105, 0.086 and 0.069, and 0.164, 0.107 and 0.086. BCa and Student's interval were tried, and
    are worse; a bootstrap-t is no better, and has no end where answers rarely change. Of a fraction of 0.4, with a gap
    that scatters by half its size, they leave it out in 0.044, 0.050, 0.040 and 0.066 of the settings above (power
    beside twice as much noise 1.00, 0.85, 0.91, 0.38), of 20 groups in 0.044. :func:`clopper_pearson` is exact, for
    rates of independent texts; by units (:func:`rate_interval`) 0.010 of 12 groups that agree and are right in 0.85
    (power beside 0.5 0.75) and 0.014 of 26 (0.97). What rarely changes has no interval worth its name: where none of
    the units changed it is a single point. A gap to take fractions of takes 6 units at least: of fewer no exact p is
    below 0.05.

Intervals over prompts (:func:`two_level_bootstrap`)
    Where the mean of other prompts and units lies. Units are drawn, and Student's t has the prompts. Approximate, and
    cautious where prompts are alike: of 4 prompts whose means differ little (standard deviation 0.1, texts 1) 0.026 are
    wrong (power for a mean of 0.4 0.88), of 4 that differ as much as texts do 0.044 (0.08: four prompts tell little of
    others), of 10 such 0.046 (0.19), of 3 that differ by 0.3 0.026 (0.24), of 4 such over 60 groups of 8 texts 0.018
    (0.25). Prompts of which few are far better or worse than the rest (an exponential law) give 0.11 to 0.12 from 3 to
    8; what helps units would make intervals of 3 prompts that differ normally wider by 0.7, and still give 0.07, so it
    is not done. Fewer than 3 prompts speak for themselves alone.
"""

from tl_skillneurons._rooms import open_room

__getattr__, __dir__, __all__ = open_room(__name__, __file__)
