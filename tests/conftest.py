"""What all the tests share: the three modules, and data to give them."""

import functools
import gzip
import importlib.util
import os
import shutil
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
SCRIPTS = ("main-FMNIST.py", "model-FMNIST.py", "util-FMNIST.py")
sys.path.insert(0, str(PROJECT))
sys.dont_write_bytecode = True  # here and in the processes that tests start
os.environ["PYTHONDONTWRITEBYTECODE"] = "1"

# Keras has the project's settings. Processes that tests start must make these themselves.
with importlib.import_module("util-FMNIST").left_as_found():
    importlib.import_module("util-FMNIST").import_tensorflow()[0].constant(0)

util, model, main = (
    pytest.fixture(lambda name=name: importlib.import_module(name), scope="session")
    for name in ("util-FMNIST", "model-FMNIST", "main-FMNIST")
)


@pytest.fixture(scope="session")
def make_trial(main):
    """make_trial("jackson", seed=7, epochs=9) is a trial, short if nothing is said: the
    pair (setting, seed)."""

    def make(architecture="tyler", seed=0, **values):
        short = {**main.FINAL, "batch_size": 64, "epochs": 1}
        return main.Setting(architecture, False, **short)._replace(**values), seed

    return make


@pytest.fixture(scope="session")
def edit_main(tmp_path_factory):
    """edit_main({old text: new text}) is main-FMNIST.py as somebody edits it."""

    def edit(changes):
        folder = copy_scripts(tmp_path_factory.mktemp("edited"), {SCRIPTS[0]: changes})
        path = folder / SCRIPTS[0]
        spec = importlib.util.spec_from_file_location("edited", path)
        spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
        return module

    return edit


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


def edited(text, changes):
    """A text in which each key of `changes`, found once, is replaced by its value."""
    for old, new in changes.items():
        assert text.count(old) == 1, f"{text.count(old)} times: {old}"
        text = text.replace(old, new)
    return text


def copy_scripts(folder, changes):
    """Copy the scripts into a folder. `changes` is {script: {old text: new text}}."""
    folder.mkdir(exist_ok=True)
    for script in SCRIPTS:
        shutil.copy(PROJECT / script, folder)
        text = (PROJECT / script).read_text(encoding="utf-8")
        text = edited(text, changes.get(script, {}))
        (folder / script).write_text(text, encoding="utf-8")
    return folder
