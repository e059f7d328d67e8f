from pathlib import Path

import pytest

import gpt4roi
from conftest import EXAMPLE, OCTOPUS

GOLDEN = Path(__file__).parents[2] / "gpt4roi/tests/golden"


def test_an_adapter_changes_what_the_model_says():
    plain, adapted = gpt4roi.load(GOLDEN / "clip"), gpt4roi.load(GOLDEN / "clip", adapter=GOLDEN / "adapter")
    [before], [after] = (model.describe(EXAMPLE, [OCTOPUS], max_new_tokens=3) for model in (plain, adapted))
    assert before.text != after.text


def test_an_adapter_of_another_model_is_refused(tmp_path):
    with pytest.raises(gpt4roi.Error, match="changes of the model's own matrices"):
        gpt4roi.load(adapter=GOLDEN / "adapter")
    with pytest.raises(FileNotFoundError):
        gpt4roi.load(adapter=tmp_path)
