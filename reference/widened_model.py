"""Writes the embedded model once more, with a language model of LLaMA-7B's size in which all that was added contributes
nothing: a 7B that says what the embedded model says. Its numbers cost what a 7B's cost, and its texts are real, so that
what depends on texts (drafts, lengths of answers) can be measured at a 7B's cost without a 7B's weights.

    PYTHON reference/widened_model.py OUT [--from models/nano] [--layers 32]
    gpt4roi convert --from OUT --quantize q4_k --out wide

OUT becomes a directory in the published layout, of 13.5 GB; with five layers, of 2.4 GB, to try it. PYTHON has to have
torch, safetensors and sentencepiece, and 3 GB of memory.

How the function stays the same:

- Channels, and those inside the feed-forward part, are spread evenly over as many as the 7B has; the others are zero
  in the residual stream and inside. RMSNorm then divides by the root of a mean over more channels; its weights and its
  epsilon make up for that. Spread, blocks of 4-bit weights hold few that count, and these come out well.
- A head becomes several heads, all of which look where it looks, and each of which carries some of its values. LLaMA
  turns pairs of a head's channels, pair i of D/2 by theta^(-2i/D) a position. The pairs go to every second place of a
  wide head, and theta is changed so that the speeds there are what they were.
- The layers that were added are random, but what they would add to the residual stream is zero.
- The vocabulary is filled up with control pieces, which no text becomes. Their logits are those of [PAD], which is
  never said.

The vision tower and the region module stay as they are, up to where they write into the language model's width.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from full_size import ADDED, INNER, WIDTH, llama, llama_config, values, write, write_json
from safetensors.torch import load_file, save_file

PIECES = min(ADDED.values())
HEADS = llama_config(PIECES, 1)["num_attention_heads"]
SHARD_BYTES = 1_000_000_000


class Widened:
    """The tensors of a small model, by name, in the places that they have in a large one."""

    def __init__(self, source):
        self.config = json.loads((source / "config.json").read_text())
        self.tensors = load_file(source / "model.safetensors")
        self.width, self.heads = self.config["hidden_size"], self.config["num_attention_heads"]
        added = json.loads((source / "added_tokens.json").read_text())
        if added.keys() != ADDED.keys() or HEADS % self.heads:
            raise SystemExit(f"{source} has other added tokens, or heads of which no whole number becomes {HEADS}")
        self.pieces = min(added.values())
        self.tokens = tokens_before(added)
        turned, self.turned_before, self.theta = self.turned_channels()
        self.channels = spread(self.width, WIDTH)
        inner, tokens = spread(self.config["intermediate_size"], INNER), torch.arange(len(self.tokens))
        # Where rows and columns of a matrix go.
        self.places = {
            "embed_tokens": (tokens, self.channels),
            "q_proj": (turned, self.channels),
            "k_proj": (turned, self.channels),
            "v_proj": (self.channels, self.channels),
            "o_proj": (self.channels, self.channels),
            "gate_proj": (inner, self.channels),
            "up_proj": (inner, self.channels),
            "down_proj": (self.channels, inner),
            "lm_head": (tokens, self.channels),
        }

    def turned_channels(self):
        """Of queries and keys: the places in use, which channel goes there, and the base of the speeds."""
        wide_head, head = WIDTH // HEADS, self.width // self.heads
        wide_pairs, pairs = wide_head // 2, head // 2
        step = wide_pairs // pairs
        pair, half = torch.arange(head) % pairs, torch.arange(head) // pairs
        wide_heads = torch.arange(HEADS)[:, None]
        places = wide_heads * wide_head + half * wide_pairs + pair * step
        before = wide_heads * self.heads // HEADS * head + torch.arange(head)
        # Pair i, in place i·step of wide_pairs, turns as fast as it did in place i of pairs.
        theta = self.config["rope_theta"] ** (wide_pairs / (pairs * step))
        return places.flatten(), before.flatten(), theta

    def shapes(self, layers):
        """Names and shapes: LLaMA's but for the stored speeds, then those of projector and region module."""
        for name, shape in llama(len(self.tokens), layers):
            if not name.endswith("inv_freq"):
                yield name, shape
        for name, tensor in self.tensors.items():
            if "mm_projector" in name or "spi_module" in name:
                rows = (WIDTH,) if writes_channels(name) else tensor.shape[:1]
                yield name, (*rows, *tensor.shape[1:])

    def values(self, name, shape):
        if "layers." in name and name not in self.tensors:
            return torch.zeros(shape).half() if writes_channels(name) else values(name, shape)
        tensor, part = self.tensors[name].float(), name.removesuffix(".weight").split(".")[-1]
        if part.endswith("norm"):
            # In f32, as norms stay where matrices are quantised.
            return scattered(tensor * (self.width / WIDTH) ** 0.5, shape, self.channels)
        if part == "q_proj":
            # Scores are divided by the root of a head's width.
            tensor *= (WIDTH // HEADS / (self.width // self.heads)) ** 0.5
        if part in ("q_proj", "k_proj"):
            tensor = tensor[self.turned_before]
        if part in ("embed_tokens", "lm_head"):
            tensor = tensor[self.tokens]
        if part in self.places:
            tensor = scattered(tensor, shape, *self.places[part])
        elif writes_channels(name):
            tensor = scattered(tensor, shape, self.channels)
        return tensor.half()

    def wide_config(self, layers):
        wide = llama_config(len(self.tokens), layers)
        kept = {name: self.config[name] for name in ("architectures", "model_type", "max_position_embeddings")}
        epsilon = self.config["rms_norm_eps"] * self.width / WIDTH
        return self.config | wide | kept | dict(rms_norm_eps=epsilon, rope_theta=self.theta)


def tokens_before(added):
    """For each token of the large vocabulary the one that it was, or [PAD]."""
    tokens = torch.full((PIECES + len(ADDED),), added["[PAD]"])
    pieces = min(added.values())
    tokens[:pieces] = torch.arange(pieces)
    for token, place in ADDED.items():
        tokens[place] = added[token]
    return tokens


def spread(narrow, wide):
    """Where each of a few goes among many, evenly."""
    return torch.arange(narrow) * wide // narrow


def scattered(tensor, shape, rows, columns=None):
    """A tensor of zeros but for these rows, and these columns of them."""
    wide = torch.zeros(shape)
    if columns is None:
        wide[rows] = tensor
    else:
        wide[rows[:, None], columns] = tensor
    return wide


def writes_channels(name):
    """Whether a tensor's rows are the language model's channels."""
    return any(part in name for part in ("o_proj", "down_proj", "mm_projector", "updims"))


def filled_tokenizer(model, pieces):
    """A SentencePiece model with control pieces behind its own, up to the size of LLaMA's.

    A message of protobuf goes on where it ended: field 1 is a piece, of which field 1 is the text and field 3 the kind.
    """
    control = bytes([3 << 3, 3])
    for piece in range(pieces, PIECES):
        text = f"<unused{piece}>".encode()
        message = bytes([1 << 3 | 2, len(text)]) + text + control
        model += bytes([1 << 3 | 2, len(message)]) + message
    return model


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--from", dest="source", type=Path, default=Path(__file__).parents[1] / "models" / "nano")
    parser.add_argument("--layers", type=int, default=32, help="no fewer than the small model has (default: 32)")
    options = parser.parse_args()
    torch.manual_seed(0)
    widened = Widened(options.source)

    write(options.out, "model.safetensors", widened.shapes(options.layers), save_file, widened.values, SHARD_BYTES)
    write_json(options.out / "config.json", **widened.wide_config(options.layers))
    write_json(options.out / "added_tokens.json", **ADDED)
    tokenizer = (options.source / "tokenizer.model").read_bytes()
    (options.out / "tokenizer.model").write_bytes(filled_tokenizer(tokenizer, widened.pieces))
    shutil.copytree(options.source / "vision_tower", options.out / "vision_tower", dirs_exist_ok=True)


if __name__ == "__main__":
    main()
