"""Forecasts by exponential smoothing (statsmodels' ETS), where that library is installed; else by the plain method.

In: a history of amounts per step. Out: an `Outlook` that says which method it is by, and why not a better one.
"""

import warnings
from collections.abc import Sequence
from typing import Final

from services.meter.core.outlook import Outlook, of_paths, seasonal

ETS: Final = "ets"
_PATHS: Final = 400
_SEED: Final = 1  # the same question has the same answer
_MOST_STEPS: Final = 28 * 24


def forecast(history: Sequence[float], season: int, steps: int, level: float) -> Outlook:
    """The best forecast that can be made here. Takes up to some seconds: for a thread."""
    if len(history) < 2 * season + 2 or not any(history):
        needed = f"{len(history)} steps of history are fewer than the {2 * season + 2} that seasons are fitted from"
        return seasonal(history, season, steps, level, needed)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what its own libraries will change
            from statsmodels.tsa.exponential_smoothing.ets import ETSModel
    except ImportError:
        return seasonal(history, season, steps, level, "pip install 'tokenworks[forecast]' for exponential smoothing")
    known = [float(each) for each in history[-_MOST_STEPS:]]
    scale = max(known)
    import numpy as np

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of convergence: the interval tells how good it is
            model = ETSModel(
                np.array([each / scale for each in known]),
                error="add",
                trend="add",
                damped_trend=True,
                seasonal="add",
                seasonal_periods=season,
            )
            fitted = model.fit(disp=False, maxiter=200)
            expected = fitted.forecast(steps)
            paths = fitted.simulate(steps, anchor="end", repetitions=_PATHS, random_state=np.random.RandomState(_SEED))
        table = np.asarray(paths).reshape(steps, -1) * scale
    except (ValueError, ArithmeticError, np.linalg.LinAlgError) as error:
        return seasonal(history, season, steps, level, f"exponential smoothing does not fit this history: {error}")
    if not np.isfinite(table).all():
        return seasonal(history, season, steps, level, "exponential smoothing does not fit this history")
    return of_paths(ETS, table.T.tolist(), [float(each) * scale for each in expected], level)
