import copy
import warnings

import pytest
import timm
import torch

import vitpos
from vitpos.errors import VitposError

SHAPES = {  # width, depth, heads, hidden width of the MLP
    "vitpos_nano_patch4_32": (64, 6, 2, 256),
    "vitpos_micro_patch4_32": (96, 6, 3, 384),
    "vitpos_mini_patch4_32": (128, 6, 4, 512),
    "vitpos_tiny9_patch4_32": (192, 9, 12, 384),
    "vitpos_tiny_patch4_32": (192, 12, 3, 768),
}


def create(name="vitpos_nano_patch4_32", **kwargs):
    return timm.create_model(name, **kwargs)


def test_the_list_is_complete():
    assert sorted(timm.list_models("vitpos_*")) == sorted(SHAPES)


@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name):
    model = create(name)
    block = model.blocks[0]
    assert (model.embed_dim, len(model.blocks), block.attn.num_heads, block.mlp.fc1.out_features) == SHAPES[name]
    assert model.patch_embed.grid_size == (8, 8)
    assert (model.num_prefix_tokens, model.global_pool, model.num_classes) == (0, "avg", 10)
    assert model.pos_embed.scheme == "none"
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_parameters_of_the_published_shape():
    # By hand: patches 3*16*128+128; block 4*d^2+4d attention, 8*d^2+5d MLP, 4d norms; norm 2d; head 10d+10.
    d = 128
    expected = (48 * d + d) + 6 * (12 * d * d + 13 * d) + 2 * d + 10 * d + 10
    assert sum(p.numel() for p in create("vitpos_mini_patch4_32").parameters()) == expected
    learned = create("vitpos_mini_patch4_32", position="learned")
    assert sum(p.numel() for p in learned.parameters()) == expected + 64 * d


def test_the_options_of_the_contract():
    model = create(
        position="sinusoidal_2d(temperature=100)", img_size=8, patch_size=1, in_chans=1, num_classes=7,
        drop_path_rate=0.1, global_pool="token",
    )  # fmt: skip
    assert model.pos_embed.temperature == 100
    assert model.cls_token is not None
    assert model.num_prefix_tokens == 1
    assert model.blocks[-1].drop_path1.drop_prob == pytest.approx(0.1)
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 7)


def test_options_that_timm_passes_on():
    assert create(position=None, global_pool="avg", class_token=True).num_prefix_tokens == 1
    assert create(img_size=(16, 32)).pos_embed.geometry.grid == (4, 8)
    assert create(num_classes=0)(torch.zeros(1, 3, 32, 32)).shape == (1, 64)
    features = create(position="learned", features_only=True)
    assert [f.shape for f in features(torch.zeros(1, 3, 32, 32))] == [(1, 64, 8, 8)] * 3
    assert create().pretrained_cfg["input_size"] == (3, 32, 32)


def test_creating_a_model_says_nothing(capfd, caplog):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        create(position="learned", img_size=16)
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


def test_the_backbone_does_not_depend_on_the_position():
    def backbone(position):
        torch.manual_seed(4)
        model = create(position=position, global_pool="token")
        state = {k: v for k, v in model.state_dict().items() if not k.startswith("pos_embed.")}
        return state, torch.random.get_rng_state()

    reference, state = backbone("none")
    for position in set(vitpos.available()) | {"learned(scale=1)+sinusoidal_2d"}:
        weights, after = backbone(position)
        assert weights.keys() == reference.keys()
        assert all(torch.equal(weights[k], reference[k]) for k in reference)
        assert torch.equal(after, state)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"img_size": 30}, "nano_patch4_32: img_size 30 is not a multiple of patch_size 4"),
        ({"img_size": (32, 33)}, r"img_size \(32, 33\) is not a multiple of patch_size 4"),
        ({"patch_size": 5}, "img_size 32 is not a multiple of patch_size 5"),
        ({"patch_size": 0}, "patch_size 0 must be a whole number above 0"),
        ({"img_size": "big"}, "img_size 'big' must be a whole number above 0, or two"),
        ({"embed_dim": 65}, "embed_dim 65 is not divisible by num_heads 2"),
        ({"num_heads": 0}, "num_heads 0 must be a whole number of at least 1"),
        ({"depth": 0}, "depth 0 must be a whole number of at least 1"),
        ({"global_pool": "tokn"}, "global_pool of vitpos_nano_patch4_32: 'tokn'; did you mean 'token'"),
        ({"global_pool": "token", "class_token": False}, "global_pool 'token' needs class_token=True, given False"),
        ({"drop_path": 0.1}, "option of vitpos_nano_patch4_32: 'drop_path'; did you mean 'drop_path_rate'"),
        ({"pos_embed": "learn"}, "option of vitpos_nano_patch4_32: 'pos_embed'"),
        ({"pretrained": True}, "vitpos_nano_patch4_32 has no pretrained weights"),
        ({"position": "lerned"}, "unknown position scheme 'lerned'; did you mean 'learned'"),
        ({"position": "sinusoidal_2d", "embed_dim": 66}, "embed_dim 66 is not divisible by 4; .* 64 or 68"),
        ({"patch_drop_rate": 0.1}, "cannot attach with patch_drop_rate > 0"),
        ({"attn_layer": "diff"}, "cannot attach to attention DiffAttention"),
    ],
)
def test_a_mistake_is_one_clear_line(given, message):
    with pytest.raises(VitposError, match=message) as error:
        create(**given)
    assert "\n" not in str(error.value)


def test_a_trained_copy_loads_into_a_new_model():
    one = create(position="learned")
    two = create(position="learned")
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(one.eval()(x), two.eval()(x))
