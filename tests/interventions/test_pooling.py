"""Numbers over prompts: against enumeration, and what a wrong unit of resampling would give."""

import pytest
import torch

from tl_skillneurons.interventions._pooling import (
    pooled_value,
)
from tl_skillneurons.stats.hypothesis_tests import rank_p_value

GENERATOR = torch.Generator().manual_seed(0)


@pytest.mark.parametrize("other", [401, 460, 523, 599])
def test_equal_numbers_of_right_answers_are_equal_however_they_are_spread_over_prompts(other):
    labels = torch.zeros(600, dtype=torch.long)

    def outputs(*right):
        rows = [torch.arange(600) < n for n in right]
        return torch.stack([torch.stack([r.double(), ~r + 0.0], dim=1) for r in rows])

    values = [
        pooled_value("accuracy", outputs(*right), labels) for right in ((503, 451), (other, 954 - other))
    ]
    assert values[0] == values[1] < pooled_value("accuracy", outputs(520, 510), labels)
    assert rank_p_value(values[0], [values[1], values[1]], "two-sided") == 1
