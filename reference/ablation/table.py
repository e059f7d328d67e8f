"""Writes the table of docs/ablation.md and its plot from what `run.sh` measured.

    python3 reference/ablation/table.py runs/ablation docs/ablation.md

Only the part between the two marks is replaced; a file without marks is begun. The first table has means over seeds; the
interval is Student's at 95 % over seeds; with one seed there is none, and Wilson's interval of its answers stands in its
place. The second has differences from the original: a variant shares its seed's scenes, tower and most often language model
with it, so that differences are taken seed by seed, and their interval is Student's, too.
"""

import json
import math
import sys
from pathlib import Path

BEGIN, END = "<!-- table -->", "<!-- end -->"
SHARES = ["name", "small", "multi", "relation", "position", "yes_no", "point"]
# The 97.5 % points of Student's distribution, by degrees of freedom.
STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


def main(runs, target):
    order = [line.split("|")[0].strip() for line in Path("configs/ablation/variants.txt").read_text().splitlines()]
    variants = {}
    for name in order:
        measured = sorted(runs.glob(f"*/{name}/eval.json")) if name and not name.startswith("#") else []
        if measured:
            variants[name] = {path.parts[-3]: (json.loads(path.read_text()), bench(path)) for path in measured}
    if not variants:
        sys.exit(f"{runs} holds no eval.json; reference/ablation/run.sh makes them")
    write(target, "\n".join([*table(variants), *differences(variants)]))
    plot = target.with_suffix(".svg")
    plot.write_text(svg(variants))
    print(f"{len(variants)} variants: {target}, {plot}")


def bench(path):
    stages = json.loads(path.with_name("bench.json").read_text())["stages"]
    return {stage["stage"]: stage for stage in stages}


def table(variants):
    yield "| variant | " + " | ".join(SHARES) + " | pyramid | head, 4 regions | seeds |"
    yield "|---" * (len(SHARES) + 4) + "|"
    for name, seeds in variants.items():
        runs = seeds.values()
        shares = [cell([accuracy(run, question) for run, _ in runs]) for question in SHARES]
        costs = [cost([stages[stage] for _, stages in runs]) for stage in ("pyramid", "region_head")]
        yield f"| {name} | " + " | ".join(shares + costs) + f" | {len(runs)} |"


def accuracy(run, share):
    """Of a type of question, or of the names of regions below 36 pixels."""
    return run["by_pixels"]["0-36"] if share == "small" else run["questions"][share]


def differences(variants):
    """Points more or fewer than the original, over the seeds that both have."""
    original = variants.get("original", {})
    if len(original) < 2:
        return
    yield ""
    yield ("Points more or fewer than the original with the same seed, bold where the interval leaves out 0; where nothing "
           "differs, one in twenty does:")
    yield ""
    yield "| variant | " + " | ".join(SHARES) + " |"
    yield "|---" * (len(SHARES) + 1) + "|"
    for name, seeds in variants.items():
        shared = sorted(seeds.keys() & original.keys())
        if name != "original" and len(shared) > 1:
            pairs = [(seeds[seed][0], original[seed][0]) for seed in shared]
            yield f"| {name} | " + " | ".join(difference(pairs, share) for share in SHARES) + " |"


def difference(pairs, share):
    points = [100 * (accuracy(one, share)["accuracy"] - accuracy(other, share)["accuracy"]) for one, other in pairs]
    mean, half = student(points)
    shown = f"{round(mean, 1) + 0:+.1f} ± {half:.1f}"  # no minus before zero
    return f"**{shown}**" if abs(mean) > half else shown


def student(values):
    """Mean, and half of its interval of 95 %."""
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return mean, STUDENT[len(values) - 1] * deviation / math.sqrt(len(values))


def interval(accuracies):
    shares = [accuracy["accuracy"] for accuracy in accuracies]
    if len(shares) == 1:
        return (shares[0], *accuracies[0]["ci95"])
    mean, half = student(shares)
    return mean, max(mean - half, 0), min(mean + half, 1)


def cell(accuracies):
    mean, low, high = (100 * value for value in interval(accuracies))
    return f"{mean:.1f} % ({low:.0f}–{high:.0f})"


def cost(stages):
    seconds = sorted(stage["seconds"] for stage in stages)[len(stages) // 2]
    return f"{stages[0]['gflop']:.3f} GFLOP, {1000 * seconds:.1f} ms"


def svg(variants):
    """Names of a region, a row per variant, with intervals."""
    row, left, width = 24, 150, 420
    height = row * (len(variants) + 2)
    def x(share):
        return left + width * share
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 30}" height="{height}" '
             'font-family="sans-serif" font-size="13">', '<rect width="100%" height="100%" fill="white"/>']
    for tenth in range(0, 11, 2):
        at = x(tenth / 10)
        lines.append(f'<line x1="{at}" y1="{row / 2}" x2="{at}" y2="{height - row}" stroke="#ddd"/>'
                     f'<text x="{at}" y="{height - 6}" text-anchor="middle">{10 * tenth} %</text>')
    for index, (name, seeds) in enumerate(variants.items()):
        y = row * (index + 1)
        mean, low, high = interval([run["questions"]["name"] for run, _ in seeds.values()])
        lines.append(f'<text x="{left - 10}" y="{y + 4}" text-anchor="end">{name}</text>'
                     f'<line x1="{x(low)}" y1="{y}" x2="{x(high)}" y2="{y}" stroke="#2166ac" stroke-width="2"/>'
                     f'<circle cx="{x(mean)}" cy="{y}" r="4" fill="#2166ac"/>')
    return "\n".join([*lines, "</svg>", ""])


def write(target, table):
    text = target.read_text() if target.exists() else f"# Ablations of the region module\n\n{BEGIN}\n{END}\n"
    before, rest = text.split(BEGIN)
    target.write_text(f"{before}{BEGIN}\n{table}\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
