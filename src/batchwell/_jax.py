"""The one door to JAX: float64 is switched on before any array exists.

Every module that computes with JAX imports `jax` and `jnp` from here, so that no
number in this library is ever a silent float32.
"""

from __future__ import annotations

import os

# Without this, JAX warns about missing accelerators on the plain machines that we serve.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax
import jax.numpy as jnp

jax.config.update("jax_enable_x64", True)

__all__ = ["jax", "jnp"]
