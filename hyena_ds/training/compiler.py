"""Keeps torch's compiler, which compiles nothing here, out of the start of every rank.

    AdamW, DeepSpeed --«leave this function alone», «break the graph here»--> stand-in for torch._dynamo: nothing to do
    anything else of torch._dynamo --> the compiler is imported after all

torch.optim and DeepSpeed import it for those two requests alone, and DeepSpeed has it wrap the kernels of an optimizer that
no run has: 1.3 s of CPU time and 100 MB a rank. Other versions of torch that ask for more get the compiler itself.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

_NAME = "torch._dynamo"


class _StandIn(ModuleType):
    """What is asked of the compiler where nothing is compiled."""

    @staticmethod
    def disable(function: Any = None, recursive: bool = True, **_: Any) -> Any:
        """The function, which nobody compiles; without one, a decorator that returns it."""
        return (lambda decorated: decorated) if function is None else function

    @staticmethod
    def graph_break(message: str = "") -> None:
        """Nothing: there is no graph."""

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(_NAME) is self:
            del sys.modules[_NAME]
        return getattr(importlib.import_module(_NAME), name)


def leave_out_compiler() -> None:
    """Call before the first optimizer and engine of this process; a compiler that is here already stays."""
    from deepspeed.runtime import compiler

    sys.modules.setdefault(_NAME, _StandIn(_NAME))
    compiler.compile = lambda: compiler.dummy_decorator  # DeepSpeed's own, for a torch without a compiler
