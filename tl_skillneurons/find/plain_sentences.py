"""Plain sentences of no particular subject, written for this project: they tell the price of an ablation."""

SENTENCES = (
    "The train to the coast leaves at half past nine and arrives before noon.",
    "Water boils at a lower temperature on a high mountain than at sea level.",
    "The committee will meet again in March to decide on the budget.",
    "A triangle with three equal sides has three equal angles.",
    "He walked along the river until the path ended at an old stone bridge.",
    "Most birds of this island spend the winter farther south.",
)
