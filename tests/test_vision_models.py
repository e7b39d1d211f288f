"""Classifiers: their sizes, who optimizes which tensor, and Muon on kernels."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from cwd import schema
from cwd.errors import UserError
from cwd.models.classifiers import build_classifier, save_classifier
from cwd.optim import Muon
from cwd.sweeps import compose_config
from cwd.training.optimizer import build_optimizer

COUNTS = {  # with 1,000 classes; Table 3 prints them in millions
    "vit_s16": (22_050_664, "22.05"),
    "vit_b16": (86_567_656, "86.57"),
    "resnet50": (25_557_032, "25.56"),
}
TINY = {"vit_23k": 23_074, "vit_116k": 115_882, "resnet_56k": 56_098}
NORM = re.compile(r"norm|bn\d|downsample\.1|conv1\.[14]\.")


def build(model: str, classes: int) -> nn.Module:
    config = compose_config(["task=vision", f"model={model}"]).model
    assert isinstance(config, schema.Timm)
    shape = {name: value for name, value in vars(config).items() if name not in ("family", "name")}
    return build_classifier(config.name, classes=classes, **shape)


@pytest.mark.parametrize("model", COUNTS)
def test_the_full_sizes_are_the_papers(model: str) -> None:
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in build(model, 1000).parameters())
    assert (count, f"{count / 1e6:.2f}") == COUNTS[model]


@pytest.mark.parametrize("model", TINY)
def test_the_tiny_ones_are_what_their_names_say(model: str) -> None:
    assert sum(parameter.numel() for parameter in build(model, 10).parameters()) == TINY[model]


@pytest.mark.parametrize("optimizer", ["adamw", "lion", "muon", "sgd"])
@pytest.mark.parametrize("model", ["vit_23k", "resnet_56k", "vit_s16", "resnet50"])
def test_who_gets_which_tensor(model: str, optimizer: str) -> None:
    """Muon: hidden matrices and kernels. AdamW: the first layer, the head, and whatever is no matrix. Decay: weights of
    linear layers and convolutions alone.
    """
    network = build(model, 10)
    config = compose_config(["task=vision", f"model={model}", f"optimizer={optimizer}"])
    built, _ = build_optimizer(config, network)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    seen = {names[id(p)]: group for group in built.param_groups for p in group["params"]}
    assert seen.keys() == set(names.values())
    for name, parameter in network.named_parameters():
        group, weight = seen[name], parameter.ndim > 1 and name not in ("pos_embed", "cls_token")
        assert weight == (name.endswith(".weight") and not NORM.search(name)), name
        assert (group["weight_decay"] > 0) == weight, name
        outer = name.startswith(("patch_embed.", "conv1.", "head.", "fc."))
        assert group["rule"] == (optimizer if optimizer != "muon" or (weight and not outer) else "adamw"), name


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("model", ["vit_23k", "resnet_56k", "vit_s16"])
def test_rates_by_layer_are_timms(model: str, optimizer: str) -> None:
    network = build(model, 10)
    expected = {id(p): group["lr_scale"] for group in param_groups_layer_decay(network) for p in group["params"]}
    words = ["task=vision", f"model={model}", f"optimizer={optimizer}", "recipe.layer_decay=0.75"]
    config = compose_config(words)
    built, _ = build_optimizer(config, network)
    found = {id(p): group for group in built.param_groups for p in group["params"]}
    assert found.keys() == expected.keys()
    for key, group in found.items():
        assert group["lr_multiple"] == pytest.approx(expected[key], rel=1e-12)
        assert group["lr"] == pytest.approx(config.optimizer.lr * expected[key], rel=1e-12)
    assert len(set(expected.values())) > 3


def test_muon_steps_a_kernel_as_the_matrix_of_its_filters() -> None:
    torch.manual_seed(0)
    kernels = [
        nn.Parameter(torch.randn(8, 3, 3, 3)),
        nn.Parameter(torch.randn(8, 3, 3, 3)),
        nn.Parameter(torch.randn(4, 8, 1, 1)),
    ]
    matrices = [nn.Parameter(kernel.detach().flatten(1).clone()) for kernel in kernels]
    for options in ({}, {"decay": "random"}, {"decay": "inner_product", "anchor": "initial"}):
        both = [Muon(params, lr=0.1, weight_decay=0.1, **options) for params in (kernels, matrices)]  # type: ignore[arg-type]
        for i in range(3):
            for kernel, matrix in zip(kernels, matrices, strict=True):
                gradient = torch.randn_like(kernel)
                matrix.grad = gradient.flatten(1).clone()
                kernel.grad = gradient.contiguous(memory_format=torch.channels_last) if i == 1 else gradient
            for one in both:
                one.step()
        for kernel, matrix in zip(kernels, matrices, strict=True):
            assert torch.equal(kernel.flatten(1), matrix)
    state = both[0].state_dict()["state"][0]["momentum_buffer"]
    assert state.shape == kernels[0].shape


def test_muon_refuses_what_is_no_kernel_in_one_piece() -> None:
    with pytest.raises(ValueError, match="a kernel must be contiguous"):
        Muon([nn.Parameter(torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last))], lr=0.1)
    with pytest.raises(ValueError, match="matrices, stacks of them, and kernels only"):
        Muon([nn.Parameter(torch.randn(4, 3, 3, 3, 3))], lr=0.1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "resnet5"}, r"model.name=resnet5: timm .* has no such model \(nearest: 'resnet50'\)"),
        ({"name": "resnet50", "embed_dim": 3}, "model.name=resnet50: timm cannot make it with embed_dim=3"),
        ({"name": "resnet50", "layers": [1, 1], "channels": [8]}, r"model.channels=\[8\]: one number for each"),
        ({"name": "vit_small_patch16_224", "embed_dim": 10, "num_heads": 3}, "timm cannot make it with embed_dim=10"),
    ],
    ids=["name", "size", "lists", "heads"],
)
def test_what_timm_cannot_make_is_one_line(given: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build_classifier(**{"classes": 10, **given})
    assert "\n" not in str(caught.value)


def test_a_saved_classifier_is_timms(tmp_path: Path) -> None:
    import timm

    torch.manual_seed(0)
    model = build("vit_23k", 7)
    save_classifier(model, tmp_path, img_size=12, patch_size=3, embed_dim=24, depth=3, num_heads=2)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    images = torch.randn(2, 3, 12, 12)
    assert torch.equal(model.eval()(images), again.eval()(images))


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "lion", "muon"])
@pytest.mark.parametrize("model", COUNTS)
def test_a_full_size_model_takes_steps(model: str, optimizer: str) -> None:
    """Forward, backward and step, twice, on two images, on the CPU; each tensor that has a gradient moves."""
    torch.manual_seed(0)
    network = build(model, 1000)
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    built, _ = build_optimizer(compose_config(["task=vision", f"model={model}", f"optimizer={optimizer}"]), network)
    images, labels, moving = torch.randn(2, 3, 224, 224), torch.tensor([3, 999]), set()
    for _ in range(2):  # a ResNet's branches begin at zero, and have no gradient before the first step
        built.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()
        moving |= {name for name, p in network.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
        built.step()
    after = dict(network.named_parameters())
    assert {name for name in before if not torch.equal(before[name], after[name])} >= moving
    assert all(parameter.isfinite().all() for parameter in after.values())
    assert len(moving) > 0.9 * len(before)
