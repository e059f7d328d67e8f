"""Runs `gpt4roi bench` and a peer, turn by turn on the same machine, and divides their times.

    python3 reference/bench/ratio.py --gpt4roi target/release/gpt4roi --python venv/bin/python [--regions 4] [--turns 3]

Each turn runs both one after the other; per stage the median over the turns counts.
"""

import argparse
import json
import statistics
import subprocess
from pathlib import Path

PEER = Path(__file__).with_name("torch_vision.py")


def stages(command):
    report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {line["stage"]: line["seconds"] for line in report["stages"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpt4roi", required=True, help="the program")
    parser.add_argument("--python", required=True, help="an interpreter that can import torch")
    parser.add_argument("--regions", default="4")
    parser.add_argument("--threads", default="2")
    parser.add_argument("--runs", default="3")
    parser.add_argument("--turns", type=int, default=3)
    given = parser.parse_args()
    common = ["--regions", given.regions, "--threads", given.threads, "--runs", given.runs]
    names = ["clip", "pyramid", "region_head"]
    ours, peers = [], []
    for _ in range(given.turns):
        ours.append(stages([given.gpt4roi, "bench", "--json", "--stages", ",".join(names), *common]))
        peers.append(stages([given.python, str(PEER), *common]))
    for turn in ours + peers:
        turn["total"] = sum(turn.values())
    print(f"{'stage':<12} {'gpt4roi s':>10} {'peer s':>10} {'ratio':>7}")
    for name in [*names, "total"]:
        our, peer = (statistics.median(turn[name] for turn in turns) for turns in (ours, peers))
        print(f"{name:<12} {our:>10.4f} {peer:>10.4f} {peer / our:>6.2f}x")


if __name__ == "__main__":
    main()
