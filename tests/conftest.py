"""What all the tests share: the three modules, and data to give them."""

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


@pytest.fixture
def idx_dir(util, tmp_path):
    """Write a small data set that a network learns; return its folder.

    Call it as idx_dir(), or idx_dir(train=600, test=100, folder=tmp_path / "data").
    """

    def write(train=600, test=100, folder=tmp_path / "data"):
        folder.mkdir(parents=True, exist_ok=True)
        contents = *synthetic_images(train), *synthetic_images(test)
        for name, array in zip(util.DATA_FILES, contents):
            write_idx(folder / name, array)
        return folder

    return write


def synthetic_images(count):
    """(images, labels): noise with a bright bar whose height tells the class."""
    random = np.random.default_rng(count)
    labels = random.permutation(np.arange(count) % 10).astype(np.uint8)
    images = random.integers(0, 100, (count, 28, 28), dtype=np.uint8)
    rows = labels[:, None] * 2 + np.arange(4, 7)
    images[np.arange(count)[:, None], rows] += 150
    return images, labels


def idx_bytes(array, magic=None, shape=None):
    """An IDX file's content before gzip; a wrong magic number or shape if given."""
    shape = array.shape if shape is None else shape
    magic = 0x0800 + len(shape) if magic is None else magic
    header = struct.pack(f">{1 + len(shape)}I", magic, *shape)
    return header + array.astype(np.uint8).tobytes()


def write_idx(path, array, **header):
    """Write an array as a gzipped IDX file; `header` as in `idx_bytes`."""
    path.write_bytes(gzip.compress(idx_bytes(array, **header), compresslevel=1))
