import gc
import io

import numpy
import pytest
from PIL import Image

import gpt4roi
from conftest import EXAMPLE, OCTOPUS


class OnlyArray:
    """What PyTorch's tensors are like: no array interface, but a way to become an array."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array


RGB = Image.open(EXAMPLE).convert("RGB")
PIXELS = numpy.asarray(RGB)
GREY = numpy.asarray(RGB.convert("L"))


def answer_about(model, picture):
    chat = model.chat(picture)
    chat.add_region(OCTOPUS)
    return chat.ask("Describe <region1> in detail.")


@pytest.mark.parametrize(
    "picture",
    [
        pytest.param(EXAMPLE, id="path"),
        pytest.param(str(EXAMPLE), id="text"),
        pytest.param(EXAMPLE.read_bytes(), id="bytes"),
        pytest.param(bytearray(EXAMPLE.read_bytes()), id="bytearray"),
        pytest.param(memoryview(EXAMPLE.read_bytes()), id="memoryview"),
        pytest.param(Image.open(EXAMPLE), id="pil"),
        pytest.param(RGB.convert("RGBA"), id="pil-rgba"),
        pytest.param(PIXELS, id="array"),
        pytest.param(numpy.ascontiguousarray(PIXELS[:, ::-1])[:, ::-1], id="strided-array"),
        pytest.param(numpy.asfortranarray(PIXELS), id="fortran-array"),
        pytest.param(numpy.asarray(RGB.convert("RGBA")), id="four-channels"),
        pytest.param(OnlyArray(PIXELS), id="only-array"),
    ],
)
def test_a_picture_is_the_same_in_every_form(model, picture):
    expected, answer = answer_about(model, EXAMPLE), answer_about(model, picture)
    assert (answer.text, answer.mean_log_probability) == (expected.text, expected.mean_log_probability)


def test_grey_arrays_are_grey_pictures(model):
    grey = answer_about(model, GREY)
    repeated = answer_about(model, numpy.stack([GREY] * 3, axis=2))
    assert grey.mean_log_probability == repeated.mean_log_probability
    assert grey.mean_log_probability == answer_about(model, RGB.convert("L")).mean_log_probability
    assert grey.mean_log_probability != answer_about(model, PIXELS).mean_log_probability


def test_files_are_turned_upright_and_pil_images_are_taken_as_they_are(model):
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation: the picture was taken with the camera on its side.
    file = io.BytesIO()
    RGB.crop((0, 0, 64, 32)).save(file, "JPEG", exif=exif)
    assert model.chat(file.getvalue()).image_size == (32, 64)
    assert model.chat(Image.open(file)).image_size == (64, 32)


def test_a_picture_need_not_live_as_long_as_its_conversation(model):
    pixels = PIXELS.copy()
    chat = model.chat(pixels)
    pixels[:] = 0
    del pixels
    gc.collect()
    chat.add_region(OCTOPUS)
    assert chat.ask("What is <region1>?").text == "An octopus."


@pytest.mark.parametrize(
    "picture, error, message",
    [
        (3.5, TypeError, "image: expected a path, bytes, a PIL image or an array of H×W×3 bytes, got float"),
        (None, TypeError, "got NoneType"),
        (PIXELS / 255, ValueError, "expected an array of H×W×3 unsigned bytes (uint8, RGB), got .* of <f8"),
        (PIXELS.transpose(2, 0, 1), ValueError, "got 3×.* of |u1"),
        (PIXELS[None], ValueError, "got 1×"),
        (Image.new("I;16", (4, 4)), ValueError, "8 bits a channel, or its file, got one of mode I;16"),
        (PIXELS[:0], gpt4roi.Error, "expected a picture of at least 1×1 pixels"),
    ],
)
def test_what_is_no_picture_is_refused(model, picture, error, message):
    with pytest.raises(error) as refusal:
        model.chat(picture)
    for part in message.split(".*"):
        assert part in str(refusal.value)


def png(picture):
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def test_a_mask_is_the_same_in_every_form(model, tmp_path):
    chat = model.chat(EXAMPLE)
    width, height = chat.image_size
    marked = numpy.zeros((height, width), dtype=bool)
    marked[14:59, 8:54] = True
    grey = Image.fromarray(marked.astype(numpy.uint8) * 255)
    file = tmp_path / "mask.png"
    file.write_bytes(png(grey))
    # Column by column: eight empty ones, then 46 in which 45 pixels are marked, 14 from above.
    counts = [8 * height + 14] + [45, height - 45] * 45 + [45]
    counts.append(width * height - sum(counts))
    rle = {"size": [height, width], "counts": counts}
    masks = [marked, marked.astype(numpy.uint8), grey, grey.convert("1"), file, str(file), png(grey), rle]
    for mask in masks:
        region = chat.add_mask(mask)
        assert region.box == pytest.approx(OCTOPUS) and region.origin == "mask"


@pytest.mark.parametrize("counts", ["52203", b"52203"])
def test_compressed_counts_are_text_or_bytes(model, counts):
    """COCO's coding by hand: 5, 2 and 2 pixels, then 0 more than 2, and 3 more than 2, in a picture of 4×4."""
    chat = model.chat(numpy.zeros((4, 4, 3), dtype=numpy.uint8))
    region = chat.add_mask({"size": [4, 4], "counts": counts})
    # Pixels 5, 6 (second column) and 9, 10 (third column): rows 1 and 2.
    assert region.box == pytest.approx((1, 1, 3, 3))


def test_what_is_no_mask_is_refused(model, chat):
    width, height = chat.image_size
    with pytest.raises(ValueError, match="expected a mask of the picture's size"):
        chat.add_mask(numpy.ones((height, width + 1), dtype=bool))
    with pytest.raises(ValueError, match="expected a mask that marks something"):
        chat.add_mask(numpy.zeros((height, width), dtype=bool))
    with pytest.raises(ValueError, match="H×W booleans or unsigned bytes, got .* of <f8"):
        chat.add_mask(numpy.zeros((height, width)))
    with pytest.raises(ValueError, match='with "counts" in it'):
        chat.add_mask({"size": [height, width]})
    with pytest.raises(TypeError, match="mask: expected .* got int"):
        chat.add_mask(5)
    assert chat.regions == []

