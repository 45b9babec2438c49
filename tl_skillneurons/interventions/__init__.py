"""What the model does when neurons are held, changed or exchanged, always beside the same done to controls.

Start with :func:`measure_effects`: interventions on a set of neurons, for one prompt or several, in one table.
Each intervention is a small value; a plain function ``(act, hook) -> act`` of the chosen neurons works as well.

- ``ablate``: hooks that do an intervention to neurons, for any run
- ``Zero Mean ClassMean OtherClassMean Resample Noise Scale Shift Keep``: what can be done; ``Intervention``, ``At``,
  ``Reference`` and ``GivenValues`` to write another
- ``measure_effects`` with ``Examples`` (whose answers, whose reference values) and ``Beyond`` (direct effects, other
  tasks, plain text); ``EffectPanel`` of ``Condition`` and ``Measured``
- ``patch_neurons``, ``NeuronPatching``: neurons exchanged between ``Twins``
- ``attribute_neurons``, ``NeuronAttribution``, ``compare_with_exact``: a gradient's estimate of that for all neurons
- ``bake``: an intervention written into the weights of a copy, for any tool that runs models
- ``direct_logits``: the direct effect alone; ``cross_entropy``: how well plain text is predicted
"""

from tl_skillneurons._rooms import open_room

__getattr__, __dir__, __all__ = open_room(__name__, __file__)
