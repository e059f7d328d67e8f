import numpy
import pytest

from conftest import AIRPLANE, BREAD, EXAMPLE, OCTOPUS

BOXES = [OCTOPUS, BREAD, AIRPLANE]


def test_regions_together_are_answered_as_one_by_one(model):
    answers = model.describe(EXAMPLE, BOXES)
    assert [answer.text for answer in answers[:2]] == ["An octopus.", "A loaf of bread."]
    for box, answer in zip(BOXES, answers):
        chat = model.chat(EXAMPLE)
        alone = chat.ask(f"What is {chat.add_region(box)}?")
        assert (answer.text, answer.regions) == (alone.text, alone.regions)


def test_boxes_of_a_detector_are_an_array(model):
    boxes = numpy.array(BOXES, dtype=numpy.float32)
    answers = model.describe(EXAMPLE, boxes, question="Where is <region1>?")
    assert answers[0].text == "At the top left."
    size = model.chat(EXAMPLE).image_size
    fractions = boxes / numpy.array([*size, *size])
    again = model.describe(EXAMPLE, fractions, question="Where is <region1>?", coords="norm")
    assert [answer.text for answer in again] == [answer.text for answer in answers]
    assert model.describe(EXAMPLE, numpy.empty((0, 4))) == []
    assert model.describe(EXAMPLE) == model.describe(EXAMPLE, None, points=None, zoom=None) == []


def test_regions_of_all_kinds_come_in_the_order_of_their_kinds(model):
    width, height = model.chat(EXAMPLE).image_size
    mask = numpy.zeros((height, width), dtype=bool)
    mask[78:186, 0:100] = True
    x1, y1, x2, y2 = BREAD
    answers = model.describe(
        EXAMPLE, [OCTOPUS], points=[(31, 36)], polygons=[[(x1, y1), (x2, y1), (x2, y2), (x1, y2)]], masks=[mask]
    )
    assert [answer.regions[0].origin for answer in answers] == ["given", "point", "polygon", "mask"]
    assert answers[2].regions[0].box == pytest.approx(BREAD)
    assert answers[3].regions[0].box == pytest.approx(AIRPLANE)
    assert [answer.text for answer in answers[:3]] == ["An octopus.", "An octopus.", "A loaf of bread."]


def test_little_memory_changes_no_answer(model):
    together, one_by_one = model.describe(EXAMPLE, BOXES), model.describe(EXAMPLE, BOXES, batch_bytes=0)
    assert [answer.text for answer in together] == [answer.text for answer in one_by_one]


def test_each_region_has_its_choice(model):
    chosen = model.choose(EXAMPLE, BOXES[:2], {"octopus": "An octopus.", "bread": "A loaf of bread."})
    assert [one.text for one in chosen] == ["octopus", "bread"]
    assert all(one.probability > 0.9 for one in chosen)
    positions = ["At the top left.", "At the bottom right."]
    assert model.choose(EXAMPLE, [OCTOPUS], positions, question="Where is <region1>?")[0].best == 0
