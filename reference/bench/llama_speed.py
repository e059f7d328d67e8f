"""Measures llama.cpp on a GGUF file: reading 320 tokens, then one token at a time behind them.

    PYTHON reference/bench/llama_speed.py MODEL.gguf [--threads 2]

PYTHON has to have the package llama-cpp-python. Prints one line of JSON, medians in seconds. The same work on our side:

    gpt4roi bench --stages prefill,decode --quantize q4_k --runs 7 --threads 2 --json
"""

import argparse
import json
import statistics
import time

from llama_cpp import Llama

CONTEXT = 320


def seconds(work):
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    threads = arguments.threads

    def load():
        return Llama(arguments.model, n_ctx=1024, n_batch=512, n_threads=threads, n_threads_batch=threads, verbose=False)

    started = time.perf_counter()
    llama = load()
    loaded = time.perf_counter() - started
    prompt = [7 * token % 32000 for token in range(CONTEXT)]

    def prefill():
        llama.reset()
        llama.eval(prompt)

    def decode():
        llama.n_tokens = CONTEXT
        llama.eval([1])

    print(json.dumps({
        "model": arguments.model,
        "threads": threads,
        "load": loaded,
        "prefill_320": statistics.median(seconds(prefill) for _ in range(3)),
        "decode_1": statistics.median(seconds(decode) for _ in range(7)),
    }))


if __name__ == "__main__":
    main()
