import json
import struct
from pathlib import Path

import pytest

import gpt4roi
from conftest import EXAMPLE, OCTOPUS

GOLDEN = Path(__file__).parents[2] / "gpt4roi/tests/golden"


def test_an_adapter_changes_what_the_model_says():
    plain, adapted = gpt4roi.load(GOLDEN / "clip"), gpt4roi.load(GOLDEN / "clip", adapter=GOLDEN / "adapter")
    [before], [after] = (model.describe(EXAMPLE, [OCTOPUS], max_new_tokens=3) for model in (plain, adapted))
    assert before.text != after.text
    assert plain.name == str(GOLDEN / "clip")
    assert adapted.name == f"{GOLDEN / 'clip'} with {GOLDEN / 'adapter'}"
    assert repr(adapted).startswith(f"Model({adapted.name!r}, ")


def test_an_adapter_beside_another_model_is_told(tmp_path):
    header = {"__metadata__": {"gpt4roi.base": "0123"}}
    header["base_model.model.model.norm.weight"] = {"dtype": "F32", "shape": [24], "data_offsets": [0, 96]}
    header = json.dumps(header).encode()
    weights = struct.pack("<Q", len(header)) + header + struct.pack("<24f", *[1.0] * 24)
    (tmp_path / "adapter_model.safetensors").write_bytes(weights)
    (tmp_path / "adapter_config.json").write_text((GOLDEN / "adapter/adapter_config.json").read_text())
    with pytest.warns(RuntimeWarning, match="expected the model that it was trained beside.* 0123, got one with"):
        gpt4roi.load(GOLDEN / "clip", adapter=tmp_path)


def test_an_adapter_of_another_model_is_refused(tmp_path):
    with pytest.raises(gpt4roi.Error, match="changes of the model's own matrices"):
        gpt4roi.load(adapter=GOLDEN / "adapter")
    with pytest.raises(FileNotFoundError):
        gpt4roi.load(adapter=tmp_path)
