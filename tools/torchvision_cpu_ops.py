# SPDX-License-Identifier: Apache-2.0
"""Lets the CUDA build of torchvision be imported beside a CPU build of torch.

PyPI's torchvision is a CUDA build. Next to `torch+cpu` its native library does not load, and `import torchvision`
ends with "operator torchvision::nms does not exist", which also breaks lightning, peft and torchmetrics. The Python
part (transforms, image and video processors) needs none of the native operators; it only has to find the two names
for which it registers shape functions. This module declares them, without an implementation, at the moment
torchvision asks for them. Calling `nms` itself still fails, as it must.

`tools/setup_env.py` copies this file into site-packages and adds a `.pth` file that imports it, so that every
interpreter of the environment has it, spawned workers included. It therefore imports nothing but `sys` at start.
"""

from __future__ import annotations

import sys

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


class _DeclareOperators:
    """A finder that finds nothing: it acts just before torchvision registers its shape functions."""

    def __init__(self) -> None:
        self.library: object = None  # the declarations live as long as this reference

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name != "torchvision._meta_registrations" or self.library is not None:
            return
        import torch
        from torchvision.extension import _has_ops

        if _has_ops():  # a torchvision that matches its torch: nothing to repair
            return
        library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
        for operator in ("nms", "qnms"):
            library.define(operator + _SCHEMA)  # type: ignore[no-untyped-call]
        self.library = library


if not any(type(finder).__name__ == "_DeclareOperators" for finder in sys.meta_path):
    sys.meta_path.insert(0, _DeclareOperators())
