"""Writes blocks of every ggml type and their values, as the `gguf` package reads them, for `gguf.rs`.

    pip install gguf numpy
    python gguf_golden.py ../crates/gpt4roi/tests/data/golden.gguf
"""

import sys

import numpy as np
from gguf import GGUFWriter
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType as Type
from gguf.quants import dequantize

TYPES = [Type.F32, Type.F16, Type.BF16, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0]
TYPES += [Type.Q2_K, Type.Q3_K, Type.Q4_K, Type.Q5_K, Type.Q6_K]
ROWS, COLUMNS = 3, 256

# Where the half-precision scales of a block lie, in bytes; random bits there would be infinities.
SCALES = {
    Type.Q4_0: [0], Type.Q4_1: [0, 2], Type.Q5_0: [0], Type.Q5_1: [0, 2], Type.Q8_0: [0],
    Type.Q2_K: [80, 82], Type.Q3_K: [108], Type.Q4_K: [0, 2], Type.Q5_K: [0, 2], Type.Q6_K: [208],
}


def blocks(kind, rng):
    """Rows of random blocks with reasonable scales."""
    length, size = GGML_QUANT_SIZES[kind]
    floats = rng.normal(size=(ROWS, COLUMNS)).astype(np.float32)
    if kind == Type.F32:
        return floats.view(np.uint8)
    if kind == Type.F16:
        return floats.astype(np.float16).view(np.uint8)
    if kind == Type.BF16:
        return (floats.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    raw = rng.integers(0, 256, size=(ROWS * COLUMNS // length, size), dtype=np.uint8)
    for at in SCALES[kind]:
        raw[:, at : at + 2] = rng.normal(size=(len(raw), 1)).astype(np.float16).view(np.uint8)
    return raw.reshape(ROWS, -1)


def main():
    rng = np.random.default_rng(7)
    writer = GGUFWriter(sys.argv[1], "golden")
    writer.add_string("golden.text", "▁ä")
    for kind in TYPES:
        raw = blocks(kind, rng)
        name = kind.name.lower()
        writer.add_tensor(name, raw, raw_shape=raw.shape, raw_dtype=kind)
        writer.add_tensor(f"{name}.f32", dequantize(raw, kind).astype(np.float32).reshape(ROWS, COLUMNS))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
