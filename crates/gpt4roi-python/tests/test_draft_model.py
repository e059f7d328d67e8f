import pytest

import gpt4roi
from conftest import AIRPLANE, EXAMPLE, ROOT

QUESTION = "Describe <region1> in detail."


def test_a_draft_model_changes_no_answer(model):
    drafting = gpt4roi.load(draft_model=ROOT / "models" / "nano")
    [plain] = model.describe(EXAMPLE, [AIRPLANE], question=QUESTION, draft=0)
    [drafted] = drafting.describe(EXAMPLE, [AIRPLANE], question=QUESTION)
    assert drafted.text == plain.text
    assert plain.drafted_tokens == 0 and drafted.drafted_tokens > 5


def test_what_can_not_draft_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        gpt4roi.load(draft_model=tmp_path)
    with pytest.raises(gpt4roi.Error, match="the tokens of a draft model"):
        gpt4roi.load(draft_model=ROOT / "crates/gpt4roi/tests/golden/clip")
