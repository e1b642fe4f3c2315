"""Schemes with one fault each: the check that is meant for it fails, and says what is wrong."""

import re

import pytest
from faulty_hooks import (
    AnglesByMatmul,
    AnglesInHalf,
    AnySlope,
    AsksByMethod,
    BlindToItself,
    ConvolutionExchanged,
    CopiesForNothing,
    DeclaresForNothing,
    DividesByZero,
    DrawsInEval,
    DrawsOutside,
    Edge,
    EvenHeads,
    EvenHeadsBySplit,
    Forward,
    HidesTheEdge,
    IdleAttention,
    InPlace,
    KeyAsArray,
    KeysInPlace,
    LooksAtTheEdge,
    MaskAsBias,
    NoLayer,
    NothingFromTokens,
    OneVectorTwiceTheScale,
    PlaceInTheValues,
    PreparesForNobody,
    PreparesInPlace,
    PreparesOnly,
    PreparesOther,
    Promotes,
    QueriesOnly,
    Rotation,
    RowsAndColumnsExchanged,
    Seeds,
    SetsTheDtype,
    SilentValues,
    SlopeByIndex,
    SwapsTheAxes,
    TableExchanged,
    TheSameEverywhere,
    Token,
    TwiceTheScale,
    WavesExchanged,
    WeightsOfAnotherSum,
    WrongAxes,
)
from faulty_models import (
    AsksForASign,
    AsksForAValue,
    CannotStartAnew,
    CountsImages,
    DrawnElsewhere,
    DrawnOnce,
    DrawnWider,
    Float32Only,
    HoldsAFunction,
    KeepsByTheNumberOfPatches,
    KeepsOfInferenceMode,
    MeanOfTheBatch,
    NeverReset,
    NeverResetWholeNumbers,
    OneGridOnly,
    OutOfTheStateDict,
    Overflows,
    SharedByAll,
    StartsElsewhere,
    TableOnTheCPU,
    Unused,
    WholeNumbersInABuffer,
    ZeroTimesZero,
)
from right_schemes import (
    BehindAGate,
    ByNumber,
    Convolution,
    Distance,
    FewNumbers,
    LastBlockAlone,
    LooksBack,
    OneNumber,
    OneVector,
    OnlyBuffers,
    RowsAndColumns,
    Turns,
    Waves,
)

from vitpos.checks import export as exports
from vitpos.checks import hooks, model
from vitpos.checks.run import FAST, outcome
from vitpos.positions import base, register

HERE = r" \(\w+\.py:\d+\)$"
FAULTS = [
    (hooks.defined, Token, r"faulty overrides no hook \(.*\); did you mean 'tokens' by 'token'\?$"),
    (hooks.defined, Rotation, "did you mean 'rotate' by 'rotation'"),
    (hooks.defined, Forward, r"overrides no hook \(.*\); forward is never called$"),
    (hooks.defined, PreparesOnly, r"overrides no hook \([a-z, ]*\)$"),
    (hooks.defined, SilentValues, "values is never called, because uses_attention is not overridden"),
    (hooks.defined, AsksByMethod, "uses_attention is .*method.*; it has to be a property"),
    (hooks.shapes, NoLayer, r"layer 0: TypeError: NoLayer.tokens\(\) takes 3 positional arguments but 4 were given"),
    (hooks.shapes, NothingFromTokens, r"tokens: expected \(3, 24, 48\) float64, found NoneType"),
    (hooks.shapes, QueriesOnly, r"rotate: expected queries and keys, found \(3, 4, 24, 12\) float64"),
    (hooks.shapes, KeyAsArray, r"keys: expected \(3, 4, 24, 12\) float64, found list"),
    (hooks.shapes, MaskAsBias, r"bias: expected a numeric tensor, found \(4, 24, 24\) bool"),
    (hooks.prepared, PreparesOther, "grid 4 x 6, layer 0: bias with prepared=, and without: they differ by"),
    (hooks.prepared, PreparesInPlace, "grid 4 x 6, layer 1: bias with prepared=, and without: they differ by"),
    (hooks.prepared, PreparesForNobody, "layer 0: TypeError: .*unexpected keyword argument 'prepared'"),
    (hooks.untouched, InPlace, "layer 0: a hook changes its tokens in place"),
    (hooks.untouched, KeysInPlace, "layer 0: a hook changes its keys in place"),
    (hooks.rows_and_columns, WavesExchanged, "layer 0, tokens: rows and columns are swapped"),
    (hooks.rows_and_columns, RowsAndColumnsExchanged, "layer 0, tokens: rows and columns are swapped"),
    (hooks.rows_and_columns, TableExchanged, "layer 0, tokens: rows and columns are swapped"),
    (hooks.rows_and_columns, ConvolutionExchanged, "layer 1, spread of tokens: rows and columns are swapped"),
    (hooks.rows_and_columns, SwapsTheAxes, r"layer 0, attention \(1\): rows and columns are swapped"),
    (hooks.rows_and_columns, Edge, r"layer 0, attention \(1\): rows and columns are swapped"),
    (model.init_weights, DrawnWider, r"slopes: its mean square after init_weights is 0\.\d+, at the start \d\d"),
    (model.init_weights, DrawnElsewhere, r"slopes: its mean after init_weights is -?0\.0\d+, at the start 0\.\d"),
    (model.init_weights, DrawnOnce, "pos_embed.slopes: init_weights draws the same numbers again"),
    (model.init_weights, NeverReset, r"pos_embed.table is not set by init_weights; reset_parameters\(\) has to draw"),
    (model.init_weights, NeverResetWholeNumbers, "pos_embed.order is not set by init_weights"),
    (hooks.global_state, Seeds, "building it seeds the global generator"),
    (hooks.global_state, DrawsOutside, r"slopes built twice from one seed: they differ by"),
    (hooks.global_state, DrawsInEval, "a hook uses random numbers in eval mode"),
    (hooks.global_state, SetsTheDtype, "default dtype: it was torch.float32, it is torch.float64"),
    (hooks.shapes, Promotes, r"grid 4 x 6, float64, layer 0: tokens: expected \(3, 24, 48\) float64, found .* float32"),
    (hooks.shapes, DividesByZero, r"bias: NaN or \+inf"),
    (hooks.shapes, BlindToItself, "bias: -inf on the diagonal"),
    (hooks.shapes, WrongAxes, r"bias: shape \(4, 1, 24, 24\) is none of \(\(4, 24, 24\), \(3, 4, 24, 24\)\)"),
    (hooks.untouched, CopiesForNothing, "layer 0: tokens are an equal copy"),
    (hooks.shapes, IdleAttention, "uses_attention is true, but no weights or values"),
    (hooks.shapes, WeightsOfAnotherSum, "sums of rows of weights: they differ by 0.5"),
    (hooks.by_offset, LooksAtTheEdge, "grid 4 x 6, layer 0: the same offset elsewhere differs by 0.9"),
    (hooks.by_offset, HidesTheEdge, r"the same offset elsewhere differs by 9.+e\+03, allowed is 5e-06"),
    (hooks.by_offset, SwapsTheAxes, "the same offset elsewhere differs by"),
    (hooks.by_offset, TheSameEverywhere, "all offsets are treated the same"),
    (hooks.by_offset, DeclaresForNothing, "by_offset is False, but the same offset elsewhere differs by"),
    (hooks.by_offset, PlaceInTheValues, "the same offset elsewhere differs by"),
    (hooks.half_precision, AnglesInHalf, r"autocast bfloat16, grid 512 x 2 .* tokens: relative error .*, allowed is"),
    (hooks.half_precision, AnglesByMatmul, r"autocast bfloat16, grid 512 x 2 .* tokens: relative error"),
    (hooks.scale, TwiceTheScale, r"scale=0.3: expected an RMS within 5 % of it, found 0.6"),
    (hooks.scale, OneVectorTwiceTheScale, r"scale=0.3: expected an RMS within 5 % of it, found 0.[56]"),
    (hooks.geometries, EvenHeads, "width 1, 1 heads, grid 4 x 6: the error does not name faulty: odd heads"),
    (hooks.geometries, EvenHeadsBySplit, f"width 1, 1 heads, grid 4 x 6: RuntimeError: unflatten.*{HERE}"),
    (hooks.bad_options, AnySlope, r"slope=\[\]: expected a ValueError that names the option, found none"),
    (hooks.bad_options, SlopeByIndex, rf"slope='\?': KeyError: '\?'{HERE}"),
    (model.another_grid, OneGridOnly, rf"no prefix, grid 4 x 4 after 4 x 6: RuntimeError: The size of tensor.*{HERE}"),
    (model.another_grid, KeepsByTheNumberOfPatches, "grid 6 x 4 after 4 x 6: output, and that of an unused copy"),
    (model.another_grid, KeepsOfInferenceMode, "grid 4 x 6 after others: RuntimeError: Inference tensors cannot"),
    (model.gradients, Unused, "no prefix: pos_embed.more receives no gradient"),
    (model.gradients, ZeroTimesZero, "the gradient of pos_embed.more is zero"),
    (model.permutation, TheSameEverywhere, r"expected the output to change by more than 1e-10, found \d"),
    (model.images_apart, MeanOfTheBatch, "an image alone and in a batch: they differ by .*, allowed is 1e-12"),
    (model.autocast, Overflows, "float16: output, and that of float32: they differ by nan"),
    (model.half_model, Float32Only, f"bfloat16: RuntimeError: expected .*{HERE}"),
    (model.state_dict, OutOfTheStateDict, r"output after load_state_dict \(torch\), and that of the saved"),
    (model.moving_average, WholeNumbersInABuffer, "output of the average of equal models, and of these: they differ"),
    (model.copies, HoldsAFunction, r"Can't (get local|pickle)"),
    (model.copies, SharedByAll, "output of a deepcopy, and of its original: they differ"),
    (model.checkpointing, SharedByAll, "gradient of .* with checkpointing and without: they differ"),
    (model.init_weights, CannotStartAnew, "pos_embed.ones is not set by init_weights"),
    (model.init_weights, StartsElsewhere, r"pos_embed.table: its mean square after init_weights is 0.0004"),
    (exports.fake_cuda, TableOnTheCPU, f"grid 4 x 6: .*cuda:0.* cpu.*{HERE}"),
    (exports.fake_cuda, AsksForAValue, f"grid 4 x 6: DataDependentOutputException.*{HERE}"),
    (exports.export, CountsImages, "grid 4 x 6: .*batch"),
    (exports.one_graph, AsksForASign, f"grid 4 x 6: .*[Dd]ata-dependent branching.*{HERE}"),
]  # fmt: skip
TRAINED = (model.gradients, model.permutation, model.checkpointing, model.optimizer_groups, model.init_weights)
RIGHT = [
    Distance,
    LooksBack,
    Turns,
    Waves,
    RowsAndColumns,
    Convolution,
    ByNumber,
    FewNumbers,
    OneNumber,
    BehindAGate,
    LastBlockAlone,
]
RIGHT += [LastBlockAlone, OnlyBuffers, OneVector]
# What these look at is made by attach out of any scheme.
OF_THE_HOST = {
    *(model.fused_attention, model.intermediates, model.input_size),
    *(model.optimizer_groups, model.attach_and_detach),
}


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr(base, "_registry", dict(base._registry))


@pytest.mark.parametrize(("check", "cls", "words"), FAULTS, ids=[f"{c.__name__}-{f.__name__}" for c, f, _ in FAULTS])
@pytest.mark.usefixtures("registry")
def test_a_fault_is_found(check, cls, words):
    register("faulty")(cls)
    state, text = outcome(check, "faulty")
    assert state == "FAILED"
    assert "\n" not in text
    assert re.search(words, text), text


@pytest.mark.parametrize(
    ("check", "cls"),
    [
        pytest.param(check, cls, id=f"{check.__name__}-{cls.__name__}")
        for cls in RIGHT
        for check in FAST
        if cls in RIGHT[:3] or check.__module__ == hooks.__name__ or check in TRAINED
    ],
)
@pytest.mark.usefixtures("registry")
def test_a_right_scheme_passes(check, cls):
    register("right")(cls)
    state, text = outcome(check, "right")
    assert state in ("ok", "skipped"), text


@pytest.mark.usefixtures("registry")
def test_a_scheme_may_declare_that_it_depends_on_more():
    register("edge")(type("Edge", (LooksAtTheEdge,), {"by_offset": False}))
    assert outcome(hooks.by_offset, "edge") == ("skipped", "does not hold, as declared by by_offset = False")


def test_every_check_has_a_fault():
    assert set(FAST) - {check for check, _, _ in FAULTS} == OF_THE_HOST
