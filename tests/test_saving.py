"""A model with a scheme goes through timm's own ways of saving, sharing and creating, and comes back the same."""

import json

import pytest
import timm
import torch
from schemes import NAMES, SUMS
from timm.models import save_for_hf
from timm.models._features import FeatureGetterNet

import vitpos
from vitpos.errors import VitposError

TEXTS = [*NAMES, *SUMS, "learned+liere+log_cpb(window=5)"]
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 4, "num_classes": 5}
EVA = {**SMALL, "use_rot_pos_emb": True, "use_abs_pos_emb": True}
VIT = "vit_tiny_patch16_224"


def images(side=32, channels=3):
    return torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(1))


def back(model, folder, **kwargs):
    save_for_hf(model.eval(), folder, safe_serialization=True)
    torch.manual_seed(7)
    return timm.create_model(f"local-dir:{folder}", pretrained=True, **kwargs).eval()


def same(model, folder):
    again = back(model, folder)
    assert type(again) is type(model)
    side = model.patch_embed.img_size[0]
    assert torch.equal(again(images(side)), model(images(side)))
    assert back(again, folder / "again").state_dict().keys() == model.state_dict().keys()
    return again


@pytest.mark.parametrize("text", TEXTS)
def test_any_scheme_comes_back(text, tmp_path):
    same(timm.create_model("vitpos_nano_patch4_32", position=text, depth=2), tmp_path / "vitpos")
    same(vitpos.create_model(VIT, text, existing="drop", **SMALL), tmp_path / "timm")


@pytest.mark.parametrize("existing", ["keep", "drop"])
@pytest.mark.parametrize(("base", "kwargs"), [(VIT, SMALL), ("eva02_tiny_patch14_224", EVA)], ids=["vit", "eva"])
def test_what_a_model_had_before_comes_back_too(base, kwargs, existing, tmp_path):
    same(vitpos.create_model(base, "cpe", existing=existing, **kwargs), tmp_path / "1")
    model = timm.create_model(base, **kwargs)
    vitpos.attach(model, "sinusoidal_2d(temperature=100)", existing=existing)
    same(model, tmp_path / "2")
    vitpos.attach(model, "relative_bias", existing="keep")
    model.reset_classifier(3)
    model.set_input_size(64)
    assert same(model, tmp_path / "3").num_classes == 3
    vitpos.attach(model, "rope_axial", existing="drop")
    same(model, tmp_path / "4")
    vitpos.detach(model)
    assert model.pretrained_cfg["architecture"] == base
    assert {"base", "position", "existing"} & set(model._model_args) == set()


def test_it_is_adapted_as_timm_adapts(tmp_path):
    model = timm.create_model("vitpos_nano_patch4_32", position="learned+liere", depth=2, drop_path_rate=0.1)
    larger = back(model, tmp_path, img_size=64)
    assert larger.pos_embed.parts[0].table.shape == (1, 256, 64)
    dynamic = timm.create_model(
        "vitpos_nano_patch4_32", position="learned+liere", depth=2, dynamic_img_size=True
    ).eval()
    dynamic.load_state_dict(model.state_dict())
    torch.testing.assert_close(larger(images(64)), dynamic(images(64)), rtol=0, atol=1e-5)
    other = back(model, tmp_path, num_classes=3, in_chans=1)
    assert other(images(channels=1)).shape == (2, 3)
    assert torch.equal(other.pos_embed.parts[0].table, model.pos_embed.parts[0].table)
    features = back(model, tmp_path, features_only=True, out_indices=[-1])
    assert torch.equal(features(images())[0], model.forward_intermediates(images(), norm=False)[1][-1])


def test_the_generic_model_is_for_timms_train_script(tmp_path):
    kwargs = {"base": VIT, "position": "rope_axial", "existing": "drop", **SMALL}  # --model vitpos --model-kwargs ...
    torch.manual_seed(0)
    model = timm.create_model("vitpos", **kwargs).eval()
    torch.manual_seed(0)
    twin = vitpos.create_model(VIT, "rope_axial", existing="drop", **SMALL).eval()
    assert torch.equal(model(images()), twin(images()))
    same(model, tmp_path)
    features = timm.create_model("vitpos", features_only=True, out_indices=[0], **kwargs)
    assert isinstance(features, FeatureGetterNet)
    assert [f.shape for f in features(images())] == [(2, 48, 4, 4)]
    checkpoint = tmp_path / "c.pth"
    torch.save(model.state_dict(), checkpoint)
    assert torch.equal(
        timm.create_model("vitpos", checkpoint_path=str(checkpoint), **kwargs).eval()(images()), twin(images())
    )


def test_what_cannot_be_created_is_one_line(tmp_path):
    for make, words in [
        (lambda: timm.create_model("vitpos"), "needs base"),
        (lambda: timm.create_model("vitpos_nano_patch4_32", pretrained=True), "has no pretrained weights"),
        (lambda: vitpos.create_model(VIT, "cpe"), 'already has learned .*existing="keep"'),
        (lambda: vitpos.create_model(VIT, "cpee", existing="keep"), "did you mean 'cpe'"),
        (lambda: vitpos.create_model("resnet18", "cpe"), "cannot attach to ResNet"),
    ]:
        with pytest.raises(VitposError, match=words) as error:
            make()
        assert "\n" not in str(error.value)


def test_a_saved_model_does_not_run_the_file_that_it_names(tmp_path):
    file = tmp_path / "own.py"
    file.write_text("import vitpos\nRAN = 1\nclass Own(vitpos.PositionEmbedding):\n    pass\n")
    folder = tmp_path / "saved"
    model = timm.create_model("vitpos_nano_patch4_32", position=f"{file}:Own", depth=2)
    same(model, folder)  # the file was named by the user before
    config = json.loads((folder / "config.json").read_text())
    strange = tmp_path / "strange.py"
    strange.write_text("raise SystemExit")
    config["model_args"]["position"] = f"{strange}:Own"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(VitposError, match=r"the saved model runs code from .*strange\.py:Own"):
        timm.create_model(f"local-dir:{folder}", pretrained=True)
