"""Helpers of the experiment: the data, the files, saved models and the plots.

What is slow to import (TensorFlow, scikit-learn, matplotlib) is imported where needed.
"""

import contextlib
import csv
import functools
import gzip
import importlib.metadata
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
import warnings
import zlib
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
DATA_URL = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/"  # Keras's own
DEBIAN_PACKAGE = "dataset-fashion-mnist"
DEBIAN_DIR = Path("/usr/share/datasets/fashion-mnist")  # where the package puts them
METRICS = ("loss", "accuracy", "val_loss", "val_accuracy")  # of a history, as Keras's
TIMEOUT = 10  # seconds that a host may stay silent
os.environ["KERAS_BACKEND"] = "tensorflow"  # whatever the user's keras.json says
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # the results are the CPU's: see README
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # none of TensorFlow's notices


class InputError(Exception):
    """Something that the user can put right; the message is one line and says how."""


# ------------------------------------------------------------------------- the data
@functools.cache
def load_data(data_dir=None, quick=False):
    """Fashion-MNIST as (x_train, y_train), (x_val, y_val), (x_test, y_test).

    Images are uint8 arrays of shape (n, 28, 28) with pixels from 0 to 255; the networks
    take them divided by 255. Labels are one-hot float32 arrays of shape (n, 10). The
    last fifth of the training images validates: n is 48,000, 12,000 and 10,000. With
    `quick`, it is a tenth, a tenth and a fifth of that. Without `data_dir`, `find_data`
    finds the files. Raises InputError if one is missing or not what it should be.
    """
    folder = find_data() if data_dir is None else Path(data_dir)
    x, y = read_labeled_images(folder, *DATA_FILES[:2])
    split = len(x) * 4 // 5
    test = read_labeled_images(folder, *DATA_FILES[2:])
    parts = [(x[:split], y[:split]), (x[split:], y[split:]), test]
    sizes = (4800, 1200, 2000) if quick else (None, None, None)
    return tuple((images[:n], labels[:n]) for (images, labels), n in zip(parts, sizes))


def find_data():
    """Keras's cache or Debian's folder, if it has the four files; else, fetch them."""
    keras_home = os.environ.get("KERAS_HOME") or Path.home() / ".keras"
    cache = Path(keras_home, "datasets", "fashion-mnist")
    for folder in (cache, DEBIAN_DIR):
        if all((folder / name).is_file() for name in DATA_FILES):
            return folder
    fetch_data(cache)
    return cache


def read_labeled_images(folder, images_name, labels_name):
    """Images (n, 28, 28) and their one-hot labels (n, 10). Raises InputError."""
    images = read_idx(folder / images_name)
    labels = read_idx(folder / labels_name)
    highest = labels.max(initial=0)
    if not 5 <= len(images) == len(labels) or highest > 9:  # a fifth validates
        found = f"{len(labels)} labels up to {highest} for {len(images)} images"
        raise bad_file(folder / labels_name, found)
    return images, np.eye(len(CLASS_NAMES), dtype="float32")[labels]


def read_idx(path):
    """A gzipped IDX file of images or labels as a uint8 array. Raises InputError."""
    # The header is big-endian: 0x0800 + the number of dimensions, then their lengths.
    item_shape = [28, 28] if "images" in path.name else []
    try:
        with gzip.open(path) as file:
            header = np.frombuffer(file.read(8 + 4 * len(item_shape)), ">u4").tolist()
            values = np.frombuffer(file.read(10**9), np.uint8)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise bad_file(path, f"cannot be read ({error})") from None
    count = len(values) / math.prod(item_shape)
    if header != [0x0801 + len(item_shape), count, *item_shape]:
        found = f"{len(values)} values under the header {header}"
        raise bad_file(path, f"not an IDX file of images or labels, but {found}")
    return values.reshape(header[1:])


def bad_file(path, problem):
    return InputError(f"{path}: {problem}; replace it (or remove it from a cache)")


def fetch_data(cache):
    """Put all missing files into the folder `cache`, or raise InputError."""
    failures = ""
    for source, fetch in ((DATA_URL, download), (DEBIAN_PACKAGE, unpack_debian)):
        print(f"Fetching Fashion-MNIST (30 MB) from {source}", flush=True)
        try:
            cache.mkdir(parents=True, exist_ok=True)
            missing = [name for name in DATA_FILES if not (cache / name).is_file()]
            with tempfile.TemporaryDirectory(dir=cache, prefix=".part-") as part:
                folder = fetch(Path(part), missing)
                for name in missing:
                    read_idx(folder / name)
                for name in missing:
                    os.replace(folder / name, cache / name)
            return
        except Exception as error:  # noqa: BLE001 - Keras's download raises this class
            reason = getattr(error, "stderr", None) or str(error)
            failures += f"; {source}: {' '.join(reason.split())}"
    raise InputError(
        f"Fashion-MNIST is not in {cache} nor {DEBIAN_DIR} and could not be fetched"
        f"{failures}; put {', '.join(DATA_FILES)} into a folder and name it --data-dir"
    )


def download(folder, names):
    """Let Keras download these files into the folder, which is returned."""
    _, keras = import_tensorflow()
    socket.setdefaulttimeout(TIMEOUT)
    for name in names:
        keras.utils.get_file(name, DATA_URL + name, cache_dir=folder, cache_subdir="")
    return folder


def unpack_debian(folder, names):
    """Unpack Debian's package in the folder, and keep apt's lists there: no root needed."""
    apt = ["apt-get", f"-oDir::State::lists={folder}/lists", f"-oDir::Cache={folder}"]
    apt += [f"-oAcquire::{kind}::Timeout={TIMEOUT}" for kind in ("http", "https")]
    apt += ["-oAPT::Sandbox::User=", "-oAcquire::Retries=0"]
    for name in ("lists", "archives"):
        (folder / name / "partial").mkdir(parents=True)  # apt does not make these
    unpack = ["sh", "-c", "dpkg-deb -x *.deb ."]
    for command in ([*apt, "update"], [*apt, "download", DEBIAN_PACKAGE], unpack):
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    return folder / DEBIAN_DIR.relative_to("/")


# ------------------------------------------------------------------------ the files
@contextlib.contextmanager
def output_folders(output_dir, fresh=False):
    """Yield three folders: for kept trials, for models and for plots.

    The last two are temporary folders in models/ and plots/; at the end, their files
    move up there. Raises OSError if a folder cannot be written. Raises InputError if
    another run holds the lock, which SQLite releases however a process ends.
    """
    kept, models, plots = [output_dir / name for name in (".trials", "models", "plots")]
    temporary = [kept / "temporary", models / ".unfinished", plots / ".unfinished"]
    kept.mkdir(parents=True, exist_ok=True)
    try:
        lock = sqlite3.connect(kept / "lock", timeout=0)
        lock.execute("BEGIN EXCLUSIVE")
    except sqlite3.Error as error:
        problem = f"{output_dir}: another run is at work there ({error})"
        raise InputError(f"{problem}; wait for it or use --output-dir") from None
    try:
        for path in kept.glob("*.h5") if fresh else ():
            path.unlink()
        for folder in temporary:
            shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
            folder.mkdir(parents=True)
        yield kept, *temporary[1:]
        for path in [path for folder in temporary[1:] for path in folder.iterdir()]:
            os.replace(path, path.parents[1] / path.name)
        for path in kept.glob("*.h5"):
            path.unlink()  # those of other settings or of older code, too
    finally:
        for folder in temporary:
            shutil.rmtree(folder, ignore_errors=True)
        lock.close()
        if not any(kept.glob("*.h5")):
            shutil.rmtree(kept, ignore_errors=True)


def library_versions():
    """What a trial's numbers depend on, besides our code and the data."""
    return {x: importlib.metadata.version(x) for x in ("tensorflow", "keras", "numpy")}


def trial_keys(trials, data):
    """{trial: a name for the kept file}, the same for the same code, data and libraries."""
    code = sorted(p.read_bytes() for p in Path(__file__).parent.glob("*-FMNIST.py"))
    digest = joblib.hash([code, data, library_versions(), platform.machine()])
    return {trial: joblib.hash([tuple(trial), digest]) for trial in trials}


def keep_trial(folder, key, content):
    """Write a trial's .h5 file, its checksum in its name. Return the path."""
    path = folder / f"{key}-{joblib.hash(content)}.h5"
    path.write_bytes(content)
    return path


def find_kept_trials(folder):
    """{key: path} of the trials in the folder that are not damaged."""
    kept = {}
    for path in folder.glob("*.h5"):
        key, _, checksum = path.stem.partition("-")
        if joblib.hash(path.read_bytes()) == checksum:
            kept[key] = path
    return kept


def write_csv(path, rows):
    """A list of dicts with the same keys as a table."""
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


# -------------------------------------------------------------------- saved models
@functools.cache
def import_tensorflow():
    """Import TensorFlow and Keras, on one thread of the CPU. Return both modules.

    We discard what TensorFlow writes to stderr while it loads. Keras gets its default
    settings, whatever keras.json says. Raises InputError if the import fails.
    """
    os.environ["TF_NUM_INTRAOP_THREADS"] = os.environ["TF_NUM_INTEROP_THREADS"] = "1"
    warnings.simplefilter("ignore")
    stderr = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        import keras
        import tensorflow
    except Exception as error:  # noqa: BLE001 - whatever a broken installation raises
        raise InputError(f"Keras (see keras.json) does not start: {error}") from None
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
    for logger in ("absl", "tensorflow"):  # "HDF5 is a legacy format", "retracing"
        logging.getLogger(logger).setLevel(logging.ERROR)
    keras.config.set_floatx("float32")
    keras.config.set_epsilon(1e-7)
    keras.config.set_image_data_format("channels_last")
    return tensorflow, keras


def to_hdf5(model, history):
    """A compiled model's .h5 file as bytes, its history in the group "history".

    The optimizer's state is left out: Keras 3.15 restores it wrongly, then `fit` fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.h5")
        try:
            model.save(path)
            with h5py.File(path, "a") as file:
                del file["optimizer_weights"]
                for metric, values in history.items():
                    file[f"history/{metric}"] = values
        except RuntimeError as error:  # HDF5's word for a full disk
            raise OSError(f"{folder}: {error}") from None
        return path.read_bytes()


def read_history(path):
    """{metric: array with a value per epoch} out of an .h5 file."""
    with h5py.File(path) as file:
        return {metric: file["history"][metric][:] for metric in METRICS}


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
    if not os.path.isfile(path) or not str(path).endswith((".h5", ".hdf5")):
        raise InputError(f"{path}: there is no file of that name that ends in .h5")
    try:
        with h5py.File(path) as file:
            check_configuration(json.loads(file.attrs["model_config"]))
        model = keras.models.load_model(path, compile=False)
        last, takes = model.layers[-1], model.input_shape[1:]
        if takes not in ((28, 28), (28, 28, 1), (784,)):
            raise InputError(f"it takes {takes}, not 28 x 28 images")
        gives = np.shape(model(np.zeros((1, *takes), "float32")))[1:]
        if gives != (10,) or not isinstance(last, keras.layers.Dense):
            raise InputError(f"it ends with {last.name} {gives}, not a Dense (10,)")
    except Exception as error:  # noqa: BLE001 - Keras and h5py raise nearly every kind
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: no model that we can use: {reason:.200}") from None
    if last.activation is keras.activations.linear:  # it was trained on logits
        last.activation = keras.activations.softmax
    return model


def check_configuration(node):
    """Refuse, with InputError, any class or module that is not known, at any depth."""
    if isinstance(node, dict):
        name, module = node.get("class_name"), node.get("module") or "keras"
        if name is not None and name not in KNOWN_CLASSES:
            raise InputError(f"it names the class {name!r}")
        if str(module).split(".")[0] not in ("keras", "builtins"):
            raise InputError(f"it names the module {module!r}")
        node = list(node.values())
    for child in node if isinstance(node, list) else ():
        check_configuration(child)


# ----------------------------------------------------------------------- the plots
LOOKS = {  # use_regularizer: told apart by the colour blind and in greyscale
    False: {"label": "without L2", "color": "#00508c", "linestyle": "-"},
    True: {"label": "with L2", "color": "#f0a000", "linestyle": "--"},
}


def new_figure(rows, columns, size, title):
    """A matplotlib figure that needs no screen, and its axes; `size` in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=150, layout="constrained")
    figure.suptitle(title.encode(errors="replace").decode(), parse_math=False)
    return figure, figure.subplots(rows, columns, squeeze=False).ravel()


def mean_and_spread(values):
    """Mean and sample standard deviation over the first axis, the seeds."""
    ddof = 1 if len(values) > 1 else 0  # a single seed has no spread
    return np.mean(values, axis=0), np.std(values, axis=0, ddof=ddof)


def plot_hyperparameters(points, setting, folder):
    """Validation accuracy over each hyperparameter of Tyler, without and with L2.

    `points` are (hyperparameter, value, use_regularizer, accuracies of the seeds).
    """
    repeats = len(points[0][3])
    note = f"mean and standard deviation of {repeats} seeds"
    if repeats == 1:
        note = "one seed: differences of half a point are chance"
    title = f"Tyler, one hyperparameter moved at a time ({note})"
    figure, axes = new_figure(2, 2, (10, 7), title)
    axes[2].sharey(axes[0])
    axes[3].sharey(axes[0])
    for ax, name in zip(axes, dict.fromkeys(name for name, *_ in points)):
        for with_l2, look in LOOKS.items():
            curve = [(v, a) for n, v, l2, a in points if (n, l2) == (name, with_l2)]
            values, accuracies = zip(*curve)
            mean, spread = mean_and_spread(np.transpose(accuracies))
            ax.errorbar(values, mean, spread, marker="o", capsize=3, **look)
        value = getattr(setting, name)
        ax.axvline(value, color="grey", linestyle=":", label="final models' setting")
        if name in ("learning_rate", "batch_size"):
            ax.set_xscale("log")
        ax.set_xticks(values, [f"{value:g}" for value in values])
        ax.minorticks_off()
        ax.set(xlabel=name.replace("_", " "), ylabel="validation accuracy")
        ax.grid(alpha=0.3)
    axes[1].set(xlabel="learning rate (with a y-axis of its own)")
    axes[0].legend()
    figure.savefig(folder / "hyperparameters_tyler.png")


def plot_training(histories, folder):
    """Accuracy and loss over the epochs: accuracy_tyler.png and accuracy_jackson.png.

    `histories` is {(architecture, use_regularizer): the seeds' histories}.
    """
    note, repeats = "", len(histories["tyler", False])
    if repeats > 1:
        note = f" (mean of {repeats} seeds, bands: standard deviation)"
    figures = {}
    for name in ("tyler", "jackson"):
        title = f"{name.title()} in training{note}"
        figures[name] = new_figure(1, 2, (10, 4.5), title)
    for tyler_ax, jackson_ax in zip(figures["tyler"][1], figures["jackson"][1]):
        jackson_ax.sharey(tyler_ax)
    for (name, use_regularizer), runs in histories.items():
        look = LOOKS[use_regularizer]
        for part, prefix, width in (("training", "", 1), ("validation", "val_", 2.5)):
            style = {**look, "label": f"{part}, {look['label']}", "linewidth": width}
            for ax, metric in zip(figures[name][1], ("accuracy", "loss")):
                mean, spread = mean_and_spread([run[prefix + metric] for run in runs])
                epochs = np.arange(1, len(mean) + 1)
                ax.plot(epochs, mean, **style)
                low, high = mean - spread, mean + spread
                ax.fill_between(epochs, low, high, color=look["color"], alpha=0.2)
                ax.set(xlabel="epoch", ylabel=metric)
                ax.xaxis.get_major_locator().set_params(integer=True)
                ax.grid(alpha=0.3)
    for name, (figure, axes) in figures.items():
        axes[1].set(ylabel="loss (cross-entropy + L2 penalty)")
        axes[0].legend()
        figure.savefig(folder / f"accuracy_{name}.png")


def plot_confusion_matrix(title, labels, probabilities, path):
    """The confusion matrix of a model.

    `labels` are class numbers (n,), `probabilities` the model's output (n, 10).
    """
    from sklearn.metrics import ConfusionMatrixDisplay

    predicted = probabilities.argmax(1)
    accuracy = np.mean(predicted == labels)
    figure, [ax] = new_figure(1, 1, (7, 7), f"{title}: test accuracy {accuracy:.2%}")
    display = ConfusionMatrixDisplay.from_predictions(
        labels, predicted, labels=range(10), display_labels=CLASS_NAMES, ax=ax,
        normalize="true", values_format=".2f", cmap="Blues", colorbar=False,
        im_kw={"vmin": 0, "vmax": 1}, xticks_rotation=45,
    )  # fmt: skip
    for text in display.text_.ravel():
        text.set_text(text.get_text().replace("0.00", ""))
    ax.set(xlabel="predicted class", ylabel="true class (each row adds up to 1)")
    figure.savefig(path)


def plot_predictions(images, labels, probabilities, folder):
    """The first six right predictions, and the six most confident mistakes.

    `labels` are class numbers (n,), `probabilities` Jackson's output (n, 10).
    """
    predicted, confidence = probabilities.argmax(1), probabilities.max(1)
    right = np.flatnonzero(predicted == labels)
    wrong = np.flatnonzero(predicted != labels)
    wrong = wrong[np.argsort(-confidence[wrong], kind="stable")]
    title = "Jackson without L2: test images it gets right; below, its surest mistakes"
    figure, axes = new_figure(2, 6, (11, 5), title)
    for ax, i in (*zip(axes[:6], right), *zip(axes[6:], wrong)):
        ax.imshow(images[i], cmap="gray")  # as the network sees it: light on black
        true, guess = CLASS_NAMES[labels[i]], CLASS_NAMES[predicted[i]]
        text = f"true: {true}\npredicted: {guess}\nconfidence: {confidence[i]:.1%}"
        ax.set_title(text, fontsize=9, color="black" if true == guess else "#b00000")
    for ax in axes:
        ax.axis("off")
    figure.savefig(folder / "predictions.png")
