from pathlib import Path

import pytest

import gpt4roi

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "docs" / "example.png"

# What docs/example.png shows there: the boxes of the README.
OCTOPUS, BREAD, AIRPLANE = (8, 14, 54, 59), (109, 0, 181, 59), (0, 78, 100, 186)


@pytest.fixture(scope="session")
def model():
    return gpt4roi.load()


@pytest.fixture
def chat(model):
    return model.chat(EXAMPLE)
