"""Writes the table of docs/ablation.md and its plot from what `run.sh` measured.

    python3 reference/ablation/table.py runs/ablation docs/ablation.md

Only the part between the two marks is replaced; a file without marks is begun. The first table has means over seeds. The
second has differences from the original: a variant shares its seed's scenes, tower and most often language model with it,
so that differences are taken seed by seed. Few seeds say little about how far one variant's results are apart, and all of
them together much: intervals are Student's at 95 % with the variants' common variance. Where there is one seed, Wilson's
interval of its answers stands in their place.
"""

import json
import math
import sys
from pathlib import Path

BEGIN, END = "<!-- table -->", "<!-- end -->"
SHARES = ["name", "small", "multi", "relation", "position", "yes_no", "point"]
PLOTTED = ["name", "small", "multi", "position", "point"]


def main(runs, target):
    order = [line.split("|")[0].strip() for line in Path("configs/ablation/variants.txt").read_text().splitlines()]
    variants = {}
    for name in order:
        measured = sorted(runs.glob(f"*/{name}/eval.json")) if name and not name.startswith("#") else []
        if measured:
            variants[name] = {path.parts[-3]: json.loads(path.read_text()) for path in measured}
    if not variants:
        sys.exit(f"{runs} holds no eval.json; reference/ablation/run.sh makes them")
    costs = {name: stages(runs / "cost" / f"{name}.json") for name in variants}
    write(target, "\n".join([*table(variants, costs), *differences(variants)]))
    plot = target.with_suffix(".svg")
    plot.write_text(svg(variants))
    print(f"{len(variants)} variants: {target}, {plot}")


def stages(path):
    return {stage["stage"]: stage for stage in json.loads(path.read_text())["stages"]}


def table(variants, costs):
    yield "| variant | " + " | ".join(SHARES) + " | pyramid | head, 4 regions | seeds |"
    yield "|---" * (len(SHARES) + 4) + "|"
    columns = [intervals(variants, share) for share in SHARES]
    for name, seeds in variants.items():
        cells = [cell(column[name]) for column in columns]
        cells += [cost(costs[name][stage]) for stage in ("pyramid", "region_head")]
        yield f"| {name} | " + " | ".join(cells) + f" | {len(seeds)} |"


def accuracy(run, share):
    """Of a type of question, or of the names of regions below 36 pixels."""
    return run["by_pixels"]["0-36"] if share == "small" else run["questions"][share]


def intervals(variants, share):
    """Mean, lower and upper bound, of each variant."""
    shares = {name: [accuracy(run, share)["accuracy"] for run in seeds.values()] for name, seeds in variants.items()}
    spread = Spread(shares.values())
    result = {}
    for name, values in shares.items():
        mean = sum(values) / len(values)
        if len(values) == 1:
            (run,) = variants[name].values()
            result[name] = (mean, *accuracy(run, share)["ci95"])
        else:
            result[name] = (mean, max(mean - spread.half(values), 0), min(mean + spread.half(values), 1))
    return result


def differences(variants):
    """Points more or fewer than the original, over the seeds that both have."""
    original = variants.get("original", {})
    shared = {name: sorted(seeds.keys() & original.keys()) for name, seeds in variants.items() if name != "original"}
    shared = {name: seeds for name, seeds in shared.items() if len(seeds) > 1}
    if not shared:
        return
    yield ""
    yield ("Points more or fewer than the original with the same seed, bold where the interval leaves out 0; where nothing "
           "differs, one in twenty does:")
    yield ""
    yield "| variant | " + " | ".join(SHARES) + " |"
    yield "|---" * (len(SHARES) + 1) + "|"
    columns = [{name: [gain(variants[name][seed], original[seed], share) for seed in seeds]
                for name, seeds in shared.items()} for share in SHARES]
    spreads = [Spread(column.values()) for column in columns]
    for name in shared:
        cells = [difference(column[name], spread) for column, spread in zip(columns, spreads)]
        yield f"| {name} | " + " | ".join(cells) + " |"


def gain(run, other, share):
    return 100 * (accuracy(run, share)["accuracy"] - accuracy(other, share)["accuracy"])


def difference(points, spread):
    mean, half = sum(points) / len(points), spread.half(points)
    shown = f"{round(mean, 1) + 0:+.1f} ± {half:.1f}"  # no minus before zero
    return f"**{shown}**" if abs(mean) > half else shown


class Spread:
    """The deviation that several samples have in common, each around its own mean."""

    def __init__(self, samples):
        samples = list(samples)
        squares = sum((value - sum(values) / len(values)) ** 2 for values in samples for value in values)
        self.degrees = sum(len(values) - 1 for values in samples)
        self.deviation = math.sqrt(squares / self.degrees) if self.degrees else math.nan

    def half(self, values):
        """Half of the interval of 95 % around the mean of one of them."""
        return student(self.degrees) * self.deviation / math.sqrt(len(values))


def student(degrees):
    """The 97.5 % point of Student's distribution; from ten degrees of freedom on right to a hundredth."""
    few = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262]
    return few[degrees - 1] if degrees <= len(few) else 1.96 + 2.4 / degrees + 2.5 / degrees**2


def cell(bounds):
    mean, low, high = (100 * value for value in bounds)
    return f"{mean:.1f} % ({low:.0f}–{high:.0f})"


def cost(stage):
    return f"{stage['gflop']:.3f} GFLOP, {1000 * stage['seconds']:.1f} ms"


def svg(variants):
    """A row per variant, a panel per type of question, in percent, with intervals, and a line where the original stands."""
    row, left, width, gap, top = 22, 120, 150, 26, 30
    bottom = top + row * len(variants)
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + (width + gap) * len(PLOTTED)}" '
             f'height="{bottom + 26}" font-family="sans-serif" font-size="12">',
             '<rect width="100%" height="100%" fill="white"/>']
    rows = {name: top + row * index + row // 2 for index, name in enumerate(variants)}
    lines += [f'<text x="{left - 10}" y="{y + 4}" text-anchor="end">{name}</text>' for name, y in rows.items()]
    for index, share in enumerate(PLOTTED):
        lines += panel(share, intervals(variants, share), rows, (left + (width + gap) * index, width), (top, bottom))
    return "\n".join([*lines, "</svg>", ""])


def panel(share, bounds, rows, across, down):
    """From 60 to 100 %; of what lies below stands the number alone."""
    (left, width), (top, bottom) = across, down
    def x(value):
        return round(left + width * (value - 0.6) / 0.4, 1)
    def upright(value, style):
        return f'<line x1="{x(value)}" y1="{top}" x2="{x(value)}" y2="{bottom}" {style}/>'
    yield f'<text x="{x(0.8)}" y="{top - 12}" text-anchor="middle" font-weight="bold">{share}</text>'
    for percent in range(60, 101, 10):
        yield upright(percent / 100, 'stroke="#ddd"')
        yield f'<text x="{x(percent / 100)}" y="{bottom + 16}" text-anchor="middle">{percent}</text>'
    if "original" in bounds:
        yield upright(bounds["original"][0], 'stroke="#b2182b" stroke-dasharray="3 3"')
    for name, (mean, low, high) in bounds.items():
        y = rows[name]
        if mean < 0.6:
            yield f'<text x="{x(0.6) + 4}" y="{y + 4}" fill="#2166ac">◂ {100 * mean:.0f} %</text>'
            continue
        yield f'<line x1="{x(max(low, 0.6))}" y1="{y}" x2="{x(high)}" y2="{y}" stroke="#2166ac" stroke-width="2"/>'
        yield f'<circle cx="{x(mean)}" cy="{y}" r="3.5" fill="#2166ac"/>'


def write(target, table):
    text = target.read_text() if target.exists() else f"# Ablations of the region module\n\n{BEGIN}\n{END}\n"
    before, rest = text.split(BEGIN)
    target.write_text(f"{before}{BEGIN}\n{table}\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
