"""Elementary functions as vector code: no calls, no branches, the same bits in every lane.

Float64 versions are good to a few units in the last place, float32 ones likewise in float32;
functions without a float32 version are computed in float64 and rounded. Sources: fdlibm for
log, sine and cosine; Cephes for atan and the float32 logarithm; the other polynomials are
Chebyshev interpolants of the functions named beside them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from .vector import Code, Val

_MAGIC = {"f64": 6755399441055744.0, "f32": 12582912.0}  # adding it rounds to an integer
_MAGIC_BITS = {"f64": 0x4338000000000000, "f32": 0x4B400000}
_INT = {"f64": "i64", "f32": "i32"}
_LN2 = {"f64": (6.93147180369123816490e-01, 1.90821492927058770002e-10),
        "f32": (0.693359375, -2.12194440e-4)}  # fmt: skip
# (e^r - 1) / r on |r| <= ln(2)/2.
_EXPM1 = {
    "f64": (2.091141241214949e-09, 2.511008068268243e-08, 2.7557289835575024e-07,
            2.7557240876223536e-06, 2.4801587300099166e-05, 0.00019841269889957184,
            0.001388888888889967, 0.008333333333319752, 0.04166666666666664,
            0.1666666666666668, 0.5, 1.0),
    "f32": (0.0013933642689830008, 0.008369149818125773, 0.04166646499110676,
            0.16666505248452865, 0.5000000013459222, 1.0),
}  # fmt: skip
_LOG64 = (1.479819860511658591e-01, 1.531383769920937332e-01, 1.818357216161805012e-01,
          2.222219843214978396e-01, 2.857142874366239149e-01, 3.999999999940941908e-01,
          6.666666666666735130e-01)  # fmt: skip
_LOG32 = (7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
          -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1)  # fmt: skip
_SIN = {
    "f64": (1.58969099521155010221e-10, -2.50507602534068634195e-08, 2.75573137070700676789e-06,
            -1.98412698298579493134e-04, 8.33333333332248946124e-03, -1.66666666666666324348e-01),
    "f32": (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1),
}  # fmt: skip
_COS = {
    "f64": (-1.13596475577881948265e-11, 2.08757232129817482790e-09, -2.75573143513906633035e-07,
            2.48015872894767294178e-05, -1.38888888888741095749e-03, 4.16666666666666019037e-02),
    "f32": (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2),
}  # fmt: skip
_PIO2 = (1.57079632679489655800e00, 6.12323399573676603587e-17, -1.49738490485916983e-33)
_ATAN_P = (-8.750608600031904122785e-01, -1.615753718733365076637e01, -7.500855792314704667340e01,
           -1.228866684490136173410e02, -6.485021904942025371773e01)  # fmt: skip
_ATAN_Q = (1.0, 2.485846490142306297962e01, 1.650270098316988542046e02, 4.328810604912902668951e02,
           4.853903996359136964868e02, 1.945506571482613964425e02)  # fmt: skip
# erf(x) / x in x^2 on [0, 1], and ln(erfcx(x) / t) in Chebyshev polynomials of 2t - 1,
# t = 1 / (1 + x/2).
_ERF = (-3.917971642885598e-12, 8.499866145815661e-11, -1.2103604730578588e-09,
        1.4782241973465344e-08, -1.6363575580813765e-07, 1.6461972365102994e-06,
        -1.4925644308240762e-05, 0.00012055332812527662, -0.0008548327020595194,
        0.005223977625419567, -0.02686617064513156, 0.11283791670955141, -0.37612638903183754,
        1.1283791670955126)  # fmt: skip
_ERFC = (-0.6513268598908547, 0.6419697923564908, 0.019476473204185222, -0.00956151478680888,
         -0.0009465953444817276, 0.000366839497852462, 4.252332480707858e-05,
         -2.0278578112550932e-05, -1.6242900047462744e-06, 1.303655835373477e-06,
         1.5626441553854153e-08, -8.523809574175533e-08, 6.529054316308264e-09,
         5.059343468333742e-09, -9.913641110466166e-10, -2.2736513709721964e-10,
         9.646806541474219e-11, 2.393694164801027e-12, -6.886391784061537e-12,
         8.954799019624104e-13, 3.1154074484102303e-13, -1.1193985500713227e-13)  # fmt: skip


def absolute(c: Code, x: Val) -> Val:
    """|x|."""
    return c.call("fabs", x)


def sqrt(c: Code, x: Val) -> Val:
    """Square root, correctly rounded."""
    return c.call("sqrt", x)


def _round_to_integer(c: Code, x: Val) -> tuple[Val, Val]:
    """(nearest integer as a real, the same as an integer), for |x| < 2^30 or so."""
    shifted = c.add(x, c.like(_MAGIC[x.kind], x))
    whole = c.sub(shifted, c.like(_MAGIC[x.kind], x))
    bits = c.cast("bitcast", shifted, _INT[x.kind])
    return whole, c.sub(bits, c.like(_MAGIC_BITS[x.kind], bits))


def _two_to(c: Code, k: Val, kind: str) -> Val:
    bias, shift = (1023, 52) if kind == "f64" else (127, 23)
    bits = c.shift("shl", c.add(k, c.like(bias, k)), shift)
    return c.cast("bitcast", bits, kind)


def _clamp(c: Code, x: Val, low: float, high: float) -> Val:
    lo, hi = c.like(low, x), c.like(high, x)
    x = c.select(c.compare("olt", x, lo), lo, x)
    return c.select(c.compare("ogt", x, hi), hi, x)


def _reduced(c: Code, x: Val) -> tuple[Val, Val]:
    """(k, e^r - 1) with x = k ln 2 + r."""
    whole, k = _round_to_integer(c, c.mul(x, c.like(1 / math.log(2), x)))
    high, low = _LN2[x.kind]
    r = c.fma(whole, c.like(-high, x), x)
    r = c.fma(whole, c.like(-low, x), r)
    return k, c.mul(r, c.horner(r, _EXPM1[x.kind]))


def exp(c: Code, x: Val) -> Val:
    """e^x, with overflow to infinity and gradual underflow."""
    x = _clamp(c, x, -760.0, 720.0) if x.kind == "f64" else _clamp(c, x, -105.0, 90.0)
    k, p = _reduced(c, x)
    half = c.shift("ashr", k, 1)  # 2^k itself may overflow
    value = c.add(p, c.like(1.0, p))
    value = c.mul(value, _two_to(c, half, x.kind))
    return c.mul(value, _two_to(c, c.sub(k, half), x.kind))


def _exp_moderate(c: Code, x: Val) -> Val:
    """e^x where neither overflow nor underflow can matter: |x| is clamped."""
    x = _clamp(c, x, -708.0, 708.0) if x.kind == "f64" else _clamp(c, x, -87.0, 88.0)
    k, p = _reduced(c, x)
    scale = _two_to(c, k, x.kind)
    return c.fma(scale, p, scale)


def expm1(c: Code, x: Val) -> Val:
    """e^x - 1 without cancellation near 0."""
    limit = 709.7 if x.kind == "f64" else 88.0
    k, p = _reduced(c, _clamp(c, x, -50.0, limit))
    scale = _two_to(c, k, x.kind)
    value = c.fma(scale, p, c.sub(scale, c.like(1.0, x)))
    too_big = c.compare("ogt", x, c.like(limit, x))
    return c.select(too_big, c.like(math.inf, x), value)


def log(c: Code, x: Val, guarded: bool = True) -> Val:
    """ln x; `guarded` covers 0, negatives, infinity and subnormals."""
    if not guarded:
        return _log_normal(c, x)
    tiny, scale, bits = (2.0**-1022, 2.0**54, 54) if x.kind == "f64" else (2.0**-126, 2.0**25, 25)
    small = c.compare("olt", x, c.like(tiny, x))
    value = _log_normal(c, c.select(small, c.mul(x, c.like(scale, x)), x))
    lowered = c.sub(value, c.like(bits * math.log(2), x))
    value = c.select(small, lowered, value)
    value = c.select(c.compare("olt", x, c.like(math.inf, x)), value, x)
    value = c.select(c.compare("oge", x, c.like(0.0, x)), value, c.like(math.nan, x))
    return c.select(c.compare("oeq", x, c.like(0.0, x)), c.like(-math.inf, x), value)


def _log_normal(c: Code, x: Val) -> Val:
    if x.kind == "f32":
        return _log_normal32(c, x)
    base = 0x3FE6A09E667F3BCD  # bits of sqrt(1/2): mantissas in [sqrt(1/2), sqrt 2)
    bits = c.cast("bitcast", x, "i64")
    bits = c.sub(bits, c.like(base, bits))
    power = c.cast("sitofp", c.shift("ashr", bits, 52), "f64")
    mantissa = c.binary("and", bits, c.like(0x000FFFFFFFFFFFFF, bits))
    m = c.cast("bitcast", c.add(mantissa, c.like(base, bits)), "f64")
    f = c.sub(m, c.like(1.0, m))
    s = c.div(f, c.add(f, c.like(2.0, f)))
    z = c.mul(s, s)
    r = c.mul(z, c.horner(z, _LOG64))
    half = c.mul(c.mul(c.like(0.5, f), f), f)
    high, low = _LN2["f64"]
    inner = c.fma(s, c.add(half, r), c.mul(power, c.like(low, f)))
    return c.fma(power, c.like(high, f), c.sub(f, c.sub(half, inner)))


def _log_normal32(c: Code, x: Val) -> Val:
    power, f = _split32(c, x)
    z = c.mul(f, f)
    y = c.fma(c.mul(f, z), c.horner(f, _LOG32), c.fma(c.like(-0.5, z), z, f))
    return c.fma(power, c.like(math.log(2), f), y)


def _minus_twice_log32(c: Code, x: Val) -> Val:
    """-2 times `_log_normal32`, to the last bit: the factor is in the coefficients."""
    power, f = _split32(c, x)
    z = c.mul(f, f)
    coefficients = [-2.0 * k for k in _LOG32]
    y = c.fma(c.mul(f, z), c.horner(f, coefficients), c.fma(c.like(-2.0, f), f, z))
    return c.fma(power, c.like(-2.0 * math.log(2), f), y)


def _split32(c: Code, x: Val) -> tuple[Val, Val]:
    """x = 2^power (1 + f), 1 + f in [0.75, 1.5)."""
    bits = c.cast("bitcast", x, "i32")
    bits = c.sub(bits, c.like(0x3F400000, bits))
    power = c.cast("sitofp", c.shift("ashr", bits, 23), "f32")
    mantissa = c.binary("and", bits, c.like(0x007FFFFF, bits))
    m = c.cast("bitcast", c.add(mantissa, c.like(0x3F400000, bits)), "f32")
    return power, c.sub(m, c.like(1.0, m))


def log1p(c: Code, x: Val) -> Val:
    """ln(1 + x), exact to rounding near 0."""
    one = c.like(1.0, x)
    u = c.add(one, x)
    lost = c.div(c.sub(x, c.sub(u, one)), u)
    plain = log(c, u)
    finite = c.compare("oeq", c.sub(u, u), c.like(0.0, u))
    usual = c.binary("and", finite, c.compare("ogt", u, c.like(0.0, u)))
    return c.select(usual, c.add(plain, lost), plain)


def tanh(c: Code, x: Val) -> Val:
    """Hyperbolic tangent by expm1."""
    e = _expm1_moderate(c, c.mul(c.like(2.0, x), _clamp(c, x, -22.0, 22.0)))
    return c.div(e, c.add(e, c.like(2.0, x)))


def _expm1_moderate(c: Code, x: Val) -> Val:
    k, p = _reduced(c, x)
    scale = _two_to(c, k, x.kind)
    return c.fma(scale, p, c.sub(scale, c.like(1.0, x)))


def logistic(c: Code, x: Val) -> Val:
    """1 / (1 + e^-x)."""
    one = c.like(1.0, x)
    return c.div(one, c.add(one, _exp_moderate(c, c.neg(x))))


def sinh(c: Code, x: Val) -> Val:
    """Hyperbolic sine by expm1."""
    a = absolute(c, x)
    e = expm1(c, a)
    half = c.like(0.5, x)
    value = c.mul(half, c.add(e, c.div(e, c.add(e, c.like(1.0, x)))))
    value = c.select(c.compare("oeq", e, c.like(math.inf, x)), e, value)
    return c.call("copysign", value, x)


def cosh(c: Code, x: Val) -> Val:
    """Hyperbolic cosine."""
    e = exp(c, absolute(c, x))
    half = c.like(0.5, x)
    return c.add(c.mul(half, e), c.div(half, e))


def sincos_quadrant(c: Code, quadrant: Val, r: Val) -> tuple[Val, Val]:
    """(sin, cos) of r + quadrant pi/2 for |r| <= pi/4."""
    z = c.mul(r, r)
    s = c.fma(c.mul(r, z), c.horner(z, _SIN[r.kind]), r)
    tail = c.fma(c.like(-0.5, z), z, c.like(1.0, z))
    k = c.fma(c.mul(z, z), c.horner(z, _COS[r.kind]), tail)
    odd = c.compare("ne", c.binary("and", quadrant, c.like(1, quadrant)), c.like(0, quadrant))
    flip_s = c.binary("and", quadrant, c.like(2, quadrant))
    flip_c = c.binary("and", c.add(quadrant, c.like(1, quadrant)), c.like(2, quadrant))
    return (_flip(c, c.select(odd, k, s), flip_s), _flip(c, c.select(odd, s, k), flip_c))


def _flip(c: Code, x: Val, two: Val) -> Val:
    """-x where `two` is 2, x where it is 0."""
    sign = c.shift("shl", two, 62 if x.kind == "f64" else 30)
    bits = c.binary("xor", c.cast("bitcast", x, sign.kind), sign)
    return c.cast("bitcast", bits, x.kind)


def _sincos(c: Code, x: Val) -> tuple[Val, Val]:
    """(sin x, cos x) in float64, reduced by a three-part pi/2: |x| up to about 1e9."""
    whole, k = _round_to_integer(c, c.mul(x, c.like(2 / math.pi, x)))
    r = x
    for part in _PIO2:
        r = c.fma(whole, c.like(-part, x), r)
    return sincos_quadrant(c, k, r)


def sin(c: Code, x: Val) -> Val:
    """Sine."""
    return _sincos(c, x)[0]


def cos(c: Code, x: Val) -> Val:
    """Cosine."""
    return _sincos(c, x)[1]


def tan(c: Code, x: Val) -> Val:
    """Tangent."""
    s, k = _sincos(c, x)
    return c.div(s, k)


def atan(c: Code, x: Val) -> Val:
    """Arc tangent."""
    a = absolute(c, x)
    one = c.like(1.0, a)
    big = c.compare("ogt", a, c.like(2.414213562373095, a))
    middle = c.compare("ogt", a, c.like(0.66, a))
    inner = c.div(c.sub(a, one), c.add(a, one))
    t = c.select(big, c.div(c.like(-1.0, a), a), c.select(middle, inner, a))
    zero, quarter, half = (c.like(v, a) for v in (0.0, math.pi / 4, math.pi / 2))
    base = c.select(big, half, c.select(middle, quarter, zero))
    z = c.mul(t, t)
    ratio = c.div(c.horner(z, _ATAN_P), c.horner(z, _ATAN_Q))
    value = c.add(base, c.fma(c.mul(t, z), ratio, t))
    return c.call("copysign", value, x)


def asin(c: Code, x: Val) -> Val:
    """Arc sine."""
    one = c.like(1.0, x)
    return atan(c, c.div(x, sqrt(c, c.mul(c.sub(one, x), c.add(one, x)))))


def acos(c: Code, x: Val) -> Val:
    """Arc cosine."""
    one = c.like(1.0, x)
    half = atan(c, sqrt(c, c.div(c.sub(one, x), c.add(one, x))))
    return c.add(half, half)


def atan2(c: Code, y: Val, x: Val) -> Val:
    """Angle of (x, y)."""
    zero = c.like(0.0, x)
    plain = atan(c, c.div(y, x))
    turn = c.call("copysign", c.like(math.pi, x), y)
    value = c.select(c.compare("olt", x, zero), c.add(plain, turn), plain)
    edge = c.call("copysign", c.like(math.pi / 2, x), y)
    edge = c.select(c.compare("oeq", y, zero), zero, edge)
    return c.select(c.compare("oeq", x, zero), edge, value)


def erf(c: Code, x: Val) -> Val:
    """Error function."""
    a = absolute(c, x)
    near = c.mul(x, c.horner(c.mul(x, x), _ERF))
    far = c.call("copysign", c.sub(c.like(1.0, x), _erfc_positive(c, a)), x)
    return c.select(c.compare("olt", a, c.like(1.0, a)), near, far)


def erfc(c: Code, x: Val) -> Val:
    """Complementary error function."""
    right = _erfc_positive(c, absolute(c, x))
    left = c.sub(c.like(2.0, x), right)
    return c.select(c.compare("olt", x, c.like(0.0, x)), left, right)


def _erfc_positive(c: Code, x: Val) -> Val:
    one = c.like(1.0, x)
    t = c.div(one, c.fma(c.like(0.5, x), x, one))
    u = c.sub(c.add(t, t), one)
    twice = c.add(u, u)
    b1, b2 = c.like(0.0, x), c.like(0.0, x)
    for coefficient in reversed(_ERFC[1:]):
        b1, b2 = c.fma(twice, b1, c.sub(c.like(coefficient, x), b2)), b1
    series = c.fma(u, b1, c.sub(c.like(_ERFC[0], x), b2))
    return c.mul(t, exp(c, c.fma(c.neg(x), x, series)))


def power(c: Code, x: Val, y: Val) -> Val:
    """x^y; a negative x needs a whole y."""
    zero = c.like(0.0, x)
    size = exp(c, c.mul(y, log(c, absolute(c, x))))
    size = c.select(c.compare("oeq", y, zero), c.like(1.0, x), size)
    half = c.mul(c.like(0.5, y), y)
    even = c.compare("oeq", c.call("floor", half), half)
    whole = c.compare("oeq", c.call("floor", y), y)
    negative = c.select(even, size, c.neg(size))
    negative = c.select(whole, negative, c.like(math.nan, x))
    return c.select(c.compare("olt", x, zero), negative, size)


def cbrt(c: Code, x: Val) -> Val:
    """Cube root: a logarithm's guess and one Newton step."""
    a = absolute(c, x)
    guess = exp(c, c.mul(c.like(1 / 3, a), log(c, a)))
    square = c.mul(guess, guess)
    error = c.div(c.fma(square, guess, c.neg(a)), c.mul(c.like(3.0, a), square))
    better = c.call("copysign", c.sub(guess, error), x)
    return c.select(c.compare("oeq", a, c.like(0.0, a)), x, better)


def sign(c: Code, x: Val) -> Val:
    """-1, 0 or 1; NaN stays."""
    zero = c.like(0.0, x)
    one = c.call("copysign", c.like(1.0, x), x)
    return c.select(c.compare("one", x, zero), one, x)


def rsqrt(c: Code, x: Val) -> Val:
    """1 / sqrt x."""
    return c.div(c.like(1.0, x), sqrt(c, x))


def exp2(c: Code, x: Val) -> Val:
    """2^x."""
    return exp(c, c.mul(c.like(math.log(2), x), x))


Function = Callable[[Code, Val], Val]
FUNCTIONS: dict[str, Function] = {
    "neg": Code.neg, "abs": absolute, "sqrt": sqrt, "exp": exp, "log": log, "log1p": log1p,
    "expm1": expm1, "tanh": tanh, "logistic": logistic, "sinh": sinh, "cosh": cosh, "sin": sin,
    "cos": cos, "tan": tan, "atan": atan, "asin": asin, "acos": acos, "erf": erf, "erfc": erfc,
    "cbrt": cbrt, "sign": sign, "rsqrt": rsqrt, "exp2": exp2,
    "floor": lambda c, x: c.call("floor", x), "ceil": lambda c, x: c.call("ceil", x),
    "round": lambda c, x: c.call("rint", x), "trunc": lambda c, x: c.call("trunc", x),
}  # fmt: skip
# Those whose float32 version would lose too much: computed in float64.
WIDE = {"sin", "cos", "tan", "atan", "asin", "acos", "erf", "erfc", "cbrt", "sinh", "cosh"}


def apply(c: Code, op: str, x: Val) -> Val:
    """The function called `op` of x, in x's kind."""
    if op in WIDE and x.kind == "f32":
        return c.real(FUNCTIONS[op](c, c.real(x, "f64")), "f32")
    return FUNCTIONS[op](c, x)


def normal_pair(c: Code, kind: str, words: list[Val]) -> tuple[Val, Val]:
    """Two standard normals from four words (float64) or two (float32), by Box-Muller.

    The twin of `noise.normal_pair` and `streams.normal_pair32`: the angle's quadrant is split
    off exactly, so values agree with NumPy's to rounding.
    """
    if kind == "f32":
        u = c.fma(
            c.cast("uitofp", words[0], "f32"), c.const(2.0**-32, "f32"), c.const(2.0**-33, "f32")
        )
        # u is at most 1, where the logarithm is exactly 0: no root of a negative number.
        radius = sqrt(c, _minus_twice_log32(c, u))
        eighth = c.add(words[1], c.like(0x20000000, words[1]))
        quadrant = c.shift("lshr", eighth, 30)
        rest = c.sub(words[1], c.shift("shl", quadrant, 30))
        r = c.mul(c.cast("sitofp", rest, "f32"), c.const(math.pi / 2**31, "f32"))
    else:
        u = uniform(c, words[0], words[1])
        radius = sqrt(c, c.mul(_log_normal(c, u), c.const(-2.0, "f64")))
        turns = c.mul(uniform(c, words[2], words[3]), c.const(4.0, "f64"))
        whole, quadrant = _round_to_integer(c, turns)
        r = c.mul(c.sub(turns, whole), c.const(math.pi / 2, "f64"))
    s, k = sincos_quadrant(c, quadrant, r)
    return c.mul(radius, k), c.mul(radius, s)


def uniform(c: Code, first: Val, second: Val) -> Val:
    """`streams.uniform` of two words, bit for bit."""
    high = c.cast("uitofp", c.shift("lshr", first, 5), "f64")
    low = c.cast("uitofp", c.shift("lshr", second, 6), "f64")
    k = c.add(c.add(c.mul(high, c.like(67108864.0, high)), low), c.like(0.5, low))
    u = c.mul(k, c.like(2.0**-53, k))
    top = c.like(1.0 - 2.0**-53, u)
    return c.select(c.compare("ogt", u, top), top, u)
