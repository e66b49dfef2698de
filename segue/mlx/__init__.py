"""The MLX engine.

Importing this package puts a good BLAS in place where MLX will run on a Linux CPU; it does not
import MLX. Programs that import MLX themselves should import this package first.
"""

from . import blas

blas.prepare()
