"""Expected values of the optimizer tests: three AdamW steps of PyTorch, one Muon step of its authors' code.

Run: python reference/optimizer_golden.py (needs torch); prints what crates/gpt4roi-train/src/optimizer.rs holds.
"""
import torch

torch.set_printoptions(precision=9)

VALUES = [[0.5, -1.0, 2.0], [0.25, 0.0, -0.75]]
GRADIENTS = [
    [[0.1, -0.2, 0.3], [1.0, -0.5, 0.05]],
    [[-0.4, 0.1, 0.2], [0.3, 0.6, -0.1]],
    [[0.05, 0.0, -0.25], [-0.9, 0.2, 0.15]],
]


def adamw():
    value = torch.nn.Parameter(torch.tensor(VALUES))
    optimizer = torch.optim.AdamW([value], lr=0.1, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.2)
    for gradient in GRADIENTS:
        value.grad = torch.tensor(gradient)
        optimizer.step()
    return value.detach()


def newton_schulz(matrix, steps=5):
    """The authors' iteration, in float32 instead of bfloat16."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix
    if matrix.size(0) > matrix.size(1):
        x = x.T
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if matrix.size(0) > matrix.size(1) else x


def muon(values, gradients):
    value, mean = torch.tensor(values), torch.zeros_like(torch.tensor(values))
    for gradient in gradients:
        gradient = torch.tensor(gradient)
        mean.lerp_(gradient, 1 - 0.95)
        update = newton_schulz(gradient.lerp(mean, 0.95))
        update = update * max(1, value.size(0) / value.size(1)) ** 0.5
        value = value * (1 - 0.1 * 0.2) - 0.1 * update
    return value


print("AdamW", adamw().flatten().tolist())
print("Muon, wide", muon(VALUES, GRADIENTS).flatten().tolist())
tall = lambda m: torch.tensor(m).T.contiguous().tolist()
print("Muon, tall", muon(tall(VALUES), [tall(g) for g in GRADIENTS]).flatten().tolist())
