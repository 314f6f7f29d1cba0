# SPDX-License-Identifier: Apache-2.0
"""The check of an export passes where the written folder answers as the policy, and fails for each way it may not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import Linear as LoraLinear
from safetensors.torch import load_file, save_file
from torch import Tensor

from medvlt.data.encoder import PromptEncoder
from medvlt.errors import ConfigurationError
from medvlt.models import export as exporting
from medvlt.models.checkpoints import backbone_record
from medvlt.models.export import export, verify
from medvlt.models.loading import Backbone, LoRA, load_backbone
from medvlt.models.policy import Policy
from medvlt.models.quantization import dequantized
from medvlt.models.verify_export import (
    Answer,
    Comparison,
    VerificationError,
    _compare,
    _said,
    answers,
    check_transformers,
    check_vllm,
    load_adapter,
    questions,
    tolerance,
)
from medvlt.rollout import vllm as engine_module
from medvlt.types import Completion, RolloutGroup

EVERYWHERE = LoRA(rank=2, components=("vision", "projector", "language"))


@dataclass(frozen=True)
class Exported:
    """A checkpoint, what was written of it, and what its policy answers."""

    checkpoint: Path
    folder: Path
    policy: Policy
    encoder: PromptEncoder
    expected: list[Answer]


@pytest.fixture(scope="module")
def exported(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Adapters everywhere that do something, on a bfloat16 base, as a run would keep them."""
    place = tmp_path_factory.mktemp("exported")
    backbone = Backbone(str(tiny_folder), dtype="bfloat16", lora=EVERYWHERE)
    policy = Policy(load_backbone(backbone))
    generator = torch.Generator().manual_seed(3)
    for name, parameter in policy.named_parameters():
        if "lora_" in name:
            parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    adapters = {f"policy.{name}": p for name, p in policy.state_dict().items() if "lora_" in name}
    record = {"adapters_only": True}
    torch.save(
        {"state_dict": adapters, "backbone": backbone_record(backbone), "global_step": 7, "medvlt": record},
        place / "a.ckpt",
    )
    export(place / "a.ckpt", place / "model")
    policy.float()
    encoder = PromptEncoder(str(tiny_folder))
    return Exported(place / "a.ckpt", place / "model", policy, encoder, answers(policy, encoder))


@pytest.fixture
def copy(exported: Exported, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported.folder, tmp_path / "copy"))


def check(exported: Exported, folder: Path) -> list[str]:
    return verify(folder, exported.expected, exported.encoder, "transformers", torch.float32, torch.float32)


def test_one_question_is_text_and_one_has_a_picture() -> None:
    assert [len(sample.images) for sample in questions()] == [0, 1]


def test_the_policy_answers_with_its_adapters(exported: Exported) -> None:
    """The answers are those of the adapted policy, computed in another way, and not of its base."""
    with exported.policy.backbone.disable_adapter():
        base = answers(exported.policy, exported.encoder)
    for answer, without in zip(exported.expected, base, strict=True):
        assert not torch.equal(answer.token_ids, without.token_ids)
        assert (answer.behind >= 0).all()  # greedy
        assert (answer.logprobs <= 0).all()


def test_what_was_written_agrees(exported: Exported) -> None:
    (line,) = check(exported, exported.folder)
    assert "transformers answers 2 prompts as the policy does: same greedy text" in line


def change_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][:, 7] *= 1.5
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def change_vision(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["visual.merger.mlp.0.weight"][:8] = 0.0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def swap_tokens(folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["e"], vocabulary["t"] = vocabulary["t"], vocabulary["e"]
    (folder / "tokenizer.json").write_text(json.dumps(content))


def change_template(folder: Path) -> None:
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text(template.replace("helpful assistant", "helpful assistent"))


def change_picture_settings(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = json.loads((folder / "preprocessor_config.json").read_text())
        (folder / "preprocessor_config.json").write_text(json.dumps(content | changes))

    return change


def cut_weights(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("corrupt", "message"),
    [
        (
            change_weight,
            r"transformers: log-probabilities of the answer to the prompt of text .* differ .* by 0\.\d+ on",
        ),
        (change_vision, r"transformers: log-probabilities of the answer to the prompt with a picture"),
        (swap_tokens, r"the prompt of text \(.*\) has other tokens"),
        (change_template, r"the prompt of text \(.*\) has other tokens"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "the written folder makes no prompts|has other tokens"),
        (change_picture_settings(size={"shortest_edge": 3136, "longest_edge": 50176}), "the picture settings .* size"),
        (change_picture_settings(image_mean=[0.0, 0.0, 0.0]), "the prompt with a picture .* has other pixels"),
        (cut_weights, "transformers cannot load the written folder"),
        (lambda folder: (folder / "config.json").unlink(), "transformers cannot load the written folder"),
    ],
)
def test_a_corrupted_folder_is_found(
    corrupt: Callable[[Path], None], message: str, exported: Exported, copy: Path
) -> None:
    corrupt(copy)
    with pytest.raises(VerificationError, match=message):
        check(exported, copy)


def test_a_failing_check_leaves_nothing(exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Adapters merged with half of their weight: the folder is whole and loads, and is not the policy."""
    merged = exporting.merged_weights

    def halved(policy: Policy, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        for module in policy.modules():
            if isinstance(module, LoraLinear):
                module.scaling["default"] /= 2
        return merged(policy, dtype)

    monkeypatch.setattr(exporting, "merged_weights", halved)
    with pytest.raises(VerificationError, match=r"log-probabilities of the answer to the prompt of text"):
        export(exported.checkpoint, tmp_path / "model")
    assert not list(tmp_path.iterdir())
    export(exported.checkpoint, tmp_path / "model", check="none")  # nobody asked
    assert (tmp_path / "model" / "model.safetensors").is_file()


def test_adapters_alone(
    exported: Exported, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """peft loads them on the base, and the check sees it when they are not the policy's."""
    export(exported.checkpoint, tmp_path / "adapter", adapter=True)
    assert "transformers answers 2 prompts" in capsys.readouterr().out
    folder = tmp_path / "adapter"
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md", "tokenizer.json"} <= {
        path.name for path in folder.iterdir()
    }
    assert not list(folder.glob("model*"))
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["r"], config["lora_alpha"]) == (str(tiny_folder), 2, 32)
    load = partial(load_adapter, folder, Backbone(str(tiny_folder), dtype="bfloat16"), torch.float32)
    theirs = PromptEncoder(str(folder))
    check_transformers(load(), exported.expected, theirs, bound=1e-4)
    weights = load_file(folder / "adapter_model.safetensors")
    some = next(name for name in weights if "lora_B" in name)
    save_file(weights | {some: -weights[some]}, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(VerificationError, match="log-probabilities"):
        check_transformers(load(), exported.expected, theirs, bound=1e-4)
    with pytest.raises(ConfigurationError, match="check='both' asks vLLM"):
        export(exported.checkpoint, tmp_path / "other", adapter=True, check="both")


def test_the_tolerance_follows_the_coarser_side() -> None:
    assert tolerance(torch.float32, torch.float32) == 1e-4
    assert tolerance(torch.float32, torch.bfloat16) == tolerance(torch.bfloat16, torch.bfloat16) == 0.05


@pytest.mark.parametrize(
    ("margin", "difference", "theirs", "message"),
    [
        (0.01, 0.0, [5, 9, 9], None),
        (0.5, 0.0, [5, 9, 9], "is .* in place of .*, other from token 2 on"),
        (0.01, 0.0, [5, 8, 9], "other from token 2 on"),  # not one it is tied with
        (0.01, 0.0, [5], "other from token 2 on"),
        (0.01, 0.0, [], "other from token 1 on"),
        (0.01, 0.2, [5, 9, 9], "differ"),
        (0.01, float("nan"), [5, 9, 9], "differ"),
    ],
)
def test_only_near_ties_may_change_places(
    margin: float, difference: float, theirs: list[int], message: str | None, exported: Exported
) -> None:
    answer = replace(
        exported.expected[0],
        token_ids=torch.tensor([5, 6, 7]),
        logprobs=torch.tensor([-1.0, -1.0, -1.0]),
        behind=torch.full((3, 10), 0.5).index_fill(1, torch.tensor([9]), margin),
    )
    ids = torch.tensor(theirs, dtype=torch.long)
    arguments: Any = ("transformers", answer, ids, answer.logprobs + difference, exported.encoder, 0.05)
    if message is None:
        assert _compare(*arguments) == Comparison(0.0, shared=1, same=False)
    else:
        with pytest.raises(VerificationError, match=message):
            _compare(*arguments)


def test_what_is_said_is_what_was_found() -> None:
    same, tied, nothing = Comparison(1e-6, 9, True), Comparison(1e-5, 3, False), Comparison(0.0, 0, False)
    assert "2 prompts as the policy does: same greedy text, log" in _said("it", [same, same], 1e-4)
    assert "same greedy text but in 1, from a near tie" in _said("it", [same, tied], 1e-4)
    with pytest.raises(VerificationError, match="none can be compared"):
        _said("it", [nothing, nothing], 1e-4)


def test_a_failed_completion_is_no_answer(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where its tokens are the right ones."""
    Recorded.groups = []
    for answer in exported.expected:
        ids, logprobs = tuple(answer.token_ids.tolist()), tuple(answer.logprobs.tolist())
        lost = Completion(ids, "", logprobs, "error", error="lost")
        Recorded.groups.append(RolloutGroup(answer.sample, tuple(answer.prompt.token_ids.tolist()), (lost,)))
    monkeypatch.setattr(engine_module, "VLLMEngine", Recorded)
    with pytest.raises(VerificationError, match=r"vLLM does not answer the prompt of text \(.*\): lost"):
        check_vllm(exported.expected, exported.encoder, bound=1e-4, dtype=torch.float32)


def test_adapters_on_four_bits(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Merged in float32 with what the forward computed with; alone on a base that is in four bits again."""
    pytest.importorskip("bitsandbytes")
    backbone = Backbone(str(tiny_folder), dtype="bfloat16", quantization="nf4", lora=LoRA(rank=2))
    policy = Policy(load_backbone(backbone))
    generator = torch.Generator().manual_seed(3)
    adapters: dict[str, Tensor] = {}
    for name, parameter in policy.named_parameters():
        if "lora_" in name:
            parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
            adapters[f"policy.{name}"] = parameter.detach()
    stored = {"state_dict": adapters, "backbone": backbone_record(backbone), "global_step": 7}
    torch.save(stored | {"medvlt": {"adapters_only": True}}, tmp_path / "a.ckpt")
    export(tmp_path / "a.ckpt", tmp_path / "model")
    export(tmp_path / "a.ckpt", tmp_path / "adapter", adapter=True)
    assert capsys.readouterr().out.count("transformers answers 2 prompts as the policy does") == 2
    written = load_file(tmp_path / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in written.values()} == {torch.float32}
    name = "model.language_model.layers.1.mlp.gate_proj"
    layer = policy.base.get_submodule(name)
    low = dequantized(layer.base_layer.weight)
    up, down = (side["default"].weight for side in (layer.lora_B, layer.lora_A))
    expected = low.double() + LoRA.alpha / 2 * (up.double() @ down.double())
    found = written[f"{name.replace('model.language_model', 'model')}.weight"]
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)  # bfloat16 would be off by 2e-3
    assert "weights of the language model come from nf4 ones" in (tmp_path / "model" / "README.md").read_text()
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert "trained on a base in nf4" in card
    assert "could not be compared" in card  # the checkpoint has no fingerprint
    names: dict[str, Any] = {}
    lines = (
        card.split("```python\n")[1]
        .split("processor =")[0]
        .replace('folder = "."', f"folder = {str(tmp_path / 'adapter')!r}")
    )
    exec(lines, names)
    theirs = names["model"].get_submodule(f"base_model.model.{name}").base_layer.weight
    assert torch.equal(theirs, layer.base_layer.weight)
    assert torch.equal(dequantized(theirs), low)


class Recorded:
    """An engine that says again what vLLM said."""

    groups: list[RolloutGroup]

    def __init__(self, **_: Any) -> None: ...
    def start(self, *_: Any) -> None: ...
    def close(self) -> None: ...
    def generate(self, *_: Any, **__: Any) -> list[RolloutGroup]:
        return self.groups


@pytest.fixture
def no_cache_size_of_the_user() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        yield


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.usefixtures("no_cache_size_of_the_user")
def test_vllm_answers_as_the_policy_does(
    exported: Exported, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """One start: what it samples for the right policy is then compared with others."""
    pytest.importorskip("vllm", reason="vLLM is not installed", exc_type=ImportError)
    sampled: list[list[RolloutGroup]] = []
    generate = engine_module.VLLMEngine.generate
    monkeypatch.setattr(
        engine_module.VLLMEngine, "generate", lambda *args, **kw: sampled.append(generate(*args, **kw)) or sampled[-1]
    )
    export(exported.checkpoint, tmp_path / "model", check="both")
    printed = capsys.readouterr().out
    assert "transformers answers 2 prompts as the policy does" in printed
    assert "vLLM answers 2 prompts as the policy does" in printed
    (Recorded.groups,) = sampled
    monkeypatch.setattr(engine_module, "VLLMEngine", Recorded)
    written = replace(exported.encoder, model=str(tmp_path / "model"))
    again: dict[str, Any] = {"bound": 1e-4, "dtype": torch.float32}
    check_vllm(exported.expected, written, **again)
    base = answers(Policy(load_backbone(Backbone(str(tiny_folder)))), exported.encoder)
    with pytest.raises(VerificationError, match="vLLM: the greedy answer to the prompt of text"):
        check_vllm(base, written, **again)
    shifted = [replace(answer, logprobs=answer.logprobs - 0.01) for answer in exported.expected]
    with pytest.raises(VerificationError, match=r"vLLM: log-probabilities .* differ from the policy's by 0\.01 on"):
        check_vllm(shifted, written, **again)
