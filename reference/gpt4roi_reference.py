"""The forward pass of GPT4RoI in PyTorch, written for this project: what the parity tests are measured by.

Nothing here is clever. Weights are looked up by their published names, every dimension comes from the
configuration, everything is computed in float32, and each new token reads the whole sequence again, so
that a key/value cache has something independent to agree with.

    python gpt4roi_reference.py --model DIR --case CASE.json --out TRACE.safetensors
"""

import argparse
import json
import re
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from sentencepiece import SentencePieceProcessor

REGION_DEFAULTS = {
    "dim": 1024, "levels": 4, "scales": [], "fuse_rounds": 5, "gn_groups": 64, "roi_size": 14,
    "sampling_ratio": 2, "pos_hidden": 256,
}  # fmt: skip


class Weights:
    """A place in the tree of published names."""

    def __init__(self, tensors, prefix=""):
        self.tensors, self.prefix = tensors, prefix

    def __truediv__(self, name):
        return Weights(self.tensors, f"{self.prefix}{name}.")

    def __getitem__(self, name):
        return self.tensors[self.prefix + name].float()

    def get(self, name):
        return self[name] if self.prefix + name in self.tensors else None

    # The layers that PyTorch has a function for.

    def linear(self, x):
        return F.linear(x, self["weight"], self.get("bias"))

    def layer_norm(self, x, eps=1e-5):
        return F.layer_norm(x, x.shape[-1:], self["weight"], self["bias"], eps)

    def rms_norm(self, x, eps):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * self["weight"]

    def conv3x3(self, x):
        return F.conv2d(x, self["weight"], self.get("bias"), padding=1)


def attend(q, k, v, heads, causal):
    """[T, C] each -> [T, C], every head on its own slice of C."""
    q, k, v = (x.unflatten(1, (heads, -1)).transpose(0, 1) for x in (q, k, v))
    scores = q @ k.transpose(1, 2) / q.shape[2] ** 0.5
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[1:]).triu(1).bool(), -torch.inf)
    return (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)


# ------------------------------------------------------------------------------------------ picture


def pixel_values(image, tower):
    """-> [1, 3, S, S]. The shorter edge is brought to S by Pillow, the longer one then by plain bilinear."""
    image, side = image.convert("RGB"), tower["image_size"]
    width, height = image.size
    if width <= height:
        target = (side, int(side * height / width))
    else:
        target = (int(side * width / height), side)
    bytes_ = np.array(image.resize(target, Image.Resampling.BICUBIC))
    colours = (bytes_ * (1 / 255)).astype(np.float32)
    colours = (colours - np.array(tower["image_mean"], np.float32)) / np.array(tower["image_std"], np.float32)
    colours = torch.from_numpy(colours.transpose(2, 0, 1).copy())[None]
    return F.interpolate(colours, (side, side), mode="bilinear", align_corners=False)


def hidden_states(weights, tower, pixels, depth):
    """-> depth + 1 tensors [1 + patches, C]: what goes into the first layer, and what comes out of each."""
    root = weights / "vision_model"
    embeddings, eps = root / "embeddings", tower["layer_norm_eps"]
    patches = F.conv2d(pixels, (embeddings / "patch_embedding")["weight"], stride=tower["patch_size"])
    x = torch.cat([embeddings["class_embedding"][None], patches[0].flatten(1).T])
    x = (root / "pre_layrnorm").layer_norm(x + (embeddings / "position_embedding")["weight"], eps)
    states = [x]
    for index in range(depth):
        layer = root / "encoder" / "layers" / index
        attention, inner = layer / "self_attn", (layer / "layer_norm1").layer_norm(x, eps)
        q, k, v = ((attention / f"{name}_proj").linear(inner) for name in "qkv")
        x = x + (attention / "out_proj").linear(attend(q, k, v, tower["num_attention_heads"], causal=False))
        inner = (layer / "mlp" / "fc1").linear((layer / "layer_norm2").layer_norm(x, eps))
        if tower["hidden_act"] == "quick_gelu":
            inner = inner * torch.sigmoid(1.702 * inner)
        else:
            inner = F.gelu(inner)
        x = x + (layer / "mlp" / "fc2").linear(inner)
        states.append(x)
    return states


# ------------------------------------------------------------------------------------------ regions


def stretch(maps, size):
    return F.interpolate(maps, (size, size), mode="bilinear", align_corners=True)


def pyramid(weights, region, states):
    """states: [1 + patches, C] for each level -> maps [1, dim, side, side], the finest first."""
    scales = region["scales"] or [2**level for level in reversed(range(region["levels"]))]
    levels = []
    for index, (state, scale) in enumerate(zip(states, scales, strict=True)):
        grid = round((len(state) - 1) ** 0.5)
        side = grid * scale
        ramp = torch.linspace(-1, 1, side)
        maps = stretch(state[1:].T.reshape(1, -1, grid, grid), side)
        place = torch.stack(torch.meshgrid(ramp, ramp, indexing="xy"))[None]  # x, then y
        convolution = weights / "input_conv" / index
        levels.append(F.conv2d(torch.cat([maps, place], 1), convolution["weight"], convolution["bias"]))
    quarter = region["dim"] // 4
    keep = region["dim"] - 2 * quarter
    for index in range(region["fuse_rounds"]):
        round_, mixed = weights / "fuse_convs" / index, []
        for level, own in enumerate(levels):
            coarser, finer = levels[min(level + 1, len(levels) - 1)], levels[max(level - 1, 0)]
            borrowed = [coarser[:, keep + quarter :], finer[:, keep : keep + quarter]]
            borrowed = [stretch(channels, own.shape[-1]) for channels in borrowed]
            mixed.append((round_ / "conv").conv3x3(torch.cat([own[:, :keep], *borrowed], 1)))
        norm = round_ / "gn"
        levels = [F.group_norm(x, region["gn_groups"], norm["weight"], norm["bias"], 1e-5).relu() for x in mixed]
    return levels


def roi_align(maps, boxes, scale, size, ratio):
    """maps [1, C, S, S], boxes [N, 4] in pixels -> [N, C, size, size]; mmcv's convention with aligned=True."""
    side = maps.shape[-1]
    low, high = (boxes * scale - 0.5).split(2, 1)
    bins = (high - low) / size
    steps = (torch.arange(size * ratio) + 0.5) / ratio
    places = low[:, :, None] + steps * bins[:, :, None]  # [N, 2, size * ratio]: x, then y
    inside = (places >= -1) & (places <= side)
    places = places.clamp(0, side - 1)
    near = places.long()
    far, share = (near + 1).clamp(max=side - 1), places - near

    def along(axis):
        """[N, size * ratio, S]: how much of each row (or column) a sample takes."""
        takes = F.one_hot(near[:, axis], side) * (1 - share[:, axis, :, None])
        takes = takes + F.one_hot(far[:, axis], side) * share[:, axis, :, None]
        return takes * inside[:, axis, :, None]

    samples = torch.einsum("nyh,chw,nxw->ncyx", along(1), maps[0], along(0))
    return F.avg_pool2d(samples, ratio)


def region_tokens(weights, rois, boxes):
    """rois: for each level [N, dim, size, size]; boxes [N, 4] normalised -> [N, H]"""
    fused = sum((weights / "pconvs" / level).conv3x3(roi) for level, roi in enumerate(rois)).relu()
    place, embedding = boxes.float(), weights / "pos_embedd"
    for linear, norm in ((0, 2), (3, 5)):
        place = (embedding / norm).layer_norm((embedding / linear).linear(place).relu())
    return (weights / "updims").linear((weights / "flatten_linear").linear(fused.flatten(1)) + place)


# --------------------------------------------------------------------------------------------- text


def turn_positions(x, heads, theta):
    """Rotary position embedding of [T, C]: the halves of each head turn against each other."""
    x = x.unflatten(1, (heads, -1))
    half = x.shape[2] // 2
    angles = torch.arange(len(x))[:, None, None] / theta ** (torch.arange(half) / half)
    near, far = x.split(half, 2)
    return torch.cat([near * angles.cos() - far * angles.sin(), far * angles.cos() + near * angles.sin()], 2).flatten(1)


def logits(weights, config, embeds):
    """[T, H] -> [T, V]"""
    x, heads, eps = embeds, config["num_attention_heads"], config["rms_norm_eps"]
    theta = config.get("rope_theta", 10000.0)
    for index in range(config["num_hidden_layers"]):
        layer = weights / "model" / "layers" / index
        attention, inner = layer / "self_attn", (layer / "input_layernorm").rms_norm(x, eps)
        q, k, v = ((attention / f"{name}_proj").linear(inner) for name in "qkv")
        q, k = (turn_positions(each, heads, theta) for each in (q, k))
        x = x + (attention / "o_proj").linear(attend(q, k, v, heads, causal=True))
        mlp, inner = layer / "mlp", (layer / "post_attention_layernorm").rms_norm(x, eps)
        x = x + (mlp / "down_proj").linear(F.silu((mlp / "gate_proj").linear(inner)) * (mlp / "up_proj").linear(inner))
    return (weights / "lm_head").linear((weights / "model" / "norm").rms_norm(x, eps))


class Text:
    """Ids as the slow LLaMA tokenizer of the original's time gives them."""

    def __init__(self, directory):
        self.pieces = SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
        self.added = json.loads((directory / "added_tokens.json").read_text())

    def encode(self, text):
        """Added tokens swallow the white space on both sides; every piece between begins a new text."""
        tokens = "|".join(re.escape(token) for token in sorted(self.added, key=len, reverse=True))
        ids = [1]
        for piece in re.split(rf"(\s*(?:{tokens})\s*)", text):
            token = piece.strip()
            ids += [self.added[token]] if token in self.added else self.pieces.encode(piece)
        return ids

    def decode(self, ids):
        names, parts = {index: token for token, index in self.added.items()}, [[]]
        for index in ids:
            if index in names and names[index] != "[PAD]":
                parts += [names[index], []]
            elif index > 2 and index not in names:
                parts[-1].append(index)
        text = " ".join(part if isinstance(part, str) else self.pieces.decode(part) for part in parts if part)
        for mark in (".", "?", "!", ",", "n't", "'m", "'s", "'ve", "'re"):
            if mark == "n't":
                text = text.replace(" ' ", "'")
            text = text.replace(" " + mark, mark)
        return text


SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
NO_ANSWER = "There is internal error. Please click 'Clear All' and try again."


def mark(question, order):
    """The first mention of a region gets its place, `<bbox>`; `order` collects the regions."""

    def name(found):
        number = int(found[1])
        first = number not in order
        if first:
            order.append(number)
        return f"region{number}" + " <bbox>" * first

    return re.sub(r"<(?:region)?(\d+)>", name, question.strip() or "hello, world!")


def kept(written):
    answer = written.strip().removesuffix("###").strip() or NO_ANSWER
    return answer.replace("Assistant: ", "").replace("Assistant:", "")


# -------------------------------------------------------------------------------------------- model


class Model:
    def __init__(self, directory):
        read = lambda name: json.loads((directory / name).read_text())  # noqa: E731
        self.config, self.tower = read("config.json"), read("vision_tower/config.json")
        if (directory / "vision_tower/preprocessor_config.json").exists():
            self.tower |= read("vision_tower/preprocessor_config.json")
        self.region = REGION_DEFAULTS | self.config.get("region", {})
        self.weights = Weights(load_file(directory / "model.safetensors"))
        self.tower_weights = Weights(load_file(directory / "vision_tower/model.safetensors"))
        self.text = Text(directory)

    def level_states(self):
        """The hidden states behind the levels; the last one is what the language model sees, too."""
        last = range(self.tower["num_hidden_layers"] + 1)[self.config["mm_vision_select_layer"]]
        return list(range(last - 3 * (self.region["levels"] - 1), last + 1, 3))

    def write(self, embeds, limit):
        """Greedy. -> ids, leads of the best over the second-best, logits of the prompt's end."""
        ids, leads, end = [], [], None
        while len(ids) < limit:
            out = logits(self.weights, self.config, embeds)
            end = out[-4:] if end is None else end
            best, second = out[-1].topk(2).values.tolist()
            ids.append(int(out[-1].argmax()))
            leads.append(best - second)
            if ids[-1] == 2 or (len(ids) > 1 and "###" in self.text.decode(ids)):
                break
            embeds = torch.cat([embeds, (self.weights / "model" / "embed_tokens")["weight"][ids[-1:]]])
        return ids, leads, end

    @torch.no_grad()
    def play(self, case, image):
        """-> the trace of a case, and the leads of all its greedy choices"""
        spi, levels = self.weights / "model" / "spi_module", self.level_states()
        trace, leads = {"pixel_values": pixel_values(image, self.tower)}, []
        states = hidden_states(self.tower_weights, self.tower, trace["pixel_values"], levels[-1])
        trace |= {f"vision.hidden.{index}": states[index][None] for index in levels}
        trace["image_tokens"] = (self.weights / "model" / "mm_projector").linear(states[levels[-1]][1:])

        order = []
        questions = [mark(turn["question"], order) for turn in case["turns"]]
        if order:
            size = np.array([*image.size, *image.size], np.float64)
            boxes = torch.from_numpy(np.array([case["boxes"][str(number)] for number in order]) / size).float()
            if case["box_precision"] == "f16":
                boxes = boxes.half()
            side, region = self.tower["image_size"], self.region
            maps = pyramid(spi / "mlvl_fuse", region, [states[index] for index in levels])
            pixels = (boxes * side).float()
            rois = [
                roi_align(level, pixels, level.shape[-1] / side, region["roi_size"], region["sampling_ratio"])
                for level in maps
            ]
            trace["region.tokens"] = region_tokens(spi / "roi_align", rois, boxes)
            for index, stride in enumerate(case["level_stride"]):
                trace[f"region.level.{index}"] = maps[index][:, :, ::stride, ::stride]
                trace[f"region.roi.{index}"] = rois[index]

        picture = "<im_start>" + "<im_patch>" * len(trace["image_tokens"]) + "<im_end>"
        prompt = f"{SYSTEM}\n\n"
        for index, (turn, question) in enumerate(zip(case["turns"], questions), 1):
            overview = f"The {picture} provides an overview of the picture.\n" if index == 1 else ""
            prompt += f"### Human: {overview}{question}\n"
            ids = torch.tensor(self.text.encode(prompt + "### "))
            embeds = (self.weights / "model" / "embed_tokens")["weight"][ids]
            embeds[ids == self.text.added["<im_patch>"]] = trace["image_tokens"]
            places = ids == self.text.added["<bbox>"]
            if places.any():
                embeds[places] = trace["region.tokens"][: places.sum()]
            written, lead, trace["logits.tail"] = self.write(embeds, case["max_new_tokens"])
            answer = kept(self.text.decode(written))
            prefix = f"round.{index}." if index < len(questions) else ""
            trace[prefix + "input_ids"], trace[prefix + "output_ids"] = ids, torch.tensor(written)
            trace[prefix + "answer"] = torch.tensor(list(answer.encode()), dtype=torch.uint8)
            leads += lead
            prompt += f"### Assistant: {turn.get('reply', answer)}\n"
        return {name: tensor.contiguous() for name, tensor in trace.items()}, leads


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--case", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    case = json.loads(given.case.read_text())
    trace, _ = Model(given.model).play(case, Image.open(given.case.parent / case["image"]))
    save_file(trace, given.out)


if __name__ == "__main__":
    main()
