"""A process that trains under ZeRO 1 and 3 without torch's compiler, and then compiles after all: `python -m tests.training.compilerless`."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import torch
from torch import nn

from hyena_ds.config.schema import OptimizerConfig
from hyena_ds.config.survival import WatchdogConfig
from hyena_ds.parallel.devices import start_compute
from hyena_ds.training.engine import build_engine


class Layer(nn.Linear):
    def groups(self, weight_decay: float) -> list[dict[str, object]]:
        return [{"params": list(self.parameters()), "weight_decay": weight_decay}]


def main() -> None:
    start_compute()
    for stage in (1, 3):
        others = {"optimizer": OptimizerConfig(), "watchdog": WatchdogConfig()}
        others |= dict.fromkeys(("offload_optimizer", "offload_param"))
        config = SimpleNamespace(cuda_graphs=False, deepspeed_log=False, zero_stage=stage, **others)
        engine = build_engine(config, Layer(4, 4), 1)
        engine.backward(engine(torch.ones(1, 4)).sum())
        engine.step()
        engine.destroy()
    print("trained", "torch._dynamo" in sys.modules, "torch._inductor" in sys.modules)
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()
    doubled = torch.compile(lambda x: 2 * x, backend=counter)(torch.ones(3))
    print("compiled", doubled.tolist(), counter.frame_count, torch._dynamo.is_compiling())


if __name__ == "__main__":
    main()
