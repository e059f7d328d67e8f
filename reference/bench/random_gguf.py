"""Writes a GGUF of LLaMA's 7B shape with random weights in llama.cpp's mixture Q4_K_M: four gigabytes that mean nothing.

    PYTHON reference/bench/random_gguf.py OUT.gguf [--layers 32]

PYTHON has to have the packages gguf and numpy.
"""

import argparse

import numpy
from gguf import GGMLQuantizationType as Type
from gguf import GGUFWriter

WIDTH, INNER, HEADS, VOCABULARY = 4096, 11008, 32, 32006
BLOCK_BYTES = {Type.Q4_K: 144, Type.Q6_K: 210}
# Where the half-precision scales of a block lie, and the spread of its weights for a scale of one.
SCALES = {Type.Q4_K: ([0, 2], 350), Type.Q6_K: ([208], 1370)}


def random_blocks(generator, kind, rows, columns):
    blocks = numpy.frombuffer(generator.bytes(rows * columns // 256 * BLOCK_BYTES[kind]), numpy.uint8)
    blocks = blocks.reshape(rows * columns // 256, BLOCK_BYTES[kind]).copy()
    places, spread = SCALES[kind]
    scale = numpy.frombuffer(numpy.float16(1 / (spread * columns**0.5)).tobytes(), numpy.uint8)
    for place in places:
        blocks[:, place : place + 2] = scale
    return blocks.reshape(rows, columns // 256 * BLOCK_BYTES[kind])


def matrices(layers):
    yield "token_embd.weight", Type.Q4_K, VOCABULARY, WIDTH
    yield "output.weight", Type.Q6_K, VOCABULARY, WIDTH
    eighth = layers // 8
    for layer in range(layers):
        favoured = layer < eighth or layer >= 7 * eighth or (layer - eighth) % 3 == 2
        sensitive = Type.Q6_K if favoured else Type.Q4_K
        for name, kind, rows, columns in [
            ("attn_q", Type.Q4_K, WIDTH, WIDTH),
            ("attn_k", Type.Q4_K, WIDTH, WIDTH),
            ("attn_v", sensitive, WIDTH, WIDTH),
            ("attn_output", Type.Q4_K, WIDTH, WIDTH),
            ("ffn_gate", Type.Q4_K, INNER, WIDTH),
            ("ffn_up", Type.Q4_K, INNER, WIDTH),
            ("ffn_down", sensitive, WIDTH, INNER),
        ]:
            yield f"blk.{layer}.{name}.weight", kind, rows, columns


def add_tokenizer(writer):
    """Tokens that nobody types: the measurement hands over ids."""
    special = ["<unk>", "<s>", "</s>"]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    words = [f"word{index}" for index in range(VOCABULARY - len(special) - len(bytes_))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(special + bytes_ + words)
    writer.add_token_scores([0.0] * VOCABULARY)
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * len(words))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--layers", type=int, default=32)
    arguments = parser.parse_args()
    generator = numpy.random.default_rng(1)
    writer = GGUFWriter(arguments.out, "llama", use_temp_file=False)
    writer.add_context_length(2048)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_block_count(arguments.layers)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(VOCABULARY)
    add_tokenizer(writer)
    norms = ["output_norm.weight"]
    norms += [f"blk.{layer}.{part}_norm.weight" for layer in range(arguments.layers) for part in ("attn", "ffn")]
    kinds = {}
    for name in norms:
        writer.add_tensor_info(name, (WIDTH,), numpy.dtype("float32"), WIDTH * 4)
    for name, kind, rows, columns in matrices(arguments.layers):
        kinds[name] = (kind, rows, columns)
        size = rows * columns // 256 * BLOCK_BYTES[kind]
        writer.add_tensor_info(name, (rows, columns // 256 * BLOCK_BYTES[kind]), numpy.dtype("uint8"), size, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _ in norms:
        writer.write_tensor_data(numpy.ones(WIDTH, numpy.float32))
    for kind, rows, columns in kinds.values():
        writer.write_tensor_data(random_blocks(generator, kind, rows, columns))
    writer.close()


if __name__ == "__main__":
    main()
