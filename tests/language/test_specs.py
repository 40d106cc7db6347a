from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sagittal.core.errors import FormatError, InputError
from sagittal.language import CachePlan, LanguageModel
from sagittal.language.calibration import Calibration, calibrate, tokenizer_sha256
from sagittal.language.codec import Codec
from sagittal.language.plan import EXACT, save_plan
from sagittal.language.quantise import gaussian_levels
from sagittal.language.rivals import RIVALS
from sagittal.language.rotation import rotate_heads
from sagittal.language.sides import _fitted
from sagittal.language.sinks import NoSinks, SinkProfile
from sagittal.language.specs import FALLBACK_SINKS, METHODS, Spec, parse_spec

pytestmark = pytest.mark.usefixtures("one_thread")
TINY = "group=16,page=8,residual=8"
PLAIN = [
    "16bit",
    "k16v16",
    "k2v2",
    "k8v1",
    "k3v16",
    f"k4v3:{TINY},sinks=none",
    f"k4v3:{TINY},sinks=first:2,axis=token,vaxis=channel",
    f"k4v4:{TINY},rotation=hadamard,vrotation=hadamard",
    f"k4v4:{TINY},rotation=hadamard,axis=channel,rope=before",
    f"k4v4:{TINY},rotation=grouped,clip=0.9",
    f"k4v4:{TINY},rotation=random,vrotation=random,axis=token",
    f"k4v4:{TINY},codebook=gaussian",
    f"k4v4:{TINY},outliers=1",
    f"k4v4:{TINY},outliers=2.5%,axis=token",
    f"k2v2:{TINY},axis=unit,vaxis=unit,codebook=gaussian",
    "k4v4:group=head",
    "k4v4:group=all",
]
CALIBRATED = [
    f"k4v4:{TINY},sinks=predict",
    f"k4v4:{TINY},sinks=predict:5,rotation=reorder",
    f"k4v4:{TINY},rotation=reorder-first",
    f"k4v4:{TINY},bias=remove",
    f"k4v4:{TINY},bias=remove,rotation=grouped",
    f"k4v4:{TINY},codebook=nuq",
    f"k4v4:{TINY},codebook=nuq,axis=token,vaxis=channel,outliers=1,clip=0.9",
    f"k4v4:{TINY},axis=static,vaxis=static",
    f"k4v4:{TINY},axis=static,rope=before,codebook=nuq,outliers=1",
    f"k4v4:{TINY},axis=static,codebook=gaussian,vaxis=static,rotation=hadamard",
    f"k3v3:{TINY},axis=static,codebook=nuq,rotation=random",
    "kvquant2:residual=8,page=8",
    "rotatekv2:page=8",
    "kivi3:sinks=predict,page=8",
]
RIVALLING = [f"{name}{bits}" for name in METHODS for bits in (2, 3, 4)]


@pytest.fixture(scope="module")
def calibration(model: LanguageModel) -> Calibration:
    text = "".join(chr(97 + i * i % 23) + " " * (i % 7 == 0) for i in range(900))
    return calibrate(model.model, model.tokenizer, text=text, windows=3, length=192)


def _generate(model: LanguageModel, cache: Any, prompt: torch.Tensor) -> torch.Tensor:
    found = model.model.generate(
        prompt, past_key_values=cache, max_new_tokens=24, do_sample=False, eos_token_id=None
    )
    assert found.shape == (1, prompt.shape[1] + 24)
    return found


@pytest.mark.parametrize("text", [*PLAIN, *CALIBRATED, *RIVALLING])
def test_every_cache_generates(
    model: LanguageModel, calibration: Calibration, prompt: torch.Tensor, text: str
) -> None:
    spec = parse_spec(text)
    assert spec.text == text
    spec.check(model)
    cache = spec.cache(model, calibration if spec.calibrated else None)(model.model.config)
    _generate(model, cache, prompt)
    assert cache.get_seq_length() == prompt.shape[1] + 23


@pytest.mark.parametrize("text", PLAIN)
def test_most_need_no_calibration(text: str) -> None:
    assert not parse_spec(text).calibrated


@pytest.mark.parametrize("text", CALIBRATED)
def test_what_is_measured_needs_one(model: LanguageModel, text: str) -> None:
    assert parse_spec(text).calibrated
    with pytest.raises(InputError, match="needs a calibration"):
        parse_spec(text).cache(model)


@pytest.mark.parametrize("text", [*PLAIN[1:], *CALIBRATED, *RIVALLING])
def test_a_plan_goes_through_a_file(
    model: LanguageModel, calibration: Calibration, prompt: torch.Tensor, tmp_path: Path, text: str
) -> None:
    plan = parse_spec(text).plan(model, calibration)
    assert plan.reasons["spec"] == text
    path = tmp_path / "plan.json"
    save_plan(plan, path)
    read = parse_spec(str(path))
    assert not read.calibrated
    first, second = (
        _generate(model, spec.cache(model, calibration)(model.model.config), prompt)
        for spec in (parse_spec(text), read)
    )
    assert torch.equal(first, second)


def test_exact_ones_change_nothing(model: LanguageModel, prompt: torch.Tensor) -> None:
    outputs = [
        _generate(model, parse_spec(text).cache(model)(model.model.config), prompt)
        for text in ("16bit", "k16v16")
    ]
    assert torch.equal(outputs[0], outputs[1])


def test_the_default_is_the_layout_of_kivi(model: LanguageModel) -> None:
    plan = parse_spec("k2v3").plan(model)
    keys, values = plan.codings(0)
    assert (keys.bits, keys.scale, keys.before_rope, values.bits) == (2, "channel", False, 3)
    assert (values.scale, values.group) == ("token", 32)  # no wider than the model's two heads of 16
    assert (plan.page, plan.residual, plan.sinks.rule, plan.sinks.count) == (64, 64, "first", 4)
    assert parse_spec("kivi2").plan(model).sinks.count == 5


def test_options_of_a_person_come_before_a_methods(model: LanguageModel, calibration: Calibration) -> None:
    plan = parse_spec("kvquant2:outliers=0,sinks=first:3,rope=after").plan(model, calibration)
    assert (plan.keys[0].outliers, plan.sinks.count, plan.keys[0].before_rope) == (0, 3, False)
    assert parse_spec("rotatekv2").plan(model, calibration).keys[0].clip == 0.8
    assert parse_spec("rotatekv3").plan(model, calibration).keys[0].clip == 1
    assert parse_spec("rotatekv2:clip=1").plan(model, calibration).keys[0].clip == 1


def test_rotatekv_sorts_the_rotated_means_of_all_heads(
    model: LanguageModel, calibration: Calibration
) -> None:
    coding = parse_spec("rotatekv4").plan(model, calibration).keys[1]
    turned = rotate_heads(torch.tensor(calibration.keys[1].mean.reshape(-1)), 2, 16)
    assert coding.order is not None
    assert bool((turned[torch.tensor(coding.order).long()].diff() >= -1e-5).all())


def test_a_key_bias_is_taken_off(
    make_model: Callable[..., Any], wrap: Callable[[Any], LanguageModel]
) -> None:
    wide = make_model("qwen2")
    for layer in wide.model.layers:
        torch.nn.init.normal_(layer.self_attn.k_proj.bias, std=20.0)
    model = wrap(wide)
    text = "a few words that say nothing, " * 20
    found = calibrate(wide, model.tokenizer, text=text, windows=2, length=192)
    keys = torch.randn(1, 2, 64, 16, generator=torch.Generator().manual_seed(0)) + wide.model.layers[
        0
    ].self_attn.k_proj.bias.reshape(1, 2, 1, 16)
    keys = keys.detach()
    errors = []
    for option in ("rope=before", "bias=remove"):
        coding = parse_spec(f"k4v4:axis=token,group=16,{option}").plan(model, found).keys[0]
        codec = Codec(coding, heads=2, width=16, page=64)
        at = torch.arange(64)[None]
        errors.append(float((codec.decode(codec.encode(keys, at), at, torch.float32) - keys).square().mean()))
    assert errors[1] < errors[0] / 20


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_fitted_levels_of_normal_numbers_are_those_of_lloyd_and_max(bits: int) -> None:
    numbers = np.random.default_rng(0).standard_normal(200_000)
    levels = _fitted(numbers, np.ones(1), bits)
    assert np.allclose(levels, gaussian_levels(bits).numpy(), atol=0.08)
    assert list(levels) == sorted(levels)


def test_fitted_levels_mind_the_weights() -> None:
    numbers = np.repeat([0.0, 1.0, 10.0], 100)
    heavy = np.repeat([1.0, 1.0, 0.0], 100)
    assert np.allclose(_fitted(numbers, heavy, 1), (0.0, 1.0))


def test_a_fitted_codebook_errs_less_than_a_uniform_one(
    model: LanguageModel, calibration: Calibration
) -> None:
    plain = replace(  # all channels alike, so that the error below is the one that was fitted
        calibration,
        values=tuple(replace(each, fisher=np.ones_like(each.fisher)) for each in calibration.values),
    )
    errors = []
    for codebook in ("uniform", "nuq"):
        coding = parse_spec(f"k2v2:codebook={codebook},group=all").plan(model, plain).values[-1]
        codec = Codec(coding, heads=2, width=16, page=8)
        states = torch.tensor(plain.values[-1].sample)[None]
        states = states[:, :, : states.shape[2] // 8 * 8]
        at = torch.arange(states.shape[2])[None]
        back = codec.decode(codec.encode(states, at), at, torch.float32)
        errors.append(float((back - states).square().mean()))
    assert errors[1] < errors[0]


def test_a_random_rotation_loses_almost_nothing_by_itself(model: LanguageModel) -> None:
    coding = parse_spec("k8v8:rotation=random,axis=token,group=16,page=8").plan(model).keys[0]
    codec = Codec(coding, heads=2, width=16, page=8)
    states = torch.randn(1, 2, 64, 16, generator=torch.Generator().manual_seed(0))
    at = torch.arange(64)[None]
    error = (codec.decode(codec.encode(states, at), at, torch.float32) - states).square().mean()
    assert float(error) < 3e-4


def test_a_model_without_massive_activations_falls_back_and_says_so(
    model: LanguageModel, calibration: Calibration
) -> None:
    without = replace(calibration, sinks=NoSinks("nothing stands out"), reads=None)
    plan = parse_spec("k2v2:sinks=predict").plan(model, without)
    assert (plan.sinks.rule, plan.sinks.count) == ("first", FALLBACK_SINKS)
    assert "cannot be predicted: nothing stands out" in plan.reasons["sinks"]
    assert parse_spec("k2v2:sinks=predict:7").plan(model, without).sinks.count == 7


def test_predicted_sinks_carry_their_profile(model: LanguageModel, calibration: Calibration) -> None:
    profile = SinkProfile(
        emergence=0,
        last=2,
        channels=(3,),
        signs=(1,),
        hidden_threshold=50.0,
        hidden_gap=10.0,
        hidden_overlap=0.5,
        layer=1,
        direction=(0.0,) * 32,
        bias=0.0,
        threshold=30.0,
        gap=2.0,
        sinks=4,
        massive=4,
        tokens=100,
        heads=2,
        width=16,
    )
    found = replace(calibration, sinks=profile, reads=1)
    sinks = parse_spec("k2v2:sinks=predict:5").plan(model, found).sinks
    assert (sinks.rule, sinks.count, sinks.reads, sinks.first) == ("predict", 5, 1, 1)
    assert SinkProfile.from_json(dict(sinks.profile or {})) == profile


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", "''.*16bit, kNvM"),
        ("k2", "'k2'.*16bit, kNvM"),
        ("kivi5", "'kivi5'.*kivi2.*hf-quanto2"),
        ("k9v2", "k9v2: bits cannot be stored.*1 to 8, or 16"),
        ("k0v2", "k0v2: bits cannot be stored"),
        ("16bit:sinks=none", "16bit:sinks=none: the cache has no options; got sinks=none"),
        ("hf-quanto2:page=8", "hf-quanto2:page=8: the cache has no options"),
        ("k2v2:", "k2v2:: there is no such option; got ''; expected sinks, rotation"),
        ("k2v2:sink=first:4", "there is no such option; got 'sink'; expected sinks, rotation"),
        ("k2v2:page=64,page=8", "page is given twice; got page=8"),
        ("k2v2:sinks=last:4", "sinks cannot be this; got 'last:4'; expected none, first:N, predict"),
        ("k2v2:sinks=first", "sinks cannot be this; got 'first'"),
        ("k2v2:rotation=fft", "rotation cannot be this; got 'fft'.*reorder-first"),
        ("k2v2:vrotation=reorder", "vrotation cannot be this; got 'reorder'; expected none, hadamard"),
        ("k2v2:rope=during", "rope cannot be this; got 'during'; expected before or after"),
        ("k2v2:axis=row", "axis cannot be this; got 'row'; expected channel, token, static or unit"),
        ("k2v2:vaxis", "vaxis cannot be this; got ''"),
        ("k2v2:group=0", "group cannot be this; got '0'; expected a number"),
        ("k2v2:residual=-1", "residual cannot be this; got '-1'; expected a number of tokens"),
        ("k2v2:page=60", "page cannot be this; got '60'; expected a multiple of 8"),
        ("k2v2:codebook=nf4", "codebook cannot be this; got 'nf4'; expected uniform, gaussian or nuq"),
        ("k2v2:outliers=50", "outliers cannot be this; got '50'; expected percent"),
        ("k2v2:clip=0", "clip cannot be this; got '0'"),
        ("k2v2:clip=1.5", "clip cannot be this; got '1.5'"),
        ("k2v2:bias=add", "bias cannot be this; got 'add'; expected keep or remove"),
        ("k2v2:bias=remove,rope=after", "contradict.*got rope=after; expected rope=before"),
        ("k2v2:rotation=reorder,rope=after", "contradict.*got rope=after; expected rope=before"),
        ("k2v2:rotation=reorder,bias=remove", "contradict.*got bias=remove"),
        ("k2v2:axis=unit", "contradict.*got codebook=uniform; expected codebook=gaussian"),
    ],
)
def test_a_bad_name_is_refused_with_what_is_allowed(text: str, names: str) -> None:
    with pytest.raises(InputError, match=names):
        parse_spec(text)


def test_groups_that_do_not_divide_the_heads_are_refused_by_name(model: LanguageModel) -> None:
    spec = parse_spec("k2v2:group=24")
    for refuse in (spec.check, spec.plan, spec.cache):
        with pytest.raises(InputError, match="k2v2:group=24: group does not divide 2 heads of width 16"):
            refuse(model)


def test_a_plan_of_another_model_or_tokenizer_is_refused(
    model: LanguageModel, calibration: Calibration, tmp_path: Path
) -> None:
    for change, message in (
        ({"hidden_size": 65}, "hidden_size differs"),
        ({"tokenizer_sha256": "0" * 64}, "another tokenizer"),
    ):
        path = tmp_path / "plan.json"
        save_plan(CachePlan(made_for={**calibration.made_for, **change}), path)
        spec = parse_spec(str(path))
        for refuse in (spec.check, spec.cache):
            with pytest.raises(InputError, match=f"plan.json: .*{message}"):
                refuse(model)
    assert calibration.made_for["tokenizer_sha256"] == tokenizer_sha256(model.tokenizer)


def test_a_plan_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        parse_spec(str(tmp_path / "no.json"))
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(FormatError, match="no plan"):
        parse_spec(str(tmp_path / "x.json"))


def test_other_libraries_have_no_plan(model: LanguageModel) -> None:
    for name in RIVALS:
        with pytest.raises(InputError, match=f"{name}: .*no plan"):
            parse_spec(name).plan(model)


def test_16bit_is_exact(model: LanguageModel) -> None:
    plan = parse_spec("16bit").plan(model)
    assert plan.keys[0].bits == plan.values[0].bits == EXACT
    assert isinstance(parse_spec("16bit"), Spec)
