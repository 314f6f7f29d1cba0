# SPDX-License-Identifier: Apache-2.0
"""torch's older FSDP on a CPU, which it refuses: it misses streams and events there, and copies to main memory.

Gloo and CPU tensors need neither. This tests our use of FSDP1; how it behaves on GPUs is in `tests/gpu`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch.distributed.fsdp import _optim_utils, fully_sharded_data_parallel
from torch.distributed.fsdp._flat_param import FlatParamHandle

from lightning_modules import FSDP1Strategy


class CPUFSDP1Strategy(FSDP1Strategy):
    """Ours without its refusal of CPUs. Only for processes that end with the test: it changes torch."""

    def setup_environment(self) -> None:
        stand_in()
        super(FSDP1Strategy, self).setup_environment()


class Immediate:
    """A stream, or an event: everything on a CPU is done when a call returns."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        if name in ("wait_stream", "wait_event", "record", "record_event", "synchronize", "wait"):
            return Immediate
        raise AttributeError(name)


class Handle:
    """What torch asks of an accelerator."""

    Event = Stream = Immediate

    def current_stream(self, *args: Any) -> Immediate:
        return Immediate()

    def stream(self, stream: Any) -> AbstractContextManager[None]:
        return nullcontext()

    def current_device(self) -> str:
        return "cpu"

    def device_count(self) -> int:
        return 1

    def is_available(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass


@cache
def stand_in() -> None:
    """Gives torch the handle, and copies where its `.cpu()` makes none because the tensor is there already."""

    def init_device_handle(state: Any, module: Any, ignored_params: Any, device_id: Any) -> Any:
        state._device_handle = Handle()
        return state

    unflatten = _optim_utils._unflatten_orig_param_states

    def unflatten_a_copy(info: Any, states: dict[str, Any], name: str, *rest: Any) -> None:
        unflatten(info, states, name, *rest)
        for state in states.values():
            if type(state.get(name)) is torch.Tensor:
                state[name] = state[name].clone()  # the next state is gathered into the same memory

    fully_sharded_data_parallel._init_device_handle = init_device_handle
    FlatParamHandle.to_cpu = lambda self: nullcontext()  # frees the original after the copy
    _optim_utils._unflatten_orig_param_states = unflatten_a_copy
