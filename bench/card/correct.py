"""Whether a card computes what the CPU computes: published tensors, dropout, policies, convolutions, TF32, ranks as threads.

    python -m bench.card.correct            (small without a card: a dry run)

B batch, g channels, L context length.
"""

from __future__ import annotations

import collections
import os
import subprocess
import sys
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F

import hyena_ds
from bench.card.model_step import training_step
from bench.card.ranks import beside_one_rank
from bench.card.rows import CARD, DEVICE, Rows, relative_norm
from hyena_ds.config.model import ModelConfig
from hyena_ds.config.policy import POLICIES
from hyena_ds.data.loader import MicroBatch
from hyena_ds.model.backbone import build_model
from hyena_ds.model.forward_pass import ForwardPass
from hyena_ds.ops.dropout import DropoutKey, keyed_dropout
from hyena_ds.ops.fft_convolution import causal_convolution, causal_convolution_backward
from hyena_ds.parallel.layout import Layout
from hyena_ds.tasks.next_token import NextToken
from hyena_ds.training.graphs import GraphedForward
from tests.model.golden import CASES, SHIFTS, TOLERANCE, expected, gradient_name, relative_error, weights_path

_OVERRIDE = "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"
_POLICY_LENGTH = 4096 if CARD else 512


def published_tensors() -> str:
    """Largest error of logits, loss and all gradients, beside tensors recorded from the published code."""
    worst = 0.0
    for case in CASES:
        for shift in SHIFTS:
            model = hyena_ds.load_model(weights_path(case), shift=shift).to(DEVICE)
            wanted = expected(case, shift)
            ids_BL = wanted["token_ids"].to(DEVICE)
            logits_BLV = model(ids_BL[:, :-1])
            loss = F.cross_entropy(logits_BLV.flatten(0, 1), ids_BL[:, 1:].flatten())
            loss.backward()
            errors = [
                relative_error(logits_BLV.cpu(), wanted["logits"]),
                relative_error(loss.cpu(), wanted["loss"].squeeze()),
            ]
            for name, parameter in model.named_parameters():
                assert parameter.grad is not None
                errors.append(relative_error(parameter.grad.cpu(), wanted[gradient_name(name, model.config.layers)]))
            worst = max(worst, *errors)
    return f"worst {worst:.1e}, wanted {TOLERANCE:.0e}" + ("" if worst <= TOLERANCE else ": TOO FAR")


def tf32() -> str:
    """The same in a process whose environment asks for TF32, as vendors' images do: as it comes, and pinned as every command does."""
    found = []
    for pin in ("", "pin_float32(); "):
        code = "from hyena_ds.parallel.devices import pin_float32; from bench.card.correct import published_tensors; "
        command = [sys.executable, "-c", f"{code}{pin}print(published_tensors())"]
        done = subprocess.run(command, env={**os.environ, _OVERRIDE: "1"}, capture_output=True, text=True, timeout=120)
        found.append((done.stdout.splitlines() or done.stderr.splitlines())[-1])
    return "as it comes: {}; pinned: {}".format(*found)


def same_dropout() -> str:
    """Dropout's masks depend on no generator: the same elements are dropped everywhere. The others may differ in rounding, since
    a card divides by multiplying."""
    x_BlD, offset = torch.randn(2, 5000, 96), (1 << 32) - 100

    def dropped(device: torch.device) -> torch.Tensor:
        key = DropoutKey((1 << 31) - 5, 7, torch.tensor([3, 1 << 20], device=device))
        return keyed_dropout(x_BlD.to(device), 0.3, key, 3, offset).cpu()

    wanted, found = dropped(torch.device("cpu")), dropped(DEVICE)
    masks = "the same elements" if torch.equal(wanted == 0, found == 0) else "OTHER ELEMENTS"
    return f"{masks}; what is kept differs by {relative_error(found, wanted):.0e}"


def policies(precision: torch.dtype) -> str:
    """Relative errors of loss and gradients under every activation policy, beside float32 on the CPU."""
    L = _POLICY_LENGTH
    config = ModelConfig(
        width=256, layers=2, inner_width=1024, maximum_context=L, embedding_dropout=0.1, residual_dropout=0.1
    )
    ids_BL = torch.randint(7, 11, (2, L + 1), generator=torch.Generator().manual_seed(0))

    def run(device: torch.device, dtype: torch.dtype, policy: str) -> tuple[float, torch.Tensor]:
        objective = NextToken(build_model(config, 3).to(device))
        ids = ids_BL.to(device)
        key = DropoutKey(5, 6, torch.arange(2, device=device))
        how = ForwardPass(Layout.whole(L), dropout=key, policy=POLICIES[policy], compute_dtype=dtype)
        loss, _ = objective.loss(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), how)
        loss.backward()
        gradients = [parameter.grad for parameter in objective.parameters()]
        return float(loss.detach()), torch.cat([g.flatten().double().cpu() for g in gradients if g is not None])

    wanted_loss, wanted = run(torch.device("cpu"), torch.float32, "balanced")
    found = []
    for policy in POLICIES:
        loss, gradients = run(DEVICE, precision, policy)
        found.append(f"{policy} {abs(loss - wanted_loss) / wanted_loss:.0e} {relative_norm(gradients, wanted):.0e}")
    return "; ".join(found)


def cuda_graph() -> str:
    """Relative errors of a replayed micro step beside one that is not, over steps with other batches, parameters and dropout."""
    L, worst = 1024, (0.0, 0.0)
    objective = NextToken(build_model(ModelConfig(width=128, layers=2, maximum_context=L), 3).to(DEVICE))
    graphed = GraphedForward(objective)
    for step in range(4):
        ids_BL = torch.randint(7, 11, (2, L + 1), device=DEVICE)
        samples_B = torch.arange(step, step + 2, device=DEVICE)
        batch = MicroBatch(ids_BL[:, :-1].contiguous(), ids_BL[:, 1:].contiguous(), samples_B)
        found = []
        for forward in (objective.forward, graphed):
            objective.zero_grad()
            loss, _ = forward(batch, ForwardPass(Layout.whole(L), dropout=DropoutKey(5, step, samples_B)))
            loss.backward()
            gradients = [parameter.grad for parameter in objective.parameters()]
            found.append((float(loss.detach()), torch.cat([g.flatten() for g in gradients if g is not None])))
        (wanted_loss, wanted), (loss_found, gradients_found) = found
        errors = abs(loss_found - wanted_loss) / wanted_loss, relative_norm(gradients_found, wanted)
        worst = max(worst[0], errors[0]), max(worst[1], errors[1])
        with torch.no_grad():
            for parameter in objective.parameters():
                parameter.mul_(0.9)
    return "loss {:.0e}, gradients {:.0e}".format(*worst)


def convolution(length: int) -> str:
    """Largest errors of output and gradients beside float64, relative to the largest value of each."""
    u_BgL, dy_BgL = (torch.randn(1, 4, length, device=DEVICE) for _ in range(2))
    k_gL = torch.randn(4, length, device=DEVICE) / length**0.5

    def exact(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        spectra = torch.fft.rfft(a.double(), 2 * length) * torch.fft.rfft(b.double(), 2 * length)
        return torch.fft.irfft(spectra, 2 * length)[..., :length]

    def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
        return float((found.double() - wanted).abs().max() / wanted.abs().max())

    y_BgL = causal_convolution(u_BgL, k_gL)
    du_BgL, dk_gL, _ = causal_convolution_backward(dy_BgL, u_BgL, k_gL, False)
    errors = (
        error(y_BgL, exact(u_BgL, k_gL)),
        error(du_BgL, exact(dy_BgL.flip(-1), k_gL).flip(-1)),
        error(dk_gL, exact(dy_BgL.flip(-1), u_BgL).flip(-1)[0]),
    )
    return "output {:.1e}, gradient of the input {:.1e}, of the filter {:.1e}".format(*errors)


def synchronisations(length: int) -> str:
    """How often a micro step makes the host wait for the card, and where."""
    step = training_step(length, 1, "lean", torch.bfloat16)
    step()
    where: collections.Counter[str] = collections.Counter()
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        step()
    torch.cuda.set_sync_debug_mode("default")
    for warning in seen:
        where[f"{Path(warning.filename).name}:{warning.lineno}"] += 1
    return f"{len(seen)} a step: " + ", ".join(f"{place} {times}" for place, times in where.most_common(8))


def main() -> int:
    """Run all rows; 1 where one failed."""
    rows = Rows("correct")
    rows.add("published tensors", published_tensors)
    if CARD:
        rows.add(f"published tensors, {_OVERRIDE}=1", tf32)
    rows.add("dropout beside the CPU's", same_dropout)
    rows.add("loss and gradients beside the CPU's, float32", lambda: policies(torch.float32))
    rows.add("loss and gradients beside the CPU's, bfloat16", lambda: policies(torch.bfloat16))
    for length in (5001, 1_000_000, 1 << 20, 1 << 23) if CARD else (5001, 8192):
        rows.add(f"convolution of {length:,} beside float64", lambda length=length: convolution(length))
    for size in (2, 4):
        rows.add(f"{size} sequence ranks as threads beside one", lambda size=size: beside_one_rank(size))
    if CARD:
        rows.add("a micro step as a CUDA graph beside one that is not", cuda_graph)
        rows.add("host synchronisations at 131,072", lambda: synchronisations(1 << 17))
    return rows.exit_code()


if __name__ == "__main__":
    sys.exit(main())
