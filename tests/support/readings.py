"""The x0 in a network's output, solved from the definitions alone."""

import numpy as np


def denoised(prediction_type: str, output, xt, alpha, sigma):
    """The x0 that an output claims, from the definitions: solve for it."""
    meaning = {"epsilon": [0, 1], "v_prediction": [-sigma, alpha], "sample": [1, 0]}
    matrix = np.array([[alpha, sigma], meaning[prediction_type]])
    return np.linalg.solve(matrix, np.stack([xt.ravel(), output.ravel()]))[0].reshape(xt.shape)
