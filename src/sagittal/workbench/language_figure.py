"""Pictures of a model's profile and of a plan; need matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sagittal.core.errors import InputError
from sagittal.core.files import atomic_path
from sagittal.core.optional import optional_import
from sagittal.language.plan import CachePlan
from sagittal.language.profiling import FAR, ModelProfile
from sagittal.language.sinks import NoSinks

__all__ = ["draw_plan", "draw_profile", "require_matplotlib"]

_KEYS, _VALUES, _GREY = "#1f5fa8", "#c8501e", "#777777"
_NORMAL_FAR = 6.334e-5  # share of normal numbers beyond four standard deviations


def require_matplotlib() -> None:
    """Refuse early when the figure cannot be drawn.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    optional_import("matplotlib", "figures")


def draw_profile(profile: ModelProfile, path: Path) -> None:
    """Draw a profile as a PNG of four panels over the decoder layers, whole or not at all.

    Massive activations and where sinks emerge; the squared mean of keys over their variance; outliers; and
    sensitivities.

    Raises:
        StorageError: The file cannot be written.
        MissingDependencyError: matplotlib is not installed.
    """
    figures = optional_import("matplotlib.figure", "figures")
    figure = figures.Figure(figsize=(11, 7.6), dpi=130, layout="constrained")  # no screen, so no backend
    axes = figure.subplots(2, 2)
    _activations(axes[0, 0], profile)
    _means(axes[0, 1], profile)
    _outliers(axes[1, 0], profile)
    _sensitivities(axes[1, 1], profile)
    for panel in axes.flat:
        panel.set_xlabel("decoder layer")
        panel.set_xlim(-0.7, len(profile.layers) - 0.3)
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="y", color="#e4e4e4", linewidth=0.6)
        panel.set_axisbelow(True)
    found = profile.calibration
    figure.suptitle(
        f"{profile.model}: what its key-value cache holds, on {found.tokens} tokens of text",
        fontsize=12,
    )
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def draw_plan(plan: CachePlan, path: Path) -> None:
    """Draw a fitted plan as a PNG of three panels, whole or not at all.

    Bits of each head's keys and values in each layer, and the layers that keep late sinks; nats predicted as
    planned and if a layer's keys or values were dropped; and what the bits of the budget go to.

    Raises:
        InputError: The plan's reasons do not say what was measured: it was not made by the planner.
        StorageError: The file cannot be written.
        MissingDependencyError: matplotlib is not installed.
    """
    reasons = plan.reasons
    if not reasons.get("layers") or not reasons.get("bits"):
        raise InputError("the plan has no measurements to draw", expected="a plan of plan_cache or fit_plan")
    figures = optional_import("matplotlib.figure", "figures")
    figure = figures.Figure(figsize=(12, 8.2), dpi=130, layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=(1.15, 1))
    _bits_by_head(figure, figure.add_subplot(grid[0, :]), reasons["layers"])
    _predicted(figure.add_subplot(grid[1, 0]), reasons["layers"])
    _spent(figure.add_subplot(grid[1, 1]), reasons["bits"], reasons["budget"])
    made_for = plan.made_for.get("model_type") or "model"
    nats = reasons["predicted_nats_a_token"]
    figure.suptitle(
        f"Plan for a {made_for} with {len(reasons['layers'])} layers of full attention: "
        f"{reasons['budget']:g} bits a number at {reasons['context']} tokens\n"
        f"predicted cost {nats:.3g} nats a token; {plan.residual} recent tokens exact, pages of {plan.page}",
        fontsize=12,
    )
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def _bits_by_head(figure: Any, panel: Any, layers: Sequence[Mapping[str, Any]]) -> None:
    """Draw a heat map, a row for each head: keys above, values below, and where late sinks are kept."""
    keys, values = (np.array([row[f"{side}_bits_by_head"] for row in layers]).T for side in ("key", "value"))
    heads = len(keys)
    between = 1 + heads // 6  # rows, for the marks
    gap = np.full((between, len(layers)), np.nan)
    shown = np.concatenate([keys, gap, values])
    image = panel.imshow(shown, aspect="auto", cmap="viridis", vmin=0, interpolation="nearest")
    figure.colorbar(image, ax=panel, label="bits a component", pad=0.01, aspect=18)
    if len(layers) <= 40 and heads <= 8:  # or the numbers would run into each other
        middle = 0.6 * np.nanmax(shown)
        for (row, layer), bits in np.ndenumerate(shown):
            if not np.isnan(bits):
                colour = "white" if bits < middle else "black"
                panel.text(layer, row, f"{bits:.1f}", ha="center", va="center", fontsize=7, color=colour)
    sinks = [layer for layer, row in enumerate(layers) if row["keeps_late_sinks"]]
    panel.plot(sinks, [heads - 0.5 + between / 2] * len(sinks), "*", ms=7, color=_VALUES)
    step = max(1, heads // 4)
    numbers = range(0, heads, step)
    panel.set_yticks(
        [*numbers, heads - 0.5 + between / 2, *(heads + between + head for head in numbers)],
        [
            *(f"keys, head {head}" for head in numbers),
            "late sinks exact",
            *(f"values, head {head}" for head in numbers),
        ],
        fontsize=8,
    )
    panel.tick_params(axis="y", length=0)
    panel.set_xlabel("full-attention layer")
    panel.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    panel.spines[:].set_visible(False)
    at = "none" if not sinks else f"in {len(sinks)} of {len(layers)} layers (stars)"
    panel.set_title(f"Bits of each layer and head; late sinks kept: {at}", fontsize=10, loc="left")


def _predicted(panel: Any, layers: Sequence[Mapping[str, Any]]) -> None:
    at = [row["layer"] for row in layers]
    for side, colour in (("key", _KEYS), ("value", _VALUES)):
        dropped, planned = (
            [max(row[f"{side}_{name}"], 1e-12) for row in layers] for name in ("nats_if_dropped", "nats")
        )
        panel.semilogy(at, dropped, "o--", ms=3, lw=1, color=colour, mfc="white", label=f"{side}s dropped")
        panel.semilogy(at, planned, "o-", ms=3, color=colour, label=f"{side}s as planned")
    panel.set_xlabel("full-attention layer")
    panel.set_ylabel("predicted nats a token")
    panel.set_xlim(-0.7, len(layers) - 0.3)
    panel.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(axis="y", color="#e4e4e4", linewidth=0.6)
    panel.set_axisbelow(True)
    panel.set_title("What each layer's errors cost", fontsize=10, loc="left")
    panel.legend(fontsize=8, frameon=False, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.14))


def _spent(panel: Any, bits: Mapping[str, float], budget: float) -> None:
    parts = sorted(bits.items(), key=lambda part: part[1])
    panel.barh(
        [name for name, _ in parts],
        [value for _, value in parts],
        color=[_KEYS if name == "codes" else _GREY for name, _ in parts],
        height=0.65,
    )
    for row, (_, value) in enumerate(parts):
        panel.annotate(
            f"{value:.3f}  ({value / budget:.1%})",
            (value, row),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    panel.set_xlim(0, 1.3 * max(value for _, value in parts))  # room for the numbers
    panel.set_xlabel("bits for each number of the cache")
    panel.tick_params(axis="y", length=0)
    panel.spines[["top", "right", "left"]].set_visible(False)
    panel.set_title(f"Where {sum(bits.values()):.3f} of {budget:g} bits go", fontsize=10, loc="left")


def _activations(panel: Any, profile: ModelProfile) -> None:
    at = [each.layer for each in profile.layers]
    panel.semilogy(at, [max(each.largest, 1e-6) for each in profile.layers], "o-", ms=3, color="black")
    panel.semilogy(at, [max(each.median, 1e-6) for each in profile.layers], "o-", ms=3, color=_GREY)
    middle = profile.layers[len(at) * 2 // 3]
    _label(panel, middle.layer, middle.largest, "largest", "black")
    _label(panel, middle.layer, middle.median, "median", _GREY)
    panel.set_ylim(top=4 * max(each.largest for each in profile.layers))  # room for the label
    panel.set_ylabel("|activation| of the layer's output")
    sinks = profile.calibration.sinks
    if isinstance(sinks, NoSinks):
        panel.set_title("Massive activations: no sinks can be predicted", fontsize=10, loc="left")
        return
    panel.axvspan(sinks.emergence - 0.5, sinks.last + 0.5, color="#f2dfa0", alpha=0.45, lw=0)
    panel.axhline(sinks.hidden_threshold, color=_VALUES, lw=1, ls="--")
    panel.annotate(
        f"threshold {sinks.hidden_threshold:.0f}",
        (0.99, sinks.hidden_threshold),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="right",
        fontsize=8,
        color=_VALUES,
    )
    panel.set_title(
        f"Massive activations: layers {sinks.emergence} to {sinks.last} (shaded), "
        f"{sinks.massive} in {sinks.tokens} tokens\n"
        f"{sinks.sinks} attention sinks; told from the values of layer {sinks.layer}",
        fontsize=10,
        loc="left",
    )


def _means(panel: Any, profile: ModelProfile) -> None:
    rows = [(each.layer, each.keys) for each in profile.layers if each.keys is not None]
    at = [layer for layer, _ in rows]
    shares = np.stack([keys.mean_share.reshape(-1) for _, keys in rows]).clip(1e-6)
    panel.set_yscale("log")
    low, middle, high = np.quantile(shares, [0.1, 0.5, 0.9], axis=1)
    panel.fill_between(at, low, high, color=_KEYS, alpha=0.22, lw=0, label="10 % to 90 % of channels")
    panel.plot(at, middle, color=_KEYS, lw=1.8, label="median channel")
    panel.plot(at, shares.max(1), "^", ms=4, color=_KEYS, label="largest")
    panel.axhline(1, color=_GREY, lw=1, ls="--")
    panel.set_ylabel("squared mean / variance")
    panel.set_title("Keys before RoPE: what a fixed offset takes off", fontsize=10, loc="left")
    panel.legend(fontsize=8, frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.16))


def _outliers(panel: Any, profile: ModelProfile) -> None:
    for name, colour in (("keys", _KEYS), ("values", _VALUES)):
        rows = [(each.layer, getattr(each, name)) for each in profile.layers]
        shown = [(layer, side) for layer, side in rows if side is not None]
        panel.semilogy(
            [layer for layer, _ in shown],
            [100 * max(side.outliers, 1e-6) for _, side in shown],
            "o-",
            ms=3,
            color=colour,
            label=f"{name} (excess kurtosis {np.mean([side.kurtosis for _, side in shown]):.1f})",
        )
    panel.axhline(100 * _NORMAL_FAR, color=_GREY, lw=1, ls="--", label="normal numbers")
    panel.set_ylabel(f"numbers beyond {FAR:.0f} standard deviations, %")
    panel.set_title("Outliers within a channel, sink tokens left out", fontsize=10, loc="left")
    panel.legend(fontsize=8, frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.16))


def _sensitivities(panel: Any, profile: ModelProfile) -> None:
    for name, colour in (("keys", _KEYS), ("values", _VALUES)):
        rows = [(each.layer, getattr(each, name)) for each in profile.layers]
        shown = [(layer, max(side.sensitivity, 1e-9)) for layer, side in rows if side is not None]
        panel.semilogy(
            [layer for layer, _ in shown], [each for _, each in shown], "o-", ms=3, color=colour, label=name
        )
    panel.set_ylabel("Fisher information × variance, nats")
    panel.set_title("What the model minds: a token's states, summed over channels", fontsize=10, loc="left")
    panel.legend(fontsize=8, frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.16))


def _label(panel: Any, x: float, y: float, text: str, colour: str) -> None:
    panel.annotate(
        text,
        (x, max(y, 1e-6)),
        xytext=(0, 7),
        textcoords="offset points",
        ha="center",
        fontsize=8,
        color=colour,
    )
