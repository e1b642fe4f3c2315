"""An attached model in the hands of timm's and torch's tools, as timm's own models are."""

import copy

import numpy as np
import pytest
import timm
import torch
import torchvision
from schemes import SUMS
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from timm.utils.onnx import onnx_export
from torch import nn

import vitpos
from vitpos.checks.common import REGISTERS, images, vit
from vitpos.errors import VitposError
from vitpos.positions.base import parts

NAMES = vitpos.available()
texts = pytest.mark.parametrize("text", [*NAMES, *SUMS])
HEIGHT, WIDTH = (torch.export.Dim(name, min=2, max=16) for name in ("rows", "columns"))


@texts
def test_channels_last(text):
    model, last = vit(text, **REGISTERS), vit(text, **REGISTERS).to(memory_format=torch.channels_last)
    torch.testing.assert_close(last(images()), model(images()), rtol=0, atol=1e-5)


@texts
def test_half_precision_and_back_rounds_the_weights_alone(text):
    model, back = vit(text, **REGISTERS), vit(text, **REGISTERS).bfloat16()
    precise = {name for part in parts(back.pos_embed) for name in part.precise}
    for name, parameter in back.named_parameters():
        exact = name.rpartition(".")[2] in precise and name.startswith("pos_embed")
        assert parameter.dtype == (torch.float32 if exact else torch.bfloat16)
    assert back(images().bfloat16()).dtype == torch.bfloat16
    back.float().load_state_dict(model.state_dict())
    assert torch.equal(back(images()), model(images()))
    assert {p.dtype for p in copy.deepcopy(back).double().parameters()} == {torch.float64}


def test_angles_of_a_model_in_half_precision_are_exact():
    x = torch.randn(1, 4, 64 * 64, 12)
    for text in ("rope_axial", "rope_mixed", "liere"):
        model = vit(text)
        exact, _ = model.pos_embed.rotate(x, x, (64, 64), 1)
        found, _ = model.bfloat16().pos_embed.rotate(x, x, (64, 64), 1)
        assert torch.equal(found, exact)
    torch.set_default_dtype(torch.bfloat16)  # as Lightning does for bf16-true
    try:
        assert vit("rope_mixed").pos_embed.frequencies.dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("text", ["learned+rope_axial"])
def test_export_with_any_height_and_width(text):
    model = vit(text, **REGISTERS)
    shapes = {"x": {2: 4 * HEIGHT, 3: 4 * WIDTH}}
    program = torch.export.export(model, (images(24, 32),), dynamic_shapes=shapes).module()
    for size in ((24, 32), (16, 24), (32, 12)):
        torch.testing.assert_close(program(images(*size)), model(images(*size)), rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("text", [name for name in NAMES if name != "none"])
def test_export_with_any_height_and_width_of_every_scheme(text):
    test_export_with_any_height_and_width(text)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::torch.jit.TracerWarning")
def test_onnx_by_tracing(tmp_path):
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    for dynamic in (False, True):
        model, file = vit("rope_1d+rope_axial+rope_mixed+relative_bias", dynamic_img_size=dynamic), tmp_path / "m.onnx"
        onnx_export(model, str(file), input_size=(3, 16, 24), batch_size=3)
        session = onnxruntime.InferenceSession(file)
        (out,) = session.run(None, {session.get_inputs()[0].name: images().numpy()})
        torch.testing.assert_close(torch.from_numpy(out), model(images()), rtol=0, atol=1e-5)


def test_a_frozen_table_stays_frozen():
    model = vit(pos_embed="learn").requires_grad_(False)
    vitpos.attach(model, "cpe", existing="keep")
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {"pos_embed.parts.1.kernels", "pos_embed.parts.1.biases"}


@pytest.mark.parametrize("kwargs", [{}, {"dynamic_img_size": True}], ids=["fixed", "dynamic"])
def test_images_that_are_padded_to_whole_patches(kwargs):
    torch.manual_seed(0)
    sizes = {"img_size": (18, 23), "patch_size": 4, "embed_dim": 48, "depth": 2, "num_heads": 4, "pos_embed": "none"}
    plain = VisionTransformer(**sizes, dynamic_img_pad=True, **kwargs).eval()
    model = vitpos.attach(copy.deepcopy(plain), "none")
    assert model.pos_embed.geometry.grid == (5, 6)
    assert torch.equal(model(images(18, 23)), plain(images(18, 23)))
    vitpos.attach(model, "learned+rope_axial+relative_bias")
    assert not torch.equal(model(images(18, 23)), plain(images(18, 23)))


@pytest.mark.parametrize(
    "front", [{}, REGISTERS, {**REGISTERS, "no_embed_class": True}], ids=["none", "added", "apart"]
)
@pytest.mark.parametrize("wrap", [dict, checkpoint_filter_fn], ids=["as it is", "filtered"])
def test_a_table_of_timms_becomes_that_of_learned(front, wrap):
    square = {"img_size": (16, 16), **front}
    theirs = vit(pos_embed="learn", **square)
    for size in ((16, 16), (24, 36)):
        timms = vit(pos_embed="learn", **{**square, "img_size": size})
        timms.load_state_dict(checkpoint_filter_fn(theirs.state_dict(), timms))
        ours = vit("irpe+learned", seed=5, start=True, **{**square, "img_size": size})
        state = theirs.state_dict()
        result = ours.load_state_dict(wrap(state, ours) if wrap is checkpoint_filter_fn else state, strict=False)
        assert result.unexpected_keys == []
        torch.testing.assert_close(ours(images(*size)), timms(images(*size)), rtol=0, atol=2e-6)
    with pytest.raises(RuntimeError, match=r'Unexpected key\(s\) in state_dict: "pos_embed"'):
        vit("cpe", **square).load_state_dict({**vit("cpe", **square).state_dict(), "pos_embed": theirs.pos_embed})


def test_a_file_of_numpy_arrays(tmp_path):
    args = {"img_size": (16, 16), **REGISTERS, "reg_tokens": 0}
    plain, other = vit(pos_embed="learn", **args), vit(pos_embed="learn", seed=5, **args)
    generator = np.random.default_rng(0)
    arrays = {
        "embedding/kernel": generator.normal(size=(4, 4, 3, 48)),
        "embedding/bias": np.zeros(48),
        "cls": generator.normal(size=(1, 1, 48)),
        "Transformer/posembed_input/pos_embedding": generator.normal(size=(1, 17, 48)),
        "Transformer/encoder_norm/scale": np.ones(48),
        "Transformer/encoder_norm/bias": np.zeros(48),
    }
    for block in range(2):
        at = f"Transformer/encoderblock_{block}/"
        for norm in ("LayerNorm_0", "LayerNorm_2"):
            arrays |= {f"{at}{norm}/scale": np.ones(48), f"{at}{norm}/bias": np.zeros(48)}
        for name in ("query", "key", "value"):
            attention = f"{at}MultiHeadDotProductAttention_1/{name}/"
            arrays |= {f"{attention}kernel": generator.normal(size=(48, 4, 12)), f"{attention}bias": np.zeros((4, 12))}
        out = f"{at}MultiHeadDotProductAttention_1/out/"
        arrays |= {f"{out}kernel": generator.normal(size=(4, 12, 48)), f"{out}bias": np.zeros(48)}
        for dense in (0, 1):
            name = f"{at}MlpBlock_3/Dense_{dense}/"
            arrays |= {f"{name}kernel": generator.normal(size=(48, 48)), f"{name}bias": np.zeros(48)}
    np.savez(tmp_path / "a.npz", **{name: value.astype(np.float32) for name, value in arrays.items()})
    plain.load_pretrained(str(tmp_path / "a.npz"))
    vitpos.attach(other, "cpe(std=0)", existing="keep")
    other.load_pretrained(str(tmp_path / "a.npz"))
    other.head.load_state_dict(plain.head.state_dict())
    torch.testing.assert_close(other(images(16, 16)), plain(images(16, 16)), rtol=0, atol=1e-5)
    with pytest.raises(VitposError, match="the model has 'cpe': load it before you attach"):
        vit("cpe", **args).load_pretrained(str(tmp_path / "a.npz"))


@texts
def test_a_model_on_device_meta_takes_a_state_dict(text):
    model = vit(text)
    with torch.device("meta"):
        empty = vit(text, start=True)
    empty.to("meta").load_state_dict(model.state_dict(), assign=True)
    timm.models._manipulate.reinit_non_persistent_buffers(empty)
    assert torch.equal(empty(images()), model(images()))


class Saved(nn.Module):
    """A module in place of another, as peft's ``modules_to_save``: it forwards what it has not itself."""

    def __init__(self, module):
        super().__init__()
        self.original, self.copied = module, copy.deepcopy(module)

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.copied, name)


@pytest.mark.parametrize("text", ["learned", "liere", "rope_axial+irpe"])
def test_a_module_in_place_of_the_scheme_takes_effect(text):
    model = vit(text)
    before = model(images())
    model.pos_embed = Saved(model.pos_embed)
    assert torch.equal(model(images()), before)
    with torch.no_grad():
        for parameter in model.pos_embed.copied.parameters():
            parameter.add_(0.5)
    assert not torch.equal(model(images()), before)
    assert "pos_embed" in repr(model)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: torch.jit.script(vit("cpe")), "do not support TorchScript: use torch.export"),
        (lambda: torch.fx.symbolic_trace(vit("cpe")), "do not support torch.fx: use torch.export"),
        (
            lambda: vitpos.attach(torchvision.models.VisionTransformer(32, 8, 1, 2, 24, 48), "cpe"),
            r"VisionTransformer: .* another model \(of torchvision\.models\.vision_transformer\)",
        ),
        (
            lambda: vitpos.attach(timm.create_model("vit_tiny_patch16_224", features_only=True), "cpe"),
            r"FeatureGetterNet.* attach to its \.model",
        ),
    ],
    ids=["script", "fx", "torchvision", "features"],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_what_is_not_supported_says_so_in_a_line(make, words):
    with pytest.raises(VitposError, match=words) as error:
        make()
    assert "\n" not in str(error.value)
