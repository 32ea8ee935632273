"""What all the tests share: the three modules, and data to give them."""

import functools
import gzip
import importlib
import os
import struct
import sys
from pathlib import Path

import numpy as np
import pytest


def pytest_configure(config):
    """Python 3.13 and NumPy 2 find fault with how TensorFlow and gast are written."""
    for kind in ("gast", "keras"):
        config.addinivalue_line("filterwarnings", f"ignore::DeprecationWarning:{kind}")


PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))
sys.dont_write_bytecode = True  # here and in the processes that tests start
os.environ["PYTHONDONTWRITEBYTECODE"] = "1"

# Keras has the project's settings. Processes that tests start must make these themselves.
environment = dict(os.environ)
importlib.import_module("util-FMNIST").import_tensorflow()[0].constant(0)
os.environ.clear()
os.environ.update(environment)

util, model, main = (
    pytest.fixture(lambda name=name: importlib.import_module(name), scope="session")
    for name in ("util-FMNIST", "model-FMNIST", "main-FMNIST")
)


@pytest.fixture(scope="session")
def make_trial(main):
    """make_trial("jackson", seed=7, epochs=9) is a trial, short if nothing is said: the
    pair (setting, seed)."""

    def make(architecture="tyler", seed=0, **values):
        setting = main.Setting(architecture, False, 0.3, 0.001, batch_size=64, epochs=1)
        return setting._replace(**values), seed

    return make


@pytest.fixture(scope="session")
def real_data_dir(util):
    """The folder of the real Fashion-MNIST, fetched if this machine has none."""
    return util.find_data()


@pytest.fixture(scope="session")
def make_idx_dir(util):
    """make_idx_dir(folder, train=600, test=100) writes a small data set there."""

    def write(folder, train=600, test=100):
        folder.mkdir(parents=True, exist_ok=True)
        contents = *synthetic_images(train), *synthetic_images(test)
        for name, array in zip(util.DATA_FILES, contents):
            write_idx(folder / name, array)
        return folder

    return write


@pytest.fixture
def idx_dir(make_idx_dir, tmp_path):
    """idx_dir(train=600, test=100) is a new folder with a small data set."""
    return functools.partial(make_idx_dir, tmp_path / "data")


def synthetic_images(count):
    """(images, labels): noise with a bright bar whose height tells the class."""
    random = np.random.default_rng(count)
    labels = random.permutation(np.arange(count) % 10).astype(np.uint8)
    images = random.integers(0, 100, (count, 28, 28), dtype=np.uint8)
    rows = labels[:, None] * 2 + np.arange(4, 7)
    images[np.arange(count)[:, None], rows] += 60
    return images, labels


def write_idx(path, array):
    """Write an array as a gzipped IDX file."""
    header = struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes(), 1))
