"""What a reader of the experiment may skip: the machinery around it.

TensorFlow's start, the data, many trials at a time, saved models, tables and plots. For
the experiment, read four functions: fix_environment (one thread), adam (the optimizer),
load_data (the split), mean_and_spread (±). What is slow to import (TensorFlow,
scikit-learn, matplotlib) is imported where needed. Main gives its functions
(train_trial, test_model) as arguments, as this module does not import it.
"""

import argparse
import ast
import asyncio
import contextlib
import csv
import functools
import gzip
import importlib
import io
import itertools
import json
import logging
import math
import multiprocessing
import os
import platform
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import uuid
import warnings
import zipfile
import zlib
from concurrent import futures
from pathlib import Path

import joblib
import numpy as np
from rich import progress

# Some file systems have no locks. Files are written whole, so none is needed.
os.environ.setdefault("HDF5_USE_FILE_LOCKING", "FALSE")
import h5py

HERE = Path(__file__).resolve().parent
SCRIPTS = ("main-FMNIST", "model-FMNIST", "util-FMNIST")
CORES = joblib.cpu_count()
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
INPUT_SHAPES = ((28, 28), (28, 28, 1), (28, 28, 3), (784,))  # of models to evaluate
TIMEOUT = 10  # seconds that a host may stay silent
LIMITS = {  # the lowest and the highest value of an option, and in STUDY
    "dropout_rate": (0, 0.99), "learning_rate": (1e-12, 1e12), "batch_size": (1, 10**6),
    "epochs": (1, 10**6), "seed": (0, 10**7), "repeats": (1, 1000), "jobs": (1, 1000),
}  # fmt: skip
COLUMNS = ("model", "seed", "epoch", "loss", "accuracy", "precision", "recall", "f1")


# ------------------------------------------------------ what the user says, and is told
class InputError(Exception):
    """Something that the user can put right; the message says how."""


def say_error(message):
    """Print the message on stderr, as one line."""
    print("main-FMNIST.py:", printable(" ".join(str(message).split())), file=sys.stderr)


def fail(message, status=2):
    say_error(message)
    sys.exit(status)


def printable(text):
    """A text without what could steer a terminal: a stranger's file may hold that."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(text))


@contextlib.contextmanager
def one_line_errors():
    """Run the program's body. What a user or a machine does wrong ends in one line."""
    if sys.stderr is None:  # closed; a file opened later must not take its number
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        os.set_inheritable(2, True)
        sys.stderr = os.fdopen(2, "w")
    if sys.stdout is None:
        fail("stdout is closed")
    if hasattr(sys.stdout, "reconfigure"):  # Jupyter's and IDLE's have no such method
        # For terminals without ± and boxes; and a pipe gets each line at once.
        sys.stdout.reconfigure(errors="replace", line_buffering=True)
    try:
        with left_as_found():
            yield
    except KeyboardInterrupt:
        fail("interrupted; to continue, give the same command again", 130)
    except BrokenPipeError:  # as after `| head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(141)  # as if the signal SIGPIPE had ended it
    except (InputError, argparse.ArgumentError, OSError, UnicodeError) as error:
        fail(error)
    except MemoryError:
        fail("out of memory")


PUT_BACK = contextlib.ExitStack()  # what gives a notebook's kernel its settings again


@contextlib.contextmanager
def left_as_found():
    """Put back what the program changes in a process that goes on: a notebook's."""
    with PUT_BACK, warnings.catch_warnings():
        PUT_BACK.callback(os.environ.update, dict(os.environ))
        PUT_BACK.callback(os.environ.clear)  # the last one here is the first one done
        PUT_BACK.callback(logging.disable, logging.root.manager.disable)
        PUT_BACK.callback(socket.setdefaulttimeout, socket.getdefaulttimeout())
        PUT_BACK.callback(random.setstate, random.getstate())
        PUT_BACK.callback(np.random.set_state, np.random.get_state())
        PUT_BACK.callback(import_tensorflow.cache_clear)  # it made more settings
        yield


def forget_scripts():
    """Let a notebook import the scripts anew: they may have been edited."""
    for name, module in [*sys.modules.items()]:
        path = getattr(module, "__file__", None) or "."
        if name != "__main__" and Path(path).parent == HERE:
            del sys.modules[name]


def as_path(text):
    """An option's path, with ~ as the home folder."""
    return Path(os.path.expanduser(text))


def as_flag(name):
    """The command line's word for an option: --batch-size for batch_size."""
    return "--" + name.replace("_", "-")


def check_value(name, value, where):
    """Refuse an option's number, or one in STUDY, that cannot work."""
    low, high = LIMITS.get(name, (-math.inf, math.inf))
    is_number = isinstance(value, (int, float))
    if is_number and not (low <= value <= high and math.isfinite(value)):
        fail(f"{where}: only numbers from {low} to {high}")


def check_study(final, study, studied, fields):
    """Refuse what cannot work in main's FINAL, STUDY, STUDIED and Setting."""
    for name in {*final} ^ ({*fields} - {"architecture", "use_regularizer"}):
        fail(f"{name} must be in FINAL and a field of Setting, not in one of them")
    for name, value in final.items():
        if not isinstance(value, (bool, int, float, str)):
            fail(f"FINAL: {name} must be a number, True, False or a text")
        if name in COLUMNS:
            fail(f"FINAL: {name} is the name of another column in the tables")
        if name in ("batch_size", "epochs") and not isinstance(value, int):
            fail(f"FINAL: {name} must be a whole number")
    if isinstance(studied, str):
        fail(f'STUDIED: write ("{studied}",) with its comma')
    for name, values in study.items():
        if name not in final:
            fail(f"STUDY has {name}, which FINAL lacks")
        if not isinstance(values, (tuple, list)) or len(values) == 0:
            fail(f"STUDY: {name} needs its values in parentheses, with a comma: (1,)")
        for value in values:
            if type(value) is not type(final[name]):
                fail(f"STUDY: {name} {value!r} is not of the type that FINAL has")
            check_value(name, value, f"STUDY: {name}")


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


@functools.cache
def import_tensorflow():
    """Import TensorFlow and Keras, and return both. Raises InputError if that fails."""
    fix_environment()
    warnings.simplefilter("ignore")
    stderr = os.dup(2)  # the number of stderr is 2: a copy, to restore it below
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)  # silences TensorFlow's C++ code, too
    try:
        keras = import_keras()  # first, as TensorFlow imports it, too
        import tensorflow
    except Exception as error:  # noqa: BLE001 - whatever a broken installation raises
        problem = f"TensorFlow and Keras do not start: {error}"
        remedy = "is there memory enough? Else install requirements.txt anew"
        raise InputError(f"{problem}; {remedy}") from None
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
    with contextlib.suppress(RuntimeError):  # too late in a notebook that has used it
        tensorflow.config.set_visible_devices([], "GPU")  # one that is not CUDA's
    for name in ("absl", "tensorflow"):  # they warn of HDF5 files and of retracing
        logger = logging.getLogger(name)
        PUT_BACK.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.ERROR)
    return tensorflow, keras


def import_keras():
    """Import Keras, with its own defaults in place of the user's keras.json."""
    home = os.environ.get("KERAS_HOME")
    try:
        import keras
    except (ValueError, AssertionError, TypeError):  # a keras.json that it refuses
        os.environ["KERAS_HOME"] = os.devnull
        import keras
    os.environ.pop("KERAS_HOME", None)
    if home is not None:
        os.environ["KERAS_HOME"] = home
    defaults = {"floatx": "float32", "epsilon": 1e-7, "dtype_policy": "float32"}
    for name, value in {**defaults, "image_data_format": "channels_last"}.items():
        setter = getattr(keras.config, f"set_{name}")
        PUT_BACK.callback(setter, getattr(keras.config, name)())
        setter(value)
    return keras


def import_networks():
    """NETWORKS of model-FMNIST.py: {name: builder}. It imports Keras: seconds."""
    import_tensorflow()
    return importlib.import_module("model-FMNIST").NETWORKS


def adam(learning_rate, **options):
    """The same update as Keras's Adam, but in one TensorFlow operation for each array
    of weights, not a dozen: a step takes less time. `train_trial` can use any other
    optimizer of Keras's instead. `options` are those of keras.optimizers.Adam. Raises
    InputError for two that this lacks."""
    tf, keras = import_tensorflow()
    for name in ("amsgrad", "use_ema"):
        if options.get(name):
            raise InputError(f"util.adam has no {name}: take keras.optimizers.Adam")

    class Adam(keras.optimizers.Adam):
        def update_step(self, gradient, variable, learning_rate):
            try:
                index = self._get_variable_index(variable)
                mean, square = self._momentums[index], self._velocities[index]
            except AttributeError:  # private names, which another Keras may lack
                return super().update_step(gradient, variable, learning_rate)
            step = tf.cast(self.iterations + 1, tf.float32)
            # The operation changes the weights in place, so it takes handles. m and v
            # are Adam's two running means. The powers correct these in the first steps.
            tf.raw_ops.ResourceApplyAdam(
                var=variable.handle, m=mean.value.handle, v=square.value.handle,
                grad=gradient, lr=learning_rate, epsilon=self.epsilon,
                beta1=self.beta_1, beta1_power=self.beta_1**step,
                beta2=self.beta_2, beta2_power=self.beta_2**step,
            )  # fmt: skip

    return Adam(learning_rate, **options)


def make_variables(model):
    """Let a compiled model make its metrics' and its optimizer's variables, as a graph
    may not."""
    tf, _ = import_tensorflow()
    if not model.optimizer.built:
        model.test_step((tf.zeros((1, 28, 28)), tf.zeros((1, 10))))  # images, labels
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
            reason = repr(error)
            if isinstance(error, subprocess.CalledProcessError):
                reason = error.stderr  # apt's words
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


# ------------------------------------------------------------- what a trial depends on
def trial_key(trial, train_trial, options):
    """A hash of all that decides a trial's numbers. It names the trial's file.

    These are the setting and the seed, the code, the data, and the versions.
    """
    setting, seed = trial
    builder = import_networks()[setting.architecture]
    name = getattr(builder, "__name__", "")
    if getattr(sys.modules["model-FMNIST"], name, None) is not builder:
        name = "NETWORKS"  # which makes the builder out of something
    code = code_of(train_trial.__name__, name)
    given = data_and_versions(options.data_dir, options.quick)
    return joblib.hash([setting._asdict(), seed, code, given])


@functools.cache
def data_and_versions(data_dir, quick):
    """What all trials depend on besides code: data, libraries and type of machine."""
    versions = [library.__version__ for library in (*import_tensorflow(), np)]
    train, validation, _ = load_data(data_dir, quick)
    return joblib.hash([train, validation, versions, platform.machine()])


@functools.cache
def code_of(*functions):
    """The statements that the functions of these names depend on, as sorted texts.

    Each word in their code that the top level of a script defines is followed, and so
    on. Layout, comments and docstrings do not count. NETWORKS is not followed, unless it
    is asked for, as a line for one network is nothing to the others.
    """
    scripts = top_levels()
    code, seen = set(), {"NETWORKS"} - {*functions}
    names = [(script, name) for script in scripts for name in functions]
    while names:
        script, name = names.pop()
        if name in seen or (script, name) in seen:
            continue
        seen.add((script, name))
        for statement in scripts[script].get(name, ()):
            code.add(ast.unparse(statement))
            own, others = words(statement)
            names += [(script, word) for word in own]
            names += [(other, word) for word in others for other in scripts]
    return sorted(code)


@functools.cache
def top_levels():
    """{script: {name: [the statements of its top level that define or change it]}}, for
    the three scripts and all beside them that they import. No docstrings."""
    scripts = {}
    paths = [HERE / f"{name}.py" for name in SCRIPTS]
    for path in paths:  # the list grows
        tree = ast.parse(path.read_bytes())
        defined = scripts[path] = {}
        for node in ast.walk(tree):
            if isinstance(node, DOCUMENTED) and ast.get_docstring(node):
                del node.body[0]
            for name in imported(node):
                found = [HERE / f"{name}.py", *HERE.glob(f"{name}/**/*.py")]
                paths += [it for it in found if it.is_file() and it not in paths]
        for statement in tree.body:
            for part in one_by_one(statement):
                for name in names_given(part):
                    defined.setdefault(name, []).append(part)
    return scripts


def imported(node):
    """What a piece of code may import: x of `import x.y` or import_module("x")."""
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return {name.partition(".")[0] for name in words(node)[1]}
    text = node.value if isinstance(node, ast.Constant) else None
    is_name = isinstance(text, str) and re.fullmatch(r"[\w-]{1,99}", text)
    return {text} if is_name else set()


DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def one_by_one(statement):
    """An import of several names as imports of one: others may be added to it."""
    if not isinstance(statement, (ast.Import, ast.ImportFrom)):
        return [statement]
    fields = dict(ast.iter_fields(statement))
    return [type(statement)(**{**fields, "names": [it]}) for it in statement.names]


def names_given(statement):
    """The names that a statement of a script's top level defines or may change."""
    if isinstance(statement, DOCUMENTED):
        return {statement.name}
    if isinstance(statement, (ast.Import, ast.ImportFrom)):
        [alias] = statement.names
        return {(alias.asname or alias.name).partition(".")[0]}
    if isinstance(statement, ast.Assign):
        return set().union(*(words(target)[0] for target in statement.targets))
    if isinstance(statement, (ast.AnnAssign, ast.AugAssign)):
        return words(statement.target)[0]
    if isinstance(statement, ast.If) and "__name__" in words(statement.test)[0]:
        return set()  # it starts the program
    return words(statement)[0]


def words(tree):
    """The names in a piece of code: (those of its own script, those that may be another
    script's). These are the f of x.f, and x and f of `from x import f`."""
    own, others = set(), set()
    for node in ast.walk(tree):
        own.add(getattr(node, "id", None))
        for field in ("attr", "module", "name"):
            others.add(getattr(node, field, None))
    return own - {None}, {name for name in others if isinstance(name, str)}


# ------------------------------------------------------------ many trials at a time
def try_places(options):
    """Say where the results go, and refuse at once a folder or a cluster that fails."""
    print(f"Fashion-MNIST: the results go into {options.folder}")
    store = options.folder / ".trials"
    try:
        store.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=store).close()
    except OSError as error:
        raise InputError(f"{error}: name another folder with --output-dir") from None
    if options.cluster:
        knock(options.cluster)
    print("TensorFlow starts")


def train_missing(trials, train_trial, options, check=None):
    """Train the trials that the store lacks. Return {trial: its .h5 file} of all.

    A trial is (setting, seed). The store is the folder `.trials`, with a file KEY.h5
    for each. Before the first training, `check(settings, options)` may refuse those to
    be trained. If a worker dies, another one trains what is missing.
    """
    files = {}
    for trial in trials:
        key = trial_key(trial, train_trial, options)
        files[trial] = options.folder / ".trials" / f"{key}.h5"
    missing = [trial for trial, path in files.items() if not is_whole(path)]
    print(f"{len(files)} trials, {len(files) - len(missing)} of them trained before")
    if not missing:
        return files
    if check:
        print("Trying each network on a few images")
        check(list(dict.fromkeys(setting for setting, _ in missing)), options)
    print(f"{len(missing)} to train")
    rows = [("network", "setting", "seed")]
    for setting, seed in missing:
        rows.append((setting.label, what_moved(setting, options) or "final", str(seed)))
    header, *lines = aligned(rows, left=2)
    lines = dict(zip(missing, lines))
    print(f"{header}  val.acc.  done")
    for _ in range(5):
        try:
            train_in_workers(missing, files, lines, train_trial, options)
            return files
        except futures.BrokenExecutor:
            print("A worker died. Another one trains what is missing.")
    raise InputError("workers died five times: is there memory for --jobs?")


def train_in_workers(missing, files, lines, train_trial, options):
    """Train the trials in `missing`, and remove each from the list when it is done."""
    start_workers = cluster_workers if options.cluster else local_workers
    bar = progress.Progress(
        progress.TimeElapsedColumn(), progress.TextColumn("Training"),
        progress.BarColumn(), progress.MofNCompleteColumn(),
        progress.TimeRemainingColumn(), disable=not sys.stdout.isatty(),
    )  # fmt: skip
    with start_workers(options) as pool, bar:
        running = {}
        with workers_may_start():
            for trial in missing:
                task = (train_trial, trial, files[trial], options)
                running[pool.submit(train_in_worker, *task)] = trial
        finished = futures.as_completed(running)
        for future in bar.track(finished, len(running)):
            trial = running[future]
            content = future.result()
            if content is not None:
                write_whole(files[trial], content)
            missing.remove(trial)
            accuracy = read_histories([files[trial]])["val_accuracy"][0, -1]
            result = "diverged" if math.isnan(accuracy) else f"{accuracy:.4f}"
            print(f"{lines[trial]}  {result:8}  {len(files) - len(missing):4}")


@contextlib.contextmanager
def workers_may_start():
    """What new processes inherit: they ignore Ctrl-C for good, which reaches all
    processes, as only this one shall act on it. And they do not begin in the working
    folder, from which Python would import a `socket.py` of the user's."""
    folder = os.getcwd()
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.chdir(HERE)
    try:
        yield
    finally:
        os.chdir(folder)
        signal.signal(signal.SIGINT, handler)


def train_in_worker(train_trial, trial, path, options):
    """What a worker does: it trains one trial. On this machine, it writes the file. It
    does not return it: a pool hangs for ever if a worker dies while it sends a large
    message. A worker of a cluster returns it, as it may have another disk."""
    if options.cluster:
        # Keras draws its layers' seeds from Python's random generator. A Dask thread
        # draws from the same one, and would change them. So Dask gets its own.
        importlib.import_module("dask.sizeof").random = random.Random()
    # The worker's scripts, data and libraries make the same key, if they are the same.
    if trial_key(trial, train_trial, options) != path.stem:
        problem = "a worker's scripts, data or libraries are not those of this run"
        raise InputError(f"{problem}: start again (a cluster's workers, too)")
    train, validation, _ = load_data(options.data_dir, options.quick)
    content = train_trial(*trial, train, validation)
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
    folder = (os.getcwd(),)
    try:
        with workers_may_start():  # multiprocessing's own helper process does
            pool = futures.ProcessPoolExecutor(
                options.jobs, spawn, prepare_worker, folder
            )
    except OSError as error:
        raise InputError(f"no workers can be started: /dev/shm: {error}") from None
    try:
        yield pool
    except BaseException:
        for process in multiprocessing.active_children():
            if process not in others:
                process.kill()
        raise
    finally:
        pool.shutdown()


def prepare_worker(working_folder):
    """Keep a worker small and silent, and end it with its parent, even if that is
    killed."""
    os.chdir(working_folder)
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


def knock(address):
    """Raise InputError if Dask is not installed, or if nothing answers at the address
    within TIMEOUT. Dask's own client may wait for ever."""
    logging.disable()  # Dask's log lines; its errors reach us as exceptions
    try:
        import distributed
    except ImportError:
        problem = f"--cluster {address}: pip install dask[distributed] first"
        raise InputError(problem) from None
    try:
        connection = asyncio.wait_for(distributed.comm.connect(address), TIMEOUT)
        with futures.ThreadPoolExecutor(1) as thread:  # a notebook forbids asyncio.run
            thread.submit(asyncio.run, connection).result()
    except (OSError, ValueError, distributed.TimeoutError) as error:
        reason = str(error) or "no Dask scheduler answers there"
        raise InputError(f"--cluster {address}: {reason}") from None


@contextlib.contextmanager
def cluster_workers(options):
    """The executor of a Dask cluster. Raises InputError if the cluster fails."""
    flag = f"--cluster {options.cluster}"
    import distributed

    try:
        client = distributed.Client(options.cluster, timeout=TIMEOUT)
    except (OSError, ValueError, distributed.TimeoutError) as error:
        raise InputError(f"{flag}: {error}") from None
    with client:
        if set(client.nthreads().values()) != {1}:
            raise InputError(f"{flag}: start its workers, each with --nthreads 1")
        try:
            yield client.get_executor(retries=2, pure=False)
        except (futures.CancelledError, distributed.KilledWorker):
            problem = "the scheduler or the workers are lost"
            raise InputError(f"{flag}: {problem}; the same command continues") from None


@contextlib.contextmanager
def naming_the_fault(setting, options):
    """Turn an exception, while a setting is tried, into one line that names the setting
    and the place: a student's code may raise any."""
    try:
        yield
    except (MemoryError, OSError):
        raise
    except Exception as error:  # noqa: BLE001 - a student's code raises any kind
        problem = str(error)
        if not isinstance(error, InputError):
            frames = traceback.extract_tb(error.__traceback__)
            [*_, last] = [it for it in frames if Path(it.filename).parent == HERE]
            place = f"{Path(last.filename).name}, line {last.lineno}"
            problem = f"{type(error).__name__}: {cause(error)} ({place})"
        moved = what_moved(setting, options)
        raise InputError(f"{setting.label} {moved}".strip() + f": {problem}") from None


def what_moved(setting, options):
    """The hyperparameters of a setting that the final one has not: "batch size 64"."""
    moved = []
    for name, value in setting._asdict().items():
        if value != getattr(options, name, value):
            moved.append(f"{name.replace('_', ' ')} {value}")
    return ", ".join(moved)


def cause(error):
    """The essential words of an error of Keras's or TensorFlow's, on one line."""
    text = str(error).strip()
    if text.startswith("in user code:"):  # what follows lists lines of code
        text = text.rpartition("\n")[2]
    text = " ".join(text.split()).rpartition("Exception encountered: ")[2]
    return f"{printable(text):.300}"


def is_whole(path):
    """Whether the file of a trial is there, can be opened and has its history. Raises
    OSError if it is there and cannot be read."""
    try:
        content = io.BytesIO(path.read_bytes())
    except FileNotFoundError:
        return False
    with contextlib.suppress(Exception):  # h5py has many kinds for a damaged file
        return "val_accuracy" in read_histories([content])
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
def model_file(model, history, setting, seed, train):
    """The .h5 file of a trained model, as bytes. Tyler's and Jackson's open in every
    Keras from 2.6 on.

    `history` is a list of {metric: value}, one for each epoch; it goes into the group
    "history". The setting, the seed, the number and a checksum of the training images
    and the versions of the libraries become attributes. Once loaded, the model is
    compiled as it was trained. The file lacks the optimizer's state, as Keras 3.15
    restores that wrongly, and then `fit` fails. Raises OSError.
    """
    tf, keras = import_tensorflow()
    # As at the end of `fit`. It moves the weights if the optimizer has use_ema.
    model.optimizer.finalize_variable_values(model.trainable_variables)
    compiled = model.get_compile_config()
    names = ("loss", "metrics", "loss_weights", "weighted_metrics")
    training = {name: compiled[name] for name in names}
    training["optimizer_config"] = {
        "class_name": type(model.optimizer).__name__,
        "config": in_keras2_words(model.optimizer.get_config()),
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.h5")
        try:
            # If the disk is full, HDF5 may crash. To write zeros first raises OSError.
            path.write_bytes(bytes(4 * model.count_params() + 100_000))
            model.save(path, include_optimizer=False)
            with h5py.File(path, "a") as file:
                layers = in_keras2_words(json.loads(file.attrs["model_config"]))
                # Keras finds no subclass by its name. Its layers are what counts.
                sequential = isinstance(model, keras.Sequential)
                layers["class_name"] = "Sequential" if sequential else "Functional"
                file.attrs["model_config"] = json.dumps(layers)
                file.attrs["training_config"] = json.dumps(training)
                file.attrs.update(setting._asdict())
                file.attrs["seed"] = seed
                file.attrs["training_images"] = len(train[0])
                file.attrs["training_crc32"] = zlib.crc32(train[0])
                for library in (tf, keras, np):
                    file.attrs[f"{library.__name__}_version"] = library.__version__
                for name in history[0]:
                    file[f"history/{name}"] = [epoch[name] for epoch in history]
        except NotImplementedError:  # Keras cannot save such a model
            raise
        except (OSError, RuntimeError) as error:  # HDF5's word for a full disk
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
    module = node.get("module") or ""
    # Keras finds its own layers without these two words, but no schedule of a learning
    # rate and no class of somebody else's.
    needless = module.startswith("keras") and "schedules" not in module
    unknown_defaults = {"optional": False, "use_ema": False, "ema_momentum": 0.99}
    renamed = {}
    for key, value in node.items():
        if value is None or (needless and key in ("module", "registered_name")):
            continue
        if key in unknown_defaults and value == unknown_defaults[key]:
            continue
        new_key = "batch_input_shape" if key == "batch_shape" else key
        renamed[new_key] = in_keras2_words(value)
    return renamed


def read_histories(files):
    """{metric: array of shape (files, epochs)} out of the .h5 files of one setting. The
    loss comes first, then other metrics, then those of validation."""
    histories = {}
    for file in files:
        with h5py.File(file) as content:
            for metric, values in content["history"].items():
                histories.setdefault(metric, []).append(values[:])
    order = sorted(
        histories, key=lambda it: (it.startswith("val_"), "loss" not in it, it)
    )
    return {metric: np.array(histories[metric]) for metric in order}


def reopen(content):
    """The model in an .h5 file of ours, given as bytes, opened as README says. Raises
    ValueError if its shapes are not those of the data, or if it lacks the accuracy that
    the study needs."""
    _, keras = import_tensorflow()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.h5")
        path.write_bytes(content)
        if "val_accuracy" not in read_histories([path]):
            raise ValueError('the study needs metrics=["accuracy", ...]')
        try:
            keras.models.load_model(path)
        except Exception as error:  # noqa: BLE001 - Keras raises nearly every kind
            remedy = "decorate it with @keras.saving.register_keras_serializable()"
            problem = f"Keras cannot open the saved file ({cause(error)})"
            raise ValueError(
                f"{problem}; if it misses your own code, {remedy}"
            ) from None
        model = load_classifier(path)
    if (model.input_shape[1:], model.output_shape[1:]) != ((28, 28), (10,)):
        raise ValueError("a network must make ten outputs of 28 x 28 pixels")
    return model


def load_classifier(path):
    """The Fashion-MNIST classifier in an .h5 or .keras file, as an uncompiled model.

    Keras itself refuses files that carry code or name other files (since 3.12.4).
    Raises InputError, which says what to do, for those and for all other files.
    """
    _, keras = import_tensorflow()
    try:
        check_format(path)
        model = keras.models.load_model(path, compile=False)
        is_chain = isinstance(model, keras.Sequential)
        if not is_chain and (
            len(model.inputs) > 1 or not hasattr(model.output, "shape")
        ):
            raise InputError("it has several inputs or outputs")
        takes, gives = model.input_shape[1:], model.output_shape[1:]
        if takes not in INPUT_SHAPES or len(gives) != 1 or gives[0] < 10:
            needed = "ten outputs or more of 28 x 28 pixels"
            raise InputError(f"it makes {gives} of {takes}, not {needed}")
    except Exception as error:  # noqa: BLE001 - Keras and h5py raise nearly every kind
        reason = cause(error)
        version = version_of(path)
        if "safe_mode" in reason or "unsafe" in reason:
            reason = "it carries code or names other files: Keras refuses it"
        elif version and not isinstance(error, InputError):
            reason += f"; Keras {printable(version)} wrote it"
            if not version.startswith("3."):
                reason += ", and Keras 3 cannot read it: open it with that one"
        raise InputError(f"{path}: no model that we can use: {reason}") from None
    return model


def version_of(path):
    """The version of Keras that wrote a model's file, or None if it does not say so."""
    with contextlib.suppress(Exception):
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return json.loads(archive.read("metadata.json"))["keras_version"]
        with h5py.File(path) as file:
            return file.attrs["keras_version"]
    return None


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
    print("TensorFlow starts")
    data = load_data(options.data_dir, options.quick)
    status = 0
    found = sorted(options.folder.glob("models/*"))
    paths = options.evaluate or [path for path in found if path.suffix in MODEL_FILES]
    if not paths:
        raise InputError(f"{options.folder}/models has no models: name some files")
    for path in paths:
        try:
            evaluate_file(path, data, test_model)
            if path.resolve() in left_over(options.folder):
                print("It is left from an earlier run.")
        except InputError as error:
            say_error(error)
            status = 2
    sys.exit(status)


def evaluate_file(path, data, test_model):
    """Show a model's layers and scores, and what is unusual about it."""
    from sklearn.metrics import classification_report

    _, keras = import_tensorflow()
    (x_train, _), _, (images, y_test) = data
    model = load_classifier(path)
    describe(path, model, x_train)
    x, shape = images / np.float32(255), model.input_shape[1:]
    # A model with more than ten outputs gets labels of that length.
    more = model.output_shape[-1] - y_test.shape[1]
    test = in_shape(images, shape), np.pad(y_test, [(0, 0), (0, more)])
    scores, outputs = test_model(model, test)
    if not np.isfinite([*scores.values()]).all():
        print("It has diverged: a weight or an output is NaN or infinite.")
        return
    if outputs.min() < 0 or not np.allclose(outputs.sum(axis=1), 1, atol=0.01):
        what = "logits" if outputs.min() < 0 else "numbers that do not add up to 1"
        print(f"Its outputs are {what}. Softmax makes probabilities of them.")
        model = keras.Sequential([model, keras.layers.Softmax()])
        scores, outputs = test_model(model, test)
    labels, predicted = y_test.argmax(axis=1), outputs.argmax(axis=1)
    table = classification_report(
        labels, predicted, labels=range(10), target_names=CLASS_NAMES, zero_division=0
    )
    print(table)
    numbers = [f"{name} {value:.4f}" for name, value in scores.items()]
    print(f"{len(images):,} test images:", *numbers)
    mean, deviation = x_train.mean() / 255, x_train.std(dtype="float32") / 255
    scaled = {
        "pixels from 0 to 255": x * 255,
        "pixels from -1 to 1": x * 2 - 1,
        "standardized pixels (mean 0, deviation 1)": (x - mean) / deviation,
    }
    accuracies = {}
    for name, pixels in scaled.items():
        pixels = in_shape(pixels.astype("float32"), shape)
        outputs = model.predict(pixels, batch_size=1000, verbose=0)
        accuracies[name] = np.mean(outputs.argmax(axis=1) == labels)
    best = max(accuracies, key=accuracies.get)
    # Chance gives 0.1, so what is below 0.3 says nothing.
    if accuracies[best] >= max(0.3, np.mean(predicted == labels) + 0.05):
        accuracy = f"{accuracies[best]:.4f}"
        print(f"It was probably trained on {best}: on those, accuracy {accuracy}")


def in_shape(images, shape):
    """Images of shape (n, 28, 28) in a model's input shape. Colours are grey thrice."""
    if shape[-1] == 3:
        images = np.repeat(images[..., None], 3, axis=-1)
    return images.reshape(-1, *shape)


def describe(path, model, x_train):
    """Print the layers of a model and what its .h5 file says of its training."""
    print(f"\n{path}")
    rows = [("layer", "kind", "output", "", "weights")]
    for name, kind, shape, does, weights in layer_table(model):
        rows.append((name, kind, str(shape), does, f"{weights:,}"))
    for line in aligned(rows, left=4):
        print(printable(line))
    if h5py.is_hdf5(path):
        with h5py.File(path) as file:
            about = dict(file.attrs)
        for name, value in about.items():
            if name not in ("model_config", "training_config", "backend"):
                print(printable(f"{name:20} {value}"))
        ours = {"training_images": len(x_train), "training_crc32": zlib.crc32(x_train)}
        if any(about.get(name, value) != value for name, value in ours.items()):
            print("It was trained on other images than those of this command. To test")
            print(
                "it as its run did, name that run's --data-dir, and --quick if it had it."
            )


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
    """Mean, standard deviation and standard error over the seeds, the first axis. A NaN
    is a seed that diverged, and does not count. The spread of one seed is NaN."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of columns that are all NaN
        mean = np.nanmean(values, axis=0)
        deviation = np.nanstd(values, axis=0, ddof=1)
    return mean, deviation, deviation / np.sqrt(np.isfinite(values).sum(axis=0))


def aligned(rows, left=1):
    """Rows of texts as lines, each column as wide as its widest text. The first `left`
    columns stand on the left, the others on the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for row in rows:
        cells = []
        for number, (text, width) in enumerate(zip(row, widths)):
            cells.append(text.ljust(width) if number < left else text.rjust(width))
        lines.append("  ".join(cells))
    return lines


def write_csv(path, rows):
    """A list of dicts as a table. What a dict lacks is left empty."""
    text = io.StringIO()
    names = dict.fromkeys(itertools.chain(*rows))
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue().encode())


def write_tables(folder, histories, results, study, seeds):
    """models/history.csv, results.csv and, if there is a study, study.csv."""
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
                result_rows.append(
                    {"model": f"model_{setting.suffix}", **trial, **scores}
                )
    write_csv(folder / "models/history.csv", history_rows)
    write_csv(folder / "models/results.csv", result_rows)
    if study:
        write_csv(folder / "models/study.csv", study)


def left_over(folder):
    """The models and pictures in a run's folder of networks that its results.csv does
    not have: those of an earlier run."""
    table = folder / "models/results.csv"
    if not table.exists():
        return []
    with open(table, newline="") as file:
        networks = {row["architecture"] for row in csv.DictReader(file)}
    named = "(model|confusion_matrix)_(.+)_[01]|(architecture|hyperparameters)_(.+)"
    left = []
    for path in sorted([*folder.glob("models/*.h5"), *folder.glob("plots/*.png")]):
        match = re.fullmatch(named, path.stem)
        if match and (match[2] or match[4]) not in networks:
            left.append(path)
    return left


def report_files(folder, study):
    """Say where the files are, and which of them are an earlier run's."""
    left = left_over(folder)
    if not study:
        left.append(folder / "models/study.csv")
    studied = {f"hyperparameters_{row['architecture']}" for row in study}
    for picture in folder.glob("plots/hyperparameters_*.png"):
        if picture.stem not in studied:
            left.append(picture)
    left = {path.name for path in left if path.exists()}
    if left:
        print("Left from an earlier run:", ", ".join(sorted(left)))
    print(f"The files are in models/ and plots/ of {folder}")


def report_study(study):
    """Print a line for each value of the study, without L2 and with it."""
    seeds = max([row["seeds"] for row in study], default=0)
    for architecture in dict.fromkeys(row["architecture"] for row in study):
        print(f"\nStudy of {architecture.title()}: validation accuracy, and its")
        print("difference from the final setting's")
        of_network = [row for row in study if row["architecture"] == architecture]
        cells = {}  # {(hyperparameter, value): {use_regularizer: text}}
        notes = []
        for row in of_network:
            name, value = row["hyperparameter"].replace("_", " "), row["value"]
            cell = f"{row['val_accuracy']:.4f}" if row["seeds"] else "diverged"
            if math.isfinite(row["difference"]):  # not, if the reference diverged
                cell += f" {row['difference']:+.4f}"
            if math.isfinite(row["standard_error"]):
                cell += f"±{row['standard_error']:.4f}"
            if row["seeds"] < seeds:
                which = f"{name} {value}" + ", L2" * row["use_regularizer"]
                notes.append(f"{which}: {seeds - row['seeds']} of {seeds} diverged")
            cells.setdefault((name, value), {})[row["use_regularizer"]] = cell
        rows = [("", "without L2", "with L2")]
        for name in dict.fromkeys(name for name, _ in cells):
            rows.append((name, "", ""))
            for (moved, value), cell in cells.items():
                if moved == name:
                    rows.append((f"  {value}", cell[False], cell[True]))
        print(*aligned(rows), *notes, sep="\n")
    if seeds == 1:
        print("One seed: small differences may be chance.")


def report_results(results):
    """The test results: means over the seeds and, below, standard deviations."""
    names = [*next(iter(results.values()))[0][0]]  # the same for each model and seed
    rows = [("Test results", *names)]
    accuracies = {}  # {(architecture, use_regularizer): array of shape (seeds,)}
    diverged = []
    for setting, tested in results.items():
        by_seed = np.array([[*scores.values()] for scores, _ in tested])
        seeds = len(by_seed)
        means, deviations, _ = mean_and_spread(by_seed)
        cells = [f"{mean:.4f}".replace("nan", "diverged") for mean in means]
        rows.append((setting.label, *cells))
        if seeds > 1:
            rows.append(("", *[f"±{deviation:.4f}" for deviation in deviations]))
        lost = np.isnan(by_seed[:, 0]).sum()
        if 0 < lost < seeds:
            diverged.append(f"{setting.label}: {lost} of {seeds} seeds diverged")
        if "accuracy" in names:
            network = (setting.architecture, setting.use_regularizer)
            accuracies[network] = by_seed[:, names.index("accuracy")]
    print("", *aligned(rows), *diverged, sep="\n")
    print("The loss is cross-entropy + L2 penalty.")
    if seeds > 1:
        plain = [network for network in accuracies if not network[1]]
        pairs = [*itertools.combinations(plain, 2)]
        pairs += [((name, False), (name, True)) for name, _ in plain]
        for one, other in pairs:
            mean, _, error = mean_and_spread(accuracies[one] - accuracies[other])
            names = [name.title() + " + L2" * with_l2 for name, with_l2 in (one, other)]
            print(f"{' - '.join(names)}: {mean:+.4f}, standard error {error:.4f}")


def report_published(accuracies, quick):
    """Print the published test accuracies, {label: accuracy}."""
    print("Published accuracies after 50 epochs:")
    for label, accuracy in accuracies.items():
        print(f"{label:12} {accuracy}")
    if quick:
        print("A quick run cannot be compared with these.")


BLUE, ORANGE, RED = "#00508c", "#f0a000", "#b00000"
LOOKS = {  # use_regularizer: told apart by the colour blind and in greyscale
    False: {"label": "without L2", "color": BLUE, "linestyle": "-"},
    True: {"label": "with L2", "color": ORANGE, "linestyle": "--"},
}


def draw(options, histories, results, study, test):
    """All plots, with matplotlib's own settings in place of the user's. A model's show
    the first seed. The predictions are of the model that is best in validation."""
    import matplotlib.style

    images, labels = test[0], test[1].argmax(axis=1)
    seed = f", seed {options.seed}" if options.repeats > 1 else ""
    with matplotlib.style.context("default"):
        figures = {
            "accuracy_and_loss": plot_training({s: histories[s] for s in results})
        }
        for setting, tested in results.items():
            scores, probabilities = tested[0]
            title = f"{setting.label}{seed}"
            if "accuracy" in scores:
                title += f": test accuracy {scores['accuracy']:.2%}"
            figure = plot_confusion_matrix(title, labels, probabilities)
            figures[f"confusion_matrix_{setting.suffix}"] = figure
            if setting.use_regularizer:
                continue  # what follows is drawn once for each network
            network = setting.architecture
            model = load_classifier(
                options.folder / f"models/model_{setting.suffix}.h5"
            )
            figures[f"architecture_{network}"] = plot_architecture(model, network)
            rows = [row for row in study if row["architecture"] == network]
            if rows:
                figure = plot_hyperparameters(rows, setting)
                figures[f"hyperparameters_{network}"] = figure
        reached = {it: histories[it]["val_accuracy"][0, -1] for it in results}
        best = max(reached, key=lambda setting: np.nan_to_num(reached[setting]))
        _, probabilities = results[best][0]
        title = f"{best.label}{seed}"
        figures["predictions"] = plot_predictions(title, images, labels, probabilities)
        for name, figure in figures.items():
            if options.quick:
                note = "A quick run: 3 percentage points more or less may be chance."
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
    figure.savefig(picture, format="png")
    write_whole(path, picture.getvalue())


def plot_architecture(model, name=None):
    """A network as a diagram: a bar for each layer, as wide as its output."""
    rows = [("", "Input", model.input_shape[1:], "", 0), *layer_table(model)]
    size = f"{model.count_params():,} weights"
    title = f"{(name or model.name).title()}: {size} (width: log of the outputs)"
    figure, [ax] = new_figure(1, 1, (7, 0.42 * len(rows) + 0.8), title)
    widths = [math.log2(math.prod(shape)) for _, _, shape, _, _ in rows]
    edge = max(widths) / 2 + 0.5  # where the texts start, from the middle
    for row, (_, kind, shape, words, weights) in enumerate(rows):
        color = BLUE if weights else ORANGE if kind == "Dropout" else "#707070"
        ink = "black" if color == ORANGE else "white"
        left = -widths[row] / 2
        ax.barh(-row, widths[row], left=left, height=0.7, color=color)
        size = " x ".join(map(str, shape))
        ax.text(0, -row, size, ha="center", va="center", color=ink, weight="bold")
        ax.text(-edge, -row, f"{kind} {words}".strip(), ha="right", va="center")
        ax.text(edge, -row, f"{weights:,} weights" if weights else "", va="center")
    ax.set(xlim=(-edge - 5.2, edge + 4.2))
    ax.axis("off")
    return figure


def plot_hyperparameters(study, final):
    """Validation accuracy over each hyperparameter of a network, without and with L2.

    `study` are the network's rows of study.csv, `final` is its final setting.
    """
    seeds = max(row["seeds"] for row in study)
    spread = f"mean and standard deviation of {seeds} seeds"
    if seeds == 1:
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
        values = list(dict.fromkeys(row["value"] for row in rows))
        for use_regularizer, look in LOOKS.items():
            curve = [row for row in rows if row["use_regularizer"] == use_regularizer]
            # Evenly spaced, and the curves a little apart, so that nothing overprints.
            x = np.array([values.index(row["value"]) for row in curve])
            x = x + (0.03 if use_regularizer else -0.03)
            y = [row["val_accuracy"] for row in curve]
            deviations = [row["standard_deviation"] for row in curve]
            ax.errorbar(x, y, deviations, marker="o", capsize=3, **look)
        position = values.index(getattr(final, name))
        ax.axvline(position, color="grey", linestyle=":", label="final models' setting")
        ticks = [str(value) for value in values]
        turned = {"rotation": 20, "ha": "right"} if len("".join(ticks)) > 40 else {}
        ax.set_xticks(range(len(values)), ticks, **turned)
        ax.set_xlim(-0.5, len(values) - 0.5)
        ax.set(xlabel=name.replace("_", " "), ylabel="validation accuracy")
        ax.grid(alpha=0.3)
        if name == "learning_rate":  # 0.01 would flatten the curves of the others
            ax.set(xlabel="learning rate (with a y-axis of its own)")
        elif name != "epochs":
            ax.sharey(shared_axis)
    axes[0].legend()
    return figure


def plot_training(histories):
    """Each metric over the epochs, in training and validation, a row for each network.

    `histories` is {setting: {metric: array of shape (seeds, epochs)}}.
    """
    seeds = len(next(iter(histories.values()))["loss"])
    spread = f" (mean of {seeds} seeds, bands: standard deviation)" if seeds > 1 else ""
    networks = list(dict.fromkeys(setting.architecture for setting in histories))
    names = {name.removeprefix("val_") for name in itertools.chain(*histories.values())}
    metrics = sorted(names)  # the accuracy on the left, the loss beside it
    size = (5 * len(metrics), 4.3 * len(networks) + 0.4)
    title = f"The networks in training{spread}"
    figure, axes = new_figure(len(networks), len(metrics), size, title, sharey="col")
    panels = dict(zip(itertools.product(networks, metrics), axes))
    for setting, history in histories.items():
        look = LOOKS[setting.use_regularizer]
        for name, runs in history.items():
            validates = name.startswith("val_")
            ax = panels[setting.architecture, name.removeprefix("val_")]
            mean, deviation, _ = mean_and_spread(runs)
            epochs = np.arange(1, len(mean) + 1)
            label = f"{'validation' if validates else 'training'}, {look['label']}"
            style = look | {"label": label, "linewidth": 2.5 if validates else 1}
            marker = ""
            if len(epochs) == 1:  # a line needs two points
                marker = "o" if validates else "x"
            ax.plot(epochs, mean, marker=marker, **style)
            low, high = mean - deviation, mean + deviation
            ax.fill_between(epochs, low, high, color=look["color"], alpha=0.2)
    for (network, metric), ax in panels.items():
        name = "loss (L2 penalty included)" if metric == "loss" else metric
        ax.set(xlabel="epoch", ylabel=name, title=network.title())
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
    ax.set_xticks(ax.get_xticks(), CLASS_NAMES, ha="right")
    for text in display.text_.ravel():
        text.set_text(text.get_text().replace("0.00", ""))
    shares = "shares of each row, rounded; 0.00 is left out"
    ax.set(xlabel="predicted class", ylabel=f"true class ({shares})")
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
    for ax in axes:
        ax.axis("off")
    for row, color, shown in ((axes[:6], "black", right), (axes[6:], RED, wrong)):
        for ax, i in zip(row, shown):
            ax.imshow(images[i], cmap="gray")  # as the network sees it: light on black
            true = CLASS_NAMES[labels[i]]
            guess = CLASS_NAMES[predicted[i]]
            sure = "over 99.9%" if confidence[i] > 0.999 else f"{confidence[i]:.1%}"
            text = f"true: {true}\npredicted: {guess}\nconfidence: {sure}"
            ax.set_title(text, fontsize=9, color=color)
    return figure
