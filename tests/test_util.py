"""The helpers: data and its sources, the store, saved models, tables and pictures."""

import contextlib
import fcntl
import functools
import itertools
import json
import os
import re
import shutil
import socket
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import h5py
import keras
import numpy as np
import pytest
from conftest import copy_scripts, edited, synthetic_images, write_idx
from keras import layers
from matplotlib import pyplot


@contextlib.contextmanager
def refused(util, *words):
    """What is inside must raise InputError: one line that has all of `words`."""
    with pytest.raises(util.InputError) as caught:
        yield
    assert str(caught.value).isprintable()
    assert [word for word in words if str(word) not in str(caught.value)] == []


# ---------------------------------------------------------------- TensorFlow's start
def test_nothing_of_the_users_changes_a_trial(util, tmp_path, monkeypatch):
    kept = {"KERAS_HOME": "data", "PATH": "bin", "MPLBACKEND": "module://notebook"}
    theirs = {"TF_XLA_FLAGS": "1", "XLA_FLAGS": "1", "KERAS_BACKEND": "jax"}
    monkeypatch.setattr(os, "environ", kept | theirs)
    util.fix_environment()
    threads = {f"TF_NUM_{kind}_THREADS": "1" for kind in ("INTRAOP", "INTEROP")}
    ours = {"CUDA_VISIBLE_DEVICES": "-1", "TF_ENABLE_ONEDNN_OPTS": "1", **threads}
    ours |= {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}
    assert os.environ == kept | ours
    util.import_tensorflow.cache_clear()
    util.PUT_BACK.pop_all()  # what other tests have left
    keras.config.set_epsilon(0.5)
    hide = mock.Mock(side_effect=RuntimeError("it was used before"))
    monkeypatch.setattr("tensorflow.config.set_visible_devices", hide)
    with util.left_as_found():
        util.import_tensorflow()
        assert keras.config.epsilon() == 1e-7
    hide.assert_called_once_with([], "GPU")  # also one that is not CUDA's
    assert keras.config.epsilon() == 0.5  # a notebook's is as it was
    keras.config.set_epsilon(1e-7)


def test_no_locks_are_needed(util, tmp_path):
    """Some file systems have none. Here, somebody else has locked the file."""
    with h5py.File(tmp_path / "model.h5", "w") as file:
        file["history/val_accuracy"] = [0.5]
    with open(tmp_path / "model.h5") as locked:
        fcntl.flock(locked, fcntl.LOCK_EX)
        assert util.read_histories([tmp_path / "model.h5"]) == {"val_accuracy": 0.5}


def test_our_adam_steps_as_keras_does(util, monkeypatch):
    """Also after a new Keras gives its private names other ones."""
    Adam = keras.optimizers.Adam

    class Renamed(Adam):
        @property
        def _momentums(self):
            raise AttributeError("renamed")

        @_momentums.setter
        def _momentums(self, value):
            self._means = value

        def update_step(self, gradient, variable, learning_rate):
            kept, Renamed._momentums = Renamed._momentums, self._means
            super().update_step(gradient, variable, learning_rate)
            Renamed._momentums = kept

    options = {"clipnorm": 0.5, "weight_decay": 0.1, "beta_1": 0.8, "epsilon": 1e-3}
    for base, given in ((Adam, {}), (Adam, options), (Renamed, {})):
        monkeypatch.setattr(keras.optimizers, "Adam", base)
        random = np.random.default_rng(0)
        ours, theirs = (keras.Variable(np.ones(9, "float32")) for _ in range(2))
        optimizers = {util.adam(0.003, **given): ours, Adam(0.003, **given): theirs}
        for size in (1, 0.001, 0, 10, 1e-8):
            gradient = keras.ops.array(size * random.normal(size=9), "float32")
            for optimizer, weights in optimizers.items():
                optimizer.apply([gradient], [weights])
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)
        assert np.abs(np.array(ours) - 1).min() > 1e-4


# --------------------------------------------------------- the data and its sources
def test_last_fifth_of_the_training_images_validates(util, idx_dir, capsys):
    parts = util.load_data(idx_dir(train=23, test=7))
    (images, labels), test = synthetic_images(23), synthetic_images(7)
    expected = (images[:18], labels[:18]), (images[18:], labels[18:]), test
    for (x, y), (images, labels) in zip(parts, expected, strict=True):
        np.testing.assert_array_equal(x, images)
        np.testing.assert_array_equal(y, np.eye(10)[labels])
        assert (x.dtype, y.dtype) == (np.uint8, np.float32)
    [warning] = capsys.readouterr().err.splitlines()
    assert f"{idx_dir()} are not Fashion-MNIST" in warning


def test_real_data_is_split_as_published(util, real_data_dir, capsys):
    (_, train), (_, validation), _ = util.load_data(real_data_dir)
    assert (train.sum(0) + validation.sum(0)).tolist() == [6000] * 10
    quick = util.load_data(real_data_dir, quick=True)
    assert [len(labels) for _, labels in quick] == [4800, 1200, 2000]
    first = [util.CLASS_NAMES[i] for i in train[:4].argmax(1)]
    assert first == ["Ankle boot", "T-shirt/top", "T-shirt/top", "Dress"]
    assert capsys.readouterr().err == ""  # no warning


def test_bad_file_is_named_in_one_line(util, make_idx_dir, tmp_path):
    for number, spoil, word in (
        (0, Path.unlink, "there is no such file"),
        (0, lambda it: it.rename(it.with_suffix("")), "make it with: gzip /"),
        (2, lambda it: os.truncate(it, 9999), "replace or delete it"),
        (0, lambda it: it.write_bytes(it.read_bytes()[:-8] + bytes(8)), "CRC"),
        (3, lambda it: write_idx(it, np.full(100, 10)), "the label 10"),
        (1, lambda it: write_idx(it, np.zeros(99)), "not a label for each image"),
    ):
        path = make_idx_dir(tmp_path, 100, 100) / util.DATA_FILES[number]
        spoil(path)
        with refused(util, path.parent if number == 1 else path, word):
            util.load_data(tmp_path)


def test_sources_are_tried_in_their_order(
    util, idx_dir, make_idx_dir, tmp_path, monkeypatch, capsys
):
    host, cache = idx_dir(), tmp_path / "datasets/fashion-mnist"
    for name in ("KERAS_HOME", "PATH"):  # there is no apt-get
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setattr(util, "DEBIAN_DIR", tmp_path / "debian")
    monkeypatch.setattr(util, "DATA_URL", f"{host.as_uri()}/")
    monkeypatch.setattr(util, "TIMEOUT", 0.5)
    make_idx_dir(util.DEBIAN_DIR)
    make_idx_dir(cache)
    assert util.find_data() == cache
    (cache / util.DATA_FILES[0]).unlink()
    assert util.find_data() == util.DEBIAN_DIR  # the cache has not all files
    package = util.DEBIAN_DIR.rename(tmp_path / "package")
    assert util.find_data() == cache
    assert re.findall("Fetching.* (.*)", capsys.readouterr().out) == [util.DATA_URL]
    shutil.rmtree(cache)
    (host / util.DATA_FILES[3]).write_text("<html>Log in</html>")
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it never answers
        for url in (util.DATA_URL, f"http://127.0.0.1:{silent.getsockname()[1]}/"):
            monkeypatch.setattr(util, "DATA_URL", url)
            tried = cache, util.DEBIAN_DIR, url, util.DEBIAN_PACKAGE
            with refused(util, *tried, "--data-dir", *util.DATA_FILES):
                util.find_data()
            assert not (cache / util.DATA_FILES[3]).exists()
    socket.setdefaulttimeout(None)
    apt_get = 'case "$*" in *" download dataset-fashion-mnist") touch it.deb; esac'
    dpkg_deb = f"[ -f $2 ] && install -D -t $3{util.DEBIAN_DIR} {package}/*"
    for name, script in (("apt-get", apt_get), ("dpkg-deb", dpkg_deb)):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert util.find_data() == cache
    assert {*os.listdir(cache)} == {*util.DATA_FILES}


# ------------------------------------------------------------------------ the store
def test_file_is_the_old_or_the_new_one(util, tmp_path, monkeypatch):
    path, parts = tmp_path / "folder" / "table.csv", []
    util.write_csv(path, [{"model": 'a, "b"', "loss": np.float64(1 / 3)}])
    monkeypatch.setattr(os, "replace", lambda part, _: [parts.append(part), 1 / 0])
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            util.write_whole(path, b"new")
    assert len({*parts}) == 2  # two runs at once do not write the same one
    assert os.listdir(path.parent) == ["table.csv"]
    assert path.read_text() == f'model,loss\n"a, ""b""",{1 / 3}\n'


HELPER = """
SHARE = 0.5
MASK = np.ones(3)
MASK[0] = 7
def flip(train):
    return train, SHARE, MASK, by, mean
def epoch_function("""
BASE = {  # a trial that calls a helper with constants, and a file beside the scripts
    "    model = build_network(setting)\n": "    model = build_network(flip(setting))\n",
    "\ndef epoch_function(": HELPER,
    "import numpy as np\n": "import numpy as np\nfrom notes import shift as by\n"
    "from package.part import mean\n",
}
TYLER, JACKSON = "tyler", "jackson"
EDITS = [  # script, old text, new text, and whose trials are trained again
    ("main", "return train, SHARE", "return train, 1 - SHARE", (TYLER, JACKSON)),
    ("main", "SHARE = 0.5", "SHARE = 0.6", (TYLER, JACKSON)),
    ("main", "MASK = np.ones(3)", "MASK = np.ones(4)", (TYLER, JACKSON)),
    ("main", "MASK[0] = 7", "MASK[0] = 8", (TYLER, JACKSON)),
    ("main", "tf.float32) / 255", "tf.float32) / 256", (TYLER, JACKSON)),
    ("notes", "shift = 1", "shift = 2", (TYLER, JACKSON)),
    ("package/part", "mean = 3", "mean = 4", (TYLER, JACKSON)),
    ("model", "import Dense, ", "import Conv2D, Dense, ", ()),
    ("util", "beta2=self.beta_2,", "beta2=0.99,", (TYLER, JACKSON)),
    ("util", '["TF_ENABLE_ONEDNN_OPTS"] = "1"', '["T"] = "1"', (TYLER, JACKSON)),
    ("model", "L2_FACTOR = 0.001", "L2_FACTOR = 0.002", (TYLER, JACKSON)),
    ("model", "Dense(512,", "Dense(500,", (JACKSON,)),
    ("model", "build_jackson}", "build_jackson, 'parker': build_tyler}", ()),
    ("model", "Five equal hidden", "Equal hidden", ()),
    ("main", "# decides the order of the images", "# decides an order", ()),
    (
        "main",
        "np.random.default_rng(seed)",
        "np.random.default_rng(\n        seed)",
        (),
    ),
    ("main", "(32, 64, 128, 256, 512)", "(32, 64)", ()),
    ("main", '"Testing the models', '"Measuring the models', ()),
    ("util", 'xlabel="predicted class"', 'xlabel="class"', ()),
]


def test_an_edit_trains_again_what_it_changes(util, tmp_path, monkeypatch):
    """Nothing is listed by hand: what `train_trial` names is found, and what that names."""

    def codes(script="", old="", new=""):
        copy_scripts(tmp_path, {"main-FMNIST.py": BASE})
        (tmp_path / "notes.py").write_text("shift = 1\n")
        (tmp_path / "package").mkdir(exist_ok=True)
        (tmp_path / "package/part.py").write_text("mean = 3\n")
        if script:
            [path] = tmp_path.glob(f"{script}*.py")
            path.write_text(edited(path.read_text(), {old: new}))
        monkeypatch.setattr(util, "HERE", tmp_path)
        for function in (util.top_levels, util.code_of):
            function.cache_clear()
        builders = {TYLER: "build_tyler", JACKSON: "build_jackson"}
        return {it: util.code_of("train_trial", name) for it, name in builders.items()}

    before = codes()
    for *edit, expected in EDITS:
        after = codes(*edit)
        assert tuple(it for it in before if before[it] != after[it]) == expected, edit
    monkeypatch.undo()
    for function in (util.top_levels, util.code_of):
        function.cache_clear()


def test_key_changes_with_all_that_makes_a_trial(
    util, main, model, make_trial, idx_dir, monkeypatch
):
    for name in ("data_and_versions", "load_data"):  # without what they remember
        monkeypatch.setattr(util, name, getattr(util, name).__wrapped__)
    options = SimpleNamespace(data_dir=idx_dir(), quick=False)
    others = {"use_regularizer": True, "dropout_rate": 0.4, "learning_rate": 0.003}
    others |= {"architecture": "jackson", "batch_size": 32, "epochs": 40}
    trials = [make_trial(), *(make_trial(**{name: x}) for name, x in others.items())]
    trials.append(make_trial(seed=1))
    keys = [util.trial_key(it, main.train_trial, options) for it in trials]
    for change in (
        *((library, "__version__", "4") for library in (*util.import_tensorflow(), np)),
        (util.platform, "machine", lambda: "another"),
        (util, "code_of", lambda *_: "edited"),
        (model, "NETWORKS", {"tyler": functools.wraps(model.build_tyler)(lambda: 1)}),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(*change)
            keys.append(util.trial_key(trials[0], main.train_trial, options))
    for number, added in ((0, 1), (599, 1), (0, 0)):  # the first trains, 599 validates
        images, _ = synthetic_images(600)
        images[number, 27, 27] += added
        write_idx(idx_dir() / util.DATA_FILES[0], images)
        keys.append(util.trial_key(trials[0], main.train_trial, options))
    assert keys[-1] == keys[0] and len({*keys}) == len(keys) - 1 == 16


# --------------------------------------------------------------------- saved models
def assert_same(network, expected):
    images = np.linspace(0, 1, 7840).reshape(-1, *network.input_shape[1:])
    np.testing.assert_allclose(network(images), expected(images), rtol=1e-4)


def classifier(*shape, hidden=(), classes=10):
    parts = [keras.Input(shape), *hidden, layers.Flatten()]
    return keras.Sequential([*parts, layers.Dense(classes, "softmax")])


def test_saved_model_opens_compiled_and_in_words_of_keras_2(
    util, model, make_trial, tmp_path
):
    network, path = model.build_tyler(use_regularizer=True), tmp_path / "model.h5"
    adam = keras.optimizers.Adam(0.003, name="adam")
    network.compile(adam, "categorical_crossentropy", metrics=["accuracy"])
    metrics = ("loss", "accuracy", "val_loss", "val_accuracy")
    history = [{it: x / 7 for x, it in enumerate(metrics)}]
    history.append(dict.fromkeys(metrics, np.nan))
    trial = make_trial(use_regularizer=True, seed=7)
    images = np.arange(9, dtype="uint8")
    path.write_bytes(util.model_file(network, history, *trial, (images, images)))
    for metric, runs in util.read_histories([path, path]).items():
        np.testing.assert_equal(runs, [[epoch[metric] for epoch in history]] * 2)
    assert not util.load_classifier(path).compiled  # a loss may name anything
    loaded = keras.models.load_model(path)
    assert_same(loaded, network)
    assert loaded.loss is keras.losses.categorical_crossentropy
    assert loaded.get_compile_config()["metrics"] == ["accuracy"]
    with h5py.File(path) as file:
        assert {*file} == {"model_weights", "history"}  # no optimizer's weights
        about = dict(file.attrs)
    for library in (*util.import_tensorflow(), np):
        assert about[f"{library.__name__}_version"] == library.__version__
    said = {**trial[0]._asdict(), "seed": 7, "training_images": 9}
    assert said.items() <= about.items()
    text, training = about["model_config"], json.loads(about["training_config"])
    new = "module|registered_name|optional|batch_shape|quantization_config|DTypePolicy"
    assert re.findall(f'"({new})"|": null', text) == []  # Keras 2 knows none of these
    assert {*re.findall('"dtype": ([^,}]*)', text)} == {'"float32"'}
    assert '"batch_input_shape": [null, 28, 28]' in text
    found, values = training["optimizer_config"], {"beta_1": 0.9, "beta_2": 0.999}
    values |= {"learning_rate": 0.003, "epsilon": 1e-7, "amsgrad": False}
    assert (found["class_name"], found["config"].pop("name")) == ("Adam", "adam")
    assert found["config"] == pytest.approx(values)
    assert util.is_whole(path)
    for size in (path.stat().st_size - 1, 9999, 0):
        os.truncate(path, size)
        assert not util.is_whole(path)


def test_the_optimizer_that_trains_is_in_the_file(
    util, make_trial, edit_main, idx_dir, tmp_path
):
    """A learning-rate schedule, too. Averaged weights are those that `fit` ends with."""
    decay = "keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.5)"
    sgd = f"keras.optimizers.SGD({decay}, momentum=0.9, use_ema=True)"
    main = edit_main({"util.adam(setting.learning_rate)": sgd})
    data = util.load_data(idx_dir(20, 10))
    trial, path = make_trial(), tmp_path / "model.h5"
    path.write_bytes(main.train_trial(*trial, *data[:2]))
    loaded = keras.models.load_model(path)
    optimizer = loaded.optimizer
    assert (type(optimizer), optimizer.momentum) == (keras.optimizers.SGD, 0.9)
    assert float(optimizer._learning_rate(2)) == pytest.approx(0.025)
    keras.utils.set_random_seed(0)
    first = main.build_network(trial[0]).get_weights()[0]
    # One step: the average has moved by a hundredth of what the weights have.
    assert 0 < np.abs(first - loaded.get_weights()[0]).max() < 1e-3


@pytest.mark.parametrize("ending", [".h5", ".hdf5", ".keras"])
def test_other_classifiers_load(util, tmp_path, ending):
    hidden = (
        layers.Rescaling(1 / 255), layers.Conv2D(4, 3), layers.BatchNormalization(),
        layers.LeakyReLU(negative_slope=0.2), layers.MaxPooling2D(),
    )  # fmt: skip
    convolutional = classifier(28, 28, 1, hidden=hidden)
    for network in (classifier(28, 28), classifier(784), convolutional):
        network.save(tmp_path / f"other{ending}")
        loaded = util.load_classifier(tmp_path / f"other{ending}")
        assert_same(loaded, network)
    words = [row[3] for row in util.layer_table(loaded)]
    assert words[3] == "negative slope 0.2" and words[6] == "softmax"


def forge(old, new, path, hidden=()):
    """Save a classifier with another text in its configuration."""
    dumps = json.dumps
    with mock.patch.object(
        json,
        "dumps",
        lambda *args, **options: dumps(*args, **options).replace(old, new),
    ):
        classifier(28, 28, hidden=hidden).save(path)


def save_lambda(path):
    trap = layers.Lambda(lambda x: [x, Path("ran").touch()][0])
    classifier(28, 28, hidden=[trap]).save(path)
    os.unlink("ran")  # so the trap works


def save_weights_elsewhere(path):
    classifier(28, 28).save(path)
    other, names = shutil.copy(path, path.with_suffix(".other")), []
    with h5py.File(path, "a") as file:
        file.visit(names.append)
        [kernel] = [name for name in names if name.endswith("kernel")]
        del file[kernel]
        if path.stem == "link":
            file[kernel] = h5py.ExternalLink(other, kernel)
        else:
            place = [(str(other), 0, 4 * 7840)]
            file.create_dataset(kernel, (784, 10), "float32", external=place)


def save_as_old_keras(path):
    classifier(28, 28).save(path)
    with h5py.File(path, "a") as file:
        file.attrs["keras_version"] = "2.1.3"
        file.attrs["model_config"] = '{"class_name": "Model", "config": [[]]}'


class NewLayer(layers.Layer):
    """Of a later Keras."""


def save_as_newer_keras(path):
    version = '"keras_version": "'
    forge(version, f'{version}3.99.0", "was": "', path, hidden=[NewLayer()])


MAKERS = {  # of files: their names, what makes them, words of the reason
    "pixels.h5": (lambda it: classifier(32, 32).save(it), "(32, 32)"),
    "classes.keras": (lambda it: classifier(28, 28, classes=2).save(it), "(2,)"),
    "new.weights.h5": (lambda it: classifier(28, 28).save_weights(it), "model.save"),
    "keras2.h5": (lambda it: h5py.File(it, "w").create_group("dense"), "model.save"),
    "lfs.h5": (lambda it: it.write_text("version https://git-lfs"), "git lfs pull"),
    "page.keras": (lambda it: it.write_text("<!DOCTYPE html>"), "web page"),
    "text.h5": (lambda it: it.write_text("hello"), "hello"),
    "folder.h5": (Path.mkdir, "only .h5"),
    "archive.h5": (lambda it: it.write_bytes(b"PK\5\6" + bytes(18)), ".keras file"),
    "misnamed.keras": (lambda it: h5py.File(it, "w").close(), ".h5 file"),
    "absent.h5": (lambda it: None, "no such file"),
    "model.txt": (Path.touch, "only .h5, .hdf5 and .keras"),
    "old.h5": (save_as_old_keras, "Keras 2.1.3 wrote it, and Keras 3 cannot read it"),
    "newer.keras": (save_as_newer_keras, "; Keras 3.99.0 wrote it"),
    "link.h5": (save_weights_elsewhere, "ExternalLink"),
    "dataset.h5": (save_weights_elsewhere, "external Dataset"),
    "lambda.h5": (save_lambda, "Keras refuses it"),
    "lambda.keras": (save_lambda, "Keras refuses it"),
}
SYSTEM = '{"module": "os", "class_name": "function", "config": "system", '
SYSTEM += '"registered_name": "system"}'
POPEN = '"module": "subprocess", "class_name": "Popen", "config": {"args": ["touch", "ran"]}'
LOOKUP = '"class_name": "StringLookup", "config": {"vocabulary": "x"}'
TFSM = '"class_name": "TFSMLayer", "config": {"filepath": "."}'
DENSE, FLATTEN = '"bias_constraint": null', '"data_format": "channels_last"}'
FORGED = {  # what is added there (of two equal words, the later counts), and the reason
    "words": (DENSE, r'"activation": "bad\n\u001b[31m"', "bad"),
    "activation": (DENSE, f'"activation": {SYSTEM}', "system"),
    "initializer": (DENSE, f'"bias_initializer": {SYSTEM}', "system"),
    "class": (FLATTEN, POPEN, "Popen"),
    "lookup": (FLATTEN, f'"module": "keras.layers", {LOOKUP}', "Keras refuses it"),
    "tfsm": (FLATTEN, f'"module": "keras.layers", {TFSM}', "Keras refuses it"),
}
for stem, (place, added, reason) in FORGED.items():
    maker = functools.partial(forge, place, f"{place}, {added}")
    MAKERS |= {f"{stem}.h5": (maker, reason), f"{stem}.keras": (maker, reason)}


@pytest.mark.parametrize("name", MAKERS)
def test_any_other_file_is_refused_and_not_run(util, tmp_path, monkeypatch, name):
    make, word = MAKERS[name]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "system", lambda *_: Path("ran").touch())
    make(tmp_path / name)
    with refused(util, tmp_path / name, word):
        util.load_classifier(tmp_path / name)
    assert not os.path.exists("ran")


# ----------------------------------------------------------- the tables and pictures
@pytest.mark.filterwarnings("error")
def test_spread_is_that_of_a_sample_of_seeds(util):
    spread = util.mean_and_spread([[1, 5], [2, 5], [6, 5]])
    np.testing.assert_allclose(spread, [[3, 5], [7**0.5, 0], [(7 / 3) ** 0.5, 0]])
    np.testing.assert_equal(util.mean_and_spread([[5]]), ([5], [np.nan], [np.nan]))


@pytest.fixture
def picture(tmp_path, recwarn):
    """The path where a test must save its figure. Nothing may make a warning."""
    yield tmp_path / "picture.png"
    assert min(pyplot.imread(tmp_path / "picture.png").shape[:2]) > 400  # pixels
    assert recwarn.list == []


def test_architecture_shows_every_layer(util, model, picture):
    figure = util.plot_architecture(model.build_tyler(use_regularizer=True))
    util.save_figure(figure, picture)
    texts = sorted(figure.axes[0].texts, key=lambda text: -text.get_position()[1])
    texts = [text.get_text() for text in texts]  # line by line
    assert texts[6:9] == ["128", "Dense relu L2 0.001", "100,480 weights"]
    assert texts[-6:-3] == ["128", "Dropout rate 0.3", ""]


@pytest.mark.parametrize("seeds, words", [(1, "chance"), (3, "3 seeds")])
def test_hyperparameters_show_the_study(util, main, picture, capsys, seeds, words):
    studies, random, histories = {}, np.random.default_rng(0), {}
    for with_l2 in (False, True):
        final = main.Setting("tyler", with_l2, 0.3, 0.001, batch_size=128, epochs=50)
        studies[final] = main.study_settings(final)
        for (_, value), setting in studies[final].items():
            low = {0.01: 0.1, 512: np.nan}.get(value, 0.8)  # NaN: it diverged
            found = low + random.random((seeds, 50)) / 10
            histories[setting] = {"val_accuracy": found}
    study = main.study_rows(studies, histories)
    util.report_study(study)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 60 and ("chance" in lines[-1]) == (seeds == 1)
    figure = util.plot_hyperparameters(study, final)
    util.save_figure(figure, picture)
    assert words in figure.get_suptitle() and figure.axes[0].get_legend()
    for name, ax in zip([*main.STUDY, "epochs"], figure.axes, strict=True):
        ticks = [text.get_text() for text in ax.get_xticklabels()]
        [middle] = [line.get_xdata()[0] for line in ax.lines if line.get_ls() == ":"]
        assert ticks[middle] == f"{getattr(final, name):g}"
        rows = [row for row in study if row["hyperparameter"] == name]
        assert [f"{row['value']:g}" for row in rows] == ticks * 2
        x = [line.get_xdata() for line, _, _ in ax.containers]
        assert np.rint(x).tolist() == [[*range(len(ticks))]] * 2
        paths = [path for _, _, [x] in ax.containers for path in x.get_paths()]
        spread = [np.ptp(path.vertices[:, 1]) / 2 for path in paths]
        expected = [row["standard_deviation"] for row in rows]
        np.testing.assert_allclose(spread, expected, atol=1e-9)
    limits = [ax.get_ylim() for ax in figure.axes]
    assert limits[1][0] < 0.2  # the learning rate's, which would flatten the others
    [(low, _)] = {limits[0], *limits[2:]}
    assert 0.7 < low < 0.81


@pytest.mark.parametrize("seeds, epochs", [(1, 1), (3, 4)])
def test_training_shows_each_network(util, make_trial, picture, seeds, epochs):
    random, histories = np.random.default_rng(0), {}
    for name, with_l2 in itertools.product(
        ("tyler", "jackson", "parker"), (False, True)
    ):
        runs = random.random((4, seeds, epochs))
        setting, _ = make_trial(name, use_regularizer=with_l2)
        histories[setting] = dict(
            zip(("loss", "accuracy", "val_loss", "val_accuracy"), runs)
        )
    runs[2, 0, 2:] = np.nan  # the loss of validation: it diverged
    figure = util.plot_training(histories)
    util.save_figure(figure, picture)
    assert ("3 seeds" in figure.get_suptitle()) == (seeds == 3)
    assert [ax.get_title() for ax in figure.axes[::2]] == ["Tyler", "Jackson", "Parker"]
    _, plain, _, line = figure.axes[5].lines  # training and validation; with L2
    mean, deviation, _ = util.mean_and_spread(runs[2])
    np.testing.assert_equal(line.get_xydata(), np.c_[1 : epochs + 1, mean])
    assert (line.get_marker() == "o") == (epochs == 1)  # without, a point is unseen
    assert line.get_color() != plain.get_color()
    assert line.get_linestyle() != plain.get_linestyle()
    bands = figure.axes[5].collections[-1].get_paths()
    found = [mean[0] + deviation[0] in band.vertices for band in bands]
    assert found == [True] * (seeds > 1)
    assert len({ax.get_ylim() for ax in figure.axes}) == 2  # accuracy's and loss's


def test_matrix_and_predictions_name_the_classes(util, picture):
    labels, guesses = np.repeat(
        [[0, 0, 0, 1, 2], [0, 1, 2, 2, 2]], [299, 100, 1, 1, 1], 1
    )
    confidence = np.linspace(0.5, 1, 402)
    arguments = labels, confidence[:, None] * np.eye(10)[guesses]
    figure = util.plot_confusion_matrix("Tyler", *arguments)
    util.save_figure(figure, picture)
    names = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert names == [*util.CLASS_NAMES] and "true" in figure.axes[0].get_ylabel()
    cells = [text.get_text() for text in figure.axes[0].texts]
    assert cells[:10] == ["0.75", "0.25", *[""] * 8]  # 0.0025 is left out
    images = np.arange(402)[:, None, None] * np.ones((28, 28))
    figure = util.plot_predictions("Tyler", images, *arguments)
    util.save_figure(figure, picture)
    right, wrong = figure.axes[0], figure.axes[6]  # the first, the most confident one
    assert (right.images[0].get_array()[0, 0], right.title.get_color()) == (0, "black")
    assert (wrong.images[0].get_array()[0, 0], wrong.title.get_color()) == (
        400,
        util.RED,
    )
    text = "true: Trouser\npredicted: Pullover\nconfidence: 99.9%"
    assert wrong.get_title() == text
