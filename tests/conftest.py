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

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))
sys.dont_write_bytecode = True  # no __pycache__ among the three scripts,
os.environ["PYTHONDONTWRITEBYTECODE"] = "1"  # nor from the processes that tests start


# A trial's process has one thread; TensorFlow takes no such setting once it has worked.
tensorflow = importlib.import_module("util-FMNIST").import_quietly("tensorflow")
tensorflow.config.threading.set_intra_op_parallelism_threads(1)
tensorflow.config.threading.set_inter_op_parallelism_threads(1)


@pytest.fixture(scope="session")
def util():
    return importlib.import_module("util-FMNIST")


@pytest.fixture(scope="session")
def model(util):
    return util.import_quietly("model-FMNIST")


@pytest.fixture(scope="session")
def main():
    return importlib.import_module("main-FMNIST")


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
    images[np.arange(count)[:, None], rows] += 150
    return images, labels


def write_idx(path, array, shape=None):
    """Write an array as a gzipped IDX file; `shape` is what its header shall say."""
    shape = shape or array.shape
    header = struct.pack(f">{1 + len(shape)}I", 0x0800 + len(shape), *shape)
    content = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content, compresslevel=1))
