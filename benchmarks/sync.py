# SPDX-License-Identifier: Apache-2.0
"""Seconds and bytes per second of sending the policy's weights to vLLM, against a plain copy of the same bytes.

    python benchmarks/sync.py [--vocabulary 150016] [--hidden 256] [--layers 8] [--rounds 7]
                              [--cases full lora fsdp2 fsdp2-lora] [--device cpu]

Each case runs in processes of its own: one with the whole policy, or two with a policy sharded by FSDP2 (gloo, or
NCCL on two GPUs), with or without adapters that are merged on the way. In every round, one after the other:

- `sync`: `hub_weights` into `VLLMEngine.load_weights`, what an iteration of RL pays;
- `gather`: `hub_weights` alone, its tensors dropped;
- `vllm`: vLLM's own `reload_weights` from whole tensors that lie ready, nothing checked and no cache cleared: the least
  that any trainer pays which hands weights to vLLM in the process;
- `copy`: `tensor.copy_` of every tensor into memory that is there already, the least that a second copy costs;
- `fresh`: `tensor.clone` of every tensor, a copy into memory that the system has to hand out first.

The first round is left out; the rest are medians, of the slowest rank each time, and ratios are taken inside a
round. Bytes are those of the tensors sent.
"""

from __future__ import annotations

import argparse
import os
import platform
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from transformers import Qwen2_5_VLForConditionalGeneration

from medvlt.data.encoder import PromptEncoder
from medvlt.distributed import gather
from medvlt.models.loading import Backbone, LoRA, load_backbone
from medvlt.models.policy import Policy
from medvlt.models.sharding import shard
from medvlt.models.tiny import TinySize, build_tiny
from medvlt.rollout.vllm import VLLMEngine
from medvlt.rollout.vllm_process import isolated
from medvlt.rollout.weights import hub_weights

CASES = {"full": (1, False), "lora": (1, True), "fsdp2": (2, False), "fsdp2-lora": (2, True)}
"""Name to (processes, adapters)."""

STEPS = ("sync", "gather", "vllm", "copy", "fresh")
PARTS = (("copy",), ("fresh",), ("gather", "vllm"))
"""What a sync is compared with, in the same round."""


def build_model(args: argparse.Namespace, folder: Path) -> Path:
    """Writes a random model with a vocabulary of the real size, most of its weights."""
    size = TinySize(hidden_size=args.hidden, intermediate_size=2 * args.hidden, layers=args.layers)
    build_tiny(folder, size=size)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder)
    model.resize_token_embeddings(args.vocabulary)
    model.save_pretrained(folder)
    return folder


def build_policy(folder: Path, device: torch.device, *, ranks: int, lora: bool) -> Policy:
    """Returns a policy with adapters that do something, sharded if there are ranks to share it."""
    adapters = LoRA(rank=16, components=("vision", "language")) if lora else None
    policy = Policy(load_backbone(Backbone(str(folder), lora=adapters))).to(device)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.01)
    if ranks == 1:
        return policy
    names = ("data_parallel", "tensor_parallel")
    return shard(policy, init_device_mesh(device.type, (ranks, 1), mesh_dim_names=names))


def seconds_of(action: Callable[[], None], device: torch.device) -> float:
    """Returns how long the slowest rank takes, from a common start."""
    gather(None)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begin = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return max(gather(time.perf_counter() - begin))


def drop(weights: Iterable[tuple[str, Tensor]]) -> None:
    """Reads to the end and keeps nothing."""
    for _ in weights:
        pass


def measure(args: argparse.Namespace, folder: Path, *, ranks: int, lora: bool) -> dict[str, Any]:
    """Runs the rounds; returns the medians and what was sent."""
    device = torch.device(args.device, torch.cuda.current_device()) if args.device == "cuda" else torch.device("cpu")
    policy = build_policy(folder, device, ranks=ranks, lora=lora)
    engine = VLLMEngine(max_model_len=512, max_images=1, kv_cache_gib=0.125, gpu_memory_utilization=0.3)
    engine.start(PromptEncoder(str(folder), template="plain"), policy)
    whole = {name: weight.clone() for name, weight in hub_weights(policy)}
    target = {name: torch.zeros_like(weight) for name, weight in whole.items()}

    def copy() -> None:
        for name, weight in whole.items():
            target[name].copy_(weight)

    def reload() -> None:
        with isolated(compile_allowed=False):
            engine._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(whole.items())})

    actions: dict[str, Callable[[], None]] = {
        "sync": lambda: engine.load_weights(hub_weights(policy), version=1),
        "gather": lambda: drop(hub_weights(policy)),
        "vllm": reload,
        "copy": copy,
        "fresh": lambda: drop((name, weight.clone()) for name, weight in whole.items()),
    }
    rounds = [{name: seconds_of(actions[name], device) for name in STEPS} for _ in range(args.rounds + 1)][1:]
    engine.close()
    return {"rounds": rounds, "bytes": sum(weight.nbytes for weight in whole.values())}


def work(rank: int, ranks: int, lora: bool, port: int, args: argparse.Namespace, folder: Path, output: Path) -> None:
    """One process of a case."""
    if args.device == "cuda":
        torch.cuda.set_device(rank)
    if ranks > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // ranks))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        backend = "cpu:gloo,cuda:nccl" if args.device == "cuda" else "gloo"
        dist.init_process_group(backend, init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks)
    result = measure(args, folder, ranks=ranks, lora=lora)
    if rank == 0:
        torch.save(result, output)
    if ranks > 1:
        dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("vocabulary", 150_016), ("hidden", 256), ("layers", 8), ("rounds", 7)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} threads, {args.device}, load "
          f"{os.getloadavg()[0]:.1f}; hidden {args.hidden}, layers {args.layers}, vocabulary {args.vocabulary:,}; "
          f"medians of {args.rounds} rounds\n")  # fmt: skip
    ratio_heads = " | ".join(f"sync / {' and '.join(parts)} (range)" for parts in PARTS)
    print(f"| case | {' | '.join(f'{name} s' for name in STEPS)} | MB | sync MB/s | copy MB/s | {ratio_heads} |")
    print("|---|" + "---|" * (len(STEPS) + 3 + len(PARTS)))
    with tempfile.TemporaryDirectory() as scratch:
        folder = build_model(args, Path(scratch) / "model")
        for case in args.cases:
            ranks, lora = CASES[case]
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            output = Path(scratch) / case
            torch.multiprocessing.spawn(work, (ranks, lora, port, args, folder, output), nprocs=ranks)
            found = torch.load(output)
            rounds, megabytes = found["rounds"], found["bytes"] / 1e6
            seconds = {name: statistics.median(row[name] for row in rounds) for name in STEPS}
            cells = [f"{case}, {ranks} process{'es' * (ranks > 1)}", *(f"{seconds[name]:.3f}" for name in STEPS)]
            cells += [f"{megabytes:,.0f}", f"{megabytes / seconds['sync']:,.0f}", f"{megabytes / seconds['copy']:,.0f}"]
            for parts in PARTS:
                ratios = [row["sync"] / sum(row[part] for part in parts) for row in rounds]
                cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
