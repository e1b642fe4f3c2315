"""Common random numbers: for one seed, schemes differ in their positions alone; another seed changes everything."""

import pytest
import torch
from timm.layers import DropPath

import vitpos
from vitpos.positions import available
from vitpos.study import plan
from vitpos.study.engines import Limits
from vitpos.study.engines.local import Local
from vitpos.study.results import Results
from vitpos.study.run import prepare

CONFIG = {
    "model": {"name": "vitpos_nano_patch4_32", "patch_size": 2, "drop_path_rate": 0.5},
    "data": {"name": "digits", "batch_size": 128, "crop_padding": 1, "flip": True},
    "trainer": {"max_epochs": 2, "accelerator": "cpu", "limit_train_batches": 3},
}


def record(tmp_path, position, seed=0, draws=0, **model):
    """Trains a few steps and returns the backbone's start, the batches as augmented, and the drop-path masks."""
    tree = {**CONFIG, "model": {**CONFIG["model"], **model}, "position": position, "seed_everything": seed}
    cli = prepare(plan.Run({"position": position}, seed, tree), tmp_path / f"{position}-{seed}-{draws}")
    torch.rand(draws + 1)  # whatever others draw from the global state must not matter
    start = {k: v.clone() for k, v in cli.model.net.state_dict().items() if not k.startswith("pos_embed")}
    batches, masks = [], []
    step = cli.model.training_step

    def spy(batch, batch_idx):
        batches.append((batch[0].clone(), batch[1].clone()))
        torch.rand(draws)
        return step(batch, batch_idx)

    def watch(module, inputs, output):
        if module.training and module.drop_prob > 0:
            masks.append((output.flatten(1).abs().sum(1) == 0).clone())

    cli.model.training_step = spy
    for module in cli.model.net.modules():
        if isinstance(module, DropPath):
            module.register_forward_hook(watch)
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    return start, batches, masks


def same(one, two):
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return record(tmp_path_factory.mktemp("reference"), "none")


@pytest.mark.parametrize("position", [*(name for name in available() if name != "none"), "learned+sinusoidal_2d"])
def test_schemes_of_one_seed_share_weights_batches_augmentation_and_drop_path(tmp_path, reference, position):
    start, batches, masks = record(tmp_path, position, draws=0)
    assert start.keys() == reference[0].keys()
    assert same(start.values(), reference[0].values())
    assert len(batches) == 6
    assert same([image for image, _ in batches], [image for image, _ in reference[1]])
    assert same([label for _, label in batches], [label for _, label in reference[1]])
    assert len(masks) == 6 * 10  # five of six blocks drop, twice each
    assert any(mask.any() for mask in masks)
    assert same(masks, reference[2])


def test_batches_do_not_depend_on_what_others_draw(tmp_path, reference):
    start, batches, _ = record(tmp_path, "none", draws=5)
    assert same(start.values(), reference[0].values())
    assert same([image for image, _ in batches], [image for image, _ in reference[1]])


def test_another_seed_changes_weights_batches_and_drop_path(tmp_path, reference):
    start, batches, masks = record(tmp_path, "none", seed=1)
    assert not torch.equal(start["blocks.0.attn.qkv.weight"], reference[0]["blocks.0.attn.qkv.weight"])
    assert not torch.equal(batches[0][1], reference[1][0][1])
    assert not same(masks, reference[2])


def test_epochs_differ_in_order_and_steps_in_augmentation(reference):
    _, batches, masks = reference
    assert not torch.equal(batches[0][1], batches[3][1])
    assert not same(masks[:10], masks[10:20])


def test_mixup_draws_are_paired(tmp_path):
    def weights(position, seed=0):
        tree = {**CONFIG, "model": {**CONFIG["model"], "mixup": 0.5, "cutmix": 0.5}, "position": position}
        tree = {**tree, "seed_everything": seed}
        cli = prepare(plan.Run({"position": position}, seed, tree), tmp_path / f"{position}-{seed}")
        mixed = []
        cli.model.net.register_forward_pre_hook(lambda module, inputs: mixed.append(inputs[0].clone()))
        cli.trainer.limit_val_batches = 0
        cli.trainer.fit(cli.model, datamodule=cli.datamodule)
        return mixed

    none, learned, other = weights("none"), weights("learned"), weights("none", 1)
    assert same(none, learned)
    assert not torch.equal(none[0], other[0])


@pytest.mark.slow
def test_results_do_not_depend_on_the_number_of_workers(tmp_path, study_file):
    study = plan.load(study_file())
    found = []
    for workers in (1, 3):
        results = Results(tmp_path / f"{workers}")
        with Local(results, Limits(), workers) as engine:
            ended, waiting = [], list(study.runs)
            while len(ended) < len(study.runs):
                while waiting and len(study.runs) - len(waiting) - len(ended) < workers:
                    engine.start(waiting.pop(0))
                ended += engine.wait(60)
        assert all(outcome.error is None for outcome in ended)
        found.append([results.row(run)["metrics"] for run in study.runs])
        # the reason: sums over several threads would be rounded otherwise
        assert all(", 1 of " in results.row(run)["environment"]["hardware"] for run in study.runs)
    assert found[0] == found[1]
    assert found[0][0] != found[0][1]


def test_attach_leaves_the_global_random_state_alone():
    import timm

    torch.manual_seed(0)
    model = timm.create_model("vitpos_nano_patch4_32")
    before = torch.get_rng_state()
    vitpos.attach(model, "learned")
    assert torch.equal(torch.get_rng_state(), before)
