"""Fit the polynomials of ``csrc/simd/math.hpp`` and print them with their errors. Needs mpmath; takes a few seconds.

Each is the interpolant at Chebyshev nodes, or close to them, computed in 60 digits and then rounded to the type: within
a small factor of the best polynomial of its degree, and reproducible without an exchange algorithm. The errors printed
are relative ones, of the exact polynomial with the rounded coefficients.

exp2          2^f = 1 + f * P(f) for f in [-1/2, 1/2]
normal tail   Phi(-a) = exp(-a^2 / 2) * t * P(t - 1/2), t = 1 / (1 + p a), for 0 <= a <= end. t maps the half line
              to (0, 1], where exp(a^2 / 2) Phi(-a) / t is smooth and nearly constant (the idea of Shepherd and
              Laframboise, "Chebyshev approximation of (1 + 2x) exp(x^2) erfc(x) in 0 <= x < inf", Mathematics of
              Computation 36, 1981).

Usage: python3 tools/fit_polynomials.py
"""

import struct
from collections.abc import Callable

from mpmath import cos, erfc, exp, expm1, log, matrix, mp, mpf, pi, polyval, qr_solve, sqrt

Function = Callable[[mpf], mpf]


def chebyshev_nodes(low: mpf, high: mpf, count: int) -> list[mpf]:
    """The zeros of a Chebyshev polynomial, on [low, high]."""
    return [(low + high) / 2 + (high - low) / 2 * cos((2 * i + 1) * pi / (2 * count)) for i in range(count)]


def interpolate(f: Function, nodes: list[mpf]) -> list[mpf]:
    """Coefficients, constant first, of the polynomial through f at the nodes."""
    powers = matrix([[x**k for k in range(len(nodes))] for x in nodes])
    solution, _ = qr_solve(powers, matrix([f(x) for x in nodes]))
    return list(solution)


def rounded(coefficients: list[mpf], double: bool) -> list[mpf]:
    """The coefficients as the type stores them."""
    if double:
        return [mpf(float(c)) for c in coefficients]
    return [mpf(struct.unpack("f", struct.pack("f", float(c)))[0]) for c in coefficients]


def evaluate(coefficients: list[mpf], x: mpf) -> mpf:
    """P(x)."""
    return polyval(coefficients[::-1], x)


def worst(approximate: Function, exact: Function, low: mpf, high: mpf) -> mpf:
    """Largest relative error over a fine grid."""
    grid = [low + (high - low) * i / 2000 for i in range(2001)]
    return max(abs(approximate(x) / exact(x) - 1) for x in grid)


def show(title: str, coefficients: list[mpf], double: bool, error: mpf) -> None:
    """Print as C++ reads it."""
    digits, suffix = (20, "") if double else (10, "f")
    print(f"{title}: relative error {mp.nstr(error, 2)}")
    print("   ", ", ".join(mp.nstr(c, digits) + suffix for c in coefficients))


def fit_exp2(degree: int, double: bool, *, flat: bool = False) -> None:
    """2^f on [-1/2, 1/2].

    The value at 0 is exact, so the error has one more zero there. `flat` (odd degree): it is made a double one, and the
    zeros of a Chebyshev polynomial of f^2, of which the least one is put at 0, are the others.
    """
    half = mpf(1) / 2
    nodes = chebyshev_nodes(-half, half, degree)
    if flat:
        zeros = chebyshev_nodes(mpf(-1), mpf(1), (degree + 1) // 2)
        roots = [sqrt((t - zeros[-1]) / (1 - zeros[-1])) / 2 for t in zeros[:-1]]
        nodes = [mpf(0), *roots, *(-x for x in roots)]

    def slope(f: mpf) -> mpf:
        return expm1(f * log(2)) / f if f else log(2)

    coefficients = [mpf(1), *interpolate(slope, nodes)]
    p = rounded(coefficients, double)
    error = worst(lambda f: evaluate(p, f), lambda f: mpf(2) ** f, -half, half)
    show(f"exp2, degree {degree}", coefficients, double, error)


def fit_normal_tail(degree: int, double: bool, steepness: mpf, end: mpf) -> mpf:
    """exp(a^2 / 2) Phi(-a) / t on [0, end] as a polynomial of t - 1/2."""
    half = mpf(1) / 2

    def scaled_tail(u: mpf) -> mpf:
        t = u + half
        a = (1 / t - 1) / steepness
        return exp(a * a / 2) * erfc(a / sqrt(2)) / 2 / t

    low = 1 / (1 + steepness * end) - half
    coefficients = interpolate(scaled_tail, chebyshev_nodes(low, half, degree + 1))
    p = rounded(coefficients, double)
    error = worst(lambda u: evaluate(p, u), scaled_tail, low, half)
    show(f"normal tail, degree {degree}, p = {mp.nstr(steepness, 5)}", coefficients, double, error)
    return error


if __name__ == "__main__":
    mp.dps = 60
    fit_exp2(5, double=False, flat=True)
    fit_exp2(6, double=False)
    fit_exp2(12, double=True)
    fit_normal_tail(9, double=False, steepness=mpf("0.3"), end=mpf(15))
    fit_normal_tail(22, double=True, steepness=mpf("0.25"), end=mpf(40))
