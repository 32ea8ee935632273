"""The machinery around the experiment: TensorFlow's start, the data, many trials at a
time, saved models, the tables and plots.

For the experiment, read four functions: fix_environment (one thread), adam (the
optimizer), load_data (the split), mean_and_spread (±). Skip the rest. What is slow to
import (TensorFlow, scikit-learn, matplotlib) is imported where needed. Main gives its
functions (run_trial, test_model) as arguments, as this module does not import it.
"""

import ast
import asyncio
import contextlib
import csv
import functools
import gzip
import importlib
import inspect
import io
import itertools
import json
import logging
import math
import multiprocessing
import os
import platform
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import uuid
import warnings
import zipfile
import zlib
from concurrent import futures
from pathlib import Path

import h5py
import joblib
import numpy as np
from rich import progress

CLASS_NAMES = (  # of the labels 0 to 9, as the dataset's authors give them
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
DATA_FILES = (
    "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz",
)  # fmt: skip
DATA_CRC32 = 0xC7A95B27  # of their content, unpacked, without headers
DATA_URL = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/"  # Keras's own
DEBIAN_PACKAGE = "dataset-fashion-mnist"
DEBIAN_DIR = Path("/usr/share/datasets/fashion-mnist")  # where the package puts them
MODEL_FILES = (".h5", ".hdf5", ".keras")
METRICS = ("loss", "accuracy", "val_loss", "val_accuracy")  # of a history, as Keras's
TIMEOUT = 10  # seconds that a host may stay silent


class InputError(Exception):
    """Something that the user can put right; the message says how."""


def say_error(message):
    """Print the message on stderr, as one line."""
    print("main-FMNIST.py:", *str(message).split(), file=sys.stderr)


def fail(message, status=2):
    say_error(message)
    sys.exit(status)


def printable(text):
    """A text without what could steer a terminal: a stranger's file may hold that."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(text))


# ---------------------------------------------------------------- TensorFlow's start
def fix_environment():
    """Let nothing of the user's change a trial's weights.

    One thread, as the number of threads changes the order of additions. The CPU, as a
    GPU rounds otherwise. oneDNN, which is faster: on some processors, TensorFlow must
    be told to use it. A wrong MPLBACKEND would stop matplotlib, which Keras imports.
    """
    prefixes = ("TF_", "XLA_", "ONEDNN_", "DNNL_", "KERAS_")
    for name in list(os.environ):
        if name.startswith(prefixes) and name != "KERAS_HOME":  # the data may be there
            del os.environ[name]
    os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # the CPU
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # none of TensorFlow's notices
    os.environ["TF_NUM_INTRAOP_THREADS"] = "1"
    os.environ["TF_NUM_INTEROP_THREADS"] = "1"
    os.environ["TF_ENABLE_ONEDNN_OPTS"] = "1"
    if not os.environ.get("MPLBACKEND", "").startswith("module://"):
        os.environ["MPLBACKEND"] = "agg"


fix_environment()  # TensorFlow and Keras read it when they are imported


@functools.cache
def import_tensorflow():
    """Import TensorFlow and Keras, and return both. Raises InputError if that fails."""
    keras_home = os.environ.get("KERAS_HOME")
    os.environ["KERAS_HOME"] = os.devnull  # hides the user's keras.json
    stderr = os.dup(2)  # the number of stderr is 2: a copy, to restore it below
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)  # silences TensorFlow's C++ code, too
    try:
        import keras
        import tensorflow
    except Exception as error:  # noqa: BLE001 - whatever a broken installation raises
        problem = f"TensorFlow and Keras do not start: {error}"
        raise InputError(f"{problem}; install requirements.txt anew") from None
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        del os.environ["KERAS_HOME"]
        if keras_home is not None:
            os.environ["KERAS_HOME"] = keras_home
    warnings.simplefilter("ignore")
    for logger in ("absl", "tensorflow"):  # they warn of HDF5 files and of retracing
        logging.getLogger(logger).setLevel(logging.ERROR)
    return tensorflow, keras


def adam(learning_rate):
    """The same update as Keras's Adam, but in one TensorFlow operation for each array
    of weights, not a dozen: a step takes less time. `train_trial` can use any other
    optimizer of Keras's instead."""
    tf, keras = import_tensorflow()

    class Adam(keras.optimizers.Adam):
        def update_step(self, gradient, variable, learning_rate):
            index = self._get_variable_index(variable)
            step = tf.cast(self.iterations + 1, tf.float32)
            # The operation changes the weights in place, so it takes handles. m and v
            # are Adam's two running means. The powers correct these in the first steps.
            tf.raw_ops.ResourceApplyAdam(
                var=variable.handle, m=self._momentums[index].value.handle,
                v=self._velocities[index].value.handle, grad=gradient, lr=learning_rate,
                beta1=self.beta_1, beta1_power=self.beta_1**step,
                beta2=self.beta_2, beta2_power=self.beta_2**step, epsilon=self.epsilon,
            )  # fmt: skip

    return Adam(learning_rate)


def make_variables(model, images, labels):
    """Let a compiled model make its metrics' and its optimizer's variables, as a graph
    may not. A batch of images and labels shows the metrics what they get."""
    model.test_step((images, labels))
    model.optimizer.build(model.trainable_variables)


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
    arrays = [read_idx(folder / name) for name in DATA_FILES]
    x, y, x_test, y_test = arrays
    if len(x) != len(y) or len(x_test) != len(y_test):
        raise InputError(f"{folder}: not a label for each image; replace the files")
    if len(x) < 5 or len(x_test) < 1:
        raise InputError(f"{folder}: it has too few images; replace the files")
    if zlib.crc32(b"".join(arrays)) != DATA_CRC32:
        warning = f"Warning: the files in {folder} are not Fashion-MNIST"
        print(warning, "(MNIST's digits have the same names)", file=sys.stderr)
    split = len(x) * 4 // 5
    parts = [(x[:split], y[:split]), (x[split:], y[split:]), (x_test, y_test)]
    sizes = (4800, 1200, 2000) if quick else (None, None, None)  # None: all
    one_hot = np.eye(len(CLASS_NAMES), dtype="float32")
    return tuple(
        (images[:n], one_hot[labels[:n]]) for (images, labels), n in zip(parts, sizes)
    )


def read_idx(path):
    """A gzipped IDX file of images or labels as a uint8 array. Raises InputError."""
    if not path.exists():
        unpacked = path.with_suffix("")
        remedy = f"; make it with: gzip {unpacked}" if unpacked.exists() else ""
        raise InputError(f"{path}: there is no such file{remedy}")
    shape = (-1, 28, 28) if "images" in path.name else (-1,)
    header = 4 + 4 * len(shape)  # bytes: a word for the type, one for each axis
    try:
        content = gzip.decompress(path.read_bytes())  # it has a checksum
        values = np.frombuffer(content, np.uint8, offset=header).reshape(shape)
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
    failures = ""
    for source, fetch in ((DATA_URL, download), (DEBIAN_PACKAGE, unpack_debian)):
        print(f"Fetching Fashion-MNIST (30 MB) from {source}")
        try:
            with tempfile.TemporaryDirectory() as temporary:
                folder = fetch(temporary)
                for name in DATA_FILES:
                    read_idx(folder / name)  # raises InputError if it is not whole
                    write_whole(cache / name, (folder / name).read_bytes())
            return cache
        except Exception as error:  # noqa: BLE001 - the kind that Keras raises
            reason = getattr(error, "stderr", None) or repr(error)  # apt's words
            failures += f"; {source}: {' '.join(reason.split())}"
    raise InputError(
        f"Fashion-MNIST is not in {cache} nor {DEBIAN_DIR} and could not be fetched"
        f"{failures}; put {', '.join(DATA_FILES)} into a folder and name it --data-dir"
    )


def download(folder):
    """Let Keras download the files into the folder. Return where they are."""
    _, keras = import_tensorflow()
    socket.setdefaulttimeout(TIMEOUT)
    for name in DATA_FILES:
        keras.utils.get_file(name, DATA_URL + name, cache_dir=folder, cache_subdir="")
    return Path(folder)


def unpack_debian(folder):
    """Unpack Debian's package in the folder. Return where the files are. No root is
    needed, as apt's lists are kept in the folder, too."""
    apt = f"apt-get -oDir::State::lists='{folder}/lists' -oDir::Cache='{folder}'"
    apt += " -oAPT::Sandbox::User= -oAcquire::Retries=0"
    apt += f" -oAcquire::http::Timeout={TIMEOUT} -oAcquire::https::Timeout={TIMEOUT}"
    commands = f"""
        mkdir -p lists/partial archives/partial &&
        {apt} update && {apt} download {DEBIAN_PACKAGE} && dpkg-deb -x *.deb .
    """
    options = {"cwd": folder, "capture_output": True, "text": True, "timeout": 1800}
    subprocess.run(commands, shell=True, check=True, **options)
    return folder / DEBIAN_DIR.relative_to("/")


# ------------------------------------------------------------ many trials at a time
@functools.cache
def source_code(part):
    """The source of a module or function without comments, docstrings and layout: an
    edit of those trains nothing again."""
    tree = ast.parse(inspect.getsource(part))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, documented) and ast.get_docstring(node):
            del node.body[0]
    return ast.unparse(tree)


@functools.cache
def conditions(data_dir, quick):
    """What all trials depend on besides code: data, libraries and type of machine."""
    versions = [library.__version__ for library in (*import_tensorflow(), np)]
    train, validation, _ = load_data(data_dir, quick)
    return joblib.hash([train, validation, versions, platform.machine()])


def train_missing(keys, run_trial, options):
    """Train the trials that the store lacks. Return {trial: its .h5 file} of all.

    `keys` is {(setting, seed): key}. The store is the folder `.trials`, with a file
    KEY.h5 for each trial. If a worker dies, another one trains what is missing.
    """
    store = options.folder / ".trials"
    try:
        store.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=store).close()  # to see whether that can be done
    except OSError as error:
        raise InputError(f"{error}: name another folder with --output-dir") from None
    files = {trial: store / f"{key}.h5" for trial, key in keys.items()}
    missing = [t for t, file in files.items() if options.fresh or not is_whole(file)]
    print(f"{len(files)} trials, {len(files) - len(missing)} of them trained before")
    if not missing:
        return files
    print(f"{len(missing)} to train. First, TensorFlow starts.")
    print("network       dropout learning   batch  seed  val.acc.  done")
    for _ in range(5):
        try:
            train_in_workers(missing, keys, files, run_trial, options)
            return files
        except futures.BrokenExecutor:
            print("A worker died. Another one trains what is missing.")
    raise InputError("workers died five times: is there memory for --jobs?")


def train_in_workers(missing, keys, files, run_trial, options):
    """Train the trials in `missing`, and remove each from the list when it is done."""
    start_workers = cluster_workers if options.cluster else local_workers
    columns = progress.TimeElapsedColumn(), *progress.Progress.get_default_columns()
    bar = progress.Progress(*columns, disable=not sys.stdout.isatty())
    with start_workers(options) as pool, bar:
        # Ctrl-C reaches all processes. Only this one shall act on it. `submit` starts
        # the workers: they ignore Ctrl-C for good if this process ignores it just then.
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        running = {}
        for trial in missing:
            task = (run_trial, trial, keys[trial], files[trial], options)
            running[pool.submit(train_and_keep, *task)] = trial
        signal.signal(signal.SIGINT, handler)
        finished = futures.as_completed(running)
        for future in bar.track(finished, len(running), description="Training"):
            trial = running[future]
            content = future.result()
            if content is not None:
                write_whole(files[trial], content)
            missing.remove(trial)
            done = len(files) - len(missing)
            print(f"{trial_line(*trial, files[trial])}  {done:4}")


def train_and_keep(run_trial, trial, key, path, options):
    """Train one trial, in a worker. On this machine, the worker writes the file. It does
    not return it: a pool hangs for ever if a worker dies while it sends a large message.
    A worker of a cluster returns it, as it may have another disk."""
    if options.cluster:
        # Keras draws its layers' seeds from Python's random generator. A Dask thread
        # draws from the same one, and would change them. So Dask gets its own.
        importlib.import_module("dask.sizeof").random = random.Random()
    own_key, content = run_trial(*trial, options)
    if own_key != key:
        problem = "a worker's scripts, data or libraries are not those of this run"
        raise InputError(f"{problem}: start again (a cluster's workers, too)")
    if options.cluster:
        return content
    write_whole(path, content)
    return None


@contextlib.contextmanager
def local_workers(options):
    """An executor with processes of this machine, which end with the block."""
    others = multiprocessing.active_children()  # a notebook's own, not killed below
    # multiprocessing reads __main__.__spec__, which IPython's %run does not set.
    vars(sys.modules["__main__"]).setdefault("__spec__", None)
    spawn = multiprocessing.get_context("spawn")
    pool = futures.ProcessPoolExecutor(options.jobs, spawn, prepare_worker)
    try:
        yield pool
    except BaseException:
        for process in multiprocessing.active_children():
            if process not in others:
                process.kill()
        raise
    finally:
        pool.shutdown()


def prepare_worker():
    """Keep a worker small and silent, and end it with its parent, even if that is
    killed."""
    # Keras imports these two if it can, which costs a worker 80 MiB and a second. With
    # None in their place, it can't.
    sys.modules["sklearn"] = sys.modules["matplotlib"] = None
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)  # stderr: errors reach the parent as exceptions
    parent = multiprocessing.parent_process()

    def end_with_parent():
        parent.join()  # returns when the parent has ended
        os._exit(1)  # sys.exit would end this thread only

    threading.Thread(target=end_with_parent, daemon=True).start()


@contextlib.contextmanager
def cluster_workers(options):
    """The executor of a Dask cluster. Raises InputError if the cluster fails."""
    flag = f"--cluster {options.cluster}"
    logging.disable()  # Dask's log lines; its errors reach us as exceptions
    try:
        import distributed
    except ImportError:
        raise InputError(f"{flag}: pip install dask[distributed] first") from None
    connection = distributed.comm.connect(options.cluster)
    try:
        # Knock first, for TIMEOUT at most: Client may wait for ever if no Dask answers.
        with futures.ThreadPoolExecutor(1) as thread:  # a notebook forbids asyncio.run
            thread.submit(asyncio.run, asyncio.wait_for(connection, TIMEOUT)).result()
        client = distributed.Client(options.cluster, timeout=TIMEOUT)
    except (OSError, ValueError, distributed.TimeoutError) as error:
        reason = str(error) or "no Dask scheduler answers there"
        raise InputError(f"{flag}: {reason}") from None
    with client:
        if set(client.nthreads().values()) != {1}:
            raise InputError(f"{flag}: start its workers, each with --nthreads 1")
        try:
            yield client.get_executor(retries=2, pure=False)
        except (futures.CancelledError, distributed.KilledWorker):
            problem = "the scheduler or the workers are lost"
            raise InputError(f"{flag}: {problem}; the same command continues") from None


def trial_line(setting, seed, path):
    """A line for the terminal: what was trained, and its last validation accuracy."""
    accuracy = read_histories([path])["val_accuracy"][0, -1]
    result = "diverged" if math.isnan(accuracy) else f"{accuracy:.4f}"
    rates = f"{setting.dropout_rate:8g} {setting.learning_rate:8g}"
    return f"{setting.label:12} {rates} {setting.batch_size:7}  {seed:4}  {result:8}"


def is_whole(path):
    """Whether the file of a trial can be opened and has its history."""
    with contextlib.suppress(OSError, KeyError):
        return bool(read_histories([path]))  # True, or an exception
    return False


def write_whole(path, content):
    """Write a file. Even if the process is killed, the path has the old content or the
    new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


# ------------------------------------------------------------------- saved models
def model_file(model, history, description):
    """The .h5 file of a trained model, as bytes. Every Keras from 2.6 on opens it.

    `history` is a list of {metric: value}, one for each epoch; it goes into the group
    "history". `description` is a dict of strings and numbers; they become attributes of
    the file, as do the versions of the libraries. Once loaded, the model is compiled as
    it was trained. The file lacks the optimizer's state, as Keras 3.15 restores that
    wrongly, and then `fit` fails. Raises OSError.
    """
    tf, keras = import_tensorflow()
    training = {
        "loss": "categorical_crossentropy", "metrics": ["accuracy"],
        "loss_weights": None, "weighted_metrics": None,
        "optimizer_config": in_keras2_words(keras.optimizers.serialize(model.optimizer)),
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.h5")
        # If the disk is full, HDF5 may crash. To write zeros first raises OSError.
        path.write_bytes(bytes(4 * model.count_params() + 100_000))
        try:
            model.save(path, include_optimizer=False)
            with h5py.File(path, "a") as file:
                layers = json.loads(file.attrs["model_config"])
                file.attrs["model_config"] = json.dumps(in_keras2_words(layers))
                file.attrs["training_config"] = json.dumps(training)
                file.attrs.update(description)
                for library in (tf, keras, np):
                    file.attrs[f"{library.__name__}_version"] = library.__version__
                for metric in METRICS:
                    file[f"history/{metric}"] = [epoch[metric] for epoch in history]
        except RuntimeError as error:  # HDF5's word for a full disk
            raise OSError(f"{folder}: {error}") from None
        return path.read_bytes()


def in_keras2_words(node):
    """A saved network's configuration, or a part of it, in words that Keras 2 knows."""
    if isinstance(node, list):
        return [in_keras2_words(child) for child in node]
    if not isinstance(node, dict):
        return node
    if node.get("class_name") == "DTypePolicy":
        return node["config"]["name"]
    unknown_defaults = {"optional": False, "use_ema": False, "ema_momentum": 0.99}
    words = {}
    for key, value in node.items():
        if key in ("module", "registered_name") or value is None:
            continue
        if key in unknown_defaults and value == unknown_defaults[key]:
            continue
        new_key = "batch_input_shape" if key == "batch_shape" else key
        words[new_key] = in_keras2_words(value)
    return words


def read_histories(paths):
    """{metric: array of shape (files, epochs)} out of the .h5 files of one setting."""
    histories = {metric: [] for metric in METRICS}
    for path in paths:
        with h5py.File(path) as file:
            for metric, values in histories.items():
                values.append(file["history"][metric][:])
    return {metric: np.array(values) for metric, values in histories.items()}


def check_file(label, content):
    """Raise InputError if a model's file, which is given as bytes, cannot be read."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.h5")
        path.write_bytes(content)
        load_classifier(path, f"the saved file of {label}")


def load_classifier(path, name=None):
    """The Fashion-MNIST classifier in an .h5 or .keras file, as an uncompiled model.

    `name` is what a message calls the file. Keras itself refuses files that carry code
    or name other files (since 3.12.4). Raises InputError, which says what to do, for
    those and for all that is no such model.
    """
    _, keras = import_tensorflow()
    try:
        check_format(path)
        model = keras.models.load_model(path, compile=False)
        takes, gives = model.input_shape[1:], model.output_shape[1:]
        if takes not in ((28, 28), (28, 28, 1), (784,)) or gives != (10,):
            raise InputError(f"it makes {gives} of {takes}, not (10,) of 28 x 28")
    except Exception as error:  # noqa: BLE001 - Keras and h5py raise nearly every kind
        cause = " ".join(str(error).split()).rpartition("Exception encountered: ")[2]
        if "safe_mode" in cause or "unsafe" in cause:
            cause = "it carries code or names other files: Keras refuses it"
        problem = f"no model that we can use: {printable(cause):.250}"
        raise InputError(f"{name or path}: {problem}") from None
    return model


def check_format(path):
    """Raise InputError, which says what to do, if a file cannot have a model."""
    if not path.exists():
        raise InputError("there is no such file")
    if path.is_dir() or path.suffix not in MODEL_FILES:
        raise InputError("only .h5, .hdf5 and .keras files are read: save it as one")
    is_zip = zipfile.is_zipfile(path)
    if not is_zip and not h5py.is_hdf5(path):
        with open(path, "rb") as file:
            start = file.read(40).decode(errors="replace")
        what = "a web page, a Git LFS pointer (git lfs pull), a part of a file?"
        raise InputError(f"it begins with {start!r}: {what} Fetch the model itself")
    if is_zip != (path.suffix == ".keras"):
        raise InputError("a zip is a .keras file, HDF5 an .h5 file: name it so")
    if not is_zip:
        with h5py.File(path) as file:
            if "model_config" not in file.attrs:
                raise InputError("it holds weights, no layers: model.save saves both")


def evaluate_files(options, test_model):
    """--evaluate: what saved models are, and how they score. If one cannot be used, the
    others are shown all the same, and the exit status is 2."""
    *_, test = load_data(options.data_dir, options.quick)
    status = 0
    found = sorted(options.folder.glob("models/*"))
    paths = options.evaluate or [path for path in found if path.suffix in MODEL_FILES]
    if not paths:
        raise InputError(f"{options.folder}/models has no models: name some files")
    for path in paths:
        try:
            evaluate_file(Path(path), test, test_model)
        except InputError as error:
            say_error(error)
            status = 2
    sys.exit(status)


def evaluate_file(path, test, test_model):
    """Show a model's layers and scores, and what is unusual about it."""
    from sklearn.metrics import classification_report

    _, keras = import_tensorflow()
    images, y_test = test
    model = load_classifier(path)
    describe(path, model)
    scores, probabilities = test_model(model, test)
    if probabilities.min() < 0:
        print("Its outputs are logits. Softmax makes probabilities of them.")
        model = keras.Sequential([model, keras.layers.Softmax()])
        scores, probabilities = test_model(model, test)
    table = classification_report(
        y_test.argmax(axis=1), probabilities.argmax(axis=1), labels=range(10),
        target_names=CLASS_NAMES, zero_division=0,
    )  # fmt: skip
    print(table)
    numbers = [f"{name} {value:.4f}" for name, value in scores.items()]
    print(f"{len(images):,} test images:", *numbers)
    # `test_model` divides pixels by 255: here the network gets those from 0 to 255.
    raw_scores, _ = test_model(model, (images * np.float32(255), y_test))
    if raw_scores["accuracy"] >= scores["accuracy"] + 0.05:
        accuracy = f"{raw_scores['accuracy']:.4f}"
        print(f"It was trained on pixels from 0 to 255: on those, accuracy {accuracy}")


def describe(path, model):
    """Print the layers of a model and what its .h5 file says of its training."""
    print(f"\n{path}")
    print(f"{'layer':20} {'kind':18} {'output':>12}  {'':18} {'weights':>9}")
    for layer in layer_table(model):
        print(printable("{:20} {:18} {!s:>12}  {:18} {:9,}".format(*layer)))
    if h5py.is_hdf5(path):
        with h5py.File(path) as file:
            for name, value in file.attrs.items():
                if name not in ("model_config", "training_config", "backend"):
                    print(printable(f"{name:20} {value}"))


def layer_table(model):
    """(name, kind, output shape, what it does, number of weights) of every layer."""
    rows = []
    for layer in model.layers:
        config = layer.get_config()
        words = []
        if isinstance(config.get("activation"), str):
            words.append(config["activation"])
        for name in ("rate", "negative_slope", "kernel_size", "pool_size"):
            if name in config:
                words.append(f"{name.replace('_', ' ')} {config[name]}")
        if regularizer := config.get("kernel_regularizer"):
            words += [f"{k.upper()} {v}" for k, v in regularizer["config"].items()]
        shape = getattr(layer.output, "shape", "?")[1:]  # a list of shapes: ""
        kind = type(layer).__name__
        rows.append((layer.name, kind, shape, " ".join(words), layer.count_params()))
    return rows


# -------------------------------------------------------------- the tables and plots
def mean_and_spread(values):
    """Mean, standard deviation and standard error over the seeds, the first axis. The
    spread of a single seed is not known: NaN."""
    values = np.array(values)
    single = len(values) == 1
    # A NaN for each value, if there is a single seed.
    deviation = values[0] * math.nan if single else values.std(axis=0, ddof=1)
    return values.mean(axis=0), deviation, deviation / math.sqrt(len(values))


def write_csv(path, rows):
    """A list of dicts with the same keys as a table."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue().encode())


def write_tables(folder, histories, results, study, seeds):
    """history.csv, results.csv and, if there is a study, study.csv."""
    history_rows = []
    result_rows = []
    for setting, history in histories.items():
        for number, seed in enumerate(seeds):
            trial = {**setting._asdict(), "seed": seed}
            for epoch in range(setting.epochs):
                values = {name: runs[number, epoch] for name, runs in history.items()}
                history_rows.append({**trial, "epoch": epoch + 1, **values})
            if setting in results:
                scores, _ = results[setting][number]
                result_rows.append({"model": setting.model_name, **trial, **scores})
    write_csv(folder / "history.csv", history_rows)
    write_csv(folder / "results.csv", result_rows)
    if study:
        write_csv(folder / "study.csv", study)
    elif (folder / "study.csv").exists():
        print("models/study.csv and its plot are left from an earlier run")


def report_study(study):
    """Print a line for each value of the study: left without L2, right with it."""
    for architecture in dict.fromkeys(row["architecture"] for row in study):
        print(f"\nStudy of {architecture.title()}: validation accuracy, its difference")
        print("from the final setting's; left without L2, right with L2")
        lines = {}  # {hyperparameter and value: {use_regularizer: cell}}
        for row in study:
            if row["architecture"] == architecture:
                name = f"{row['hyperparameter'].split('_')[0]:8} {row['value']:<6g}"
                cell = f" {row['val_accuracy']:.4f} {row['difference']:+.4f}"
                if row["seeds"] > 1:
                    cell += f"±{row['standard_error']:.4f}"
                lines.setdefault(name, {})[row["use_regularizer"]] = cell
        for name, cells in lines.items():
            print(name + cells[False] + cells[True])
    if study and study[0]["seeds"] == 1:
        print("One seed: small differences may be chance.")


def report_results(results):
    """The test results: means over the seeds and, below, standard deviations."""
    scores = {}  # {label: array of shape (seeds, scores)}
    for setting, tested in results.items():
        scores[setting.label] = np.array([[*row.values()] for row, _ in tested])
    names, seeds = [*tested[0][0]], len(tested)  # the same for each setting
    line = "{:12} {:>8} {:>8} {:>9} {:>8} {:>8}"
    print("\n" + line.format("Test results", *names))
    for label, by_seed in scores.items():
        means, deviations, _ = mean_and_spread(by_seed)
        cells = [f"{mean:.4f}".replace("nan", "diverged") for mean in means]
        print(line.format(label, *cells))
        if seeds > 1:
            print(line.format("", *[f"±{deviation:.4f}" for deviation in deviations]))
    print("The loss is cross-entropy + L2 penalty.")
    if seeds > 1:
        accuracy = names.index("accuracy")
        plain = [setting.label for setting in results if not setting.use_regularizer]
        pairs = [*itertools.combinations(plain, 2), *((x, f"{x} + L2") for x in plain)]
        for one, other in pairs:
            differences = scores[one][:, accuracy] - scores[other][:, accuracy]
            mean, _, error = mean_and_spread(differences)
            print(f"{one} - {other}: {mean:+.4f}, standard error {error:.4f}")


BLUE, ORANGE, RED = "#00508c", "#f0a000", "#b00000"
LOOKS = {  # use_regularizer: told apart by the colour blind and in greyscale
    False: {"label": "without L2", "color": BLUE, "linestyle": "-"},
    True: {"label": "with L2", "color": ORANGE, "linestyle": "--"},
}


def draw(options, histories, results, study, test):
    """All plots. A model's show the first seed; the predictions are those of the model
    that is best in validation."""
    images, labels = test[0], test[1].argmax(axis=1)
    seed = f", seed {options.seed}" if options.repeats > 1 else ""
    figures = {"accuracy_and_loss": plot_training({s: histories[s] for s in results})}
    for setting, tested in results.items():
        scores, probabilities = tested[0]
        title = f"{setting.label}{seed}: test accuracy {scores['accuracy']:.2%}"
        figure = plot_confusion_matrix(title, labels, probabilities)
        figures[setting.model_name.replace("model", "confusion_matrix")] = figure
        if setting.use_regularizer:
            continue  # what follows is drawn once for each network
        network = setting.architecture
        model = load_classifier(options.folder / f"models/{setting.model_name}.h5")
        figures[f"architecture_{network}"] = plot_architecture(model)
        rows = [row for row in study if row["architecture"] == network]
        if rows:
            figures[f"hyperparameters_{network}"] = plot_hyperparameters(rows, setting)
    reached = {s: histories[s]["val_accuracy"][:, -1].mean() for s in results}
    best = max(reached, key=lambda setting: np.nan_to_num(reached[setting]))
    _, probabilities = results[best][0]
    title = f"{best.label}{seed}"
    figures["predictions"] = plot_predictions(title, images, labels, probabilities)
    for name, figure in figures.items():
        if options.quick:
            note = "A quick run: differences of 3 points may be chance."
            figure.supxlabel(note, fontsize="medium", color=RED)
        save_figure(figure, options.folder / f"plots/{name}.png")


def new_figure(rows, columns, size, title, sharey="none"):
    """A matplotlib figure that needs no screen, and its axes; `size` in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=150, layout="constrained")
    figure.suptitle(title)
    return figure, figure.subplots(rows, columns, sharey=sharey, squeeze=False).ravel()


def save_figure(figure, path):
    """Write a figure as a PNG file."""
    picture = io.BytesIO()
    figure.savefig(picture)
    write_whole(path, picture.getvalue())


def plot_architecture(model):
    """A network as a diagram: a bar for each layer, as wide as its output."""
    rows = [("", "Input", model.input_shape[1:], "", 0), *layer_table(model)]
    size = f"{model.count_params():,} weights"
    title = f"{model.name.title()}: {size} (width: log of the outputs)"
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


def plot_hyperparameters(study, final):
    """Validation accuracy over each hyperparameter of a network, without and with L2.

    `study` are the network's rows of study.csv, `final` is its final setting.
    """
    spread = f"mean and standard deviation of {study[0]['seeds']} seeds"
    if study[0]["seeds"] == 1:
        spread = "one seed: small differences may be chance"
    network = final.architecture.title()
    title = f"{network}, one hyperparameter moved at a time ({spread})"
    names = list(dict.fromkeys(row["hyperparameter"] for row in study))
    panel_rows = math.ceil(len(names) / 2)
    figure, axes = new_figure(panel_rows, 2, (10, 3.3 * panel_rows + 0.4), title)
    for ax in axes[len(names) :]:
        ax.remove()  # an odd number of panels leaves one empty
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
        position = values.index(getattr(final, name))
        ax.axvline(position, color="grey", linestyle=":", label="final models' setting")
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
    networks = list(dict.fromkeys(setting.architecture for setting in histories))
    size = (10, 4.3 * len(networks) + 0.4)
    title = f"The networks in training{spread}"
    figure, axes = new_figure(len(networks), 2, size, title, sharey="col")
    y_labels = {"accuracy": "accuracy", "loss": "loss (cross-entropy + L2 penalty)"}
    panels = dict(zip(itertools.product(networks, y_labels), axes))
    for setting, history in histories.items():
        look = LOOKS[setting.use_regularizer]
        for name, runs in history.items():
            validates = name.startswith("val_")
            ax = panels[setting.architecture, name.removeprefix("val_")]
            mean, deviation, _ = mean_and_spread(runs)
            epochs = np.arange(1, len(mean) + 1)
            label = f"{'validation' if validates else 'training'}, {look['label']}"
            style = look | {"label": label, "linewidth": 2.5 if validates else 1}
            marker = "o" if len(epochs) == 1 else ""  # a line needs two points
            ax.plot(epochs, mean, marker=marker, **style)
            low, high = mean - deviation, mean + deviation
            ax.fill_between(epochs, low, high, color=look["color"], alpha=0.2)
    for (network, metric), ax in panels.items():
        ax.set(xlabel="epoch", ylabel=y_labels[metric], title=network.title())
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
