import json
import re
import shlex

import pytest

import gpt4roi
from conftest import AIRPLANE, BREAD, EXAMPLE, OCTOPUS, ROOT


def questions_of_the_readme():
    """Questions about docs/example.png with their regions and the answers that the README promises."""
    lines = (ROOT / "README.md").read_text().splitlines()
    for line, answer in zip(lines, lines[1:]):
        if re.match(r"\$ gpt4roi ask docs/example.png .*--region", line) and not answer.startswith("$"):
            words = shlex.split(line.removeprefix("$"), comments=True)
            boxes = [words[place + 1] for place, word in enumerate(words) if word == "--region"]
            yield words[3], [tuple(map(float, box.split(","))) for box in boxes], answer


@pytest.mark.parametrize("question, boxes, answer", list(questions_of_the_readme()))
def test_answers_are_those_of_the_program(model, question, boxes, answer):
    chat = model.chat(EXAMPLE)
    for box in boxes:
        chat.add_region(box)
    assert chat.ask(question).text == answer


def test_the_readme_has_questions():
    assert len(list(questions_of_the_readme())) >= 3


def test_an_answer_says_what_it_is_an_answer_to(chat):
    octopus = chat.add_region(OCTOPUS)
    assert f"{octopus}" == str(octopus) == "<region1>"
    assert (octopus.id, octopus.origin) == (1, "given")
    assert octopus.box == pytest.approx(OCTOPUS)
    answer = chat.ask(f"What is {octopus}?")
    assert str(answer) == answer.text == "An octopus."
    assert answer.question == "What is <region1>?"
    assert answer.regions == [octopus] == chat.regions
    assert answer.finish == "stop"
    assert 0.5 < answer.probability <= 1
    assert answer.text_if_sure(0.5) == "An octopus." and answer.text_if_sure(1.1) == "I do not know."
    # A picture of 224 pixels in patches of 14 has 256 of them.
    assert answer.prompt_tokens > 256 and answer.reused_tokens == 0 and answer.generated_tokens > 2
    assert repr(answer) == f"Answer('An octopus.', probability={answer.probability:.3f}, finish='stop')"
    assert repr(octopus).startswith("Region(id=1, box=(8.0, ") and repr(octopus).endswith(", origin='given')")


def test_a_conversation_goes_on_and_back(chat):
    chat.add_region(OCTOPUS)
    chat.ask("What is <region1>?")
    second = chat.ask("Where is region 1?")
    assert second.text == "At the top left." and second.reused_tokens > 256
    transcript = chat.transcript()
    assert transcript == json.loads(json.dumps(transcript))
    assert transcript["image_size"] == list(chat.image_size)
    assert transcript["regions"] == [{"id": 1, "box": pytest.approx(list(OCTOPUS)), "origin": "given"}]
    assert transcript["rounds"] == [
        {"question": "What is <region1>?", "answer": "An octopus."},
        {"question": "Where is <region1>?", "answer": "At the top left."},
    ]
    assert repr(chat).endswith("1 regions, 2 rounds)")
    chat.replace_answer("Nowhere.")
    assert chat.undo() == {"question": "Where is <region1>?", "answer": "Nowhere."}
    bread = chat.add_region(BREAD)
    assert chat.undo() == bread and bread.id == 2
    chat.clear()
    assert chat.regions == [] and chat.undo() is None


def test_coordinates_in_a_question_become_regions(chat):
    answer = chat.ask("What is in [8, 14, 54, 59]?")
    assert answer.text == "An octopus." and answer.question == "What is in <region1>?"
    assert [region.origin for region in chat.regions] == ["coordinates"]


def test_every_convention_names_the_same_box(chat):
    width, height = chat.image_size
    x1, y1, x2, y2 = AIRPLANE
    fractions = [x1 / width, y1 / height, x2 / width, y2 / height]
    regions = [
        chat.add_region(AIRPLANE),
        chat.add_region([x1, y1, x2 - x1, y2 - y1], box_format="xywh"),
        chat.add_region([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], box_format="cxcywh"),
        chat.add_region(fractions, coords="norm"),
        chat.add_region([1000 * fraction for fraction in fractions], coords="norm1000"),
        chat.add_region([-50, y1, x2, y2], clip=True),
        chat.add_polygon([(x1, y1), (x2, y1), (x2, y2)]),
        chat.add_polygon([(-9, y1), (x2, y1), (x2, y2)], clip=True),
    ]
    for region in regions:
        assert region.box == pytest.approx(AIRPLANE)


def test_a_point_is_a_region_around_it(chat):
    octopus = chat.add_point((31, 36))
    x1, y1, x2, y2 = octopus.box
    assert x1 < 31 < x2 and y1 < 36 < y2 and octopus.origin == "point"
    assert chat.ask(f"What is at {octopus}?").text == "An octopus."


def test_choices_are_chosen_from(chat):
    octopus = chat.add_region(OCTOPUS)
    chosen = chat.choose(f"What is {octopus}?", ["A cat.", "An octopus.", "A dog."])
    assert str(chosen) == chosen.text == "An octopus." and chosen.best == 1
    assert [choice.text for choice in chosen.choices] == ["A cat.", "An octopus.", "A dog."]
    assert sum(choice.probability for choice in chosen.choices) == pytest.approx(1)
    assert chosen.probability == chosen.choices[1].probability > 0.9
    assert 0.5 < chosen.likeness <= 1
    assert chosen.question == "What is <region1>?" and chosen.regions == [octopus]
    assert chosen.text_if_sure(1.1) == "I do not know."
    assert chat.undo() == {"question": "What is <region1>?", "answer": "An octopus."}


@pytest.mark.parametrize("choices", [{"cat": "A cat.", "octopus": "An octopus."}, [("cat", "A cat."), ("octopus", "An octopus.")]])
@pytest.mark.parametrize("scoring", ["all", "likely"])
def test_a_label_may_come_with_a_wording(chat, choices, scoring):
    chat.add_region(OCTOPUS)
    assert chat.choose("What is <region1>?", choices, scoring=scoring).text == "octopus"
    assert chat.transcript()["rounds"][0]["answer"] == "An octopus."


def test_options_reach_the_model(chat):
    chat.add_region(AIRPLANE)
    question = "Describe <region1> in detail."
    greedy = chat.ask(question)
    chat.undo()
    short = chat.ask(question, max_new_tokens=3)
    assert short.finish == "length" and short.generated_tokens == 3
    chat.undo()
    assert chat.ask(question, stop="airplane").text == greedy.text.split("airplane")[0]
    chat.undo()
    assert chat.ask(question, stop=["large", "airplane"]).text == greedy.text.split("airplane")[0]
    chat.undo()
    drawn = []
    for seed in (1, 1, 2, 3, 4):
        drawn.append(chat.ask(question, temperature=3.0, top_k=0, seed=seed).text)
        chat.undo()
    assert drawn[0] == drawn[1] and len(set(drawn)) > 1
    assert chat.ask(question, temperature=3.0, top_k=1).text == greedy.text


def test_what_was_said_before_is_drafted_and_nothing_else_changes():
    model = gpt4roi.load()
    question = "Describe <region1> in detail."

    def asked(**options):
        chat = model.chat(EXAMPLE)
        chat.add_region(AIRPLANE)
        return chat.ask(question, **options)

    plain = asked(draft=0)
    assert plain.drafted_tokens == 0
    assert asked().drafted_tokens == 0, "unasked, only behind quantised weights"
    # Enough for a drafter to trust what it has heard.
    answers = [asked(draft=3) for _ in range(3)]
    assert {answer.text for answer in answers} == {plain.text}
    assert answers[-1].drafted_tokens > plain.generated_tokens // 3
    described = model.describe(EXAMPLE, [AIRPLANE], question=question, draft=3)
    assert described[0].text == plain.text and described[0].drafted_tokens > 0


def test_a_model_says_what_it_is(model):
    assert (model.name, model.device, model.dtype) == ("embedded", "cpu", "f32")
    assert repr(model) == "Model('embedded', device='cpu', dtype='f32')"
    assert re.fullmatch(r"\d+\.\d+\.\d+", gpt4roi.__version__)


def test_half_precision_answers_the_same(chat):
    half = gpt4roi.load(device="cpu", dtype="bf16")
    assert half.dtype == "bf16"
    assert half.describe(EXAMPLE, [OCTOPUS])[0].text == "An octopus."
