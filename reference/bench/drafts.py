"""Measures what drafts gain where texts are real: on a model of a 7B's size that writes what the embedded model writes
(`reference/widened_model.py`), without drafts, with them, and by llama.cpp token by token, taking turns, so that what
else the machine does meets all three.

    gpt4roi scenes --seed 5 --count 60 --out SCENES
    PYTHON reference/bench/drafts.py MODEL.gguf --gpt4roi target/release/gpt4roi --pictures SCENES [--questions 40]

Two kinds of questions are asked, one after the other in the order of the files: for a detailed description of each
object, which are alike, and those of `questions.jsonl`, first rounds only, which are a mixture. A server answers them,
and drafts by what it was asked and told since it started, which is anew for each kind and turn. llama.cpp reads as many
tokens one by one as each answer has, behind as many as its prompt has; which tokens they are plays no part. With
`--draft-model` a small model drafts, too (`configs/draft.toml` trains one).

Prints seconds for each token behind the first of an answer, which comes with the prompt: for each turn, then medians.
Fails if answers with drafts are not those without. PYTHON has to have llama-cpp-python; one 7B at a time is in memory.
"""

import argparse
import asyncio
import itertools
import json
import os
import re
import statistics
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from llama_cpp import Llama
from serving_load import data_url, serving


@dataclass
class Written:
    """What came of all questions of one kind."""

    texts: list[str]
    lengths: list[tuple[int, int]]
    """Tokens of each prompt and its answer."""
    drafted: int
    """Tokens that came as drafted."""
    seconds: float
    """Of decoding, all answers together."""

    def steps(self):
        return sum(answer - 1 for _, answer in self.lengths)

    def per_token(self):
        return self.seconds / self.steps()


def descriptions(scenes):
    annotations = json.loads((scenes / "annotations.json").read_text())
    files = {image["id"]: scenes / "images" / image["file_name"] for image in annotations["images"]}
    for annotation in annotations["annotations"]:
        yield "/v1/regions/describe", {
            "image": data_url(files[annotation["image_id"]].read_bytes()),
            "question": "Describe <region1> in detail.",
            "regions": [{"bbox": annotation["bbox"]}],
        }


def mixture(scenes):
    for line in map(json.loads, (scenes / "questions.jsonl").read_text().splitlines()):
        regions = [{"id": f"region{region['id']}", "box": region["bbox"]} for region in line["regions"]]
        url = data_url((scenes / line["image"]).read_bytes())
        content = [
            {"type": "image_url", "image_url": {"url": url}, "regions": regions},
            {"type": "text", "text": line["rounds"][0]["question"]},
        ]
        yield "/v1/chat/completions", {"messages": [{"role": "user", "content": content}]}


def answered(program, model, requests, *options):
    with serving(program, "--model", model, *options) as server:
        asyncio.run(server.until_ready())
        before = metrics(server)
        answers = [json.loads(fetched(server, path, body)) for path, body in requests]
        after = metrics(server)
    texts = [text(answer) for answer in answers]
    lengths = [(answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]) for answer in answers]
    drafted, seconds = (end - begin for begin, end in zip(before, after))
    return Written(texts, lengths, int(drafted), seconds)


def text(answer):
    return answer["data"][0]["text"] if "data" in answer else answer["choices"][0]["message"]["content"]


def metrics(server):
    """Tokens that came as drafted, and seconds of decoding."""
    counters = fetched(server, "/metrics")
    names = "drafted_tokens", "request_decode_time_seconds"
    return [float(re.search(rf"^gpt4roi_{name}_total (\S+)", counters, re.MULTILINE)[1]) for name in names]


def fetched(server, path, body=None):
    body = body and json.dumps(body).encode()
    url = f"http://127.0.0.1:{server.port}{path}"
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as response:
        return response.read().decode()


def evaluated(model, lengths, threads):
    """Seconds in which llama.cpp reads answers of these lengths, token by token."""
    longest = max(prompt + answer for prompt, answer in lengths)
    llama = Llama(model, n_ctx=longest, n_batch=512, n_threads=threads, n_threads_batch=threads, verbose=False)
    llama.eval([7 * token % 1000 for token in range(max(prompt for prompt, _ in lengths))])
    seconds = 0.0
    for prompt, answer in lengths:
        llama.n_tokens = prompt
        began = time.perf_counter()
        for token in range(answer - 1):
            llama.eval([5 + token])
        seconds += time.perf_counter() - began
    llama.close()
    return seconds


def measured(kind, requests, options):
    """All three in turns, a line for each turn, then what they come to."""
    turns = []
    for _ in range(options.turns):
        plain = answered(options.gpt4roi, options.model, requests, "--draft", "0")
        drafted = answered(options.gpt4roi, options.model, requests, *options.drafting)
        if plain.texts != drafted.texts:
            raise SystemExit(f"{kind}: drafts changed an answer")
        theirs = evaluated(options.model, plain.lengths, options.threads) / plain.steps()
        turns.append((plain.per_token(), drafted.per_token(), theirs))
        print("{}: without drafts {:.4f}  with {:.4f}  llama.cpp {:.4f}".format(kind, *turns[-1]), flush=True)
    ours, with_drafts, theirs = (statistics.median(times) for times in zip(*turns))
    tokens = sum(answer for _, answer in drafted.lengths)
    print(
        f"{kind}: {len(requests)} answers of {tokens} tokens, {len(set(drafted.texts))} of them different; "
        f"{drafted.drafted / tokens:.0%} of the tokens came as drafted\n"
        f"{kind}: medians: without drafts {ours:.4f}  with {with_drafts:.4f}  llama.cpp {theirs:.4f}; drafts are "
        f"{ours / with_drafts:.2f} times as fast as none, {theirs / with_drafts:.2f} times as fast as llama.cpp",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--gpt4roi", required=True)
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--questions", type=int, default=40, help="of each kind (default: 40)")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--draft-model", help="drafts, too, in the turn that drafts")
    parser.add_argument("--draft", type=int, default=3, help="tokens ahead at most, in the turn that drafts (default: 3)")
    options = parser.parse_args()
    options.drafting = ["--draft", str(options.draft)]
    if options.draft_model:
        options.drafting += ["--draft-model", options.draft_model]
    os.environ["RAYON_NUM_THREADS"] = str(options.threads)  # of the server's kernels
    for kind in (descriptions, mixture):
        measured(kind.__name__, list(itertools.islice(kind(options.pictures), options.questions)), options)


if __name__ == "__main__":
    main()
