"""The MLX engine.

Importing this package opens a good BLAS if MLX will run on a Linux CPU (`blas`); it does not import
MLX. Programs that import MLX themselves should import this package first.
"""

import os

from . import blas

blas.prepare()
# On CUDA, MLX plans attention anew for every pair of lengths, and takes the 513th plan for a
# mistake: it then refuses to work in that thread. Conversations do have that many lengths.
os.environ.setdefault("MLX_ENABLE_CACHE_THRASHING_CHECK", "0")
