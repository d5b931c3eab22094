"""Installs jdcl_jax: `pip install .`, with the extras test, bench, tpu, cuda and tfds."""

import pathlib
import re

import setuptools

HERE = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "jdcl_jax" / "__init__.py").read_text()).group(1)

setuptools.setup(
    name="jdcl_jax",
    version=VERSION,
    description="Continual learning of diffusion models in JAX/Flax.",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    packages=setuptools.find_packages(include=["jdcl_jax", "jdcl_jax.*"]),
    package_data={"jdcl_jax.reporting": ["templates/*"]},
    python_requires=">=3.11",
    install_requires=[
        "absl-py",
        "array_record",
        "chex",
        "clu",
        "dm-pix",
        "flax>=0.12",
        "importlib_resources",  # tensorflow-datasets needs it and does not say so
        "jax>=0.10",
        "jinja2",
        "matplotlib",
        "ml-collections>=1.1",
        "numpy",
        "optax",
        "orbax-checkpoint>=0.11",
        "pillow",
        "safetensors",
        "scikit-learn",
        "scipy",
        "tensorboardX",
        "tensorflow-datasets>=4.9.7",
        "tqdm",
    ],
    extras_require={
        "test": ["hypothesis", "ipykernel", "mypy", "nbclient", "nbformat", "pytest", "pytest-xdist", "ruff"],
        "bench": ["diffusers", "torch"],
        "tpu": ["jax[tpu]"],
        "cuda": ["jax[cuda12]"],
        "tfds": ["tensorflow"],
    },
)
