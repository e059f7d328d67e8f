"""Measures one step of decoding behind 320 tokens, llama.cpp and `gpt4roi bench` taking turns, so that what else the
machine does meets both.

    PYTHON reference/bench/decode_turns.py MODEL.gguf --gpt4roi target/release/gpt4roi [--threads 2] [--turns 6]

MODEL.gguf is a q4_k of LLaMA's 7B shape (`random_gguf.py` writes one), and PYTHON has the package llama-cpp-python.
Prints each turn's medians in seconds, then the medians of the turns and how much faster gpt4roi is.
"""

import argparse
import json
import statistics
import subprocess
import time

from llama_cpp import Llama

CONTEXT = 320
STEPS = 9


def llama_step(llama):
    times = []
    for token in range(STEPS):
        started = time.perf_counter()
        llama.eval([5 + token])
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def our_step(program, threads):
    options = ["--stages", "decode", "--quantize", "q4_k", "--runs", str(STEPS), "--threads", str(threads), "--json"]
    report = json.loads(subprocess.run([program, "bench", *options], check=True, capture_output=True).stdout)
    return report["stages"][0]["seconds"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--gpt4roi", required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=6)
    options = parser.parse_args()
    threads = options.threads
    llama = Llama(options.model, n_ctx=512, n_batch=512, n_threads=threads, n_threads_batch=threads, verbose=False)
    turns = []
    for _ in range(options.turns):
        llama.reset()
        llama.eval([7 * token % 32000 for token in range(CONTEXT)])
        turns.append((llama_step(llama), our_step(options.gpt4roi, threads)))
        print("llama.cpp {:.4f}  gpt4roi {:.4f}".format(*turns[-1]), flush=True)
    theirs, ours = (statistics.median(times) for times in zip(*turns))
    print(f"medians: llama.cpp {theirs:.4f}  gpt4roi {ours:.4f}  ratio {theirs / ours:.2f}")


if __name__ == "__main__":
    main()
