"""Writes LLaMA-7B, the published difference of GPT4RoI-7B and CLIP ViT-L/14 at their full size, with random numbers: the
three directories that the README's section "The 7B" pulls. Thirty gigabytes that mean nothing, in the layout that means
something: float16, torch pickles in shards of at most ten gigabytes for the difference, safetensors for LLaMA.

    PYTHON reference/full_size.py OUT --text TEXT [--layers 32]

TEXT is a file of some twenty megabytes of any text: a tokenizer of LLaMA's kind and size is trained on it. PYTHON has to
have torch, safetensors and sentencepiece, and 12 GB of memory.
"""

import argparse
import json
from pathlib import Path

import sentencepiece
import torch
from safetensors.torch import save_file

WIDTH, INNER, VISION, VISION_INNER, VISION_LAYERS = 4096, 11008, 1024, 4096, 24
SHARD_BYTES = 10_000_000_000
ADDED = {"[PAD]": 32000, "<im_patch>": 32001, "<bbox>": 32002, "<point>": 32003, "<im_start>": 32004, "<im_end>": 32005}


def llama(vocabulary, layers):
    yield "model.embed_tokens.weight", (vocabulary, WIDTH)
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        for name in "qkvo":
            yield f"{prefix}self_attn.{name}_proj.weight", (WIDTH, WIDTH)
        yield f"{prefix}self_attn.rotary_emb.inv_freq", (64,)
        yield f"{prefix}mlp.gate_proj.weight", (INNER, WIDTH)
        yield f"{prefix}mlp.up_proj.weight", (INNER, WIDTH)
        yield f"{prefix}mlp.down_proj.weight", (WIDTH, INNER)
        yield f"{prefix}input_layernorm.weight", (WIDTH,)
        yield f"{prefix}post_attention_layernorm.weight", (WIDTH,)
    yield "model.norm.weight", (WIDTH,)
    yield "lm_head.weight", (vocabulary, WIDTH)


def with_bias(name, *shape):
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def ours():
    yield from with_bias("model.mm_projector", WIDTH, VISION)
    fuse, head = "model.spi_module.mlvl_fuse.", "model.spi_module.roi_align."
    for level in range(4):
        yield from with_bias(f"{fuse}input_conv.{level}", VISION, VISION + 2, 1, 1)
        yield from with_bias(f"{head}pconvs.{level}", VISION, VISION, 3, 3)
    for fuse_round in range(5):
        yield f"{fuse}fuse_convs.{fuse_round}.conv.weight", (VISION, VISION, 3, 3)
        yield from with_bias(f"{fuse}fuse_convs.{fuse_round}.gn", VISION)
    yield from with_bias(f"{head}pos_embedd.0", 256, 4)
    yield from with_bias(f"{head}pos_embedd.2", 256)
    yield from with_bias(f"{head}pos_embedd.3", VISION, 256)
    yield from with_bias(f"{head}pos_embedd.5", VISION)
    yield from with_bias(f"{head}updims", WIDTH, VISION)
    yield from with_bias(f"{head}flatten_linear", VISION, VISION * 14 * 14)


def tower():
    prefix = "vision_model."
    yield f"{prefix}embeddings.class_embedding", (VISION,)
    yield f"{prefix}embeddings.patch_embedding.weight", (VISION, 3, 14, 14)
    yield f"{prefix}embeddings.position_embedding.weight", (257, VISION)
    yield from with_bias(f"{prefix}pre_layrnorm", VISION)
    for layer in range(VISION_LAYERS):
        for name in "qkv":
            yield from with_bias(f"{prefix}encoder.layers.{layer}.self_attn.{name}_proj", VISION, VISION)
        yield from with_bias(f"{prefix}encoder.layers.{layer}.self_attn.out_proj", VISION, VISION)
        yield from with_bias(f"{prefix}encoder.layers.{layer}.layer_norm1", VISION)
        yield from with_bias(f"{prefix}encoder.layers.{layer}.mlp.fc1", VISION_INNER, VISION)
        yield from with_bias(f"{prefix}encoder.layers.{layer}.mlp.fc2", VISION, VISION_INNER)
        yield from with_bias(f"{prefix}encoder.layers.{layer}.layer_norm2", VISION)
    yield from with_bias(f"{prefix}post_layernorm", VISION)


def values(name, shape, scale=1.0):
    """Norms near one, biases near zero, matrices that keep the size of what goes through them."""
    if name.endswith("inv_freq"):
        return torch.zeros(shape, dtype=torch.float16) if scale < 1 else (10000.0 ** -(torch.arange(64) / 64)).half()
    if len(shape) == 1 and name.endswith("weight"):
        return torch.full(shape, 1.0 if scale == 1 else 0.0, dtype=torch.float16)
    fan_in = torch.Size(shape[1:]).numel() if len(shape) > 1 else shape[0]
    deviation = 0.02 if "embed" in name else fan_in**-0.5
    return (torch.randn(shape, dtype=torch.float32) * (deviation * scale if len(shape) > 1 else 0.01 * scale)).half()


def write(out, stem, tensors, save, values=values, shard_bytes=SHARD_BYTES):
    """Shards as Hugging Face's `save_pretrained` cuts them, and the index beside them."""
    out.mkdir(parents=True, exist_ok=True)
    shards, room = [[]], shard_bytes
    for name, shape in tensors:
        size = 2 * torch.Size(shape).numel()
        if size > room and shards[-1]:
            shards.append([])
            room = shard_bytes
        shards[-1].append((name, shape))
        room -= size
    stem, suffix = stem.split(".")
    index = {}
    for number, shard in enumerate(shards, 1):
        file = f"{stem}-{number:05}-of-{len(shards):05}.{suffix}"
        content = {name: values(name, shape) for name, shape in shard}
        save(content, out / file)
        index |= dict.fromkeys(content, file)
        print(out / file, flush=True)
    (out / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def delta_values(name, shape):
    """What training changed of LLaMA is small; what LLaMA does not have is there as a whole."""
    is_ours = "mm_projector" in name or "spi_module" in name
    return values(name, shape, 1.0 if is_ours else 0.05)


def write_json(path, **fields):
    path.write_text(json.dumps(fields, indent=2))


def llama_config(vocabulary, layers):
    return dict(
        architectures=["LlamaForCausalLM"], model_type="llama", vocab_size=vocabulary, hidden_size=WIDTH,
        intermediate_size=INNER, num_hidden_layers=layers, num_attention_heads=32, rms_norm_eps=1e-6,
        max_position_embeddings=2048, hidden_act="silu", bos_token_id=1, eos_token_id=2, tie_word_embeddings=False,
    )  # fmt: skip


def train_tokenizer(text, prefix):
    """LLaMA's settings: BPE of 32000 pieces, bytes for what has none, digits apart, nothing normalised."""
    sentencepiece.SentencePieceTrainer.train(
        input=text, model_prefix=prefix, model_type="bpe", vocab_size=32000, byte_fallback=True, split_digits=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, allow_whitespace_only_pieces=True,
        input_sentence_size=200_000, shuffle_input_sentence=True, max_sentence_length=4096, minloglevel=1,
    )  # fmt: skip
    prefix.with_suffix(".vocab").unlink()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=32)
    options = parser.parse_args()
    torch.manual_seed(0)
    base, delta, clip = (options.out / name for name in ("llama-7b", "GPT4RoI-7B-delta-V0", "clip-vit-large-patch14"))

    write(base, "model.safetensors", llama(32000, options.layers), save_file)
    write_json(base / "config.json", **llama_config(32000, options.layers))

    write(delta, "pytorch_model.bin", [*llama(32006, options.layers), *ours()], torch.save, delta_values)
    published = dict(
        architectures=["SPILlavaMPTForCausalLM"], model_type="llava", mm_vision_tower="openai/clip-vit-large-patch14",
        mm_hidden_size=VISION, mm_vision_select_layer=-2, mm_use_im_start_end=True, use_mm_proj=True,
    )  # fmt: skip
    write_json(delta / "config.json", **(llama_config(32006, options.layers) | published))
    write_json(delta / "added_tokens.json", **ADDED)
    train_tokenizer(options.text, delta / "tokenizer")

    clip.mkdir(exist_ok=True)
    torch.save({name: values(name, shape) for name, shape in tower()}, clip / "pytorch_model.bin")
    vision = dict(
        hidden_size=VISION, intermediate_size=VISION_INNER, num_hidden_layers=VISION_LAYERS, num_attention_heads=16,
        image_size=224, patch_size=14, hidden_act="quick_gelu", layer_norm_eps=1e-5,
    )  # fmt: skip
    write_json(clip / "config.json", model_type="clip", vision_config=vision)


if __name__ == "__main__":
    main()
