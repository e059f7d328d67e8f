"""Loads a language model's GGUF in llama.cpp and compares its logits with this project's.

    pip install llama-cpp-python
    cargo run --release -p gpt4roi --example next_token_logits -- NAME-q4_k.gguf 'What is a <bbox>?' logits.json
    python compare_llama_cpp.py NAME-q4_k.gguf logits.json

The ids of the text have to be the same, special tokens inside it being mere words. Prints the relative L2
error of all logits, and how often both find the same token most likely. llama.cpp rounds activations to 8
bits before it multiplies them with quantised weights, and keeps keys and values in half precision; so with
quantised weights the two differ about as much as q8_0 differs from f16, and with f16 by a thousandth.
"""

import argparse
import json

import numpy as np
from llama_cpp import Llama


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("gguf")
    parser.add_argument("logits")
    parser.add_argument("--most", type=float, default=0.05, help="largest relative L2 error that passes")
    arguments = parser.parse_args()
    with open(arguments.logits) as file:
        recorded = json.load(file)
    ids, ours = recorded["ids"], np.array(recorded["logits"], dtype=np.float64)

    model = Llama(arguments.gguf, n_ctx=max(64, len(ids) + 1), logits_all=True, verbose=False)
    theirs = model.tokenize(recorded["text"].encode(), add_bos=True, special=False)
    assert theirs == ids, f"llama.cpp has the ids {theirs}, expected {ids}"
    model.eval(ids)
    theirs = np.array(model.scores[: len(ids)], dtype=np.float64)
    assert theirs.shape == ours.shape, f"llama.cpp has logits {theirs.shape}, expected {ours.shape}"

    error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
    same = np.mean(ours.argmax(1) == theirs.argmax(1))
    text = model.create_completion("What is region1 doing?", max_tokens=8, temperature=0.0)["choices"][0]["text"]
    print(json.dumps({"positions": len(ids), "relative_l2": error, "same_top_token": same, "continuation": text}))
    raise SystemExit(0 if error <= arguments.most else 1)


if __name__ == "__main__":
    main()
