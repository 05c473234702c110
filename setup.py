"""What pyproject.toml cannot say: the folder sweeps/ is shipped inside the package, as
pointsweep/sweeps.
"""

from setuptools import find_namespace_packages, setup

setup(
    packages=[
        *find_namespace_packages(include=["pointsweep", "pointsweep.*"]),
        "pointsweep.sweeps",
    ],
    package_dir={"pointsweep.sweeps": "sweeps"},
)
