"""Learned biases against timm: its modules, and whole models of its families on the same weights."""

import warnings

import torch
from timm.layers.pos_embed_rel import RelPosBias, RelPosMlp
from timm.models.beit import Beit
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_relpos import VisionTransformerRelPos

import vitpos
from references import Pairs, reference
from vitpos.positions import Geometry, build

HEADS, DEPTH = 3, 2
HOMES = [(4, 6), (6, 4), (5, 5), (8, 8), (1, 7)]
SIZE = (16, 24)
HOST = {"img_size": SIZE, "patch_size": 4, "embed_dim": 48, "depth": DEPTH, "num_heads": 4, "num_classes": 5}
MEAN = {"class_token": False, "global_pool": "avg", "fc_norm": False}


def scheme(text, home, std=1.0):
    """A scheme in which all parameters are drawn with the same deviation."""
    built = build(text, Geometry(home, 2 * HEADS, HEADS, DEPTH))
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return built


def bias(built, grid, layer):
    q = torch.zeros(1, HEADS, grid[0] * grid[1], 2)
    return built.bias(q, q, grid, layer)


@reference("relative_bias", "timm RelPosBias", 0)
def relative_bias_of_timm() -> Pairs:
    for home in HOMES:
        for text in ("relative_bias", "relative_bias(shared=True)"):
            built, theirs = scheme(text, home), RelPosBias(home, HEADS)
            for layer in range(DEPTH):
                theirs.relative_position_bias_table.data = built.table[layer if len(built.table) > 1 else 0].data
                yield bias(built, home, layer), theirs.get_bias()[0]


def resized(resize, size):
    """Calls timm's resize of tables, which indexes in ways that torch warns of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        resize(size)


# timm's places are float32: up to 15, where the spacing is 1e-6, times slopes of up to 5.
@reference("relative_bias", "timm RelPosBias.set_window_size", 1e-5)
def relative_bias_resized() -> Pairs:
    for home in HOMES:
        built = scheme("relative_bias", home)
        for grid in [(6, 4), (4, 6), (3, 9), (9, 9), (16, 16), (2, 3), (1, 5)]:
            for layer in range(DEPTH):
                theirs = RelPosBias(home, HEADS)
                theirs.relative_position_bias_table.data.copy_(built.table[layer])
                resized(theirs.set_window_size, grid)
                yield bias(built, grid, layer), theirs.get_bias()[0]


def host(text, weights, **kwargs):
    """timm's ViT with a scheme, and the weights of one of its other families but for those of the bias."""
    ours = VisionTransformer(**HOST, **kwargs, pos_embed="none", init_values=1.0, dynamic_img_size=True).eval()
    ours.load_state_dict({name: tensor for name, tensor in weights.items() if "rel" not in name}, strict=True)
    return vitpos.attach(ours, text)


def relpos(**kwargs):
    """A model of timm's vit_relpos family, all of whose biases are drawn with a deviation of 1."""
    theirs = VisionTransformerRelPos(**HOST, init_values=1.0, **kwargs).eval()
    for name, parameter in theirs.named_parameters():
        if "rel_pos" in name:
            torch.nn.init.normal_(parameter)
    shared = kwargs.get("shared_rel_pos")
    return theirs, [theirs.shared_rel_pos] if shared else [block.attn.rel_pos for block in theirs.blocks]


@reference("relative_bias", "timm's VisionTransformerRelPos, on three sizes", 5e-6)  # tokens up to 4
@torch.no_grad()
def relative_bias_in_a_model() -> Pairs:
    for shared in (False, True):
        theirs, modules = relpos(rel_pos_type="bias", shared_rel_pos=shared)
        ours = host(f"relative_bias(shared={shared})", theirs.state_dict(), **MEAN)
        ours.pos_embed.table.copy_(torch.stack([module.relative_position_bias_table for module in modules]))
        x = torch.randn(2, 3, *SIZE)
        yield ours.forward_features(x), theirs.forward_features(x)
        for size in ((32, 32), (24, 16)):
            other, _ = relpos(rel_pos_type="bias", shared_rel_pos=shared)
            other.load_state_dict(theirs.state_dict())
            resized(other.set_input_size, size)
            x = torch.randn(2, 3, *size)
            yield ours.forward_features(x), other.forward_features(x)


@reference("relative_bias", "timm's Beit without bias of the class token", 5e-6)  # tokens up to 4
@torch.no_grad()
def relative_bias_in_beit() -> Pairs:
    for shared in (False, True):
        kind = "use_shared_rel_pos_bias" if shared else "use_rel_pos_bias"
        theirs = Beit(**HOST, init_values=1.0, global_pool="token", use_abs_pos_emb=False, **{kind: True}).eval()
        modules = [theirs.rel_pos_bias] if shared else [block.attn for block in theirs.blocks]
        for module in modules:
            torch.nn.init.normal_(module.relative_position_bias_table)
            module.relative_position_bias_table[-3:] = 0
        weights = {}
        for name, tensor in theirs.state_dict().items():
            if name.endswith("q_bias"):
                weights[name.replace("q_bias", "qkv.bias")] = torch.cat(
                    [tensor, torch.zeros_like(tensor), theirs.get_parameter(name.replace("q_bias", "v_bias"))]
                )
            elif not name.endswith("v_bias"):
                weights[name.replace("gamma_", "ls") + ".gamma" * ("gamma_" in name)] = tensor
        ours = host(f"relative_bias(shared={shared})", weights, class_token=True)
        ours.pos_embed.table.copy_(torch.stack([module.relative_position_bias_table[:-3] for module in modules]))
        x = torch.randn(2, 3, *SIZE)
        yield ours.forward_features(x), theirs.forward_features(x)


def fill(module, built, layer):
    """Gives timm's MLP the weights of a layer."""
    first, second = module.mlp.fc1, module.mlp.fc2
    for theirs, ours in ((first.weight, built.weight1), (first.bias, built.bias1), (second.weight, built.weight2)):
        theirs.data.copy_(ours[layer])


@reference("log_cpb", "timm RelPosMlp(mode='swin') less 8", 4e-6)  # float32 numbers of 8 to 16 less 8
def log_cpb_of_timm() -> Pairs:
    for home in HOMES[:4]:  # of a side of 1 theirs divides 0 by 0
        for window in (None, 3, 8):
            built = scheme(f"log_cpb(hidden_dim=32, window={window})", home, std=0.3)
            for grid in (home, (3, 9), (12, 5)):
                normal = home if window is None else (window, window)
                theirs = RelPosMlp(grid, HEADS, 32, mode="swin", pretrained_window_size=normal).eval()
                for layer in range(DEPTH):
                    fill(theirs, built, layer)
                    yield bias(built, grid, layer), theirs.get_bias()[0] - 8


@reference("log_cpb", "timm's VisionTransformerRelPos(rel_pos_type='mlp_swin')", 5e-6)  # tokens up to 4
@torch.no_grad()
def log_cpb_in_a_model() -> Pairs:
    theirs, modules = relpos(rel_pos_type="mlp_swin", rel_pos_dim=32)
    ours = host("log_cpb(hidden_dim=32)", theirs.state_dict(), **MEAN)
    for parameter in ours.pos_embed.parameters():
        torch.nn.init.normal_(parameter)
    for layer, module in enumerate(modules):
        fill(module, ours.pos_embed, layer)
    x = torch.randn(2, 3, *SIZE)
    yield ours.forward_features(x), theirs.forward_features(x)
