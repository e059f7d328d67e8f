import gc

import pytest

import gpt4roi
from conftest import AIRPLANE, OCTOPUS

LONG = "Describe <region1> in detail."


@pytest.fixture
def airplane(chat):
    chat.add_region(AIRPLANE)
    return chat


def test_the_pieces_are_the_answer(airplane):
    whole = airplane.ask(LONG)
    airplane.undo()
    stream = airplane.stream(LONG)
    assert stream.answer is None
    pieces = list(stream)
    assert len(pieces) > 5 and "" not in pieces
    assert "".join(pieces) == whole.text == stream.answer.text
    assert stream.answer.finish == whole.finish
    assert airplane.transcript()["rounds"] == [{"question": LONG, "answer": whole.text}]
    assert list(stream) == []
    stream.close()
    assert stream.answer.text == whole.text and len(airplane.transcript()["rounds"]) == 1


def leave_by_closing(chat):
    stream = chat.stream(LONG)
    next(stream)
    stream.close()
    assert list(stream) == [] and stream.answer is None


def leave_by_breaking(chat):
    for _ in chat.stream(LONG):
        break
    gc.collect()


def leave_the_block(chat):
    with chat.stream(LONG) as stream:
        next(stream)
    assert list(stream) == []


def leave_before_the_first_piece(chat):
    chat.stream(LONG).close()


@pytest.mark.parametrize(
    "leave", [leave_by_closing, leave_by_breaking, leave_the_block, leave_before_the_first_piece]
)
def test_an_answer_that_is_left_was_never_given(airplane, leave):
    before = airplane.transcript()
    leave(airplane)
    assert airplane.transcript() == before
    # And what was read of it does no harm to the next question.
    assert airplane.ask("What is <region1>?").text == "An airplane."


# An answer that is cut off has no token behind its last word at which it could be dropped.
@pytest.mark.parametrize("options", [{}, {"max_new_tokens": 4}])
def test_an_answer_counts_only_once_its_end_was_read(airplane, options):
    whole = airplane.ask(LONG, **options).text
    airplane.undo()
    stream, text = airplane.stream(LONG, **options), ""
    while text != whole:
        text += next(stream)
    stream.close()
    assert airplane.transcript()["rounds"] == []


def test_a_question_makes_the_regions_of_its_coordinates_only_with_its_answer(chat):
    question = "Describe [8, 14, 54, 59] in detail."
    with chat.stream(question) as stream:
        next(stream)
    assert chat.regions == []
    assert "".join(chat.stream(question))
    assert [region.box for region in chat.regions] == [pytest.approx(OCTOPUS)]


def test_the_conversation_can_be_looked_at_meanwhile(airplane):
    stream = airplane.stream(LONG)
    first = next(stream)
    assert len(airplane.regions) == 1 and airplane.transcript()["rounds"] == []
    assert repr(airplane).endswith("1 regions, 0 rounds)")
    rest = "".join(stream)
    assert airplane.transcript()["rounds"] == [{"question": LONG, "answer": first + rest}]


def test_another_question_drops_an_answer_that_nobody_reads_on(airplane):
    stream = airplane.stream(LONG)
    next(stream)
    assert airplane.ask("What is <region1>?").text == "An airplane."
    with pytest.raises(gpt4roi.Error, match="something else was done with its conversation"):
        next(stream)
    assert [round["question"] for round in airplane.transcript()["rounds"]] == ["What is <region1>?"]


def test_what_can_not_be_asked_is_told_with_the_first_piece(chat):
    with pytest.raises(ValueError, match="<region1> is not declared"):
        next(chat.stream(LONG))
    assert chat.transcript()["rounds"] == []
