"""Makes crates/gpt4roi/tests/data/{image.safetensors, pictures/*}.

    pip install 'pillow<13' numpy torch safetensors && python reference/make_image_goldens.py

The original ran on a Pillow of 2023. Since version 13 Pillow takes the two passes of the bicubic the other way round
where a picture is tall, which gives other bytes.

Pillow resizes and decodes, PyTorch squashes; the pictures are computed here. `pictures/NAME` is a file
to decode, `image.safetensors` holds under `NAME` the colours that Pillow reads from it, and under
`WxH.…` a picture, its bicubic (shorter edge = SIDE) and what the tower of side SIDE sees.
"""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image, ImageOps
from safetensors.numpy import save_file

DATA = Path(__file__).parent.parent / "crates/gpt4roi/tests/data"
SIDE = 16
MEAN = np.float32([0.48145466, 0.4578275, 0.40821073])
STD = np.float32([0.26862954, 0.26130258, 0.27577711])
# Smaller, larger, equal, very long, one pixel.
SIZES = [(16, 16), (16, 40), (40, 16), (37, 53), (53, 37), (5, 7), (7, 5), (1, 1), (3, 3), (64, 64), (17, 16), (200, 31), (1, 60), (60, 1), (40, 130)]
EXTREME = (1, 10_000)


def picture(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Noise, half of it in black and white: overshoot is what clipping is for."""
    rng = np.random.default_rng([width, height, seed])
    noise = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    hard = rng.integers(0, 2, (height, width, 1), dtype=np.uint8) * np.uint8(255)
    return np.where(rng.integers(0, 2, (height, width, 1), dtype=np.uint8) == 1, noise, hard).astype(np.uint8)


def bicubic(image: Image.Image) -> Image.Image:
    short, long = sorted(image.size)
    long = int(SIDE * long / short)
    width, height = (SIDE, long) if image.width <= image.height else (long, SIDE)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def pixel_values(resized: Image.Image) -> np.ndarray:
    values = (np.asarray(resized) * (1 / 255)).astype(np.float32)
    values = torch.from_numpy((values - MEAN) / STD).permute(2, 0, 1)[None]
    return torch.nn.functional.interpolate(values, (SIDE, SIDE), mode="bilinear", align_corners=False).numpy()


def resized() -> dict[str, np.ndarray]:
    tensors = {}
    for width, height in [*SIZES, EXTREME]:
        pixels = picture(width, height)
        small = bicubic(Image.fromarray(pixels))
        tensors[f"{width}x{height}.picture"] = pixels
        tensors[f"{width}x{height}.pixel_values"] = pixel_values(small)
        if (width, height) != EXTREME:
            tensors[f"{width}x{height}.bicubic"] = np.asarray(small)
    return tensors


def files() -> dict[str, bytes]:
    """A small picture in every kind of file that has to be read."""
    smooth = Image.fromarray(np.uint8([[[16 * x, 20 * y, 100] for x in range(12)] for y in range(10)]))
    noise = Image.fromarray(picture(7, 5))
    alpha = noise.convert("RGBA")
    alpha.putalpha(Image.fromarray(np.arange(35, dtype=np.uint8).reshape(5, 7) * 7))
    palette = noise.quantize(8)
    see_through = palette.copy()
    grey16 = Image.fromarray((np.arange(35, dtype=np.uint16) * 1877).reshape(5, 7))
    made = {
        "rgb.png": (noise, {}), "rgba.png": (alpha, {}), "grey.png": (noise.convert("L"), {}), "grey-alpha.png": (alpha.convert("LA"), {}),
        "palette.png": (palette, {}), "palette-alpha.png": (see_through, {"transparency": 3}), "bits.png": (noise.convert("1"), {}),
        "grey16.png": (grey16, {}), "lossless.webp": (noise, {"lossless": True}),
        "alpha.webp": (alpha, {"lossless": True, "exact": True}), "lossy.webp": (smooth, {"quality": 95}),
        "rgb.jpeg": (smooth, {"quality": 95, "subsampling": 0}), "progressive.jpeg": (smooth, {"quality": 95, "progressive": True}),
        "grey.jpeg": (smooth.convert("L"), {"quality": 95}), "cmyk.jpeg": (smooth.convert("CMYK"), {"quality": 95}),
    }
    made |= {f"turned-{turn}.png": (noise, {"exif": exif(turn)}) for turn in range(1, 9)}
    made |= {"turned-6.jpeg": (smooth, {"quality": 95, "exif": exif(6)}), "turned-8.webp": (noise, {"lossless": True, "exif": exif(8)})}
    written = {}
    for name, (image, options) in made.items():
        file = io.BytesIO()
        image.save(file, format=name.split(".")[1].upper(), **options)
        written[name] = file.getvalue()
    written["rgb16.png"] = rgb16(picture(7, 5, 1).astype(">u2") * 256 + picture(7, 5, 2))
    return written


def rgb16(pixels: np.ndarray) -> bytes:
    """A PNG of 16 bits per channel, which Pillow reads but does not write."""
    height, width, _ = pixels.shape

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def as_seen(name: str, file: bytes) -> np.ndarray:
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(file)))
    if image.mode.startswith("I"):
        # Pillow makes white of all that is brighter than 255 of 65535; this is what it should do.
        return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, axis=2)
    return np.asarray(image.convert("RGB"))


def main():
    if int(PIL.__version__.split(".")[0]) >= 13:
        raise SystemExit(f"expected Pillow before 13, got {PIL.__version__}")
    tensors = resized()
    (DATA / "pictures").mkdir(parents=True, exist_ok=True)
    for name, file in files().items():
        (DATA / "pictures" / name).write_bytes(file)
        tensors[name] = as_seen(name, file)
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, DATA / "image.safetensors")
    (DATA / "image.safetensors").chmod(0o644)


if __name__ == "__main__":
    main()
