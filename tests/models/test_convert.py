"""PyTorch's weights in our networks: the same logits and features from networks in plain torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densejax.models.convert import (
    load_moco,
    load_simclr,
    load_vit,
    read_torch,
    resnet_from_torch,
    select,
    vit_from_torch,
)
from densejax.models.resnet import ResNet
from densejax.models.vit import ViT

torch = pytest.importorskip("torch")
nn = torch.nn
NARROW = {"classes": 5, "blocks": (1, 2), "widths": (4, 8)}


class TorchBlock(nn.Module):
    def __init__(self, c_in, width, stride, bottleneck):
        super().__init__()
        c_out = 4 * width if bottleneck else width
        sizes = (
            [(c_in, width, 1, 1), (width, width, 3, stride), (width, c_out, 1, 1)]
            if bottleneck
            else [(c_in, width, 3, stride), (width, width, 3, 1)]
        )
        for i, (a, b, k, s) in enumerate(sizes, 1):
            setattr(self, f"conv{i}", nn.Conv2d(a, b, k, s, k // 2, bias=False))
            setattr(self, f"bn{i}", nn.BatchNorm2d(b))
        self.n, self.downsample = len(sizes), None
        if stride > 1 or c_in != c_out:
            conv = nn.Conv2d(c_in, c_out, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(c_out))

    def forward(self, x):
        y = x
        for i in range(1, self.n + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            y = y.relu() if i < self.n else y
        return (y + (x if self.downsample is None else self.downsample(x))).relu()


class TorchResNet(nn.Module):
    """torchvision's network and names, with fewer and narrower blocks."""

    def __init__(self, stem, bottleneck, blocks, widths, classes):
        super().__init__()
        k, s = (7, 2) if stem == "imagenet" else (3, 1)
        self.conv1 = nn.Conv2d(3, widths[0], k, s, k // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.maxpool = nn.MaxPool2d(3, 2, 1) if stem == "imagenet" else nn.Identity()
        c = widths[0]
        for stage, (count, width) in enumerate(zip(blocks, widths, strict=True), 1):
            made = []
            for i in range(count):
                made.append(TorchBlock(c, width, 2 if stage > 1 and i == 0 else 1, bottleneck))
                c = 4 * width if bottleneck else width
            setattr(self, f"layer{stage}", nn.Sequential(*made))
        self.stages, self.fc = len(blocks), nn.Linear(c, classes)

    def features(self, x):
        x = self.maxpool(self.bn1(self.conv1(x)).relu())
        for stage in range(1, self.stages + 1):
            x = getattr(self, f"layer{stage}")(x)
        return x.mean((2, 3))

    def forward(self, x):
        return self.fc(self.features(x))


class TorchViTBlock(nn.Module):
    def __init__(self, d, heads):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(d, 1e-6), nn.LayerNorm(d, 1e-6)
        self.self_attention = nn.MultiheadAttention(d, heads, batch_first=True)
        self.mlp = nn.Sequential(
            nn.Linear(d, 4 * d), nn.GELU(), nn.Dropout(0.0), nn.Linear(4 * d, d), nn.Dropout(0.0)
        )

    def forward(self, x):
        y = self.ln_1(x)
        x = x + self.self_attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class TorchViT(nn.Module):
    """torchvision's names."""

    def __init__(self, size, patch, d, depth, heads, classes):
        super().__init__()
        self.conv_proj = nn.Conv2d(3, d, patch, patch)
        self.class_token = nn.Parameter(torch.randn(1, 1, d))
        self.encoder = nn.Module()
        self.encoder.pos_embedding = nn.Parameter(torch.randn(1, 1 + (size // patch) ** 2, d))
        self.encoder.layers = nn.Module()
        for i in range(depth):
            setattr(self.encoder.layers, f"encoder_layer_{i}", TorchViTBlock(d, heads))
        self.encoder.ln, self.heads = nn.LayerNorm(d, 1e-6), nn.Module()
        self.heads.head, self.depth = nn.Linear(d, classes), depth

    def features(self, x):
        x = self.conv_proj(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], 1)
        x = x + self.encoder.pos_embedding
        for i in range(self.depth):
            x = getattr(self.encoder.layers, f"encoder_layer_{i}")(x)
        return self.encoder.ln(x)[:, 0]

    def forward(self, x):
        return self.heads.head(self.features(x))


def randomised(net):
    """Random parameters and running moments, evaluation mode."""
    torch.manual_seed(0)
    with torch.no_grad():
        for key, value in net.state_dict().items():
            if key.endswith("running_var"):
                value.uniform_(0.5, 2)
            elif value.is_floating_point() and value.ndim == 1:
                value.normal_(0.5 if "weight" in key else 0.0, 0.5)
    return net.eval()


def torch_resnet(stem="cifar", bottleneck=False):
    return randomised(
        TorchResNet(stem, bottleneck, NARROW["blocks"], NARROW["widths"], NARROW["classes"])
    )


def variables_of(model, size):
    """Numbers from NumPy in the shapes of ``init``: compiling that takes far longer."""
    rng = np.random.default_rng(2)
    x = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    tree = jax.eval_shape(model.init, jax.random.key(0), x)
    return jax.tree.map(lambda p: rng.standard_normal(p.shape).astype(np.float32), tree)


def same(model, variables, net, size):
    x = np.random.default_rng(1).standard_normal((2, size, size, 3)).astype(np.float32)
    logits, out = jax.jit(model.apply)(variables, x)
    theirs = torch.tensor(x.transpose(0, 3, 1, 2))
    with torch.no_grad():
        expected, features = net(theirs), net.features(theirs)
    np.testing.assert_allclose(out["features"], features, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stem", ["imagenet", "cifar"])
@pytest.mark.parametrize("bottleneck", [False, True])
def test_resnet_gives_the_same_logits(stem, bottleneck, tmp_path):
    net = torch_resnet(stem, bottleneck)
    torch.save({"state_dict": net.state_dict(), "epoch": 3}, tmp_path / "net.pth")
    model = ResNet(**NARROW, stem=stem, bottleneck=bottleneck)
    found = resnet_from_torch(read_torch(tmp_path / "net.pth"), variables_of(model, 17))
    count = sum(p.numel() for p in net.parameters())
    assert sum(p.size for p in jax.tree.leaves(found["params"])) == count
    same(model, found, net, 17)


def with_fresh_head(net, variables):
    """Give the torch network the head of the template, which loading keeps."""
    head = variables["params"]["head"]
    last = net.fc if hasattr(net, "fc") else net.heads.head
    with torch.no_grad():
        last.weight.copy_(torch.tensor(np.asarray(head["kernel"]).T))
        last.bias.copy_(torch.tensor(np.asarray(head["bias"])))


@pytest.mark.parametrize("wrapped", [False, True])
def test_simclr_file(tmp_path, wrapped):
    net = torch_resnet()
    state = {f"encoder.{k}": v for k, v in net.state_dict().items() if not k.startswith("fc.")}
    state |= {"linear.weight": torch.zeros(9, 8), "linear.bias": torch.zeros(9)}
    if wrapped:
        state = {f"module.{k}": v for k, v in state.items()}
    torch.save({"state_dict": state} if wrapped else state, tmp_path / "simclr.pth.tar")
    model = ResNet(**NARROW, stem="cifar")
    fresh = variables_of(model, 8)
    found = load_simclr(tmp_path / "simclr.pth.tar", fresh)
    with_fresh_head(net, fresh)
    same(model, found, net, 8)


def test_moco_file(tmp_path):
    net = torch_resnet("imagenet", True)
    state = {}
    for encoder, sign in (("encoder_q", 1), ("encoder_k", -1)):
        for key, value in net.state_dict().items():
            key = key.replace("fc.", "fc.2.")
            state[f"module.{encoder}.{key}"] = sign * value
    state |= {"module.queue": torch.zeros(3, 4), "module.queue_ptr": torch.zeros(1).long()}
    whole = {"epoch": 800, "arch": "resnet50", "state_dict": state, "optimizer": {"state": {}}}
    torch.save(whole, tmp_path / "moco.pth.tar")
    model = ResNet(**NARROW, bottleneck=True)
    fresh = variables_of(model, 20)
    found = load_moco(tmp_path / "moco.pth.tar", fresh)
    with_fresh_head(net, fresh)
    same(model, found, net, 20)


TIMM = {
    "class_token": "cls_token",
    "encoder.pos_embedding": "pos_embed",
    "conv_proj": "patch_embed.proj",
    "encoder.layers.encoder_layer_": "blocks.",
    "encoder.ln": "norm",
    "ln_": "norm",
    "self_attention.in_proj_": "attn.qkv.",
    "self_attention.out_proj": "attn.proj",
    "mlp.0": "mlp.fc1",
    "mlp.3": "mlp.fc2",
    "heads.head": "head",
}
NEWER = {"mlp.0": "mlp.linear_1", "mlp.3": "mlp.linear_2"}


@pytest.mark.parametrize("names", [{}, TIMM, NEWER], ids=["torchvision", "timm", "newer"])
def test_vit_gives_the_same_logits(names, tmp_path):
    net = randomised(TorchViT(12, 4, 6, 2, 3, 5))
    state = {}
    for key, value in net.state_dict().items():
        for old, new in names.items():
            key = key.replace(old, new)
        state[key] = value
    torch.save(state, tmp_path / "vit.pth")
    model = ViT(classes=5, size=12, patch=4, width=6, depth=2, heads=3)
    fresh = variables_of(model, 12)
    found = load_vit(tmp_path / "vit.pth", fresh, head=True)
    assert sum(p.size for p in jax.tree.leaves(found)) == sum(p.numel() for p in net.parameters())
    same(model, found, net, 12)
    without = load_vit(tmp_path / "vit.pth", fresh)
    with_fresh_head(net, fresh)
    same(model, without, net, 12)


def test_names_that_do_not_fit_are_listed():
    model = ResNet(**NARROW, stem="cifar")
    fresh = variables_of(model, 8)
    state = {k: v.numpy() for k, v in torch_resnet().state_dict().items()}
    kept = {k: v for k, v in state.items() if k != "layer1.0.bn2.running_var"}
    with pytest.raises(ValueError, match=r"^net .*batch_stats/layer1_0/norm2/var") as error:
        extra = {"layer9.0.conv1.weight": np.zeros((1, 1, 1, 1))}
        resnet_from_torch(kept | extra, fresh, name="net")
    assert "layer9.0.conv1.weight is unknown" in str(error.value)
    with pytest.raises(ValueError, match="nothing gives params/head/bias"):
        resnet_from_torch({k: v for k, v in state.items() if k != "fc.bias"}, fresh)
    wrong = state | {"fc.weight": np.zeros((7, 8))}
    with pytest.raises(ValueError, match=r"fc.weight gives \(8, 7\) for .*head/kernel of \(8, 5\)"):
        resnet_from_torch(wrong, fresh)
    doubled = state | {"linear.weight": state["fc.weight"]}
    with pytest.raises(ValueError, match=r"linear.weight is there twice"):
        resnet_from_torch(doubled, fresh)
    with pytest.raises(ValueError, match=r"blocks.0.what.weight is unknown"):
        vit_from_torch(
            {"blocks.0.what.weight": np.zeros(2)},
            variables_of(ViT(classes=5, size=4, patch=4, width=2, depth=1, heads=1), 4),
        )


def test_shapes_are_enough_where_the_file_has_a_head():
    model = ResNet(**NARROW, stem="cifar")
    x = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    state = {k: v.numpy() for k, v in torch_resnet().state_dict().items()}
    found = resnet_from_torch(state, shapes)
    assert jax.tree.map(lambda a: a.shape, found) == jax.tree.map(lambda a: a.shape, shapes)
    without = {k: v for k, v in state.items() if not k.startswith("fc.")}
    with pytest.raises(ValueError, match=r"nothing gives params/head/(kernel|bias)"):
        resnet_from_torch(without, shapes)


def test_selecting_nothing_is_an_error():
    with pytest.raises(ValueError, match=r"nothing below 'encoder_q.'; it has backbone, fc"):
        select({"backbone.a": np.zeros(1), "fc.b": np.zeros(1)}, keep="encoder_q")


def test_files_that_cannot_be_read(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"no.pth is missing"):
        read_torch(tmp_path / "no.pth")
    path = tmp_path / "bad.pth"
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"bad.pth: cannot be read as PyTorch parameters"):
        read_torch(path)
    torch.save({"epoch": 1}, path)
    with pytest.raises(ValueError, match="holds no parameters"):
        read_torch(path)
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install -e \.\[torch\]"):
        read_torch(path)
