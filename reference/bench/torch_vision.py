"""How long PyTorch needs for the stages that `gpt4roi bench` measures, on the same shapes.

    python reference/bench/torch_vision.py [--regions 4] [--runs 5] [--threads 2] [--stages clip,pyramid,region_head]

Random weights of the published dimensions, one picture, f32, CPU. Every stage is the module that one would write in
PyTorch: `nn.functional.scaled_dot_product_attention`, `conv2d`, `group_norm`. Medians, after one run that is not
counted. Prints JSON with the keys of `gpt4roi bench --json`; `ratio.py` beside it divides the two.
"""

import argparse
import json
import statistics
import time

import torch
import torch.nn.functional as F

WIDTH, INNER, HEADS, LAYERS, GRID, PATCH = 1024, 4096, 16, 23, 16, 14
DIM, ROUNDS, GROUPS, BINS, TEXT = 1024, 5, 64, 14, 4096
SCALES = (8, 4, 2, 1)


def weight(*shape):
    inputs = torch.Size(shape[1:]).numel()
    return torch.randn(*shape) * inputs**-0.5


def clip():
    def linear(inputs, outputs):
        return weight(outputs, inputs), torch.zeros(outputs)

    def layer():
        return [linear(WIDTH, WIDTH) for _ in range(4)] + [linear(WIDTH, INNER), linear(INNER, WIDTH)]

    def norm(x):
        return F.layer_norm(x, (WIDTH,), torch.ones(WIDTH), torch.zeros(WIDTH))

    def heads(x):
        return x.view(1, -1, HEADS, WIDTH // HEADS).transpose(1, 2)

    layers = [layer() for _ in range(LAYERS)]
    patches, position = weight(WIDTH, 3, PATCH, PATCH), torch.randn(1, GRID * GRID + 1, WIDTH)
    pixels = torch.randn(1, 3, GRID * PATCH, GRID * PATCH)

    def run():
        x = F.conv2d(pixels, patches, stride=PATCH).flatten(2).transpose(1, 2)
        x = norm(F.pad(x, (0, 0, 1, 0)) + position)
        for query, key, value, out, inner, outer in layers:
            y = norm(x)
            y = F.scaled_dot_product_attention(*(heads(F.linear(y, *one)) for one in (query, key, value)))
            x = x + F.linear(y.transpose(1, 2).reshape(1, -1, WIDTH), *out)
            y = F.linear(norm(x), *inner)
            x = x + F.linear(y * torch.sigmoid(1.702 * y), *outer)
        return x

    return run


def resize(x, size):
    return x if x.shape[-1] == size else F.interpolate(x, size=(size, size), mode="bilinear", align_corners=True)


def pyramid():
    inputs = [weight(DIM, WIDTH + 2, 1, 1) for _ in SCALES]
    rounds = [weight(DIM, DIM, 3, 3) for _ in range(ROUNDS)]
    states = [torch.randn(1, WIDTH, GRID, GRID) for _ in SCALES]
    keep, quarter = DIM // 2, DIM // 4

    def coordinates(size):
        line = torch.linspace(-1, 1, size)
        return torch.stack([line.expand(size, size), line[:, None].expand(size, size)])[None]

    def shuffled(maps, level):
        own = maps[level]
        coarser, finer = maps[min(level + 1, len(maps) - 1)], maps[max(level - 1, 0)]
        size = own.shape[-1]
        from_coarser = resize(coarser[:, keep + quarter :], size)
        return torch.cat([own[:, :keep], from_coarser, resize(finer[:, keep : keep + quarter], size)], 1)

    def run():
        maps = [resize(state, GRID * scale) for state, scale in zip(states, SCALES)]
        maps = [F.conv2d(torch.cat([m, coordinates(m.shape[-1])], 1), w) for m, w in zip(maps, inputs)]
        for kernel in rounds:
            mixed = [F.conv2d(shuffled(maps, level), kernel, padding=1) for level in range(len(maps))]
            maps = [F.relu(F.group_norm(m, GROUPS, torch.ones(DIM), torch.zeros(DIM))) for m in mixed]
        return maps

    return run


def roi_align(level, boxes):
    """Two samples per bin and axis, all boxes at once; the centres of pixels lie at half integers."""
    size, samples = level.shape[-1], 2 * BINS
    place = (torch.arange(samples) + 0.5) / samples
    x = boxes[:, None, 0] + (boxes[:, 2] - boxes[:, 0])[:, None] * place
    y = boxes[:, None, 1] + (boxes[:, 3] - boxes[:, 1])[:, None] * place
    grid = torch.stack([x[:, None, :].expand(-1, samples, -1), y[:, :, None].expand(-1, -1, samples)], -1) * 2 - 1
    level = level.expand(len(boxes), -1, size, size)
    return F.avg_pool2d(F.grid_sample(level, grid, padding_mode="border", align_corners=False), 2)


def region_head(regions):
    pconvs = [weight(DIM, DIM, 3, 3) for _ in SCALES]
    flatten, project = weight(DIM, DIM * BINS * BINS), weight(TEXT, DIM)
    inner, outer = weight(256, 4), weight(DIM, 256)
    maps = [torch.randn(1, DIM, GRID * scale, GRID * scale) for scale in SCALES]
    corner = torch.rand(regions, 2) * 0.6
    boxes = torch.cat([corner, corner + 0.1 + 0.3 * torch.rand(regions, 2)], 1)

    def run():
        fused = sum(F.conv2d(roi_align(m, boxes), kernel, padding=1) for m, kernel in zip(maps, pconvs))
        place = F.layer_norm(F.relu(F.linear(boxes, inner)), (256,))
        place = F.layer_norm(F.relu(F.linear(place, outer)), (DIM,))
        return F.linear(F.linear(F.relu(fused).flatten(1), flatten) + place, project)

    return run


def seconds(run, runs):
    run()
    times = []
    for _ in range(runs):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--regions", type=int, default=4)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--stages", default="clip,pyramid,region_head")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    stages = {"clip": clip, "pyramid": pyramid, "region_head": lambda: region_head(given.regions)}
    report = {"peer": f"PyTorch {torch.__version__}", "threads": given.threads, "runs": given.runs}
    report |= {"regions": given.regions, "stages": []}
    with torch.inference_mode():
        for name in given.stages.split(","):
            times = seconds(stages[name](), given.runs)
            line = {"stage": name, "seconds": statistics.median(times), "fastest_seconds": min(times)}
            report["stages"].append(line)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
