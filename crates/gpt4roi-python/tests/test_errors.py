import pytest

import gpt4roi
from conftest import EXAMPLE, OCTOPUS


def refusal(error, call, *arguments, **keywords):
    with pytest.raises(error) as refused:
        call(*arguments, **keywords)
    assert type(refused.value) is error
    return str(refused.value)


def test_the_error_of_the_package_is_an_exception():
    assert issubclass(gpt4roi.Error, Exception) and gpt4roi.Error.__module__ == "gpt4roi"


def test_boxes_that_can_not_be(chat):
    def add(*arguments, **keywords):
        return refusal(ValueError, chat.add_region, *arguments, **keywords)

    width, _ = chat.image_size
    assert add([0, 0, width + 1, 5]) == f"x2: expected 0 to {width} (pixels), got {width + 1}"
    assert add([5, 0, 5, 5]) == "x1 and x2: expected x1 < x2, got 5 and 5"
    assert add([0, 0, float("nan"), 5]) == "x2: expected a finite number, got NaN"
    assert add([0, 0, 2, 5], coords="norm") == "x2: expected 0 to 1 (fractions of the picture), got 2"
    assert add([5, 5, width, 5], box_format="xywh").startswith("x + width: expected 0 to")
    assert add([1, 2, 3]) == "box: expected 4 numbers, got 3"
    assert add([0, 0, 5, 5], coords="pixels") == 'coords: expected pixel, norm or norm1000, got "pixels"'
    assert add([0, 0, 5, 5], box_format="yolo") == 'box_format: expected xyxy, xywh or cxcywh, got "yolo"'
    for box in ["abcd", 5, [None] * 4]:
        assert refusal(TypeError, chat.add_region, box).startswith("box: expected 4 numbers, got ")
    assert refusal(ValueError, chat.add_point, (-1, 5)).startswith("x: expected 0 to")
    assert refusal(ValueError, chat.add_polygon, [(0, 0), (5, 5)]) == "expected a polygon of at least 3 corners, got 2"
    assert chat.regions == []


def test_one_of_many_boxes_is_named(model):
    message = refusal(ValueError, model.describe, EXAMPLE, [OCTOPUS, OCTOPUS, (0, 0, 0, 5)])
    assert message == "boxes[2]: x1 and x2: expected x1 < x2, got 0 and 0"
    message = refusal(ValueError, model.describe, EXAMPLE, [OCTOPUS], points=[(1, 1), (-1, 1)])
    assert message.startswith("points[1]: x: expected 0 to")
    assert refusal(ValueError, model.describe, EXAMPLE, [(1, 2, 3)]) == "boxes[0]: expected 4 numbers, got 3"
    message = refusal(TypeError, model.describe, EXAMPLE, polygons=[[(0, 0), (5, 0), 5]])
    assert message == "polygons[0], corner 3: expected 2 numbers, got int"
    assert refusal(TypeError, model.describe, EXAMPLE, masks=[5]).startswith("masks[0]: expected an array of H×W")
    assert "not iterable" in refusal(TypeError, model.describe, EXAMPLE, 5)


def test_questions_that_can_not_be_asked(model, chat):
    assert "expected a question" in refusal(ValueError, chat.ask, "")
    assert "<region1> is not declared" in refusal(ValueError, chat.ask, "What is <region1>?")
    assert "expected at most 2048" in refusal(ValueError, chat.ask, "what " * 4000)
    message = refusal(ValueError, model.describe, EXAMPLE, [OCTOPUS], question="What is it?")
    assert message.startswith("question: expected <region1> in it")
    refusal(TypeError, chat.ask, 5)
    assert chat.transcript()["rounds"] == []


def test_settings_out_of_range(model, chat):
    assert refusal(ValueError, chat.ask, "What?", temperature=-1.0).startswith("sampling: temperature must be")
    assert refusal(ValueError, chat.ask, "What?", temperature=1.0, top_p=0.0).startswith("sampling: top-p must be")
    assert refusal(ValueError, chat.ask, "What?", max_new_tokens=0) == "max_new_tokens: expected at least 1, got 0"
    assert refusal(ValueError, chat.ask, "What?", max_new_tokens=-1).startswith("max_new_tokens: ")
    assert refusal(ValueError, chat.ask, "What?", zoom="on") == "zoom: expected auto or off, got on"
    assert refusal(TypeError, chat.ask, "What?", temperature="hot").startswith("temperature: ")
    assert refusal(TypeError, chat.ask, "What?", heat=1.0) == "unexpected keyword argument 'heat'"
    # Where answers are given, no tokens are drawn.
    assert refusal(TypeError, chat.choose, "What?", ["a", "b"], seed=1) == "unexpected keyword argument 'seed'"
    assert refusal(ValueError, chat.choose, "What?", ["a"]) == "expected at least 2 choices, got 1"
    assert refusal(ValueError, chat.choose, "What?", ["a", "a"]).startswith("choice 2: ")
    assert refusal(ValueError, chat.choose, "What?", ["a", "b"], scoring="some") == (
        "scoring: expected all or likely, got some"
    )


def test_pictures_that_can_not_be_read(model, tmp_path):
    missing = tmp_path / "missing.png"
    with pytest.raises(FileNotFoundError) as refused:
        model.chat(missing)
    assert refused.value.filename == str(missing) and refused.value.errno == 2
    text = tmp_path / "text.png"
    text.write_text("no picture")
    assert refusal(gpt4roi.Error, model.chat, text).startswith(f"{text}: expected a PNG, JPEG or WebP picture")
    assert refusal(gpt4roi.Error, model.describe, b"no picture").startswith("expected a PNG, JPEG or WebP picture")
    assert refusal(gpt4roi.Error, model.chat, EXAMPLE.read_bytes()[:1000]).startswith("expected a whole picture")


def test_models_that_can_not_be_opened(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert refusal(gpt4roi.Error, gpt4roi.load, "nano") == "model: nano is neither a directory nor a GGUF file"
    message = refusal(gpt4roi.Error, gpt4roi.load, "someone/something@main")
    assert message == (
        f"model: someone/something@main is neither a directory nor a model in the cache {tmp_path}; "
        "`gpt4roi pull someone/something@main` downloads it"
    )
    refusal(FileNotFoundError, gpt4roi.load, tmp_path)
    assert refusal(ValueError, gpt4roi.load, device="gpu").startswith("device: expected auto, cpu, cuda")
    assert refusal(ValueError, gpt4roi.load, dtype="f64") == "dtype: expected f32, f16 or bf16, got f64"
    assert "built without it" in refusal(gpt4roi.Error, gpt4roi.load, device="cuda:7")
