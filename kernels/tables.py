"""Columns of the tables that the optimizer's kernels read, named as in csrc/cuda/kernels.h.

The host's side of the same tables is described in `pecker_fast.backends.kernels`.
"""

import triton.language as tl

# One parameter of the masked step: (n, 10) int64.
PARAM_ADDRESS = tl.constexpr(0)
PARAM_OFFSETS = tl.constexpr(1)
GRAD_OFFSETS = tl.constexpr(2)
EXP_AVG = tl.constexpr(3)
EXP_AVG_SQ = tl.constexpr(4)
MAX_EXP_AVG_SQ = tl.constexpr(5)
MASTER = tl.constexpr(6)
START_CLASS = tl.constexpr(7)
TENSOR_FIRST_ROW = tl.constexpr(8)
NNZ = tl.constexpr(9)
TENSOR_COLUMNS = tl.constexpr(10)

# Which rows of scalars belong to a parameter: (n, 4) int64.
GROUP = tl.constexpr(0)
ENTRY_FIRST_ROW = tl.constexpr(1)
ROW_COUNT = tl.constexpr(2)
IS_DOUBLE = tl.constexpr(3)
ENTRY_COLUMNS = tl.constexpr(4)

# The hyperparameters of a group: (G, 8) float64.
LR = tl.constexpr(0)
BETA1 = tl.constexpr(1)
BETA2 = tl.constexpr(2)
EPS = tl.constexpr(3)
WEIGHT_DECAY = tl.constexpr(4)
GROUP_CLIP_VALUE = tl.constexpr(5)
GROUP_SIGN = tl.constexpr(6)
GROUP_AMSGRAD = tl.constexpr(7)
GROUP_COLUMNS = tl.constexpr(8)

# The scalars of an update: 12 columns, float32 or float64, in rows of 96 bytes.
DECAY = tl.constexpr(0)  # 1 - lr * weight_decay
EXP_AVG_WEIGHT = tl.constexpr(1)  # 1 - beta1
EXP_AVG_REST = tl.constexpr(2)
ROW_BETA2 = tl.constexpr(3)
EXP_AVG_SQ_WEIGHT = tl.constexpr(4)  # 1 - beta2
ROW_EPS = tl.constexpr(5)
STEP_SIZE = tl.constexpr(6)  # lr / (1 - beta1^t)
BIAS_CORRECTION2_SQRT = tl.constexpr(7)
CLIP_VALUE = tl.constexpr(8)
SIGN = tl.constexpr(9)
AMSGRAD = tl.constexpr(10)
UNUSED = tl.constexpr(11)
ROW_DOUBLES = tl.constexpr(12)  # stride of a row in float64 elements
ROW_FLOATS = tl.constexpr(24)  # and in float32 elements
