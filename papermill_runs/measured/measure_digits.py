"""Digests of what the tiny policy computes, to hold one processor's bits against another's.

MKL_CBWR=COMPATIBLE python papermill_runs/measured/measure_digits.py > papermill_runs/measured/digits/NAME.json

The settings are those of `mmsr.gpu.device.PINS`, given by the environment. Inputs are integers over a power of two.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional as F

from mmsr.gpu.device import PINS, device, versions
from mmsr.policy import add_lora, load_policy


def digest(*tensors: torch.Tensor) -> str:
    """Of the bits of tensors."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.detach().contiguous().numpy().tobytes())
    return found.hexdigest()[:10]


def exact(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    """Numbers in [-scale, scale) that are the same bits everywhere."""
    drawn = np.random.default_rng(seed).integers(-(2**20), 2**20, shape).astype(np.float32)
    return torch.from_numpy(drawn / np.float32(2**20) * np.float32(scale))


def adamw() -> torch.Tensor:
    weight = torch.nn.Parameter(exact(300, 256))
    weight.grad = exact(300, 256, seed=5)
    optimiser = torch.optim.AdamW([weight], lr=1e-3)
    for _ in range(3):
        optimiser.step()
    return weight


def policy() -> dict[str, str]:
    """Logits, loss and gradients of the tiny policy with LoRA."""
    model = add_lora(load_policy("tiny"), r=32, alpha=64).model.train()
    for name, weight in sorted(model.named_parameters()):
        if "lora_" in name:
            weight.data = exact(*weight.shape, seed=7, scale=0.02)
    ids = torch.from_numpy(np.random.default_rng(3).integers(20, 2500, (8, 250)))
    found = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids)
    found.loss.backward()
    grads = [weight.grad for weight in model.parameters() if weight.requires_grad]
    return {"policy logits": digest(found.logits), "policy loss": digest(found.loss), "policy grads": digest(*grads)}


x, causal = exact(999, 256, scale=4), torch.ones(300, 300, dtype=torch.bool).tril()
q, k, v = (exact(4, 8, 300, 32, seed=seed) for seed in (1, 2, 3))
OPERATIONS: dict[str, Callable[[], torch.Tensor]] = {
    "gemv 1x256x768": lambda: F.linear(exact(1, 256), exact(768, 256, seed=1)),
    "bmm": lambda: q @ k.transpose(-1, -2),
    "sdpa": lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True),
    "sdpa mask": lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=causal),
    "silu": lambda: F.silu(x),
    "exp": lambda: x.exp(),
    "log": lambda: (x.abs() + 0.01).log(),
    "sin": lambda: x.sin(),
    "cos": lambda: x.cos(),
    "sqrt": lambda: (x * x).sqrt(),
    "rsqrt": lambda: (x * x + 0.1).rsqrt(),
    "gelu": lambda: F.gelu(x),
    "sum all": lambda: x.sum(),
    "sum -1": lambda: x.sum(-1),
    "mean -1": lambda: x.mean(-1),
    "cumsum": lambda: x.cumsum(-1),
    "softmax": lambda: x.softmax(-1),
    "log_softmax": lambda: x.log_softmax(-1),
    "logsumexp": lambda: x.logsumexp(-1),
    "rms_norm": lambda: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5),
    "layer_norm": lambda: F.layer_norm(x, (256,)),
    "index_add": lambda: torch.zeros(50, 256).index_add(0, torch.arange(999) % 50, x),
    "conv3d patch": lambda: F.conv3d(exact(300, 3, 2, 8, 8), exact(128, 3, 2, 8, 8, seed=1), stride=(2, 8, 8)),
    "adamw": adamw,
}

if __name__ == "__main__":
    found = {name: digest(operation()) for name, operation in OPERATIONS.items()}
    for rows in (8, 64, 256, 1000, 2000):
        for inner, outer in ((256, 768), (768, 256), (256, 256), (256, 2560), (256, 32), (32, 256)):
            product = F.linear(exact(rows, inner), exact(outer, inner, seed=1))
            found[f"gemm {rows}x{inner}x{outer}"] = digest(product)
    pins = {name: os.environ.get(name) for name in PINS}
    print(json.dumps({"found": found | policy(), "device": device(), "versions": versions(), "pins": pins}, indent=1))
