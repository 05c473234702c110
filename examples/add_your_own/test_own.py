"""pytest test_own.py: what pointsweep asks of every method and data set."""

import gains
import knots

from pointsweep.testing import contract_of_dataset, contract_of_method

test_gains = contract_of_method(gains.Gains, starts_as_nothing=True)
test_gains_with_shifts = contract_of_method(
    gains.Gains, shift=True, starts_as_nothing=True
)
test_knots = contract_of_dataset(knots.Knots)
