"""The device code of :mod:`~sagittal.language.gpu`: imported only where Triton is installed.

Axes of tiles: R rows, each a component or a channel; T tokens of a chunk; Q query heads that share a
key-value head, at least the 16 rows of a product.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["attend_chunk"]

_STATIC = tl.constexpr(0)
_CHANNEL = tl.constexpr(1)


@triton.jit  # type: ignore[untyped-decorator]
def _numbers(  # type: ignore[no-untyped-def]
    row, token, held_tokens, page, b, h, pointers, held, layout, levels,
    H: tl.constexpr, C: tl.constexpr, TENSORS: tl.constexpr, SCALE: tl.constexpr, BLOCK: tl.constexpr,
    GROUP: tl.constexpr, WHOLE: tl.constexpr, SHARED: tl.constexpr,
):  # fmt: skip
    """Return what the codes of some components of a head stand for, (R, T) float32; 0 where there are none.

    Components are those of ``row`` below C, tokens those of ``token`` below ``held_tokens``, counted from the
    page's start. Eight codes of b bits take b bytes, lowest bit first, so a code lies in one byte or two.
    """
    known = row < C
    at = h * C + row
    plane = tl.load(layout + at, mask=known, other=0)
    number = tl.load(layout + H * C + at, mask=known, other=0)
    rows = tl.load(layout + 2 * H * C + at, mask=known, other=0)
    bits = tl.load(layout + 3 * H * C + at, mask=known, other=0)
    length = tl.load(held + page)
    codes = tl.load(pointers + page * TENSORS + plane, mask=known, other=0).to(tl.pointer_type(tl.uint8))
    codes += (b * rows + number).to(tl.int64) * (length // 8 * bits)

    there = (bits > 0)[:, None] & (token < held_tokens)[None, :]
    first = token[None, :] * bits[:, None]
    byte = codes[:, None] + first // 8
    shift = first % 8
    low = tl.load(byte, mask=there, other=0).to(tl.int32)
    high = tl.load(byte + 1, mask=there & (shift + bits[:, None] > 8), other=0).to(tl.int32)
    code = ((low | (high << 8)) >> shift) & ((1 << bits[:, None]) - 1)
    if WHOLE:
        found = code.to(tl.float32)
    else:
        found = tl.load(levels + 256 * bits[:, None] + code, mask=there, other=0.0)
    if SCALE != _STATIC:
        if SCALE == _CHANNEL:
            line, column, columns, lines = at, token // BLOCK, length // BLOCK, H * C
        else:
            line, column, columns, lines = at // GROUP, token, length, H * C // GROUP
        steps = tl.load(pointers + page * TENSORS + TENSORS - 2).to(tl.pointer_type(tl.float16))
        lows = tl.load(pointers + page * TENSORS + TENSORS - 1).to(tl.pointer_type(tl.float16))
        start = (b * lines + line).to(tl.int64) * columns
        if SHARED and SCALE == _CHANNEL:  # the chunk lies in one block of tokens
            place = start[:, None] + tl.min(column, axis=0)
            ok = known[:, None]
        elif SHARED:  # the rows lie in one group of components
            place = tl.min(tl.where(known, start, start + lines * length), axis=0) + column[None, :]
            ok = (token < held_tokens)[None, :]
        else:
            place = start[:, None] + column[None, :]
            ok = there
        step = tl.load(steps + place, mask=ok, other=0.0).to(tl.float32)
        least = tl.load(lows + place, mask=ok, other=0.0).to(tl.float32)
        found = tl.where(there, least + step * found, 0.0)
    return found


@triton.jit  # type: ignore[untyped-decorator]
def _gains(  # type: ignore[no-untyped-def]
    token, there, page, b, h, pointers, held, H: tl.constexpr, TENSORS: tl.constexpr
):
    """Return the gain of each token of a head, (T,): sixteen steps to a factor of two."""
    gains = tl.load(pointers + page * TENSORS + TENSORS - 2).to(tl.pointer_type(tl.uint8))
    gains += (b * H + h).to(tl.int64) * tl.load(held + page)
    return tl.exp2((tl.load(gains + token, mask=there, other=128).to(tl.float32) - 128.0) / 16.0)


@triton.jit  # type: ignore[untyped-decorator]
def _turned(  # type: ignore[no-untyped-def]
    query, q, channel, known, G: tl.constexpr, D: tl.constexpr
):
    """Return some channels of the queries of one head, (Q, R)."""
    return tl.load(
        query + q[:, None] * D + channel[None, :], mask=(q < G)[:, None] & known[None, :], other=0.0
    )


@triton.jit  # type: ignore[untyped-decorator]
def _channels(  # type: ignore[no-untyped-def]
    channel, known, token, held_tokens, gain, page, b, h, pointers, held, layout, levels,
    factor, inverse, mean,
    H: tl.constexpr, D: tl.constexpr, C: tl.constexpr, TENSORS: tl.constexpr, SCALE: tl.constexpr,
    BLOCK: tl.constexpr, GROUP: tl.constexpr, WHOLE: tl.constexpr, SHARED: tl.constexpr,
):  # fmt: skip
    """Return some channels of keys that have no basis, as they are before RoPE, (R, T)."""
    x = _numbers(
        tl.where(known, channel, C), token, held_tokens, page, b, h, pointers, held, layout, levels,
        H, C, TENSORS, SCALE, BLOCK, GROUP, WHOLE, SHARED,
    )  # fmt: skip
    x *= tl.load(factor + h * C + channel, mask=known, other=0.0)[:, None] * gain[None, :]
    x *= tl.load(inverse + h * D + channel, mask=known, other=0.0)[:, None]
    return x + tl.load(mean + h * D + channel, mask=known, other=0.0)[:, None]


@triton.jit  # type: ignore[untyped-decorator]
def _mixed(  # type: ignore[no-untyped-def]
    sums, x, channel, known, row, h, basis, D: tl.constexpr, C: tl.constexpr, ONE: tl.constexpr
):
    """Add the share of some components, x (R, T), to some channels of keys, sums (channels, T)."""
    at = (h * (1 - ONE) * D + channel[:, None]) * C + row[None, :]
    columns = tl.load(basis + at, mask=known[:, None] & (row < C)[None, :], other=0).to(tl.float32)
    return tl.dot(columns, x, sums, input_precision="tf32x3")


@triton.jit  # type: ignore[untyped-decorator]
def _finished(  # type: ignore[no-untyped-def]
    sums, channel, known, gain, h, inverse, mean, D: tl.constexpr
):
    """Return channels of keys from what a basis made of their components, (R, T)."""
    sums *= tl.load(inverse + h * D + channel, mask=known, other=0.0)[:, None] * gain[None, :]
    return sums + tl.load(mean + h * D + channel, mask=known, other=0.0)[:, None]


@triton.jit(do_not_specialize=["chunks", "tokens", "pad_step", "seen_step"])  # type: ignore[untyped-decorator]
def attend_chunk(  # type: ignore[no-untyped-def]
    query, same, chunk_table, k_pointers, v_pointers, held,
    k_layout, k_levels, k_factor, k_basis, k_inverse, k_mean, v_layout, v_levels,
    frequencies, near, pads, live, visible, most_out, sum_out, value_out,
    chunks, tokens, pad_step, seen_step, softcap, stretch,
    H: tl.constexpr, G: tl.constexpr, D: tl.constexpr, PAIRS: tl.constexpr, TURNED: tl.constexpr,
    BASIS: tl.constexpr, ONE: tl.constexpr, CAPPED: tl.constexpr, PADDED: tl.constexpr,
    KEPT: tl.constexpr, MASKED: tl.constexpr,
    K_C: tl.constexpr, K_TENSORS: tl.constexpr, K_SCALE: tl.constexpr, K_BLOCK: tl.constexpr,
    K_GROUP: tl.constexpr, K_WHOLE: tl.constexpr, K_SHARED: tl.constexpr, K_GAIN: tl.constexpr,
    V_C: tl.constexpr, V_TENSORS: tl.constexpr, V_SCALE: tl.constexpr, V_BLOCK: tl.constexpr,
    V_GROUP: tl.constexpr, V_WHOLE: tl.constexpr, V_SHARED: tl.constexpr, V_GAIN: tl.constexpr,
    Q: tl.constexpr, P: tl.constexpr, REST: tl.constexpr, R: tl.constexpr, T: tl.constexpr,
    NEAR: tl.constexpr,
):  # fmt: skip
    """Attend from the queries of one key-value head to one chunk of tokens of a page.

    Writes for each query its largest logit, the sum of exp(logit - largest), and the components of the values
    so weighted.
    """
    chunk = tl.program_id(0)
    b = tl.program_id(1) // H
    h = tl.program_id(1) % H
    page = tl.load(chunk_table + 4 * chunk)
    first = tl.load(chunk_table + 4 * chunk + 1)  # in the page
    held_tokens = first + tl.load(chunk_table + 4 * chunk + 2)
    place = tl.load(chunk_table + 4 * chunk + 3)  # of the first token in the text
    offset = tl.arange(0, T)
    token = first + offset
    there = token < held_tokens
    q = tl.arange(0, Q)
    line = (b * H + h).to(tl.int64)
    queries = query + line * (G * (D if TURNED else K_C))
    gain = tl.full((T,), 1.0, tl.float32)
    if K_GAIN:
        gain = _gains(token, there, page, b, h, k_pointers, held, H, K_TENSORS)

    logits = tl.zeros((Q, T), tl.float32)
    if TURNED:
        pair = tl.arange(0, P)
        paired = pair < PAIRS
        rest = 2 * PAIRS + tl.arange(0, REST)
        left = rest < D
        if BASIS:
            x1 = tl.zeros((P, T), tl.float32)
            x2 = tl.zeros((P, T), tl.float32)
            x3 = tl.zeros((REST, T), tl.float32)
            for start in range(0, K_C, R):
                row = start + tl.arange(0, R)
                x = _numbers(
                    row, token, held_tokens, page, b, h, k_pointers, held, k_layout, k_levels,
                    H, K_C, K_TENSORS, K_SCALE, K_BLOCK, K_GROUP, K_WHOLE, K_SHARED,
                )  # fmt: skip
                x *= tl.load(k_factor + h * K_C + row, mask=row < K_C, other=0.0)[:, None]
                x1 = _mixed(x1, x, pair, paired, row, h, k_basis, D, K_C, ONE)
                x2 = _mixed(x2, x, PAIRS + pair, paired, row, h, k_basis, D, K_C, ONE)
                if 2 * PAIRS < D:
                    x3 = _mixed(x3, x, rest, left, row, h, k_basis, D, K_C, ONE)
            x1 = _finished(x1, pair, paired, gain, h, k_inverse, k_mean, D)
            x2 = _finished(x2, PAIRS + pair, paired, gain, h, k_inverse, k_mean, D)
            x3 = _finished(x3, rest, left, gain, h, k_inverse, k_mean, D)
        else:
            x1 = _channels(
                pair, paired, token, held_tokens, gain, page, b, h, k_pointers, held, k_layout, k_levels,
                k_factor, k_inverse, k_mean,
                H, D, K_C, K_TENSORS, K_SCALE, K_BLOCK, K_GROUP, K_WHOLE, K_SHARED,
            )  # fmt: skip
            x2 = _channels(
                PAIRS + pair, paired, token, held_tokens, gain, page, b, h, k_pointers, held, k_layout,
                k_levels, k_factor, k_inverse, k_mean,
                H, D, K_C, K_TENSORS, K_SCALE, K_BLOCK, K_GROUP, K_WHOLE, K_SHARED,
            )  # fmt: skip
            if 2 * PAIRS < D:
                x3 = _channels(
                    rest, left, token, held_tokens, gain, page, b, h, k_pointers, held, k_layout, k_levels,
                    k_factor, k_inverse, k_mean,
                    H, D, K_C, K_TENSORS, K_SCALE, K_BLOCK, K_GROUP, K_WHOLE, K_SHARED,
                )  # fmt: skip
        # the turn by a token's position is that by the chunk's first, done to the query, and one by the rest
        pad = tl.load(pads + b * pad_step) if PADDED else 0
        base = tl.maximum(place - pad, 0)
        ahead = (tl.maximum(place + offset - pad, 0) - base).to(tl.int32)
        at = near + pair[:, None] * NEAR + ahead[None, :]
        cos = tl.load(at, mask=paired[:, None], other=0.0)
        sin = tl.load(at + PAIRS * NEAR, mask=paired[:, None], other=0.0)
        angle = base.to(tl.float32) * tl.load(frequencies + pair, mask=paired, other=0.0)
        far_cos = (stretch * tl.cos(angle))[None, :]
        far_sin = (stretch * tl.sin(angle))[None, :]
        q1 = _turned(queries, q, pair, paired, G, D)
        q2 = _turned(queries, q, PAIRS + pair, paired, G, D)
        logits = tl.dot(q1 * far_cos + q2 * far_sin, x1 * cos - x2 * sin, logits, input_precision="tf32x3")
        logits = tl.dot(q2 * far_cos - q1 * far_sin, x2 * cos + x1 * sin, logits, input_precision="tf32x3")
        if 2 * PAIRS < D:
            q3 = _turned(queries, q, rest, left, G, D)
            logits = tl.dot(q3, x3, logits, input_precision="tf32x3")
    else:
        for start in range(0, K_C, R):
            row = start + tl.arange(0, R)
            x = _numbers(
                row, token, held_tokens, page, b, h, k_pointers, held, k_layout, k_levels,
                H, K_C, K_TENSORS, K_SCALE, K_BLOCK, K_GROUP, K_WHOLE, K_SHARED,
            )  # fmt: skip
            part = _turned(queries, q, row, row < K_C, G, K_C)
            logits = tl.dot(part, x, logits, input_precision="tf32x3")
        logits = logits * gain[None, :] + tl.load(same + line * G + q, mask=q < G, other=0.0)[:, None]

    if CAPPED:  # tanh y = 1 - 2 / (exp 2y + 1)
        logits = softcap * (1.0 - 2.0 / (tl.exp(2.0 / softcap * logits) + 1.0))
    if KEPT:
        there &= tl.load(live + b * tokens + place + offset, mask=there, other=0) != 0
    if MASKED:
        there &= tl.load(visible + b * seen_step + place + offset, mask=there, other=0) != 0
    logits = tl.where(there[None, :], logits, float("-inf"))
    most = tl.max(logits, axis=1)
    shares = tl.exp(logits - tl.where(most == float("-inf"), 0.0, most)[:, None])
    out = (line * chunks + chunk) * G + q
    tl.store(most_out + out, most, mask=q < G)
    tl.store(sum_out + out, tl.sum(shares, axis=1), mask=q < G)

    if V_GAIN:
        shares *= _gains(token, first + offset < held_tokens, page, b, h, v_pointers, held, H, V_TENSORS)[
            None, :
        ]
    for start in range(0, V_C, R):
        row = start + tl.arange(0, R)
        x = _numbers(
            row, token, held_tokens, page, b, h, v_pointers, held, v_layout, v_levels,
            H, V_C, V_TENSORS, V_SCALE, V_BLOCK, V_GROUP, V_WHOLE, V_SHARED,
        )  # fmt: skip
        sums = tl.dot(shares, tl.trans(x), input_precision="tf32x3")
        tl.store(
            value_out + out[:, None] * V_C + row[None, :], sums, mask=(q < G)[:, None] & (row < V_C)[None, :]
        )
