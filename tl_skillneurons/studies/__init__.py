"""Questions asked of whole discoveries: is it stable, what else explains it, does it carry over?

====================== ==================================================================================
diagnose               would another prompt, other examples or a neighbour have done as well
compare_readings       why tune prompts: the same scores with random, natural, shuffled-label and no prompts
compare_scores         whether scores name the same neurons, and which foretells what they do
vote_and_probe         how much of the skill the best ``k`` neurons carry together
profile_neurons        neurons one by one: what drives each, what it writes, who writes into it
describe_prompt        what each position of a prompt is, and what it is worth
prompt_trajectory      how predictivity came about while the prompt was tuned
compare_tasks          whether the neurons of related tasks are the same, beside luck
transfer_prompts       whether a prompt of one task serves another, and whether neurons foretell it
cross_task_damage      what ablating one task's neurons costs the others
adapt                  LoRA, adapters or biases in the prompt's place (``measure_adapted`` measures them)
over_checkpoints       when skill neurons came about in pre-training (``LoadOptions`` says how models are loaded)
compare_label_words    whether they depend on the label words (``random_label_words`` draws others)
word_selectivity       which words neurons answer to (``weight_words``: which their weights point at)
compare_shuffles       whether neurons read what a choice says, or where it stands
accuracy_without_words what is left without the strongest words (``strongest_words`` finds them)
steer                  whether turning neurons up or down steers what a model writes, at what price (``SteeringOptions``
                       says how, ``ReadOut`` measures other classes)
position_share         how much of a neuron's activation goes with a token's place in its text
====================== ==================================================================================

Results: ``Diagnosis`` ``ReadingComparison`` ``ScoreComparison`` ``VoteAndProbe`` ``PromptDescription``
``PromptTrajectory`` ``TaskComparison`` ``PromptTransfer`` ``TaskDamage`` ``AdaptedModel`` ``CheckpointComparison``
``LabelWordComparison`` ``NeuronProfiles`` (and its ``NeuronProfile``) ``AccuracyWithoutWords``
``SteeringCurve``.
"""

from tl_skillneurons._rooms import open_room

__getattr__, __dir__, __all__ = open_room(__name__, __file__)
