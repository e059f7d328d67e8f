"""Writes the small torch checkpoint that the tests of `convert.rs` read, and its values as safetensors.

    python torch_files.py ../crates/gpt4roi/tests/data
"""

import sys
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


def main():
    out = Path(sys.argv[1])
    state = state_dict()
    torch.save(state, out / "torch.bin")
    save_file({name: t.detach().contiguous().clone() for name, t in state.items()}, out / "torch.safetensors")


if __name__ == "__main__":
    main()
