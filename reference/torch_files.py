"""Writes the small torch checkpoints that the tests of `torch_pickle.rs` read: a state dict with its values as
safetensors, and a scripted module with the names of OpenAI's CLIP.

    python torch_files.py ../crates/gpt4roi/tests/data
"""

import io
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import torch
from safetensors.torch import save_file


def state_dict() -> OrderedDict:
    """Every way in which a tensor can lie in its storage."""
    base = torch.arange(24, dtype=torch.float32) / 7 - 1
    state = OrderedDict(
        half=base.reshape(2, 3, 4).half(),
        bfloat=base.reshape(4, 6).bfloat16(),
        single=base.reshape(6, 4),
        transposed=base.reshape(6, 4).T,
        slice=base[5:11],
        every_other=base[1::2].reshape(3, 4),
        permuted=base.reshape(2, 3, 4).half().permute(2, 0, 1),
        scalar=torch.tensor(4.5),
        parameter=torch.nn.Parameter(base[:3].clone()),
        position_ids=torch.arange(5)[None],
    )
    # What `Module.state_dict` leaves on the dictionary, and `torch.save` writes down.
    state._metadata = OrderedDict([("", {"version": 1})])
    return state


class Visual(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, 4, 2, bias=False)
        self.class_embedding = torch.nn.Parameter(torch.tensor([0.5, -1.0, 2.0, 8.0]))
        self.ln_pre = torch.nn.LayerNorm(4)
        self.transformer = torch.nn.Sequential(torch.nn.Linear(4, 2, bias=False))
        self.strides = [2, 2]
        with torch.no_grad():
            self.conv1.weight.copy_(torch.arange(48.0).reshape(4, 3, 2, 2))
            self.transformer[0].weight.copy_(torch.arange(8.0).reshape(2, 4))
        self.conv1.half()

    def forward(self, pixels):
        state = self.conv1(pixels.half()).flatten(2).transpose(1, 2).float()
        return self.transformer(self.ln_pre(state + self.class_embedding))


class TowerOfModules(torch.nn.Module):
    """Numbers, lists and flags stand among the tensors, as in any scripted module."""

    def __init__(self):
        super().__init__()
        self.visual = Visual()
        self.register_buffer("input_resolution", torch.tensor(4))

    def forward(self, pixels):
        return self.visual(pixels)


def write_scripted(path: Path):
    """As torch writes it, less the members that say where on this machine the source lies."""
    whole = io.BytesIO()
    torch.jit.save(torch.jit.script(TowerOfModules().eval()), whole)
    with zipfile.ZipFile(whole) as given, zipfile.ZipFile(path, "w") as kept:
        for member in given.infolist():
            if not member.filename.endswith(".debug_pkl"):
                kept.writestr(member, given.read(member))


def main():
    out = Path(sys.argv[1])
    write_scripted(out / "scripted.pt")
    state = state_dict()
    torch.save(state, out / "torch.bin")
    save_file({name: t.detach().contiguous().clone() for name, t in state.items()}, out / "torch.safetensors")


if __name__ == "__main__":
    main()
