"""What two neighbouring int8 weights may add up to, where kernels multiply by uint8 and add pairs in 16 bits."""

import numpy as np
import numpy.typing as npt

# 255 * |w0 + w1| > 32767 is |w0 + w1| > 128.
PAIR_LIMIT = 128


def worst_integer_pairs(values: npt.NDArray[np.int8]) -> npt.NDArray[np.int16]:
    """Give per channel the largest magnitude of the sum of two paired weights of equal sign.

    Args:
        values: weights (channels, contracted) in the kernel's order: places 0 and 1 are a pair, 2 and 3, and so on.
    """
    if values.shape[1] % 2:
        values = np.pad(values, ((0, 0), (0, 1)))
    # One reads two neighbours as one 16-bit number: its bytes are the pair, so nothing is gathered.
    pairs = np.ascontiguousarray(values).view(np.int16)
    low, high = pairs.astype(np.int8), (pairs >> 8).astype(np.int8)
    positive = np.add(np.maximum(low, 0), np.maximum(high, 0), dtype=np.int16)
    negative = np.add(np.minimum(low, 0), np.minimum(high, 0), dtype=np.int16)
    found: npt.NDArray[np.int16] = np.maximum(positive.max(axis=1, initial=0), -negative.min(axis=1, initial=0))
    return found
