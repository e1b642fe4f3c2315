"""A state dict knows its scheme: other schemes refuse it, and on another grid the function stays the same."""

import pickle
import re

import pytest
import safetensors.torch
import timm.models
import torch
from schemes import SUMS
from timm.models.vision_transformer import checkpoint_filter_fn
from timm.utils.model_ema import ModelEmaV3

import vitpos
from vitpos.checks.common import GEOMETRY, REGISTERS, images, own, vit
from vitpos.errors import VitposError

NAMES = vitpos.available()
TEXTS = [*NAMES, *SUMS, "learned+liere+log_cpb(window=5)", "learned(inject='every')+shaw_2d(clip=2,on='kv')"]
TABLES = ("learned", "learned_axial", "relative_bias", "relative_bias(shared=True)", "shaw_2d(on='kv')")
LARGE = (24, 36)  # of the images: a grid of 6 x 9


@pytest.mark.parametrize("text", TEXTS)
def test_on_another_grid_the_function_stays_the_same(text):
    saved = vit(text, **REGISTERS).double()
    large = vit(text, seed=5, img_size=LARGE, **REGISTERS).double()
    parameters = [id(parameter) for parameter in large.parameters()]
    state = safetensors.torch.load(safetensors.torch.save(saved.state_dict()))
    large.load_state_dict(state)
    assert [id(parameter) for parameter in large.parameters()] == parameters
    torch.testing.assert_close(large(images(*LARGE).double()), saved(images(*LARGE).double()), rtol=0, atol=1e-6)
    again = vit(text, seed=6, img_size=(32, 16), **REGISTERS).double()  # and once more, from what was loaded
    again.load_state_dict(large.state_dict())
    if not any(table.split("(")[0] in text for table in TABLES):  # a table that is resized twice differs
        for size in (LARGE, (16, 24), (32, 16)):
            expected = saved(images(*size).double())
            torch.testing.assert_close(again(images(*size).double()), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("text", TABLES)
def test_tables_are_resized_for_good(text):
    large = vit(text, seed=5, img_size=LARGE)
    fresh = {name: value.shape for name, value in own(large).items()}
    large.load_state_dict(vit(text).state_dict())
    assert large.pos_embed.geometry.grid == (6, 9)
    assert {name: value.shape for name, value in own(large).items()} == fresh


def test_a_table_is_resized_as_timm_does():
    square = {"img_size": (16, 16), **REGISTERS}
    theirs, saved = (vit(pos_embed="learn", **square) for _ in range(2))
    vitpos.attach(saved, "none", existing="keep")
    timms, ours = vit(pos_embed="learn", img_size=LARGE, **REGISTERS), vit("learned", img_size=LARGE, **REGISTERS)
    timms.load_state_dict(checkpoint_filter_fn(theirs.state_dict(), timms))
    ours.load_state_dict(saved.state_dict())
    torch.testing.assert_close(ours(images(*LARGE)), timms(images(*LARGE)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("text", NAMES)
def test_another_scheme_refuses_the_state_dict_and_stays_as_it_is(text):
    state = vit(text).state_dict()
    for other in ("learned+cpe", next(name for name in ("alibi_2d", "none") if name != text)):
        host = vit(other, seed=5)
        before = {name: value.clone() for name, value in host.state_dict().items()}
        with pytest.raises(VitposError, match=f"is of position scheme '{text}', the model has '{re.escape(other)}'"):
            host.load_state_dict(state, strict=False)
        assert all(torch.equal(value, before[name]) for name, value in host.state_dict().items())
    with pytest.raises(RuntimeError, match=rf"VisionTransformer:\s.*Unexpected.*pos_embed\.scheme_{text}\."):
        vit().load_state_dict(state)
    backbone = {name: value for name, value in state.items() if not name.startswith("pos_embed.")}
    vit().load_state_dict(backbone)


def test_options_and_sizes_count_too():
    state = vit("sinusoidal_2d(temperature=100)").state_dict()
    with pytest.raises(VitposError, match=r"'sinusoidal_2d\(temperature=100\)', the model has 'sinusoidal_2d'"):
        vit("sinusoidal_2d").load_state_dict(state)
    with pytest.raises(VitposError, match="'alibi_2d' is of a model of num_heads 4, the model has 2"):
        vit("alibi_2d", num_heads=2).load_state_dict(vit("alibi_2d").state_dict())
    state["pos_embed.scheme_sinusoidal_2d._extra_state"][3] = 0
    with pytest.raises(VitposError, match="record of its position scheme is damaged"):
        vit("sinusoidal_2d").load_state_dict(state)


@pytest.mark.parametrize("text", ["learned", "rope_axial", "none", "learned+cpe"])
def test_a_state_dict_without_a_record_loads_as_ever(text):
    one, two = vit(text), vit(text, seed=5)
    two.load_state_dict({name: value for name, value in one.state_dict().items() if "_extra_state" not in name})
    assert torch.equal(one(images()), two(images()))


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("learned", "learned"),
        ("learned(scale=0.02)", "learned"),
        ("sinusoidal_2d(temperature=100, scale=1)", "sinusoidal_2d(scale=1, temperature=100)"),
        ("learned + rope_mixed(init='zero')", "learned+rope_mixed(init='zero')"),
    ],
)
def test_the_text_of_a_scheme(given, text):
    scheme = vitpos.build(given, GEOMETRY)
    assert scheme.text == text
    assert f"{text!r}, grid=(4, 6)" in repr(scheme)
    assert pickle.loads(pickle.dumps(scheme)).text == text
    assert vitpos.build(text, GEOMETRY).text == text
    assert f"{text!r}, grid=(4, 6)" in repr(vit(given))


def test_what_timm_saves_and_loads(tmp_path):
    model, twin = vit("relative_bias"), vit("relative_bias", seed=5, img_size=LARGE)
    average = ModelEmaV3(model, decay=0.5)
    average.update(model)
    torch.save({"state_dict": model.state_dict(), "state_dict_ema": average.module.state_dict()}, tmp_path / "a.pth")
    timm.models.load_checkpoint(twin, str(tmp_path / "a.pth"), filter_fn=checkpoint_filter_fn)
    torch.testing.assert_close(twin(images(*LARGE)), model(images(*LARGE)), rtol=0, atol=1e-6)
    safetensors.torch.save_model(model, str(tmp_path / "a.safetensors"))
    twin = vit("relative_bias", seed=5)
    safetensors.torch.load_model(twin, str(tmp_path / "a.safetensors"))
    assert torch.equal(twin(images()), model(images()))
