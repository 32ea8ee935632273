"""Helpers of the experiment: the data, the files, saved models and the plots.

What is slow to import (TensorFlow, scikit-learn, matplotlib) is imported where needed.
"""

import ast
import contextlib
import csv
import functools
import gzip
import importlib.metadata
import io
import json
import logging
import math
import os
import platform
import shutil
import socket
import sqlite3
import subprocess
import tempfile
import threading
import warnings
import zlib
from multiprocessing.pool import ThreadPool
from pathlib import Path

import h5py
import joblib
import numpy as np

CLASS_NAMES = (  # of the labels 0 to 9, as the dataset's authors give them
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
DATA_FILES = (
    "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz",
)  # fmt: skip
SCRIPTS = ("main-FMNIST.py", "model-FMNIST.py", "util-FMNIST.py")
DATA_URL = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/"  # Keras's own
DEBIAN_PACKAGE = "dataset-fashion-mnist"
DEBIAN_DIR = Path("/usr/share/datasets/fashion-mnist")  # where the package puts them
METRICS = ("loss", "accuracy", "val_loss", "val_accuracy")  # of a history, as Keras's
ADAM = {"beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-7}  # Keras's own values
TIMEOUT = 10  # seconds that a host may stay silent
FETCH_LIMIT = 1800  # seconds that fetching the data may take


class InputError(Exception):
    """Something that the user can put right; the message is one line and says how."""


# ------------------------------------------------------------------------- the data
@functools.cache
def load_data(data_dir=None, quick=False):
    """Fashion-MNIST as (x_train, y_train), (x_val, y_val), (x_test, y_test).

    Images are uint8 arrays of shape (n, 28, 28) with pixels from 0 to 255; the networks
    take them divided by 255. Labels are one-hot float32 arrays of shape (n, 10). The
    last fifth of the training images validates: n is 48,000, 12,000 and 10,000. With
    `quick`, n is 4,800, 1,200 and 2,000. Without `data_dir`, `find_data` finds the
    files. Raises InputError if one is missing or not what it should be.
    """
    folder = find_data() if data_dir is None else Path(data_dir)
    x, y, x_test, y_test = [read_idx(folder / name) for name in DATA_FILES]
    if len(x) != len(y) or len(x_test) != len(y_test):
        raise InputError(f"{folder}: not a label for each image; replace the files")
    if len(x) < 5 or len(x_test) < 1:
        raise InputError(f"{folder}: it has too few images; replace the files")
    split = len(x) * 4 // 5
    parts = [(x[:split], y[:split]), (x[split:], y[split:]), (x_test, y_test)]
    sizes = (4800, 1200, 2000) if quick else (None, None, None)  # None: all
    one_hot = np.eye(len(CLASS_NAMES), dtype="float32")
    return tuple(
        (images[:n], one_hot[labels[:n]]) for (images, labels), n in zip(parts, sizes)
    )


def read_idx(path):
    """A gzipped IDX file of images or labels as a uint8 array. Raises InputError."""
    shape = (-1, 28, 28) if "images" in path.name else (-1,)
    start = 4 + 4 * len(shape)  # a number for the type, then the length of each axis
    try:
        content = gzip.decompress(path.read_bytes())
        values = np.frombuffer(content, np.uint8, offset=start).reshape(shape)
        header = np.frombuffer(content[:start], ">u4").tolist()
        if header != [0x0800 + len(shape), *values.shape]:  # 08 means bytes
            raise ValueError(f"its header is {header}, its shape {values.shape}")
        if len(shape) == 1 and values.max(initial=0) > 9:
            raise ValueError(f"it has the label {values.max()}")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        problem = f"no IDX file of images or labels ({error})"
        raise InputError(f"{path}: {problem}; replace or delete it") from None
    return values


def find_data():
    """The folder of the four files: Keras's cache, Debian's or, once they are fetched,
    the cache. Raises InputError if they cannot be fetched."""
    keras_home = os.environ.get("KERAS_HOME") or os.path.expanduser("~/.keras")
    cache = Path(keras_home, "datasets", "fashion-mnist")
    for folder in (cache, DEBIAN_DIR):
        if all((folder / name).is_file() for name in DATA_FILES):
            return folder
    missing = [name for name in DATA_FILES if not (cache / name).is_file()]
    failures = ""
    for source, fetch in ((DATA_URL, download), (DEBIAN_PACKAGE, unpack_debian)):
        print(f"Fetching Fashion-MNIST (30 MB) from {source}")
        try:
            with tempfile.TemporaryDirectory() as temporary:
                fetched = fetch(Path(temporary), missing)
                for name in missing:
                    read_idx(fetched / name)  # raises InputError if it is not whole
                    write_whole(cache / name, (fetched / name).read_bytes())
            return cache
        except Exception as error:  # noqa: BLE001 - Keras's download raises a bare Exception
            words_of_apt = getattr(error, "stderr", None)
            reason = words_of_apt or str(error) or repr(error)
            failures += f"; {source}: {' '.join(reason.split())}"
    raise InputError(
        f"Fashion-MNIST is not in {cache} nor {DEBIAN_DIR} and could not be fetched"
        f"{failures}; put {', '.join(DATA_FILES)} into a folder and name it --data-dir"
    )


def download(folder, names):
    """Let Keras download these files into the folder, which is returned."""
    _, keras = import_tensorflow()
    socket.setdefaulttimeout(TIMEOUT)

    def get_all():
        for name in names:
            url = DATA_URL + name
            keras.utils.get_file(name, url, cache_dir=folder, cache_subdir="")

    # Keras would go on for ever with a host that sends a byte now and then.
    ThreadPool(1).apply_async(get_all).get(timeout=FETCH_LIMIT)
    return folder


def unpack_debian(folder, _names):
    """Unpack Debian's package, which has all files, in the folder. Return where they
    are. No root is needed, as apt's lists are kept in the folder, too."""
    apt = ["apt-get", f"-oDir::State::lists={folder}/lists", f"-oDir::Cache={folder}"]
    apt += [f"-oAcquire::{kind}::Timeout={TIMEOUT}" for kind in ("http", "https")]
    apt += ["-oAPT::Sandbox::User=", "-oAcquire::Retries=0"]
    for name in ("lists", "archives"):
        (folder / name / "partial").mkdir(parents=True)  # apt does not make these
    unpack = ["sh", "-c", "dpkg-deb -x *.deb ."]
    for command in ([*apt, "update"], [*apt, "download", DEBIAN_PACKAGE], unpack):
        subprocess.run(
            command, cwd=folder, check=True, capture_output=True, text=True,
            timeout=FETCH_LIMIT,
        )  # fmt: skip
    return folder / DEBIAN_DIR.relative_to("/")


# ------------------------------------------------------------------------ the files
@contextlib.contextmanager
def open_store(folder):
    """Make a folder of trials, hold its lock, and yield the folder.

    A file in it is named KEY-CHECKSUM.h5. The key stands for all that makes the file,
    the checksum tells whether it is whole. Raises InputError if another run holds the
    lock: SQLite's, as that works on every system and ends with the process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / "temporary"
    try:
        with contextlib.closing(sqlite3.connect(folder / "lock", timeout=0)) as lock:
            lock.execute("BEGIN EXCLUSIVE")
            shutil.rmtree(temporary, ignore_errors=True)  # of a run that was killed
            temporary.mkdir()
            yield folder
            shutil.rmtree(temporary, ignore_errors=True)  # else the next run does it
    except sqlite3.Error as error:
        problem = f"{folder}/lock cannot be used ({error}): delete it"
        if "locked" in str(error):
            problem = f"{folder.parent}: another run is at work there: wait for it"
        raise InputError(f"{problem} or use another --output-dir") from None


def library_versions():
    """The libraries that a trial's numbers depend on."""
    return {x: importlib.metadata.version(x) for x in ("tensorflow", "keras", "numpy")}


def trial_keys(trials, data):
    """{trial: its key}: the same for the same trial, code, libraries, machine and
    `data`, the arrays that train and validate."""
    conditions = [joblib.hash(data), library_versions(), platform.machine()]
    with importing:  # a Dask worker has threads, and two at a time cannot parse code
        training = code_behind("train_trial")
        networks = {"tyler": code_behind("build_tyler")}
        networks["jackson"] = code_behind("build_jackson")
    keys = {}
    for trial in trials:
        code = [training, networks[trial.setting.architecture]]
        keys[trial] = joblib.hash([code, conditions, *trial.setting, trial.seed])
    return keys


@functools.cache
def code_behind(function):
    """The code of a function and of all that it uses in our scripts, as one string
    without comments, docstrings and layout. That of "build_tyler" is build_tyler,
    L2_FACTOR and the imports that it uses."""
    statements = {}  # {name: the statements at the top level that define it}
    for script in SCRIPTS:
        text = Path(__file__).with_name(script).read_text(encoding="utf-8")
        for statement in ast.parse(text, script).body:
            if isinstance(statement, (ast.Import, ast.ImportFrom)):
                names = [part.asname or part.name for part in statement.names]
            elif isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
                names = [statement.name]
            else:  # a = ..., or a, b = ..., or a: float = ..., or a *= ...
                parts = [x for x in ast.walk(statement) if isinstance(x, ast.Name)]
                names = [x.id for x in parts if isinstance(x.ctx, ast.Store)]
            for name in names:
                statements.setdefault(name, []).append(statement)
    used = {}  # {name: the code that defines it}, of all that the function needs
    waiting = {function}
    while waiting:
        name = waiting.pop()
        parts = [part for x in statements[name] for part in ast.walk(x)]
        for part in parts:
            definition = isinstance(part, (ast.FunctionDef, ast.ClassDef))
            if definition and ast.get_docstring(part):
                del part.body[0]
            # A part is a name, or the `b` of `a.b`, or something else.
            named = getattr(part, "id", getattr(part, "attr", None))
            if named in statements and named not in used:
                waiting.add(named)
        code = map(ast.unparse, statements[name])
        used[name] = "\n".join(dict.fromkeys(code))  # an import is in several scripts
    return "\n".join(used[name] for name in sorted(used))


def keep_trial(folder, key, content):
    """Write a trial's .h5 file into the store. Return its path."""
    path = folder / f"{key}-{joblib.hash(content)}.h5"
    path.write_bytes(content)
    return path


def stored_trials(folder):
    """{key: path} of the trials whose files are whole. Damaged files are deleted."""
    stored = {}
    any_md5 = "?" * 32
    paths = folder.glob(f"{any_md5}-{any_md5}.h5")
    for path in sorted(paths, key=os.path.getmtime):  # of two, the newer one counts
        key, _, checksum = path.stem.partition("-")
        if joblib.hash(path.read_bytes()) == checksum:
            stored[key] = path
        else:
            path.unlink()
    return stored


def write_whole(path, content):
    """Write a file. Even if the process is killed, it is the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(content)
    os.replace(part, path)


def write_csv(path, rows):
    """A list of dicts with the same keys as a table."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue().encode())


def mean_and_spread(values):
    """Mean, standard deviation and standard error over the seeds, the first axis. The
    spread of a single seed is not known: NaN."""
    values = np.array(values)
    deviation = np.full(values.shape[1:], math.nan)
    if len(values) > 1:
        deviation = values.std(axis=0, ddof=1)
    return values.mean(axis=0), deviation, deviation / math.sqrt(len(values))


# -------------------------------------------------------------------- saved models
importing = threading.Lock()  # a Dask worker may start two trials at a time


@functools.cache
def import_tensorflow():
    """Import TensorFlow and Keras. Return both modules. Raises InputError if that fails."""
    with importing, settings_for_everybody(), silent_stderr():
        try:
            import keras
            import tensorflow
        except Exception as error:  # noqa: BLE001 - whatever a broken installation raises
            problem = f"TensorFlow and Keras do not start: {error}"
            raise InputError(f"{problem}; install requirements.txt anew") from None
    warnings.simplefilter("ignore")
    for logger in ("absl", "tensorflow"):  # they warn of HDF5 files and of retracing
        logging.getLogger(logger).setLevel(logging.ERROR)
    return tensorflow, keras


@contextlib.contextmanager
def settings_for_everybody():
    """Import TensorFlow and Keras in here. Then neither the user's keras.json nor the
    user's variables change a trial's weights.

    TensorFlow gets one thread, as the order in which it adds up depends on their number,
    and the CPU, as a GPU rounds otherwise. KERAS_HOME is restored: the data are there.
    A wrong MPLBACKEND would stop Keras, which imports matplotlib.
    """
    keras_home = os.environ.get("KERAS_HOME")
    for name in list(os.environ):
        if name.startswith(("KERAS_", "TF_", "XLA_", "ONEDNN_", "DNNL_", "MPLBACKEND")):
            del os.environ[name]
    os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ["KERAS_HOME"] = os.devnull  # no keras.json is found there
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # the CPU
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # none of TensorFlow's notices
    os.environ["TF_NUM_INTRAOP_THREADS"] = "1"
    os.environ["TF_NUM_INTEROP_THREADS"] = "1"
    try:
        yield
    finally:
        del os.environ["KERAS_HOME"]
        if keras_home is not None:
            os.environ["KERAS_HOME"] = keras_home


@contextlib.contextmanager
def silent_stderr():
    """Discard what is written to stderr in here, by TensorFlow's C++ code, too."""
    stderr = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def model_file(model, learning_rate, history, description):
    """The .h5 file of a trained model, as bytes. Every Keras from 2.6 on opens it.

    `history` is {metric: a value per epoch}; it goes into the group "history".
    `description` is a dict of strings and numbers; they become attributes of the file.
    Once loaded, the model is compiled as it was trained. The file lacks the optimizer's
    state, as Keras 3.15 restores that wrongly, and then `fit` fails. Raises OSError.
    """
    adam = {"learning_rate": learning_rate, **ADAM, "amsgrad": False}
    training = {
        "loss": "categorical_crossentropy", "metrics": ["accuracy"],
        "loss_weights": None, "weighted_metrics": None,
        "optimizer_config": {"class_name": "Adam", "config": adam},
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.h5")
        try:
            model.save(path, include_optimizer=False)
            with h5py.File(path, "a") as file:
                layers = json.loads(file.attrs["model_config"])
                file.attrs["model_config"] = json.dumps(in_keras2_words(layers))
                file.attrs["training_config"] = json.dumps(training)
                file.attrs.update(description)
                for metric, values in history.items():
                    file[f"history/{metric}"] = values
        except RuntimeError as error:  # HDF5's word for a full disk
            raise OSError(f"{folder}: {error}") from None
        return path.read_bytes()


def in_keras2_words(node):
    """A part of a Keras 3 configuration in words that Keras 2 knows, too."""
    if isinstance(node, list):
        return [in_keras2_words(child) for child in node]
    if not isinstance(node, dict):
        return node
    if node.get("class_name") == "DTypePolicy":
        return node["config"]["name"]
    words = {}
    for key, value in node.items():
        if key == "batch_shape":
            words["batch_input_shape"] = value
        elif value is not None and key not in ("module", "registered_name", "optional"):
            words[key] = in_keras2_words(value)
    return words


def read_histories(paths):
    """{metric: array of shape (files, epochs)} out of the .h5 files of one setting."""
    histories = {metric: [] for metric in METRICS}
    for path in paths:
        with h5py.File(path) as file:
            for metric, values in histories.items():
                values.append(file["history"][metric][:])
    return {metric: np.array(values) for metric, values in histories.items()}


KNOWN_CLASSES = {  # what a fully connected classifier may be made of
    "Sequential", "Functional", "Model", "InputLayer", "Flatten", "Dense", "Dropout",
    "DTypePolicy", "__keras_tensor__", "L1", "L2", "L1L2", "Zeros", "RandomNormal",
    "RandomUniform", "GlorotNormal", "GlorotUniform", "HeNormal", "HeUniform",
}  # fmt: skip


def load_classifier(path):
    """The fully connected classifier in an .h5 file, as an uncompiled Keras model.

    A file can name any class or function, and Keras may run it. So Keras gets only
    files that name a few known ones. Raises InputError for all others.
    """
    _, keras = import_tensorflow()
    if not os.path.exists(path):
        raise InputError(f"{path}: there is no such file")
    if not str(path).endswith((".h5", ".hdf5")):
        raise InputError(f"{path}: only .h5 files are read; save the model as one")
    try:
        with h5py.File(path) as file:
            # Inner dicts come first.
            json.loads(file.attrs["model_config"], object_hook=check_names)
        model = keras.models.load_model(path, compile=False)
        takes = model.input_shape[1:]
        gives = model.output_shape[1:]
        if takes not in ((28, 28), (28, 28, 1), (784,)) or gives != (10,):
            raise InputError(f"it makes {gives} of {takes}, not (10,) of 28 x 28")
    except Exception as error:  # noqa: BLE001 - Keras and h5py raise nearly every kind
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: no model that we can use: {reason:.200}") from None
    return model


def check_names(part):
    """Refuse, with InputError, a part of a configuration that names what is not known."""
    class_name = part.get("class_name")
    module = str(part.get("module") or "keras")
    if class_name is not None and class_name not in KNOWN_CLASSES:
        raise InputError(f"it names the class {class_name!r}")
    if module.split(".")[0] not in ("keras", "builtins"):
        raise InputError(f"it names the module {module!r}")


def read_description(path):
    """What an .h5 file says of its trial: {name: string or number}, maybe empty."""
    with h5py.File(path) as file:
        hidden = ("model_config", "training_config", "backend")
        return {name: x for name, x in file.attrs.items() if name not in hidden}


def layer_table(model):
    """(name, kind, output shape, what it does, number of weights) of every layer."""
    rows = []
    for layer in model.layers:
        settings = layer.get_config()
        words = [settings.get("activation", "")]
        if "rate" in settings:
            words = [f"rate {settings['rate']:g}"]
        if regularizer := settings.get("kernel_regularizer"):
            words += [f"{k.upper()} {v:g}" for k, v in regularizer["config"].items()]
        shape = layer.output.shape[1:]
        kind = type(layer).__name__
        rows.append((layer.name, kind, shape, " ".join(words), layer.count_params()))
    return rows


# ----------------------------------------------------------------------- the plots
BLUE, ORANGE, RED = "#00508c", "#f0a000", "#b00000"
LOOKS = {  # use_regularizer: told apart by the colour blind and in greyscale
    False: {"label": "without L2", "color": BLUE, "linestyle": "-"},
    True: {"label": "with L2", "color": ORANGE, "linestyle": "--"},
}


def new_figure(rows, columns, size, title, sharey="none"):
    """A matplotlib figure that needs no screen, and its axes; `size` in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=150, layout="constrained")
    figure.suptitle(title.encode(errors="replace").decode(), parse_math=False)
    return figure, figure.subplots(rows, columns, sharey=sharey, squeeze=False).ravel()


def save_figure(figure, path, note=""):
    """Write a figure, with the note at its foot, as a PNG file."""
    figure.supxlabel(note, fontsize="medium", color=RED)
    picture = io.BytesIO()
    figure.savefig(picture)
    write_whole(path, picture.getvalue())


def plot_architecture(model):
    """A network as a diagram: a bar for each layer, as wide as its output."""
    rows = [("", "Input", model.input_shape[1:], "", 0), *layer_table(model)]
    title = f"{model.name.title()}: {model.count_params():,} weights (width: log of the outputs)"
    figure, [ax] = new_figure(1, 1, (7, 0.42 * len(rows) + 0.8), title)
    # Bars are at most 10 wide, as 2**10 > 784. Texts start 5.3 from the middle.
    for row, (_, kind, shape, words, weights) in enumerate(rows):
        width = math.log2(math.prod(shape))
        color = BLUE if weights else ORANGE if kind == "Dropout" else "#707070"
        ink = "black" if color == ORANGE else "white"
        ax.barh(-row, width, left=-width / 2, height=0.7, color=color)
        size = " x ".join(map(str, shape))
        ax.text(0, -row, size, ha="center", va="center", color=ink, weight="bold")
        ax.text(-5.3, -row, f"{kind} {words}".strip(), ha="right", va="center")
        ax.text(5.3, -row, f"{weights:,} weights" if weights else "", va="center")
    ax.set(xlim=(-10.5, 9.5))
    ax.axis("off")
    return figure


def plot_hyperparameters(study, centre):
    """Validation accuracy over each hyperparameter of Tyler, without and with L2.

    `study` are the rows of study.csv, `centre` is Tyler's final setting.
    """
    spread = f"mean and standard deviation of {study[0]['seeds']} seeds"
    if study[0]["seeds"] == 1:
        spread = "one seed: small differences may be chance"
    title = f"Tyler, one hyperparameter moved at a time ({spread})"
    names = list(dict.fromkeys(row["hyperparameter"] for row in study))
    lines = math.ceil(len(names) / 2)
    figure, axes = new_figure(lines, 2, (10, 3.3 * lines + 0.4), title)
    for ax in axes[len(names) :]:
        ax.remove()
    shared_axis = axes[names.index("epochs")]
    for ax, name in zip(axes, names):
        rows = [row for row in study if row["hyperparameter"] == name]
        values = sorted({row["value"] for row in rows})
        for use_regularizer, look in LOOKS.items():
            curve = [row for row in rows if row["use_regularizer"] == use_regularizer]
            # Evenly spaced, and the curves a little apart, so that nothing overprints.
            x = np.arange(len(values)) + (0.03 if use_regularizer else -0.03)
            y = [row["val_accuracy"] for row in curve]
            deviations = [row["standard_deviation"] for row in curve]
            ax.errorbar(x, y, deviations, marker="o", capsize=3, **look)
        middle = values.index(getattr(centre, name))
        ax.axvline(middle, color="grey", linestyle=":", label="final models' setting")
        ax.set_xticks(range(len(values)), [f"{value:g}" for value in values])
        ax.set(xlabel=name.replace("_", " "), ylabel="validation accuracy")
        ax.grid(alpha=0.3)
        if name == "learning_rate":  # 0.01 would flatten the curves of the others
            ax.set(xlabel="learning rate (with a y-axis of its own)")
        elif name != "epochs":
            ax.sharey(shared_axis)
    axes[0].legend()
    return figure


def plot_training(histories):
    """Accuracy and loss over the epochs, a row for each network.

    `histories` is {setting: {metric: array of shape (seeds, epochs)}}.
    """
    seeds = len(next(iter(histories.values()))["loss"])
    spread = f" (mean of {seeds} seeds, bands: standard deviation)" if seeds > 1 else ""
    title = f"The networks in training{spread}"
    figure, axes = new_figure(2, 2, (10, 9), title, sharey="col")
    panels = {"tyler": axes[:2], "jackson": axes[2:]}
    y_labels = {"accuracy": "accuracy", "loss": "loss (cross-entropy + L2 penalty)"}
    curves = (("training", "", 1), ("validation", "val_", 2.5))  # prefix, line width
    for setting, history in histories.items():
        look = LOOKS[setting.use_regularizer]
        for ax, metric in zip(panels[setting.architecture], y_labels):
            for part, prefix, width in curves:
                mean, deviation, _ = mean_and_spread(history[prefix + metric])
                epochs = np.arange(1, len(mean) + 1)
                label = f"{part}, {look['label']}"
                ax.plot(epochs, mean, **{**look, "label": label, "linewidth": width})
                low, high = mean - deviation, mean + deviation
                ax.fill_between(epochs, low, high, color=look["color"], alpha=0.2)
            ax.set(xlabel="epoch", ylabel=y_labels[metric])
            ax.set_title(setting.architecture.title())
            ax.xaxis.get_major_locator().set_params(integer=True)
            ax.grid(alpha=0.3)
    axes[0].legend()
    return figure


def plot_confusion_matrix(title, labels, probabilities):
    """The confusion matrix of a model. `labels` are class numbers (n,), `probabilities`
    the model's output (n, 10)."""
    from sklearn.metrics import ConfusionMatrixDisplay

    figure, [ax] = new_figure(1, 1, (7, 7), title)
    display = ConfusionMatrixDisplay.from_predictions(
        labels, probabilities.argmax(1), labels=range(10), display_labels=CLASS_NAMES,
        normalize="true", values_format=".2f", cmap="Blues", colorbar=False,
        im_kw={"vmin": 0, "vmax": 1}, xticks_rotation=45, ax=ax,
    )  # fmt: skip
    for text in display.text_.ravel():
        text.set_text(text.get_text().replace("0.00", ""))
    ax.set(
        xlabel="predicted class",
        ylabel="true class (rows add up to 1; 0.00 is left out)",
    )
    return figure


def plot_predictions(title, images, labels, probabilities):
    """The first six right predictions and, below, the six most confident mistakes.

    `labels` are class numbers (n,), `probabilities` the model's output (n, 10).
    """
    predicted = probabilities.argmax(1)
    confidence = probabilities.max(1)
    right = np.flatnonzero(predicted == labels)
    wrong = np.flatnonzero(predicted != labels)
    wrong = wrong[np.argsort(-confidence[wrong], kind="stable")]
    title = f"{title}: test images it gets right; below, its most confident mistakes"
    figure, axes = new_figure(2, 6, (11, 5.6), title)
    for ax, i in zip(axes, [*right[:6], *wrong[:6]]):
        ax.imshow(images[i], cmap="gray")  # as the network sees it: light on black
        true = CLASS_NAMES[labels[i]]
        guess = CLASS_NAMES[predicted[i]]
        text = f"true: {true}\npredicted: {guess}\nconfidence: {confidence[i]:.1%}"
        ax.set_title(text, fontsize=9, color="black" if i in right else RED)
    for ax in axes:
        ax.axis("off")
    return figure
