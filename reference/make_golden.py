"""Writes the golden models of `crates/gpt4roi/tests/parity.rs`: tiny random checkpoints, conversations
and what `gpt4roi_reference.py` computes for them.

    python make_golden.py ../crates/gpt4roi/tests/data ../crates/gpt4roi/tests/golden

The first argument is the directory of the tokenizer. The two models differ in every dimension they can,
so that no number of one can hide in the code.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file

from gpt4roi_reference import REGION_DEFAULTS, Model

# A greedy choice with a smaller lead could turn by rounding alone.
SMALLEST_LEAD = 0.02

MODELS = {
    # As OpenAI's tower and the original's region module, on a smaller scale.
    "clip": {
        "tower": {
            "hidden_size": 18, "num_hidden_layers": 11, "num_attention_heads": 3, "intermediate_size": 28,
            "hidden_act": "quick_gelu", "image_size": 56, "patch_size": 14, "layer_norm_eps": 1e-5,
        },
        "text": {
            "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 36,
            "rms_norm_eps": 1e-6, "max_position_embeddings": 2048, "mm_vision_select_layer": -2,
        },
        "region": {"dim": 14, "gn_groups": 7, "roi_size": 7, "pos_hidden": 12},
        "stride": [4, 2, 1, 1],
    },
    # As OpenCLIP's tower, with exact GELU, and a region module of another build.
    "openclip": {
        "tower": {
            "hidden_size": 12, "num_hidden_layers": 7, "num_attention_heads": 2, "intermediate_size": 20,
            "hidden_act": "gelu", "image_size": 35, "patch_size": 7, "layer_norm_eps": 1e-6,
        },
        "text": {
            "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 24,
            "rms_norm_eps": 1e-5, "max_position_embeddings": 512, "mm_vision_select_layer": -1,
        },
        "region": {
            "dim": 12, "levels": 3, "scales": [3, 1, 1], "fuse_rounds": 2, "gn_groups": 3, "roi_size": 5,
            "sampling_ratio": 3, "pos_hidden": 10,
        },
        "stride": [2, 1, 1],
    },
}  # fmt: skip

CASES = {
    "clip": {
        "stop": {
            "size": (133, 90), "boxes": {"1": [31.5, 10.0, 120.25, 77.0]},
            "turns": [{"question": "What is <region1> doing?"}],
        },
        "rounds": {
            "size": (80, 151), "boxes": {"1": [3.0, 8.0, 60.0, 140.0], "2": [22.0, 70.5, 79.0, 149.0]},
            "turns": [
                {"question": "Compare <region2> with <region1>.", "reply": "The first one is larger."},
                {"question": "Is <region1> near <2>?"},
                {"question": "Describe region 2 and <region2>"},
            ],
        },
    },
    "openclip": {
        "half": {
            "size": (97, 61), "boxes": {"3": [17.3, 5.1, 41.7, 33.3], "1": [0.0, 0.0, 97.0, 61.0]},
            "turns": [{"question": "What do <region1> and <region3> show?"}], "box_precision": "f16",
        },
        "none": {"size": (42, 42), "boxes": {}, "turns": [{"question": "What is in the picture?"}]},
    },
}  # fmt: skip


class Draw:
    """Random float16 tensors under published names."""

    def __init__(self, seed):
        self.random, self.tensors = torch.Generator().manual_seed(seed), {}

    def normal(self, name, shape, deviation):
        self.tensors[name] = (torch.randn(shape, generator=self.random) * deviation).half()

    def linear(self, name, shape, gain=1.0, bias=True):
        self.normal(f"{name}.weight", shape, gain / np.prod(shape[1:]) ** 0.5)
        if bias:
            self.normal(f"{name}.bias", shape[:1], 0.1)

    def norm(self, name, size, bias=True):
        self.tensors[f"{name}.weight"] = (torch.rand(size, generator=self.random) + 0.5).half()
        if bias:
            self.normal(f"{name}.bias", (size,), 0.2)


def draw_tower(seed, tower):
    draw, width, mlp, patch = Draw(seed), tower["hidden_size"], tower["intermediate_size"], tower["patch_size"]
    root, patches = "vision_model", (tower["image_size"] // patch) ** 2
    draw.normal(f"{root}.embeddings.class_embedding", (width,), 1.0)
    draw.linear(f"{root}.embeddings.patch_embedding", (width, 3, patch, patch), bias=False)
    draw.normal(f"{root}.embeddings.position_embedding.weight", (patches + 1, width), 0.4)
    draw.norm(f"{root}.pre_layrnorm", width)
    draw.norm(f"{root}.post_layernorm", width)  # never used
    for index in range(tower["num_hidden_layers"]):
        layer = f"{root}.encoder.layers.{index}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            draw.linear(f"{layer}.self_attn.{name}", (width, width), 1.3)
        draw.norm(f"{layer}.layer_norm1", width)
        draw.norm(f"{layer}.layer_norm2", width)
        draw.linear(f"{layer}.mlp.fc1", (mlp, width))
        draw.linear(f"{layer}.mlp.fc2", (width, mlp), 1.5)
    return draw.tensors


def draw_model(seed, text, region, tower, vocabulary):
    draw, width, mlp, dim = Draw(seed), text["hidden_size"], text["intermediate_size"], region["dim"]
    draw.normal("model.embed_tokens.weight", (vocabulary, width), 0.5)
    for index in range(text["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        for name in "qkvo":
            draw.linear(f"{layer}.self_attn.{name}_proj", (width, width), 1.5, bias=False)
        for name, shape in (("gate", (mlp, width)), ("up", (mlp, width)), ("down", (width, mlp))):
            draw.linear(f"{layer}.mlp.{name}_proj", shape, 1.3, bias=False)
        draw.norm(f"{layer}.input_layernorm", width, bias=False)
        draw.norm(f"{layer}.post_attention_layernorm", width, bias=False)
        # Published checkpoints carry such a table, rounded; using it would spoil every position.
        draw.normal(f"{layer}.self_attn.rotary_emb.inv_freq", (width // text["num_attention_heads"] // 2,), 1.0)
    draw.norm("model.norm", width, bias=False)
    draw.linear("lm_head", (vocabulary, width), 2.0, bias=False)
    draw.tensors["lm_head.weight"][[0, 1, 2, *range(vocabulary - 6, vocabulary)]] *= 0.125  # never written
    draw.linear("model.mm_projector", (width, tower["hidden_size"]))
    fuse, head = "model.spi_module.mlvl_fuse", "model.spi_module.roi_align"
    for level in range(region["levels"]):
        draw.linear(f"{fuse}.input_conv.{level}", (dim, tower["hidden_size"] + 2, 1, 1), 1.5)
        draw.linear(f"{head}.pconvs.{level}", (dim, dim, 3, 3))
    for round_ in range(region["fuse_rounds"]):
        draw.linear(f"{fuse}.fuse_convs.{round_}.conv", (dim, dim, 3, 3), 1.4, bias=False)
        draw.norm(f"{fuse}.fuse_convs.{round_}.gn", dim)
    draw.linear(f"{head}.pos_embedd.0", (region["pos_hidden"], 4), 2.0)
    draw.norm(f"{head}.pos_embedd.2", region["pos_hidden"])
    draw.linear(f"{head}.pos_embedd.3", (dim, region["pos_hidden"]))
    draw.norm(f"{head}.pos_embedd.5", dim)
    draw.linear(f"{head}.flatten_linear", (dim, dim * region["roi_size"] ** 2), 1.5)
    draw.linear(f"{head}.updims", (width, dim), 2.0)
    return draw.tensors


def draw_picture(size, seed):
    """A few random figures on a gradient."""
    random, (width, height) = np.random.default_rng(seed), size
    slope = np.linspace(*random.uniform(0, 255, (2, 3)), width)
    image = Image.fromarray(np.repeat(slope[None], height, 0).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for index in range(6):
        x, y = random.integers(0, width), random.integers(0, height)
        span, colour = random.integers(6, 50, 2), tuple(random.integers(0, 256, 3).tolist())
        shape = pen.ellipse if index % 2 else pen.rectangle
        shape([int(x), int(y), int(x + span[0]), int(y + span[1])], fill=colour)
    return image


def write_json(file, value):
    file.write_text(json.dumps(value, indent=2) + "\n")


def play(folder, name, case):
    """Plays a case as the checkpoint in the folder stands now."""
    return Model(folder).play(case, Image.open(folder / "cases" / name / "image.png"))


def plant_stop(folder, weights, name, case):
    """Exchanges rows of the output layer so that the third and fourth token are `##` and `#`."""
    pieces, head = Model(folder).text.pieces, weights["lm_head.weight"]
    for place, token in ((2, pieces.piece_to_id("##")), (3, pieces.piece_to_id("#"))):
        written = play(folder, name, case)[0]["output_ids"][place].item()
        head[[token, written]] = head[[written, token]]
        save_file(weights, folder / "model.safetensors")


def write_model(name, seed, tokenizer, folder):
    spec = MODELS[name]
    (folder / "vision_tower").mkdir(parents=True, exist_ok=True)
    for file in ("tokenizer.model", "added_tokens.json"):
        shutil.copyfile(tokenizer / file, folder / file)
    vocabulary = 1 + max(json.loads((tokenizer / "added_tokens.json").read_text()).values())
    write_json(folder / "config.json", {
        "model_type": "llava", "vocab_size": vocabulary, "hidden_act": "silu", "bos_token_id": 0, "eos_token_id": 1,
        "mm_vision_tower": "vision_tower", "mm_hidden_size": spec["tower"]["hidden_size"], **spec["text"],
        "region": spec["region"],
    })  # fmt: skip
    write_json(folder / "vision_tower/config.json", {"model_type": "clip_vision_model", **spec["tower"]})
    colours = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
    write_json(folder / "vision_tower/preprocessor_config.json", colours)
    weights = draw_model(seed, spec["text"], REGION_DEFAULTS | spec["region"], spec["tower"], vocabulary)
    save_file(weights, folder / "model.safetensors")
    save_file(draw_tower(seed, spec["tower"]), folder / "vision_tower/model.safetensors")
    return weights


def write_cases(name, weights, folder):
    """-> whether every greedy choice is a clear one"""
    for index, (label, case) in enumerate(CASES[name].items()):
        place = folder / "cases" / label
        place.mkdir(parents=True, exist_ok=True)
        draw_picture(case["size"], 10 * index + len(name)).save(place / "image.png", optimize=True)
        case = {"image": "image.png", "box_precision": "f32", "max_new_tokens": 7,
                "level_stride": MODELS[name]["stride"], **case}  # fmt: skip
        del case["size"]
        if label == "stop":
            plant_stop(folder, weights, label, case)
        trace, leads = play(folder, label, case)
        if min(leads) < SMALLEST_LEAD or (label == "stop" and len(trace["output_ids"]) != 4):
            return False
        if index > 0:
            del trace["pixel_values"]  # one picture for each model is enough
        write_json(place / "case.json", case)
        save_file(trace, place / "trace.safetensors")
        answer = bytes(trace["answer"].tolist()).decode()
        print(f"{name}/{label}: {len(trace['input_ids'])} tokens, lead {min(leads):.3f}: {answer!r}")
    return True


def main():
    tokenizer, out = Path(sys.argv[1]), Path(sys.argv[2])
    for name in MODELS:
        seed = 1
        while not write_cases(name, write_model(name, seed, tokenizer, out / name), out / name):
            seed += 1
        print(f"{name}: seed {seed}")


if __name__ == "__main__":
    main()
