"""Helpers of the experiment: the data, the files, saved models and the pictures.

    (x_train, y_train), (x_val, y_val), (x_test, y_test) = util.load_data()

TensorFlow, scikit-learn and matplotlib are slow to import, so the functions that need
them import them; loading the data takes NumPy alone.
"""

import contextlib
import csv
import fcntl
import functools
import gzip
import hashlib
import http.client
import importlib
import importlib.metadata
import io
import json
import logging
import math
import os
import platform
import queue
import shutil
import subprocess
import tempfile
import threading
import urllib.request
import zlib
from pathlib import Path

import numpy as np
import rich
import rich.progress

CLASS_NAMES = (  # in the order of the labels 0-9, as the dataset's authors give them
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
DATA_FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
DATA_URL = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/"  # Keras's own
DEBIAN_PACKAGE = "dataset-fashion-mnist"
DEBIAN_DIR = Path("/usr/share/datasets/fashion-mnist")  # where that package puts them
METRICS = ("loss", "accuracy", "val_loss", "val_accuracy")  # of a history, as Keras's
TIMEOUT = 10  # seconds that a host has to answer


class InputError(Exception):
    """Something that the user can put right; the message is one line and says how."""


# ------------------------------------------------------------------------- the data


def load_data(data_dir=None):
    """Fashion-MNIST as (x_train, y_train), (x_val, y_val), (x_test, y_test).

    Images are uint8 arrays of shape (n, 28, 28) with pixels 0-255 (the networks take
    them divided by 255), labels are one-hot float32 arrays of shape (n, 10). The last
    fifth of the training images validates: 48,000, 12,000 and 10,000 images.

    The four IDX files come from `data_dir` or, without it, from the first place that
    has them: Keras's cache, Debian's package, a download into that cache. Raises
    InputError, naming the file, if one is missing or not what it should be.
    """
    x, y, x_test, y_test = read_data(find_data(data_dir))
    split = len(x) * 4 // 5
    return (x[:split], y[:split]), (x[split:], y[split:]), (x_test, y_test)


def find_data(data_dir=None):
    """The folder that holds the four files, fetched if need be. Raises InputError."""
    if data_dir is not None:
        if not Path(data_dir).is_dir():
            raise InputError(f"--data-dir {data_dir}: there is no such folder")
        return Path(data_dir)
    keras_home = os.environ.get("KERAS_HOME") or Path.home() / ".keras"
    cache = Path(keras_home, "datasets", "fashion-mnist")
    for folder in (cache, DEBIAN_DIR):
        if all((folder / name).is_file() for name in DATA_FILES):
            return folder
    fetch_data(cache)
    return cache


def read_data(folder):
    """x, y, x_test, y_test from the four files in `folder`, labels one-hot."""
    arrays = []
    for images_name, labels_name in (DATA_FILES[:2], DATA_FILES[2:]):
        images = read_idx(folder / images_name, dimensions=3)
        labels = read_idx(folder / labels_name, dimensions=1)
        if images.shape[1:] != (28, 28):
            size = " x ".join(map(str, images.shape[1:]))
            raise bad_file(folder / images_name, f"images are {size}, not 28 x 28")
        if len(images) != len(labels):
            counts = f"{len(labels)} labels for {len(images)} images"
            raise bad_file(folder / labels_name, counts)
        if len(labels) < 5:
            raise bad_file(folder / labels_name, "fewer than 5 images")
        if labels.max() >= len(CLASS_NAMES):
            raise bad_file(folder / labels_name, f"label {labels.max()} is above 9")
        arrays += [images, np.eye(len(CLASS_NAMES), dtype="float32")[labels]]
    return arrays


def read_idx(path, dimensions):
    """A gzipped IDX file of unsigned bytes as an array. Raises InputError.

    The header is big-endian: a magic number, 0x0800 + dimensions, then a length for
    each dimension. What is checked is the content, which gzip's CRC protects: the
    archives themselves differ from one source to the next.
    """
    try:
        with gzip.open(path) as file:
            header = np.frombuffer(file.read(4 * (1 + dimensions)), ">u4")
            if len(header) != 1 + dimensions:
                raise EOFError
            if header[0] != 0x0800 + dimensions:
                raise bad_file(path, f"wrong magic number {header[0]:#010x}")
            shape = tuple(map(int, header[1:]))
            content = file.read(min(math.prod(shape), 10**9) + 1)
    except (FileNotFoundError, IsADirectoryError):
        raise bad_file(path, "the file is missing") from None
    except (EOFError, ValueError):
        raise bad_file(path, "the file is empty or cut short") from None
    except (gzip.BadGzipFile, zlib.error):
        raise bad_file(path, "not a whole gzip file") from None
    except OSError as error:
        raise bad_file(path, error.strerror or str(error)) from None
    if len(content) != math.prod(shape):
        raise bad_file(path, "its length is not what its header says")
    return np.frombuffer(content, np.uint8).reshape(shape)


def bad_file(path, problem):
    return InputError(f"{path}: {problem}; replace it (or remove it from a cache)")


def fetch_data(cache):
    """Put the four files into the folder `cache`: all of them, checked, or none.

    Raises InputError that lists what was tried.
    """
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{error}; name the data's folder with --data-dir") from None
    failures = []
    for source, fetch in ((DATA_URL, download), (DEBIAN_PACKAGE, unpack_debian)):
        print(f"Fetching Fashion-MNIST from {source}", flush=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".part-") as part:
            try:
                folder = fetch(Path(part))
                read_data(folder)
                for name in DATA_FILES:
                    os.replace(folder / name, cache / name)
                return
            except subprocess.CalledProcessError as error:
                reason = (error.stderr.strip().splitlines() or [str(error)])[-1]
            except (OSError, http.client.HTTPException, InputError) as error:
                reason = " ".join(str(error).split())
        print(f"  that failed: {reason}")
        failures.append(f"{source} ({reason})")
    raise InputError(
        f"Fashion-MNIST is not in {cache} nor {DEBIAN_DIR} and could not be fetched "
        f"from {' nor '.join(failures)}; put {', '.join(DATA_FILES)} into a folder "
        "and name it with --data-dir"
    )


def download(folder):
    """The four files from Keras's host, with a progress bar. Raises OSError."""
    for name in DATA_FILES:
        with open_url(DATA_URL + name) as response, open(folder / name, "wb") as file:
            size = response.length or 1  # which a server need not tell
            with rich.progress.wrap_file(response, size, description=name) as stream:
                shutil.copyfileobj(stream, file)
    return folder


def open_url(url):
    """urlopen that gives up after TIMEOUT seconds in all. Raises OSError.

    Its own time limit starts again for each address that a host has, and does not
    count the time for looking up the name.
    """
    answers = queue.SimpleQueue()

    def ask():
        try:
            answers.put(urllib.request.urlopen(url, timeout=TIMEOUT))
        except (OSError, http.client.HTTPException) as error:
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=TIMEOUT)
    except queue.Empty:
        raise TimeoutError(f"no answer within {TIMEOUT} seconds") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def unpack_debian(folder):
    """The four files out of Debian's package, which takes no root: apt's lists are
    kept in `folder`. Raises OSError or CalledProcessError."""
    apt = ["apt-get", f"-oDir::State::lists={folder}/lists", f"-oDir::Cache={folder}"]
    apt += [f"-oAcquire::http::Timeout={TIMEOUT}", "-oAPT::Sandbox::User="]
    apt += [f"-oAcquire::https::Timeout={TIMEOUT}", "-oAcquire::Retries=0"]
    run = functools.partial(
        subprocess.run, check=True, capture_output=True, text=True, cwd=folder
    )
    for name in ("lists", "archives"):
        (folder / name / "partial").mkdir(parents=True)  # which apt does not make
    with rich.get_console().status("apt-get is at work (30 MB)"):
        run([*apt, "update"])
        run([*apt, "download", DEBIAN_PACKAGE])
        for package in folder.glob("*.deb"):
            run(["dpkg-deb", "-x", package, folder])
    return folder / DEBIAN_DIR.relative_to("/")


# ------------------------------------------------------------------------ the files


def import_quietly(name):
    """Import a module that needs TensorFlow, without the notices it prints.

    TensorFlow's C++ libraries write some of them to file descriptor 2 before any
    setting is read, so that is turned away while they load.
    """
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # results are the CPU's: see README
    os.environ["KERAS_BACKEND"] = "tensorflow"
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        module = importlib.import_module(name)
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)
    for logger in ("absl", "tensorflow"):  # "HDF5 is a legacy format", "retracing"
        logging.getLogger(logger).setLevel(logging.ERROR)
    return module


def write_whole(path, content):
    """Write bytes so that `path` holds, at any moment, all of them or what it held."""
    part = path.with_name(f".{path.name}.part")
    with open(part, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def write_csv(path, rows):
    """A list of dicts with the same keys as a table."""
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


@contextlib.contextmanager
def working_folder(output_dir, fresh=False):
    """output_dir/.trials, where finished trials are kept until the run is complete.

    Raises InputError if another run is at work there. The lock is the system's, on the
    open folder, so it ends with its process, however that ends.
    """
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        lock = os.open(output_dir, os.O_RDONLY)
    except OSError as error:
        problem = f"--output-dir {output_dir}: {error.strerror}"
        raise InputError(f"{problem}; name another folder") from None
    folder = output_dir / ".trials"
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        problem = f"{output_dir}: another run is writing there"
        raise InputError(f"{problem}; wait for it or use --output-dir") from None
    try:
        if fresh:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(exist_ok=True)
        yield folder
    finally:
        if not list(folder.glob("*.h5")):
            shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


OPTIONAL_FILES = (  # what not every run writes
    "plots/hyperparameters_tyler.png",
    "models/model_tyler_best.h5",
    "models/model_jackson_best.h5",
    "plots/confusion_matrix_tyler_best.png",
    "plots/confusion_matrix_jackson_best.png",
)


@contextlib.contextmanager
def publication(folder, output_dir):
    """Folders for models and plots whose files, when all are written, go public."""
    stage = folder / "finished"
    shutil.rmtree(stage, ignore_errors=True)
    for name in ("models", "plots"):
        (stage / name).mkdir(parents=True)
    yield stage / "models", stage / "plots"
    for name in OPTIONAL_FILES:
        if not (stage / name).exists():
            (output_dir / name).unlink(missing_ok=True)  # it would be of an older run
    for path in sorted(stage.glob("*/*")):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        target = output_dir / path.relative_to(stage)
        target.parent.mkdir(exist_ok=True)
        os.replace(path, target)
    shutil.rmtree(stage)


def library_versions():
    """What a trial's numbers depend on, besides our code and the data."""
    names = ("tensorflow", "keras", "numpy")
    versions = {name: importlib.metadata.version(name) for name in names}
    return {"python": ".".join(platform.python_version_tuple()[:2]), **versions}


def digest(*arrays):
    """Hex digest of our code, these arrays, the libraries and the kind of machine."""
    hashed = hashlib.sha256(repr((library_versions(), platform.machine())).encode())
    for script in sorted(Path(__file__).parent.glob("*-FMNIST.py")):
        hashed.update(script.read_bytes())
    for array in arrays:
        hashed.update(array)
    return hashed.hexdigest()


def kept_file(folder, trial, digest):
    """Where a trial is kept: it counts for the same code, data and libraries only."""
    name = hashlib.sha256(f"{tuple(trial)} {digest}".encode()).hexdigest()
    return folder / f"{trial.architecture}-{name[:16]}.h5"


def to_hdf5(model, history):
    """A compiled model's .h5 file as bytes, its history in the group "history".

    The optimizer's state goes into "optimizer_state". Under Keras's own name for it,
    "optimizer_weights", Keras 3 restores it for no weight at all, and `fit` then fails
    on the loaded model (seen in 3.15).
    """
    import h5py

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.h5")
        try:
            model.save(path)
            with h5py.File(path, "a") as file:
                file.move("optimizer_weights", "optimizer_state")
                for metric, values in history.items():
                    file[f"history/{metric}"] = values
        except RuntimeError as error:  # what HDF5 makes of a full disk
            raise OSError(f"{folder}: {error}") from None
        return path.read_bytes()


def read_history(path):
    """{metric: a value per epoch} out of an .h5 file; None if it is not there whole."""
    import h5py

    try:
        with h5py.File(path) as file:
            return {metric: file["history"][metric][:].tolist() for metric in METRICS}
    except (OSError, KeyError):
        return None


def diverged(history):
    """Whether the last epoch's losses are anything but finite numbers."""
    return not math.isfinite(history["loss"][-1] + history["val_loss"][-1])


def accuracy_after(history, epochs):
    """Validation accuracy after so many epochs; NaN if training had diverged by then."""
    if len(history["loss"]) - diverged(history) < epochs:
        return math.nan
    return history["val_accuracy"][epochs - 1]


# -------------------------------------------------------------------- saved models

INPUT_SHAPES = ((28, 28), (28, 28, 1), (784,))
ACTIVATIONS = (
    "elu exponential gelu hard_sigmoid leaky_relu linear relu relu6 selu sigmoid silu "
    "softmax softplus softsign swish tanh"
)
KNOWN_NAMES = ACTIVATIONS + (  # all that a fully connected classifier may name
    " Sequential Functional Model InputLayer Flatten Dense Dropout DTypePolicy L1 L2 "
    "L1L2 Zeros Ones Constant Orthogonal VarianceScaling RandomNormal RandomUniform "
    "TruncatedNormal GlorotNormal GlorotUniform HeNormal HeUniform LecunNormal "
    "LecunUniform function __keras_tensor__ MeanMetricWrapper accuracy acc mse "
    "mean_squared_error MeanSquaredError AUC Precision Recall categorical_accuracy "
    "sparse_categorical_accuracy CategoricalAccuracy SparseCategoricalAccuracy "
    "categorical_crossentropy sparse_categorical_crossentropy CategoricalCrossentropy "
    "SparseCategoricalCrossentropy"
)
NAMING_KEYS = (  # where a Keras configuration names a class or function
    "class_name registered_name config function fn activation kernel_initializer "
    "bias_initializer kernel_regularizer bias_regularizer activity_regularizer "
    "kernel_constraint bias_constraint loss metrics weighted_metrics"
)


def load_classifier(path):
    """The fully connected classifier in an HDF5 file, whichever Keras wrote it.

    Such a file can name any class or function, and some run code as they are loaded.
    So Keras never gets to see it: its description is read as data, and what it may
    contain is built anew, as an uncompiled keras.Sequential with the file's weights.
    Raises InputError, which names what else is in the file.
    """
    import h5py

    if not os.path.isfile(path):
        raise InputError(f"{path}: there is no such file")
    try:
        with h5py.File(path) as file:
            config = read_description(file)
            shape, layers, expected = read_layers(config)
            weights = read_weights(file, expected)
        keras = import_quietly("keras")
        model = keras.Sequential(
            [keras.Input(shape, name="image")], name=config["name"]
        )
        for kind, settings in layers:
            if settings.get("kernel_regularizer"):
                factors = settings["kernel_regularizer"]
                settings["kernel_regularizer"] = keras.regularizers.L1L2(**factors)
            model.add(getattr(keras.layers, kind)(**settings))
        model.set_weights(weights)
        return model
    except InputError as error:
        raise InputError(f"{path}: {' '.join(str(error).split()):.300}") from None
    except RecursionError:
        raise InputError(f"{path}: its description is nested too deeply") from None
    except (OSError, RuntimeError):
        raise InputError(f"{path}: is not a whole HDF5 file") from None
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
    ) as error:
        problem = f"holds no Keras model that can be read ({error!r:.200})"
        raise InputError(f"{path}: {problem}") from None


def read_description(file):
    """The model's configuration as nested dicts, after a look at every name in it."""
    texts = [file.attrs.get(key, "{}") for key in ("model_config", "training_config")]
    if max(map(len, texts)) > 100_000:
        raise InputError("its description is too large for such a network")
    model, training = map(json.loads, texts)
    metrics = [training.get(key) for key in ("loss", "metrics", "weighted_metrics")]
    for key, text in [*walk(model), *walk(metrics, "metrics")]:
        if key in NAMING_KEYS.split() and text not in KNOWN_NAMES.split():
            raise InputError(f"refused, as it names {text!r} as {key}")
        if key == "module" and text.split(".")[0] not in ("keras", "builtins"):
            raise InputError(f"refused, as it names the module {text!r}")
        if key == "name" and not text.isprintable():
            raise InputError(f"refused, as it has the name {text!r}")
    return model["config"]


def walk(node, key=""):
    """Every (key, text) of a nested configuration; a list's items have its key.

    What Keras does not look up by name, such as an output's name in a dict of metrics,
    has the key of the dict that it is in.
    """
    if isinstance(node, dict):
        plain = (*NAMING_KEYS.split(), "module", "name", "dtype", "reduction")
        for name, child in node.items():
            inherits = key == "metrics" and name not in plain
            yield from walk(child, key if inherits else name)
    elif isinstance(node, list):
        for child in node:
            yield from walk(child, key)
    elif isinstance(node, str):
        yield key, node


def read_layers(config):
    """Input shape, (kind, arguments) of each layer, and the shapes of the weights."""
    found = [(layer["class_name"], layer["config"]) for layer in config["layers"]]
    shapes = [x.get("batch_shape", x.get("batch_input_shape")) for _, x in found]
    shape = next((tuple(shape[1:]) for shape in shapes if shape), None)
    if shape not in INPUT_SHAPES:
        raise InputError(f"takes {shape}, not 28 x 28 images")
    layers, expected, size = [], [], shape
    for kind, given in found:
        settings = {"name": given["name"]}
        if kind == "Flatten":
            size = (math.prod(size),)
        elif kind == "Dropout":
            settings["rate"] = float(given["rate"])
        elif kind == "Dense":
            settings |= read_dense(given)
            units = settings["units"]
            expected += [(*size, units), (units,)][: 1 + settings["use_bias"]]
            size = (units,)
        elif kind == "InputLayer":
            continue
        else:
            raise InputError(f"refused, as it names {kind!r} as a layer")
        layers.append((kind, settings))
    if layers[-1][0] != "Dense" or size != (len(CLASS_NAMES),):
        raise InputError(f"ends with {layers[-1][0]} of {size}, not Dense of (10,)")
    if layers[-1][1]["activation"] == "linear":
        layers[-1][1]["activation"] = "softmax"  # it was trained on logits
    return shape, layers, expected


def read_dense(config):
    """The arguments of a Dense layer; its regularizer as a dict, or None."""
    activation, penalty = config["activation"], config.get("kernel_regularizer") or {}
    if isinstance(activation, dict):
        activation = activation["config"]
    if activation not in ACTIVATIONS.split():
        raise InputError(f"refused, as it names {activation!r} as activation")
    factors = penalty.get("config", {})
    factors = {name: float(factors.get(name, 0)) for name in ("l1", "l2")}
    return {
        "units": int(config["units"]),
        "use_bias": bool(config["use_bias"]),
        "activation": activation,
        "kernel_regularizer": factors if any(factors.values()) else None,
    }


def read_weights(file, expected):
    """The weights in their order, if they have the expected shapes."""
    groups = [
        file["model_weights"][x] for x in file["model_weights"].attrs["layer_names"]
    ]
    stored = [group[name] for group in groups for name in group.attrs["weight_names"]]
    if [(x.shape, x.dtype.kind) for x in stored] != [(x, "f") for x in expected]:
        raise InputError("its weights do not match its layers")
    if sum(dataset.nbytes for dataset in stored) > os.path.getsize(file.filename):
        raise InputError("its weights are not all there")
    return [dataset[()] for dataset in stored]


# --------------------------------------------------------------------- the pictures

BLUE, ORANGE = "#00508c", "#f0a000"  # told apart by the colour blind and in greyscale
STYLES = {  # use_regularizer: the same look in every picture
    False: {"label": "without L2", "color": BLUE, "marker": "o", "linestyle": "-"},
    True: {"label": "with L2", "color": ORANGE, "marker": "s", "linestyle": "--"},
}


def new_figure(rows, columns, size, title, **options):
    """A matplotlib figure that needs no screen, and its axes; `size` in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=150, layout="constrained")
    figure.suptitle(title, parse_math=False)
    return figure, figure.subplots(rows, columns, squeeze=False, **options).ravel()


def save_figure(figure, path):
    content = io.BytesIO()
    figure.savefig(content, format="png")
    write_whole(path, content.getvalue())


def mean_and_spread(runs):
    """Mean and sample standard deviation over the first axis, the seeds."""
    runs = np.array(runs)
    spread = runs.std(axis=0, ddof=1) if len(runs) > 1 else np.zeros(runs.shape[1:])
    return runs.mean(axis=0), spread


def plot_hyperparameters(curves, final, path):
    """Validation accuracy over each hyperparameter of Tyler, without and with L2.

    `curves` maps (hyperparameter, use_regularizer) to {value: accuracies of the seeds},
    NaN where training diverged; `final` has the final setting's values.
    """
    title = "Tyler: one hyperparameter moved at a time from the final setting"
    figure, axes = new_figure(2, 2, (10, 7), title)
    axes = dict(zip(dict.fromkeys(name for name, _ in curves), axes))
    for (name, flag), points in curves.items():
        values = list(points)
        mean, spread = mean_and_spread(np.transpose(list(points.values())))
        ax = axes[name]
        spread = spread if spread.any() else None  # there is none for a single seed
        ax.errorbar(values, mean, spread, capsize=3, **STYLES[flag])
        for value in np.array(values)[np.isnan(mean)]:
            text = f"diverged {STYLES[flag]['label']}"
            ax.text(
                value, 0.05, text, rotation=90, color=STYLES[flag]["color"],
                ha="left" if flag else "right", transform=ax.get_xaxis_transform(),
            )  # fmt: skip
        if name in ("learning_rate", "batch_size"):
            ax.set_xscale("log")
        ax.set_xticks(values, [f"{value:g}" for value in values])
        ax.minorticks_off()
    for name, ax in axes.items():
        value = getattr(final, name)
        ax.axvline(value, color="grey", linestyle=":", label="final setting")
        unit = " (images)" if name == "batch_size" else ""
        ax.set(xlabel=name.replace("_", " ") + unit, ylabel="validation accuracy")
        ax.grid(alpha=0.3)
    ax.legend()
    save_figure(figure, path)


def plot_accuracy(architecture, histories, path):
    """Accuracy and loss over the epochs, training and validation, without and with L2.

    `histories` has two lists, without and with L2, of a history per seed. Lines are
    means, bands one standard deviation to each side.
    """
    figure, axes = new_figure(1, 2, (10, 4.2), f"{architecture.title()} in training")
    for ax, metric in zip(axes, ("accuracy", "loss")):
        for runs, style in zip(histories, STYLES.values()):
            look = {"color": style["color"], "linestyle": style["linestyle"]}
            length = max(len(run["loss"]) for run in runs)
            short = any(diverged(run) for run in runs)
            for key, width in ((metric, 1), (f"val_{metric}", 2.5)):
                values = np.full((len(runs), length), np.nan)
                for row, run in zip(values, runs):
                    row[: len(run[key])] = run[key]
                values[~np.isfinite(values)] = np.nan
                mean, spread = mean_and_spread(values)
                kind = "training" if key == metric else "validation"
                label = f"{kind}, {style['label']}" + short * " (diverged)"
                epochs = np.arange(1, length + 1)
                ax.plot(epochs, mean, linewidth=width, label=label, **look)
                low, high = mean - spread, mean + spread
                ax.fill_between(epochs, low, high, color=look["color"], alpha=0.2)
        ax.set(xlabel="epoch", ylabel=metric)
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.grid(alpha=0.3)
    ax.set(ylabel="loss (cross-entropy + L2 penalty)")
    axes[0].legend()
    save_figure(figure, path)


def plot_confusion_matrix(name, labels, probabilities, folder):
    """Draw a model's confusion matrix, its rows the true classes; return the path.

    `labels` are class numbers (n,), `probabilities` the model's output (n, 10).
    """
    from sklearn.metrics import ConfusionMatrixDisplay

    predicted = probabilities.argmax(1)
    right = np.mean(predicted == labels)
    figure, [ax] = new_figure(1, 1, (7, 7), f"{name}: {right:.1%} of the images right")
    ConfusionMatrixDisplay.from_predictions(
        labels, predicted, labels=range(len(CLASS_NAMES)), display_labels=CLASS_NAMES,
        normalize="true", values_format=".2f", cmap="Blues",
        colorbar=False, im_kw={"vmin": 0, "vmax": 1}, text_kw={"fontsize": 8}, ax=ax,
    )  # fmt: skip
    slanted = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    ax.set_xticks(range(len(CLASS_NAMES)), CLASS_NAMES, **slanted)
    ax.set(xlabel="predicted class", ylabel="true class (each row adds up to 1)")
    path = folder / f"confusion_matrix_{name.removeprefix('model_')}.png"
    save_figure(figure, path)
    return path


def plot_architecture(model, path):
    """A built network as a diagram: a bar for each layer, as wide as its output."""
    rows = [("Input", model.input_shape[1:], 0)]
    for layer in model.layers:
        rows.append((describe(layer), layer.output.shape[1:], layer.count_params()))
    title = f"{model.name.title()}: {model.count_params():,} weights"
    title += " (bars on a logarithmic scale)"
    figure, [ax] = new_figure(1, 1, (7, 0.42 * len(rows) + 0.8), title)
    for y, (kind, shape, weights) in enumerate(rows):
        width = math.log2(math.prod(shape) + 1)
        color = ORANGE if kind.startswith("Dropout") else BLUE if weights else "grey"
        ax.barh(-y, width, left=-width / 2, height=0.66, color=color)
        ax.text(-5.4, -y, kind, ha="right", va="center")
        size = " x ".join(map(str, shape))
        ink = "black" if color == ORANGE else "white"
        ax.text(0, -y, size, ha="center", va="center", color=ink, weight="bold")
        if weights:
            ax.text(5.4, -y, f"{weights:,} weights", va="center")
    ax.set(xlim=(-10.5, 9.5))
    ax.axis("off")
    save_figure(figure, path)


def describe(layer):
    """A layer in a few words, such as 'Dense, relu, L2 0.001' or 'Dropout 0.3'."""
    config = layer.get_config()
    words = [type(layer).__name__]
    if "rate" in config:
        words[0] += f" {config['rate']:g}"
    if "activation" in config:
        words.append(config["activation"])
    if getattr(layer, "kernel_regularizer", None):
        factors = layer.kernel_regularizer.get_config().items()
        words += [f"{name.upper()} {factor:g}" for name, factor in factors if factor]
    return ", ".join(words)


def plot_predictions(images, labels, probabilities, path):
    """Six right predictions, of six classes, and the six most confident mistakes.

    `labels` are class numbers (n,), `probabilities` the model's output (n, 10).
    """
    predicted, confidence = probabilities.argmax(1), probabilities.max(1)
    right, wrong = (np.flatnonzero((predicted == labels) == x) for x in (True, False))
    _, first_of_class = np.unique(labels[right], return_index=True)
    right = right[np.sort(first_of_class)[:6]]
    wrong = wrong[np.argsort(-confidence[wrong], kind="stable")][:6]
    title = "Jackson without L2: test images it gets right; below, its surest mistakes"
    figure, axes = new_figure(2, 6, (11, 5), title)
    for ax in axes:
        ax.axis("off")
    for ax, i in (*zip(axes[:6], right), *zip(axes[6:], wrong)):
        ax.imshow(images[i], cmap="gray_r")
        sure = f"{confidence[i]:.1%}" if confidence[i] < 0.999 else "> 99.9%"
        true, guess = CLASS_NAMES[labels[i]], CLASS_NAMES[predicted[i]]
        text = f"true: {true}\npredicted: {guess}\nconfidence: {sure}"
        color = "black" if true == guess else "#b00000"
        ax.set_title(text, fontsize=9, color=color)
    save_figure(figure, path)


def count_cores():
    """The cores that this process may use, a container's limit included."""
    import joblib

    return joblib.cpu_count()
