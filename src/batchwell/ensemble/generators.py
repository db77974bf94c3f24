"""Random words in vector code: xoshiro128++ and Philox-4x32-10, one generator per lane.

Both keep four words of state per path. To Philox they are a counter of blocks (two words, low
first) and a key (two words); a draw takes whole blocks of four words and throws away the rest.
"""

from __future__ import annotations

from .vector import Code, Val, Var

GENERATORS = ("xoshiro", "philox")
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def words(c: Code, generator: str, state: list[Var], count: int) -> list[Val]:
    """The next `count` words of every lane."""
    if generator == "xoshiro":
        return [_xoshiro(c, state) for _ in range(count)]
    blocks = [_next_block(c, state) for _ in range(-(-count // 4))]
    return [word for block in blocks for word in block][:count]


def _rotated(c: Code, x: Val, k: int) -> Val:
    return c.call("fshl", x, x, c.like(k, x))


def _xoshiro(c: Code, state: list[Var]) -> Val:
    s0, s1, s2, s3 = (v.get() for v in state)
    out = c.add(_rotated(c, c.add(s0, s3), 7), s0)
    t = c.shift("shl", s1, 9)
    s2, s3 = c.binary("xor", s2, s0), c.binary("xor", s3, s1)
    s1, s0 = c.binary("xor", s1, s2), c.binary("xor", s0, s3)
    s2, s3 = c.binary("xor", s2, t), _rotated(c, s3, 11)
    for var, value in zip(state, (s0, s1, s2, s3), strict=True):
        var.set(value)
    return out


def _next_block(c: Code, state: list[Var]) -> list[Val]:
    low, high, key0, key1 = (v.get() for v in state)
    zero = c.like(0, low)
    out = philox(c, [low, high, zero, zero], [key0, key1])
    after = c.add(low, c.like(1, low))
    carried = c.compare("eq", after, zero)
    state[0].set(after)
    state[1].set(c.select(carried, c.add(high, c.like(1, high)), high))
    return out


def philox(c: Code, counter: list[Val], key: list[Val]) -> list[Val]:
    """Philox-4x32-10 of four counter words under two key words, as `streams.philox`.

    Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC11).
    """
    x, (k0, k1) = counter, key
    for turn in range(10):
        if turn:
            k0, k1 = (
                c.add(k0, c.like(_signed(_WEYL[0]), k0)),
                c.add(k1, c.like(_signed(_WEYL[1]), k1)),
            )
        high0, low0 = _product(c, x[0], _MULTIPLIERS[0])
        high1, low1 = _product(c, x[2], _MULTIPLIERS[1])
        x = [
            c.binary("xor", c.binary("xor", high1, x[1]), k0),
            low1,
            c.binary("xor", c.binary("xor", high0, x[3]), k1),
            low0,
        ]
    return x


def _signed(word: int) -> int:
    return word - 2**32 if word >= 2**31 else word


def _product(c: Code, a: Val, factor: int) -> tuple[Val, Val]:
    """(high, low) halves of a 32-bit product."""
    wide = c.cast("zext", a, "i64")
    full = c.mul(wide, c.like(factor, wide))
    return c.cast("trunc", c.shift("lshr", full, 32), "i32"), c.cast("trunc", full, "i32")
