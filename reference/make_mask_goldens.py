"""Masks in COCO's run-length encoding and in PNG files, and the smallest box around what each marks.

    pip install pycocotools numpy pillow
    python3 reference/make_mask_goldens.py crates/gpt4roi/tests/data
"""

import json
import pathlib
import sys

import numpy as np
import PIL.Image
from pycocotools import mask as coco


def box(mask):
    """xyxy in pixels, the last two behind the last marked pixel; none of an empty mask."""
    rows, columns = np.where(mask)
    if len(rows) == 0:
        return None
    return [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]


def runs(mask):
    """Lengths of runs, column by column, the first of pixels outside."""
    pixels = np.concatenate([[0], mask.ravel(order="F"), [2]])
    places = np.flatnonzero(np.diff(pixels))
    return np.diff(np.concatenate([[0], places])).tolist()


def drawn(height, width, *rectangles):
    mask = np.zeros((height, width), np.uint8)
    for left, top, right, bottom in rectangles:
        mask[top:bottom, left:right] = 1
    return mask


def disk(height, width, x, y, radius):
    rows, columns = np.mgrid[:height, :width]
    return ((columns - x) ** 2 + (rows - y) ** 2 <= radius**2).astype(np.uint8)


def rle_cases():
    noise = np.random.default_rng(0)
    yield "nothing", drawn(3, 4)
    yield "everything", drawn(3, 4, (0, 0, 4, 3))
    yield "first pixel", drawn(3, 4, (0, 0, 1, 1))
    yield "last pixel", drawn(3, 4, (3, 2, 4, 3))
    yield "one pixel", drawn(1, 1, (0, 0, 1, 1))
    yield "a run over the end of a column", drawn(3, 4, (1, 2, 2, 3), (2, 0, 3, 1))
    yield "one row", drawn(1, 7, (2, 0, 5, 1))
    yield "one column", drawn(7, 1, (0, 2, 1, 5))
    yield "two things", drawn(6, 9, (1, 1, 3, 4), (6, 3, 8, 6))
    yield "a disk", disk(40, 60, 31, 17, 12)
    yield "a disk cut by the edge", disk(40, 60, 57, 38, 12)
    yield "counts that fall", drawn(100, 30, (2, 10, 3, 90), (5, 40, 6, 50), (9, 99, 10, 100))
    yield "noise", (noise.random((17, 23)) < 0.4).astype(np.uint8)
    yield "sparse noise", (noise.random((50, 40)) < 0.01).astype(np.uint8)
    yield "large counts", drawn(1500, 2000, (1900, 700, 1990, 1400))


def checked(name, mask):
    text = coco.encode(np.asfortranarray(mask))
    height, width = mask.shape
    uncompressed = coco.frPyObjects({"size": [height, width], "counts": runs(mask)}, height, width)
    assert uncompressed["counts"] == text["counts"], name
    assert (coco.decode(text) == mask).all(), name
    x, y, wide, high = map(int, coco.toBbox(text))
    assert box(mask) in (None, [x, y, x + wide, y + high]), name
    counts = {"list": runs(mask), "text": text["counts"].decode()}
    return {"name": name, "size": [height, width], **counts, "box": box(mask)}


def write_pictures(folder, mask):
    """The same mask in every kind of PNG file; its box is that of "two things" among the cases."""
    folder.mkdir(exist_ok=True)
    colour = np.full((*mask.shape, 3), 90, np.uint8)
    alpha = mask * 200
    pictures = {
        "grey": PIL.Image.fromarray(mask * 255),
        "grey-ones": PIL.Image.fromarray(mask),
        "grey16-ones": PIL.Image.fromarray(mask.astype(np.uint16)),
        "bits": PIL.Image.fromarray(mask * 255).convert("1"),
        "rgb": PIL.Image.fromarray(np.dstack([mask * 0, mask * 7, mask * 0])),
        "rgba": PIL.Image.fromarray(np.dstack([colour, alpha])),
        "grey-alpha": PIL.Image.fromarray(np.dstack([colour[..., 0], alpha])),
        "opaque": PIL.Image.fromarray(np.dstack([colour, np.full(mask.shape, 255, np.uint8)])),
        "nothing": PIL.Image.fromarray(mask * 0),
    }
    labels = PIL.Image.fromarray(mask * 3, mode="P")
    labels.putpalette([0, 0, 0, 9, 9, 9, 200, 0, 0, 0, 0, 128])
    pictures["palette"] = labels
    for name, picture in pictures.items():
        picture.save(folder / f"{name}.png")
    # Stored lying on its side: orientation 6 says that the first row is the right edge.
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.fromarray(np.rot90(mask * 255)).save(folder / "turned-6.png", exif=exif)


def main(folder):
    cases = list(rle_cases())
    lines = [json.dumps(checked(*case)) for case in cases]
    (folder / "masks.json").write_text("[\n" + ",\n".join(lines) + "\n]\n")
    write_pictures(folder / "masks", dict(cases)["two things"])


main(pathlib.Path(sys.argv[1]))
