"""Layouts are found in any library's networks, and feedback goes between all of them, place by place."""

import copy
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn
from torchvision import models

from lrm_core import LRM, Connection, Feedback, PublishedFeedback, Steer, tracking
from lrm_core.graph import Graph
from lrm_core.hooked import Calls, Hooked
from lrm_core.layouts import Layout
from lrm_core.matched import MatchedFeedback
from lrm_core.places import pooled_map
from lrm_core.shadow import shadow
from lrm_core.tracking import layouts
from lrm_core.weights import _written

VALUES = {"channels": "values", "anywhere": True}


def timm(name, **arguments):
    return lambda: pytest.importorskip("timm").create_model(name, num_classes=5, **arguments)


def hugging_face(kind, layers=2):
    def build():
        transformers = pytest.importorskip("transformers")
        small = {"hidden_size": 16, "num_hidden_layers": layers, "num_attention_heads": 2, "intermediate_size": 32}
        config = getattr(transformers, f"{kind}Config")(image_size=64, patch_size=16, num_labels=5, **small)
        return getattr(transformers, f"{kind}ForImageClassification")(config)

    return build


def open_clip():
    transformer = pytest.importorskip("open_clip.transformer")
    return nn.Sequential(transformer.VisionTransformer(64, 16, 32, 2, 2, 2.0, output_dim=8), nn.Linear(8, 5))


def torchvision_vit():
    return models.VisionTransformer(64, 16, 2, 2, 32, 64, num_classes=5)


class Network(nn.Module):
    """Its blocks run on maps with channels last. Channels, rows and columns are equally many."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8)
        self.up, self.act, self.down = nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8)
        self.late, self.late_act, self.head = nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.down(self.act(self.up(self.norm(x.permute(0, 2, 3, 1))))).permute(0, 3, 1, 2)
        return self.head(self.late_act(self.late(x)).mean((2, 3)))


# name: network, side of the image, destination, its layout, its channels, a late source, its layout, another image
NETWORKS = {
    "timm vit": (
        timm("vit_tiny_patch16_224", img_size=64, depth=2, dynamic_img_size=True), 64,
        "blocks.0.mlp.fc1", "1+4x4 c", 768, "blocks.1.mlp", "1+4x4 c", (64, 96),
    ),
    "timm vit of registers": (
        timm("vit_tiny_patch16_224", img_size=64, depth=2, reg_tokens=4, dynamic_img_size=True), 64,
        "blocks.0.mlp.fc1", "5+4x4 c", 768, "norm", "5+4x4 c", (96, 64),
    ),
    "timm deit": (
        timm("deit_tiny_distilled_patch16_224", img_size=64, depth=2), 64,
        "blocks.0.mlp.fc1", "2+4x4 c", 768, "blocks.1.mlp", "2+4x4 c", None,
    ),
    "timm deit3": (
        timm("deit3_small_patch16_224", img_size=64, depth=2), 64,
        "blocks.0.mlp.fc1", "1+4x4 c", 1536, "norm", "1+4x4 c", None,
    ),
    "timm eva02": (
        timm("eva02_tiny_patch14_224", img_size=56, depth=2), 56,
        "blocks.0.mlp", "1+4x4 c", 512, "blocks.1.mlp", "1+4x4 c", None,
    ),
    "timm swin": (
        timm("swin_tiny_patch4_window7_224", img_size=56, depths=(1, 1, 1, 1)), 56,
        "layers.2.blocks.0.mlp.fc1", "0+4x4 c", 1536, "norm", "h w c", None,
    ),
    "timm convnext": (
        timm("convnext_tiny", depths=(1, 1, 1, 1)), 64,
        "stages.2.blocks.0.mlp.fc1", "h w c", 1536, "stages.3", "c h w", (64, 96),
    ),
    "timm mixer": (
        timm("mixer_s32_224", img_size=64), 64,
        "blocks.0.mlp_channels.fc1", "0+2x2 c", 2048, "blocks.1.mlp_channels", "0+2x2 c", None,
    ),
    "torchvision vit": (
        torchvision_vit, 64,
        "encoder.layers.encoder_layer_0.mlp.0", "1+4x4 c", 64, "encoder.layers.encoder_layer_1.mlp", "1+4x4 c", None,
    ),
    "torchvision swin": (
        lambda: models.swin_transformer.SwinTransformer([4, 4], 24, [1, 1, 1], [1, 2, 4], [2, 2], num_classes=5), 64,
        "features.3.0.mlp.0", "h w c", 192, "features.5.0.mlp", "h w c", (64, 96),
    ),
    "torchvision convnext": (
        lambda: models.ConvNeXt(
            [models.convnext.CNBlockConfig(16, 32, 1), models.convnext.CNBlockConfig(32, None, 1)], num_classes=5
        ), 64,
        "features.1.0.block.3", "h w c", 64, "features.3", "c h w", (64, 96),
    ),
    "hugging face vit": (
        hugging_face("ViT"), 64, "vit.layers.0.mlp.fc1", "1+4x4 c", 32, "vit.layernorm", "1+4x4 c", None,
    ),
    "hugging face deit": (
        hugging_face("DeiT"), 64, "deit.layers.0.mlp.fc1", "2+4x4 c", 32, "deit.layernorm", "2+4x4 c", None,
    ),
    "open clip": (
        open_clip, 64,
        "0.transformer.resblocks.0.mlp.c_fc", "1+4x4 c", 64, "0.transformer.resblocks.1.mlp", "1+4x4 c", None,
    ),
    "equally many channels, rows and columns": (Network, 32, "up", "h w c", 8, "late", "c h w", (32, 48)),
    "torchvision shufflenet": (
        lambda: models.shufflenet_v2_x0_5(num_classes=5), 64,
        "stage3.0.branch2.1", "c h w", 48, "stage4", "c h w", (64, 96),
    ),
    "torchvision resnet": (
        lambda: models.resnet18(num_classes=5), 64, "layer3.0.bn1", "c h w", 256, "layer4", "c h w", (64, 96),
    ),
}  # fmt: skip
OTHER_SIZES = [name for name, case in NETWORKS.items() if case[-1] is not None]


def network(name):
    torch.manual_seed(0)
    net = NETWORKS[name][0]().eval()
    with torch.no_grad():  # some classifiers are 0 at first
        for module in net.modules():
            if isinstance(module, nn.Linear) and not module.weight.any():
                module.weight.normal_(0, 0.1)
    return net


def classifier(net):
    return [name for name, module in net.named_modules() if isinstance(module, nn.Linear)][-1]


def model_of(name, net=None):
    net = net or network(name)
    _, side, destination, _, _, source, _, _ = NETWORKS[name]
    model = LRM(net, [Connection(source, destination), Connection(classifier(net), destination)], side, rule="rectify")
    with torch.no_grad():
        for path in model.paths.values():
            path.projection.weight.normal_(0, 1.0)
    return model.eval()


@pytest.fixture
def no_graph(monkeypatch):
    def refuse(*args):
        raise ValueError("not now")

    monkeypatch.setattr(Graph, "of", refuse)
    return monkeypatch


def as_places(value, text):
    """(prefix tokens, map) of an activation, by a reading of the layout's text."""
    if text == "c h w":
        return value[:, :, :0, 0].mT, value
    if text == "h w c":
        return value[:, 0, :0], value.permute(0, 3, 1, 2)
    prefix, rows, columns = map(int, text.removesuffix(" c").replace("x", "+").split("+"))
    assert value.shape[1] == prefix + rows * columns
    return value[:, :prefix], value[:, prefix:].mT.unflatten(2, (rows, columns))


def from_places(firsts, maps, text):
    if text == "c h w":
        return maps
    if text == "h w c":
        return maps.permute(0, 2, 3, 1)
    return torch.cat([firsts, maps.flatten(2).mT], 1)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_layouts_of_a_network_are_known_and_the_projection_has_its_channels(name):
    _, _, _, text, channels, source, source_text, _ = NETWORKS[name]
    model = model_of(name)
    one, other = (model.paths[c.key] for c in model.connections)
    assert (one.source.text, one.destination.text, other.destination.text) == (source_text, text, text)
    assert one.projection.out_features == other.projection.out_features == channels
    assert model.layouts[source] == one.source
    assert model.activation_shapes[source] == one.source.shape
    assert other.source == Layout("vector", (5,))
    fresh = LRM(network(name), model.connections, NETWORKS[name][1], rule="rectify")
    fresh.load_state_dict(model.state_dict())
    assert pickle.loads(pickle.dumps(model.layouts)) == copy.deepcopy(model).layouts == fresh.layouts


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in ("timm eva02",)])
def test_hooks_find_the_same_layouts_as_the_graph(name, no_graph):
    _, _, _, text, _, _, source_text, _ = NETWORKS[name]
    model = model_of(name)
    assert isinstance(model._reading().way, Hooked)
    path = model.paths[model.connections[0].key]
    assert (path.source.text, path.destination.text) == (source_text, text)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_second_pass_is_that_of_an_independent_reference(name):
    """Norm, tanh, projection and resizing on a plain map, which is put into the order of the destination by hand."""
    _, side, destination, text, _, source, source_text, _ = NETWORKS[name]
    model = model_of(name)
    path = model.paths[model.connections[0].key]
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(3))
    off = Steer(model.connections[1].source, torch.zeros(1, 5), 0.0)
    with torch.no_grad():
        stem = model.stem(images)
        _, state = model.step(stem)
        own = state.activations[source]
        step = model.destinations[destination]
        before, after = (model.inspect(stem, each, [off], [step])[1][step] for each in (None, state))
        firsts, maps = as_places(own, source_text)
        if source_text in ("c h w", "h w c"):  # one mean and variance
            flat = maps.flatten(1)
            maps = ((flat - flat.mean(1, True)) / (flat.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()).view_as(
                maps
            )
        else:
            firsts, maps = (
                F.layer_norm(v.movedim(a, -1), v.shape[a : a + 1]).movedim(-1, a) for v, a in ((firsts, 2), (maps, 1))
            )
        firsts, maps = (
            firsts.tanh() @ path.projection.weight.T,
            torch.einsum("bchw,oc->bohw", maps.tanh(), path.projection.weight),
        )
        size = as_places(before, text)[1].shape[2:]
        factor = from_places(firsts, F.interpolate(maps, size=size, mode="bilinear"), text)
    assert factor.shape == before.shape
    torch.testing.assert_close(after, before * (1 + factor).clamp(min=0), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(after, before)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_goal_that_marks_one_place_acts_at_this_place_only(name):
    _, side, destination, text, _, source, source_text, _ = NETWORKS[name]
    model = model_of(name)
    path = model.paths[model.connections[0].key]
    path.norm = nn.Identity()  # a norm over a whole map would tell all places
    goal = torch.zeros(1, *path.source.shape)
    _, maps = as_places(goal, source_text)  # a view
    row, column = maps.shape[2] - 1, 1
    maps[:, :, row, column] = 1.0
    assert goal.any()
    with torch.no_grad():
        step = model.destinations[destination]
        goals = [Steer(source, goal), Steer(model.connections[1].source, torch.zeros(1, 5), 0.0)]
        change = model.inspect(model.stem(torch.randn(1, 3, side, side)), None, goals, [step])[2][destination]
    firsts, changed = as_places(change, text)
    assert not firsts.any()
    size = changed.shape[2:]
    marked = torch.zeros(1, 1, *maps.shape[2:])
    marked[..., row, column] = 1
    reached = F.interpolate(marked, size=size, mode="bilinear")[0, 0] > 0
    assert torch.equal(changed[0].abs().sum(0) > 0, reached)
    assert not reached.all()


@pytest.mark.parametrize(
    "name", [name for name, case in NETWORKS.items() if case[3][0] in "125" and case[6][0] in "125"]
)
def test_a_goal_at_a_prefix_token_acts_at_this_prefix_token_only(name):
    text, model = NETWORKS[name][3], model_of(name)
    path = model.paths[model.connections[0].key]
    for token in range(path.source.prefix):
        goal = torch.zeros(1, *path.source.shape)
        goal[:, token] = torch.randn(path.source.channels)
        with torch.no_grad():
            factor = path(goal, torch.zeros(1, *path.destination.shape))
        firsts, maps = as_places(factor, text)
        assert not maps.any()
        assert firsts[0].abs().sum(1).nonzero().flatten().tolist() == [token]


@pytest.mark.parametrize("name", OTHER_SIZES)
def test_another_image_size_runs(name):
    _, side, destination, _, _, _, _, size = NETWORKS[name]
    model = model_of(name)
    for shape in (size, size[::-1], (side, side)):
        images = torch.randn(2, 3, *shape)
        with torch.no_grad():
            outputs = model.rollout(images)
            bare = model.backbone(images)
            change = model.inspect(model.stem(images), model(images)[1])[2][destination]
        torch.testing.assert_close(outputs[0], bare)
        assert not torch.equal(outputs[1], outputs[0])
        assert change.flatten(1).any()


DEEP = {
    "timm vit": timm("vit_tiny_patch16_224", img_size=64, depth=4),
    "timm swin": timm("swin_tiny_patch4_window7_224", img_size=56, depths=(1, 1, 1, 1)),
    "torchvision vit": lambda: models.VisionTransformer(56, 14, 4, 2, 32, 64, num_classes=5),
    "torchvision convnext": NETWORKS["torchvision convnext"][0],
    "hugging face vit": hugging_face("ViT", 4),
}
EXPECTED = {
    "timm vit": ["blocks.2.mlp.fc1", "blocks.3.mlp.fc1", "blocks.1.mlp.fc1"],
    "timm swin": ["layers.2.blocks.0.mlp.fc1", "layers.3.blocks.0.mlp.fc1", "layers.1.blocks.0.mlp.fc1"],
    "torchvision vit": [f"encoder.layers.encoder_layer_{index}.mlp.0" for index in (2, 3, 1)],
    "torchvision convnext": ["features.1.0.block.3", "features.3.0.block.3", "features.1.0.block.3"],
    "hugging face vit": [f"vit.layers.{index}.mlp.fc1" for index in (2, 3, 1)],
}


@pytest.mark.parametrize("name", DEEP)
def test_wrap_proposes_pre_activations_of_mlps_with_their_layouts(name):
    torch.manual_seed(0)
    net, side = DEEP[name]().eval(), 64 if name in ("timm vit", "torchvision convnext", "hugging face vit") else 56
    model = LRM.wrap(net, side, print=False).eval()
    assert [c.destination for c in model.connections] == EXPECTED[name]
    first, second, third = (model.paths[c.key] for c in model.connections)
    assert first.source.kind == second.source.kind == "vector"
    assert {first.destination.kind, second.destination.kind} <= {"tokens", "channels_last"}
    assert all(path.destination.places is not None for path in (first, second, third))
    assert third.source.places is not None
    images = torch.randn(1, 3, side, side)
    with torch.no_grad():
        output = model.rollout(images)[1]
        bare = net(images)
    torch.testing.assert_close(*(getattr(each, "logits", each) for each in (output, bare)))


@pytest.mark.parametrize(
    "name", ["timm vit", "timm deit", "torchvision vit", "open clip", "timm swin", "torchvision convnext"]
)
def test_what_an_image_shows_at_a_place_is_found_at_this_place(name):
    """The found layouts against the network itself: one patch of the image changes one place behind the patch layer."""
    net = network(name)
    step = {
        "timm vit": "patch_embed", "timm deit": "blocks.0.norm1",
        "torchvision vit": "encoder.layers.encoder_layer_0.ln_1",
        "open clip": "0.ln_pre", "timm swin": "layers.0.blocks.0.norm1", "torchvision convnext": "features.0.0",
    }[name]  # fmt: skip
    side = NETWORKS[name][1]
    steps = Calls.of(shadow(net), torch.randn(1, 3, side, side))
    layout = layouts(steps, net, torch.randn(1, 3, side, side))[step].layout
    seen = []
    handle = net.get_submodule(step).register_forward_hook(lambda module, inputs, output: seen.append(output.clone()))
    rows, columns = layout.places
    images = torch.zeros(2, 3, side, side)
    height, width = side // rows, side // columns
    images[1, :, height * 1 : height * 2, width * (columns - 1) :] = torch.randn(3, height, width)
    with torch.no_grad():
        net(images)
    handle.remove()
    firsts, maps = as_places(seen[0][1:] - seen[0][:1], layout.text)
    assert not firsts.any()
    assert maps[0].abs().sum(0).nonzero().tolist() == [[1, columns - 1]]


# Where feedback may not go


@pytest.mark.parametrize("hooked", [False, True])
@pytest.mark.parametrize(
    ("name", "destination"),
    [
        ("timm vit", "blocks.0"), ("timm vit", "blocks.1"), ("torchvision vit", "encoder.layers.encoder_layer_0"),
        ("timm swin", "layers.3"), ("hugging face vit", "vit.layers.0"), ("open clip", "0.transformer.resblocks.1"),
        ("timm convnext", "stages.2.blocks.0.conv_dw"),
    ],
)  # fmt: skip
def test_the_residual_stream_is_refused(name, destination, hooked, request):
    if hooked:
        request.getfixturevalue("no_graph")
    net, side = network(name), NETWORKS[name][1]
    connections = [Connection(classifier(net), destination, anywhere=True)]
    with pytest.raises(ValueError, match=rf"^destination '{destination}'.* residual stream that LayerNorms read"):
        LRM(net, connections, side)
    LRM(net, connections, side, rule="add")  # what is added is not undone


def test_a_gain_that_a_layernorm_undoes_is_what_is_refused():
    """The reason of the refusal: 1e-5 of a gain common to all channels of a token is left behind the LayerNorm."""
    norm, token = nn.LayerNorm(64), torch.randn(1, 3, 64)
    assert (norm(token) - norm(3 * token)).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("name", "destination"),
    [
        ("timm vit", "blocks.0.mlp"),
        ("timm vit", "blocks.0.attn.proj"),
        ("torchvision convnext", "features.3.0.block.5"),
    ],
)
def test_a_branch_beside_the_residual_stream_is_not(name, destination):
    net = network(name)
    LRM(net, [Connection(classifier(net), destination, anywhere=True)], NETWORKS[name][1])


def test_a_gate_that_is_a_part_of_a_layer_is_named_by_its_channels_where_only_modules_are_steps(no_graph):
    """EVA-02's gate and what it gates are halves of one layer. The graph names the half, hooks see the layer."""
    name, side = "timm eva02", NETWORKS["timm eva02"][1]
    net, images = network(name), torch.randn(2, 3, side, side)
    connection = Connection("head", "blocks.1.mlp.fc1", anywhere=True, channels=(0, 512))
    by_hooks = LRM(net, [connection], side).eval()
    assert isinstance(by_hooks._reading().way, Hooked)
    pytest.MonkeyPatch.undo(no_graph)
    by_graph = LRM(net, [Connection("head", "blocks.1.mlp")], side).eval()
    assert by_graph.destinations == {"blocks.1.mlp": "blocks.1.mlp.getitem"}
    one, other = (next(iter(model.paths.values())) for model in (by_hooks, by_graph))
    nn.init.normal_(one.projection.weight)
    other.load_state_dict(one.state_dict())
    with torch.no_grad():
        outputs = [model.rollout(images) for model in (by_hooks, by_graph)]
    torch.testing.assert_close(outputs[0][1], outputs[1][1])
    assert not torch.equal(outputs[0][0], outputs[0][1])


# The values of attention


@pytest.mark.parametrize("hooked", [False, True])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", ["timm vit", "timm deit"])
def test_a_goal_scales_the_values_of_attention_and_nothing_else(name, fused, hooked, request):
    if hooked:
        request.getfixturevalue("no_graph")
    net, side = network(name), NETWORKS[name][1]
    for block in net.blocks:
        block.attn.fused_attn = fused
    step = "blocks.0.attn.qkv"
    model = LRM(net, [Connection("head", step, **VALUES), Connection("blocks.1.mlp", step, **VALUES)], side).eval()
    assert [path.destination.part for path in model.paths.values()] == [(384, 576)] * 2
    with torch.no_grad():
        for path in model.paths.values():
            assert path.projection.out_features == 192
            path.projection.weight.normal_()
        stem = model.stem(torch.randn(2, 3, side, side))
        output, state = model.step(stem)
        after, seen, changes = model.inspect(stem, state, (), [step])
    assert not changes[step][..., :384].any()
    assert (changes[step][..., 384:].abs().sum((0, 1)) > 0).all()
    assert seen[step].shape[-1] == 576
    assert not torch.allclose(output, after)


def test_a_layer_whose_values_do_not_lie_side_by_side_is_refused():
    class PerHead(nn.Module):
        """Queries, keys and values of each head beside each other."""

        def __init__(self):
            super().__init__()
            self.patches, self.qkv, self.head = nn.Conv2d(3, 8, 8, 8), nn.Linear(8, 24), nn.Linear(8, 5)

        def forward(self, x):
            x = self.qkv(self.patches(x).flatten(2).transpose(1, 2))
            q, k, v = x.unflatten(2, (2, 12)).transpose(1, 2).split(4, -1)
            x = (q @ k.transpose(-2, -1)).softmax(-1) @ v
            return self.head(x.transpose(1, 2).flatten(2).mean(1))

    with pytest.raises(
        ValueError, match=r"^channels: got 'values' for 'qkv', expected a layer of which attention reads"
    ):
        LRM(PerHead(), [Connection("head", "qkv", **VALUES)], 32)
    with pytest.raises(ValueError, match=r"^channels: got 'values' for 'patches'"):
        LRM(PerHead(), [Connection("head", "patches", **VALUES)], 32)
    model = LRM(PerHead(), [Connection("head", "qkv", anywhere=True, channels=(8, 12))], 32)
    assert model.paths["head->qkv"].destination.part == (8, 12)


@pytest.mark.parametrize(
    ("name", "destination"), [("torchvision convnext", "features.3.0.block.3"), ("torchvision resnet", "layer4.0.bn1")]
)
@pytest.mark.parametrize("kind", [Feedback, MatchedFeedback])
def test_a_part_of_the_channels_of_a_map(name, destination, kind):
    net = network(name)
    model = LRM(net, [Connection(classifier(net), destination, channels=(3, 7))], 64, feedback=kind).eval()
    (path,) = model.paths.values()
    nn.init.normal_(path.projection.weight)
    with torch.no_grad():
        stem = model.stem(torch.randn(2, 3, 64, 64))
        change = model.inspect(stem, model.step(stem)[1])[2][destination]
    _, maps = as_places(change, path.destination.text)
    assert maps.abs().sum((0, 2, 3)).nonzero().flatten().tolist() == [3, 4, 5, 6]


@pytest.mark.parametrize("channels", ["keys", (3, 3), (-1, 4), (1.0, 2.0), 5, (0, 1, 2)])
def test_channels_that_make_no_sense_raise(channels):
    with pytest.raises(ValueError, match=r"^channels: got .*, expected a range"):
        Connection("head", "up", channels=channels)


def test_channels_that_a_step_lacks_raise():
    with pytest.raises(ValueError, match=r"^channels: got \(4, 9\), expected a range of the 8 channels"):
        LRM(Network(), [Connection("head", "up", channels=(4, 9))], 32)


# What cannot be found is said


class Scripted(nn.Module):
    def forward(self, x):
        return x.flatten(2).transpose(1, 2)


def scripted(module):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # TorchScript is old, but users have it
        return torch.jit.script(module)


class Hidden(nn.Module):
    """TorchScript, which cannot be followed, makes tokens of a map."""

    def __init__(self):
        super().__init__()
        self.stem, self.tokens = nn.Conv2d(3, 8, 4, 4), scripted(Scripted())
        self.up, self.act, self.head = nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 5)

    def forward(self, x):
        return self.head(self.act(self.up(self.tokens(self.stem(x)))).mean(1))


def test_a_layout_that_cannot_be_found_is_asked_for_and_taken():
    net = Hidden()
    with pytest.raises(
        ValueError, match=r"^layout of step 'up': got shape \(64, 16\), .*Connection\(…, destination_layout"
    ):
        LRM(net, [Connection("head", "up")], 32)
    said = Connection("act", "up", source_layout="0+8x8 c", destination_layout="8x8 c")
    model = LRM(net, [said, Connection("head", "up", destination_layout="t c")], 32)
    assert model.layouts["act"] == model.paths["act->up"].destination == Layout("tokens", (64, 16), 0, (8, 8))
    assert model.paths["head->up"].destination == Layout("tokens", (64, 16))
    with pytest.raises(ValueError, match=r"^destination_layout: got '7x8 c' for an activation of shape \(64, 16\)"):
        LRM(net, [Connection("head", "up", destination_layout="7x8 c")], 32)
    with pytest.raises(ValueError, match=r"^source_layout: got 'c h w' for an activation of shape \(64, 16\)"):
        LRM(net, [Connection("act", "up", source_layout="c h w", destination_layout="8x8 c")], 32)
    with pytest.raises(ValueError, match=r"^source_layout: got '8x8 c' and 't c' for 'act', expected one layout"):
        LRM(
            net,
            [
                Connection("act", "up", source_layout="8x8 c", destination_layout="t c"),
                Connection("act", "stem", anywhere=True, source_layout="t c"),
            ],
            32,
        )


def test_tokens_of_unknown_places_are_not_taken_for_prefix_tokens():
    class Both(Hidden):
        """Tokens that could not be followed come before tokens that could."""

        def forward(self, x):
            x = self.stem(x)
            return self.head(self.act(self.up(torch.cat([self.tokens(x), x.flatten(2).mT], 1))).mean(1))

    with pytest.raises(ValueError, match=r"^layout of step 'up': got shape \(128, 16\), but "):
        LRM(Both(), [Connection("head", "up")], 32)


@pytest.mark.parametrize("name", ["source_layout", "destination_layout"])
@pytest.mark.parametrize("text", ["c w h", "14x14", "", 3, "1+1 c"])
def test_a_text_that_is_no_layout_raises(name, text):
    with pytest.raises(ValueError, match=rf"^{name}: got {text!r}, expected 'c', 'c h w'".replace("+", r"\+")):
        Connection("head", "up", **{name: text})


def test_a_card_keeps_what_a_connection_says_and_cards_without_it_are_read():
    plain, full = Connection("a", "b"), Connection("a", "b", True, (2, 5), "t c", "1+2x2 c")
    assert _written(plain) == {"source": "a", "destination": "b"}
    for connection in (plain, full, Connection("a", "b", **VALUES)):
        assert Connection(**_written(connection)) == connection


def test_a_network_that_takes_one_image_only_is_followed_with_one():
    class One(Network):
        def forward(self, x):
            return super().forward(x.view(1, 3, *x.shape[2:]))

    model = LRM(One(), [Connection("late", "up")], 32)
    assert (model.layouts["late"].text, model.paths["late->up"].destination.text) == ("c h w", "h w c")


@pytest.mark.parametrize("name", ["resnet18", "alexnet", "mobilenet_v3_small", "densenet121"])
def test_a_plain_convnet_is_known_without_a_run_and_a_run_says_the_same(name, monkeypatch):
    net, runs = models.get_model(name, weights=None, num_classes=5).eval(), []
    follow = tracking.follow
    monkeypatch.setattr(tracking, "follow", lambda *given: runs.append(1) or follow(*given))
    connections = LRM.wrap(net, 64, print=False).connections
    known, count = LRM(net, connections, 64), len(runs)
    monkeypatch.setattr(tracking, "_only_maps", lambda *given: False)
    followed = LRM(net, connections, 64)
    assert count == len(runs) - 1 == 1  # one of them by `wrap`
    assert followed.layouts == known.layouts
    for key, path in known.paths.items():
        assert (followed.paths[key].source, followed.paths[key].destination) == (path.source, path.destination)


def test_wrap_proposes_modules_where_the_backbone_runs_by_hooks_though_a_graph_can_be_read():
    """Hugging Face's ResNet can be read, but its graph returns a dict. The sums of its blocks are no modules."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=5
    )
    net = transformers.ResNetForImageClassification(config)
    model = LRM.wrap(net, 64, print=False)
    assert isinstance(model._reading().way, Hooked)
    modules = dict(net.named_modules())
    assert all(c.destination in modules for c in model.connections)
    assert model.paths[model.connections[0].key].destination.kind == "map"


def test_windows_are_no_images():
    """Attention in windows of a map larger than one: the first axis is that of windows of all images."""
    net = timm("swin_tiny_patch4_window7_224", img_size=112, depths=(1, 1))()
    with pytest.raises(
        ValueError, match=r"^layout of step 'layers.0.*qkv': .* its first axis is not that of the images"
    ):
        LRM(net, [Connection("head.fc", "layers.0.blocks.0.attn.qkv", anywhere=True)], 112)


def test_a_map_with_channels_last_is_not_read_as_the_map_that_a_classifier_pools():
    net = timm("swin_tiny_patch4_window7_224", img_size=56, depths=(1, 1, 1, 1), embed_dim=2, num_heads=(1, 1, 1, 1))()
    step = "layers.2.blocks.0.mlp.fc1"
    model = LRM(net, [Connection("norm", step)], 56)
    assert model.layouts["norm"].text == "h w c"
    assert pooled_map(model, "head.fc") is None


# One path between two layouts


TEXTS = {"c": (6,), "c h w": (6, 3, 5), "h w c": (3, 5, 6), "t c": (7, 6), "3x5 c": (15, 6), "2+3x5 c": (17, 6)}


def path(kind, source, destination):
    """A path from one form to another, with weights."""
    torch.manual_seed(0)
    made = kind(
        Layout.read("source", source, TEXTS[source]), Layout.read("destination", destination, TEXTS[destination])
    )
    nn.init.normal_(made.projection.weight)
    return made


@pytest.mark.parametrize("kind", [Feedback, MatchedFeedback])
@pytest.mark.parametrize("destination", TEXTS)
@pytest.mark.parametrize("source", TEXTS)
def test_every_layout_reaches_every_layout(source, destination, kind):
    if kind is MatchedFeedback and destination == "c":
        return
    made, x = path(kind, source, destination), torch.randn(2, *TEXTS[destination])
    change = x * made(torch.randn(2, *TEXTS[source]), x)
    assert change.shape == x.shape
    assert (change.flatten(1).abs().sum(1) > 0).all()
    assert not (x * made(torch.randn(2, *TEXTS[source]), x, 0.0)).any()


@pytest.mark.parametrize("kind", [Feedback, MatchedFeedback])
@pytest.mark.parametrize("destination", ["c h w", "h w c", "3x5 c"])
@pytest.mark.parametrize("source", ["c h w", "h w c", "3x5 c"])
def test_the_order_of_the_numbers_does_not_matter(source, destination, kind):
    """A map, a map with channels last and patch tokens of the same numbers get and give the same factor."""
    torch.manual_seed(1)
    maps, x = torch.randn(2, 6, 3, 5), torch.randn(2, 6, 3, 5)
    made, plain = path(kind, source, destination), path(kind, "c h w", "c h w")
    made.norm = plain.norm = nn.Identity()  # a map has one mean, each token its own
    order = {"c h w": "b c h w", "h w c": "b h w c", "3x5 c": "b (h w) c"}
    factor = made(rearrange(maps, f"b c h w -> {order[source]}"), rearrange(x, f"b c h w -> {order[destination]}"))
    expected = rearrange(plain(maps, x), f"b c h w -> {order[destination]}")
    torch.testing.assert_close(factor, expected)


def test_a_source_without_prefix_tokens_gives_them_its_mean_and_more_get_it_too():
    to = torch.zeros(1, 17, 6)
    made, source = path(Feedback, "h w c", "2+3x5 c"), torch.randn(1, 3, 5, 6)
    factor = made(source, to)
    torch.testing.assert_close(factor[:, :2], factor[:, 2:].mean(1, keepdim=True).expand(-1, 2, -1))
    torch.manual_seed(0)
    one = Feedback(Layout("tokens", (16, 6), 1, (3, 5)), Layout("tokens", (17, 6), 2, (3, 5)))
    nn.init.normal_(one.projection.weight)
    tokens = torch.randn(1, 16, 6)
    projected = torch.tanh(F.layer_norm(tokens, (6,))) @ one.projection.weight.T
    factor = one(tokens, to)
    torch.testing.assert_close(factor[:, [0]], projected[:, :1])
    torch.testing.assert_close(factor[:, [1]], projected[:, 1:].mean(1, keepdim=True))
    torch.testing.assert_close(factor[:, 2:], projected[:, 1:])


def test_tokens_give_a_vector_the_mean_of_their_patches():
    made, tokens = path(Feedback, "2+3x5 c", "c"), torch.randn(2, 17, 6)
    expected = (torch.tanh(F.layer_norm(tokens, (6,))) @ made.projection.weight.T)[:, 2:].mean(1)
    torch.testing.assert_close(made(tokens, torch.zeros(2, 6)), expected)


def test_tokens_of_another_grid_are_resized_and_prefix_tokens_are_not():
    torch.manual_seed(0)
    made = Feedback(Layout("tokens", (7, 6), 1, (2, 3)), Layout("tokens", (25, 6), 1, (4, 6)))
    nn.init.normal_(made.projection.weight)
    tokens = torch.randn(1, 7, 6)
    projected = torch.tanh(F.layer_norm(tokens, (6,))) @ made.projection.weight.T
    maps = F.interpolate(projected[:, 1:].mT.unflatten(2, (2, 3)), (4, 6), mode="bilinear")
    factor = made(tokens, torch.zeros(1, 25, 6))
    torch.testing.assert_close(factor, torch.cat([projected[:, :1], maps.flatten(2).mT], 1))


@pytest.mark.parametrize(
    ("count", "near", "expected"),
    [
        (15, None, (3, 5)),  # as the model was made
        (60, None, (6, 10)),
        (15, (10, 6), (5, 3)),  # the other end tells the aspect
        (15, (7, 11), (3, 5)),
        (24, (3, 7), (3, 8)),
        (64, (1, 1), (8, 8)),
    ],
)
def test_a_grid_follows_from_the_number_of_tokens_and_the_aspect_of_the_other_end(count, near, expected):
    assert Layout("tokens", (17, 6), 2, (3, 5)).grid_of(count, near) == expected


@pytest.mark.parametrize("count", [0, 17, 31])
def test_tokens_that_make_no_grid_raise(count):
    with pytest.raises(
        ValueError, match=rf"^tokens: got {count} patch tokens, expected a grid with an aspect like 3 by 5"
    ):
        Layout("tokens", (17, 6), 2, (3, 5)).grid_of(count)


def test_maps_with_channels_last_are_views():
    made, x = path(Feedback, "h w c", "h w c"), torch.randn(2, 3, 5, 6)
    first = made.source.with_channels_first(x)
    assert first.shape == (2, 6, 3, 5)
    assert first.data_ptr() == x.data_ptr()
    assert made(x, x).is_contiguous()  # the convolution kept channels last


@pytest.mark.parametrize("text", ["h w c", "t c", "3x5 c"])
def test_published_feedback_knows_maps_with_channels_first_only(text):
    layout = Layout.read("source", text, TEXTS[text])
    with pytest.raises(ValueError, match=r"^shape: got \(.*\), expected a vector \(c,\) or a map \(c, h, w\)"):
        PublishedFeedback((6,), layout)


@pytest.mark.parametrize(
    ("kind", "shape", "grid", "message"),
    [
        ("map", (6, 3), None, "shape: got"), ("tokens", (6,), None, "shape: got"),
        ("tokens", (16, 6), (3, 5), "layout: got '0.3x5 c' for 16 tokens"),
    ],
)  # fmt: skip
def test_a_shape_that_does_not_fit_its_layout_raises(kind, shape, grid, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        Layout(kind, shape, 0, grid)


@pytest.mark.parametrize(("source", "shape"), [("norm", (1, 25, 192)), ("head", (1, 5))])
def test_a_goal_of_tokens_may_have_as_many_as_the_image_gives(source, shape):
    net = network("timm vit")
    model = LRM(net, [Connection(source, "blocks.0.mlp.fc1")], 64).eval()
    with torch.no_grad():
        model.rollout(torch.randn(1, 3, 64, 96), 2, [Steer(source, torch.randn(shape))])
        with pytest.raises(ValueError, match=rf"^goal for '{source}': got shape .*, expected shape"):
            model.check([Steer(source, torch.randn(*shape[:-1], 7))])
