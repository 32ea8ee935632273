"""Fashion-MNIST with two fully connected networks: the whole experiment.

    python main-FMNIST.py

trains Tyler and Jackson, each without and with L2 regularization, at the published
setting; moves one hyperparameter of Tyler at a time; saves the four models into
models/ and the pictures into plots/; and ends with a table of their test results.
The experiment's authors report about 88 % test accuracy.

One training is a *trial*: a network, a setting, a seed. Everything shown is a view of
trials and no trial runs twice: the final Tyler models are the study's centre, and the
accuracy after 20 epochs is the 20th entry of a 50-epoch history. A trial has one
thread, and as many run side by side as there are cores.
"""

import argparse
import contextlib
import functools
import importlib
import itertools
import logging
import math
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from concurrent import futures
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

HERE = Path(__file__).resolve().parent
util = importlib.import_module("util-FMNIST")  # `import` can't spell the hyphen
console = Console(highlight=False)

ARCHITECTURES = ("tyler", "jackson")
GRIDS = {  # the study's values; those of the epochs are fifths of the run, 10 20 ... 50
    "dropout_rate": (0.1, 0.2, 0.3, 0.4, 0.5),
    "learning_rate": (0.0001, 0.0003, 0.001, 0.003, 0.01),
    "batch_size": (32, 64, 128, 256, 512),
}
SCORES = ("loss", "accuracy", "precision", "recall", "f1")


class Trial(NamedTuple):
    """One training."""

    architecture: str  # "tyler" or "jackson"
    use_regularizer: bool
    dropout_rate: float
    learning_rate: float
    batch_size: int  # images
    epochs: int
    seed: int

    def __str__(self):
        network = self.architecture.title() + (" + L2" if self.use_regularizer else "")
        return f"{network:12}  {self[2]:7g}  {self[3]:7g}  {self[4]:5}  {self[5]:6}  {self[6]:4}"


# ------------------------------------------------------------------------ the trials


def final_trials(options):
    """The four published models, {file name: trial}, with the first seed."""
    setting = [getattr(options, name) for name in Trial._fields[2:]]
    return {
        f"model_{architecture}_{flag:d}": Trial(architecture, flag, *setting)
        for architecture in ARCHITECTURES
        for flag in (False, True)
    }


def study_trials(final, num_images):
    """{(hyperparameter, use_regularizer): trials}: Tyler, one value moved at a time."""
    study = {}
    for centre in (final["model_tyler_0"], final["model_tyler_1"]):
        fifths = {math.ceil(centre.epochs * i / 5) for i in range(1, 6)}
        for name, values in {**GRIDS, "epochs": fifths}.items():
            values = sorted({*values, getattr(centre, name)})
            trials = [centre._replace(**{name: value}) for value in values]
            trials = [trial for trial in trials if trial.batch_size <= num_images]
            study[name, centre.use_regularizer] = trials
    return study


def grid_trials(final, grid):
    """{architecture: trials}: every combination of the grid's values, without L2."""
    combinations = [
        dict(zip(grid, values)) for values in itertools.product(*grid.values())
    ]
    centres = [final["model_tyler_0"], final["model_jackson_0"]] if grid else []
    return {c.architecture: [c._replace(**v) for v in combinations] for c in centres}


def repeated(trial, repeats):
    return [trial._replace(seed=trial.seed + i) for i in range(repeats)]


def cost(trial):
    """A trial's time in some unit: by its images, and more in smaller batches."""
    return trial.epochs * (
        {"tyler": 1, "jackson": 4}[trial.architecture] + 64 / trial[4]
    )


# -------------------------------------------------------------------------- one trial

ONE_AT_A_TIME = threading.Lock()  # a cluster's worker may run trials in several threads


def train_trial(trial, train, validation):
    """Train one network on one thread and return its .h5 file as bytes.

    `train` and `validation` are (images, labels) as `util.load_data` gives them. The
    file holds the compiled model, the state of its optimizer and its history: a value
    per epoch of each metric. Training ends early when a loss is no longer a finite
    number: the trial has diverged.
    """
    with ONE_AT_A_TIME:
        model = build_model(trial)
    train_epoch, validate = epoch_functions(model, trial.batch_size, train, validation)
    shuffle = np.random.default_rng(trial.seed)
    history = {metric: [] for metric in util.METRICS}
    for _ in range(trial.epochs):
        order = shuffle.permutation(len(train[0])).astype("int32")
        for metric, value in zip(util.METRICS, (*train_epoch(order), *validate())):
            history[metric].append(float(value))
        if util.diverged(history):
            break
    return util.to_hdf5(model, history)


def build_model(trial):
    """The trial's network, compiled; the same seed gives the same first weights."""
    networks = util.import_quietly("model-FMNIST")
    import keras
    import tensorflow as tf

    if tf.config.threading.get_intra_op_parallelism_threads() != 1:
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    keras.utils.set_random_seed(trial.seed)
    build = getattr(networks, f"build_{trial.architecture}")
    model = build(10, trial.use_regularizer, trial.dropout_rate)
    optimizer = keras.optimizers.Adam(trial.learning_rate)
    model.compile(optimizer, loss="categorical_crossentropy", metrics=["accuracy"])
    optimizer.build(model.trainable_variables)
    return model


def epoch_functions(model, batch_size, train, validation):
    """Two functions, each a whole pass over the data as one TensorFlow graph.

    `train_epoch(order)` takes the numbers of the images in the order to train on,
    int32 of shape (n,); `validate()` takes nothing. Both return (loss, accuracy), means
    over the images; the loss is cross-entropy plus penalty, as Keras counts it. The
    arithmetic is that of `model.fit`; only the way there is shorter.
    """
    import keras
    import tensorflow as tf

    x_train, y_train = map(tf.constant, train)
    x_val, y_val = map(tf.constant, validation)
    weights = model.trainable_variables
    cross_entropy = keras.losses.CategoricalCrossentropy()

    def forward(images, labels, training):
        """The batch's loss, and how many images it gets right."""
        images = tf.cast(images, tf.float32) / 255
        probabilities = model(images, training=training)
        right = tf.equal(tf.argmax(probabilities, 1), tf.argmax(labels, 1))
        loss = cross_entropy(labels, probabilities) + sum(model.losses)
        return loss, tf.reduce_sum(tf.cast(right, tf.float32))

    @tf.function
    def train_epoch(order):
        loss_sum = hits = 0.0
        for start in tf.range(0, len(x_train), batch_size):
            batch = order[start : start + batch_size]
            images, labels = tf.gather(x_train, batch), tf.gather(y_train, batch)
            with tf.GradientTape() as tape:
                loss, right = forward(images, labels, training=True)
            apply_adam(model.optimizer, tape.gradient(loss, weights), weights)
            loss_sum += loss * tf.cast(len(batch), tf.float32)
            hits += right
        return loss_sum / len(x_train), hits / len(x_train)

    @tf.function
    def validate():
        loss_sum = hits = 0.0
        for start in tf.range(0, len(x_val), 1000):
            images, labels = x_val[start : start + 1000], y_val[start : start + 1000]
            loss, right = forward(images, labels, training=False)
            loss_sum += loss * tf.cast(len(images), tf.float32)
            hits += right
        return loss_sum / len(x_val), hits / len(x_val)

    return train_epoch, validate


def apply_adam(optimizer, gradients, weights):
    """`optimizer.apply`, with Adam's dozen operations per weight fused into one.

    It works on the Keras optimizer's own variables, which come in this order: steps
    taken, learning rate, then the two moments of each weight.
    """
    import tensorflow as tf

    steps, learning_rate, *moments = [v.value for v in optimizer.variables]
    steps.assign_add(1)
    t = tf.cast(steps, tf.float32)
    for i, (gradient, weight) in enumerate(zip(gradients, weights)):
        tf.raw_ops.ResourceApplyAdam(
            var=weight.value.handle,
            m=moments[2 * i].handle,
            v=moments[2 * i + 1].handle,
            beta1_power=optimizer.beta_1**t,
            beta2_power=optimizer.beta_2**t,
            lr=learning_rate,
            beta1=optimizer.beta_1,
            beta2=optimizer.beta_2,
            epsilon=optimizer.epsilon,
            grad=gradient,
        )


# --------------------------------------------------------------- many trials at a time


def run_trials(trials, workers):
    """Yield (trial, .h5 bytes) as trials end, the longest first.

    `workers` are functions that submit a trial and return its future; each has one
    trial at a time. If a worker process dies, its trial goes to another.
    """
    waiting, running = sorted(trials, key=cost), {}
    while waiting or running:
        while waiting and workers:
            submit, trial = workers.pop(), waiting.pop()
            running[submit(trial)] = submit, trial
        if not running:
            raise util.InputError("no worker is left; is memory short? Try --jobs 1")
        done, _ = futures.wait(running, return_when=futures.FIRST_COMPLETED)
        for future in done:
            submit, trial = running.pop(future)
            try:
                yield trial, future.result()
                workers.append(submit)
            except futures.BrokenExecutor:
                console.print(f"A worker died as it trained  {trial}", soft_wrap=True)
                waiting.append(trial)


@contextlib.contextmanager
def local_workers(count, *data):
    """`count` processes on this machine, each of which gets the data once."""
    context = multiprocessing.get_context("spawn")
    executors = [
        futures.ProcessPoolExecutor(1, context, start_worker, data)
        for _ in range(count)
    ]
    try:
        yield [functools.partial(submit_shielded, executor) for executor in executors]
    finally:
        for process in multiprocessing.active_children():
            process.kill()
        for executor in executors:
            executor.shutdown()


def submit_shielded(executor, trial):
    """Submit a trial; the process that this may start will not see Ctrl-C: we do."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return executor.submit(train_in_worker, trial)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def start_worker(*data):
    """In a new worker: keep the data, and end when the main process does."""
    global worker_data
    worker_data = data

    def follow_parent():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=follow_parent, daemon=True).start()


def train_in_worker(trial):
    return train_trial(trial, *worker_data)


@contextlib.contextmanager
def cluster_workers(address, count, *data):
    """The Dask cluster at `address`; it gets our code, and the data once a worker."""
    try:
        from distributed import Client
    except ImportError:
        message = "--cluster needs Dask: pip install 'dask[distributed]'"
        raise util.InputError(message) from None
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    with Client(address, timeout=10) as client:
        client.wait_for_workers(1, timeout=10)
        client.upload_file(HERE / "util-FMNIST.py")
        ours = util.library_versions()
        for worker, versions in client.run(util.library_versions).items():
            if versions != ours:
                raise util.InputError(f"{worker} has {versions}, this machine {ours}")
        for name in ("model-FMNIST.py", "main-FMNIST.py"):
            client.upload_file(HERE / name)
        data = client.scatter(data, broadcast=True)
        executor = client.get_executor(retries=2)
        yield [lambda trial: executor.submit(train_trial, trial, *data)] * count


# ------------------------------------------------------------------------- the stages


def train_all(trials, train, validation, folder, options):
    """Train the trials that are not kept yet; {trial: file} and {trial: history}."""
    digest = util.digest(*train, *validation)
    files = {trial: util.kept_file(folder, trial, digest) for trial in trials}
    histories = {trial: util.read_history(path) for trial, path in files.items()}
    missing = [trial for trial in trials if histories[trial] is None]
    done = len(trials) - len(missing)
    console.print(f"{len(trials)} trials, of which {done} are kept from before")
    console.print(
        "trial  network       dropout  l. rate  batch  epochs  seed  val. acc."
    )
    if options.cluster:
        workers = cluster_workers(options.cluster, len(missing), train, validation)
    else:
        workers = local_workers(min(options.jobs, len(missing)), train, validation)
    bar = Progress(console=console, disable=not console.is_terminal)
    task = bar.add_task("Training", total=sum(map(cost, missing)))
    with workers as submits, bar:
        for trial, content in run_trials(missing, submits):
            util.write_whole(files[trial], content)
            histories[trial] = util.read_history(files[trial])
            done += 1
            result = f"{util.accuracy_after(histories[trial], trial.epochs):.4f}"
            console.print(f"{done:5}  {trial}  {result.replace('nan', 'diverged')}")
            bar.advance(task, cost(trial))
    return files, histories


def study_curves(study, histories, options):
    """{(hyperparameter, use_regularizer): (values, validation accuracies)}, the latter
    of shape (values, seeds) and NaN where a trial had diverged."""

    def accuracy(trial):
        longest = histories[trial._replace(epochs=options.epochs)]
        return util.accuracy_after(longest, trial.epochs)

    curves = {}
    for (name, flag), trials in study.items():
        runs = [repeated(trial, options.repeats) for trial in trials]
        accuracies = np.array([[accuracy(trial) for trial in row] for row in runs])
        curves[name, flag] = [getattr(trial, name) for trial in trials], accuracies
    return curves


def best_of_grid(grid, histories, options):
    """{file name: trial}: for each network, the best mean validation accuracy."""

    def mean(trial):
        runs = [histories[seed] for seed in repeated(trial, options.repeats)]
        return np.mean([util.accuracy_after(run, trial.epochs) for run in runs])

    return {
        f"model_{name}_best": max(trials, key=lambda trial: np.nan_to_num(mean(trial)))
        for name, trials in grid.items()
    }


def test_model(path, test):
    """Load an .h5 file and test it: (model, scores, the images' class probabilities).

    Precision, recall and F1 are means over the classes; the loss includes the penalty.
    """
    model = util.load_classifier(path)
    import keras
    from sklearn.metrics import precision_recall_fscore_support

    images, labels = test
    images = (images / np.float32(255)).reshape(-1, *model.input_shape[1:])
    probabilities = model(images, training=False)
    loss = keras.losses.CategoricalCrossentropy()(labels, probabilities)
    loss = float(loss) + float(sum(model.losses))
    probabilities = np.array(probabilities)
    true, predicted = labels.argmax(1), probabilities.argmax(1)
    *means, _ = precision_recall_fscore_support(
        true, predicted, average="macro", zero_division=0
    )
    scores = (loss, float(np.mean(true == predicted)), *map(float, means))
    return model, dict(zip(SCORES, scores)), probabilities


def write_tables(folder, models, results, histories):
    """results.csv, a row per final model and seed; history.csv, per trial and epoch."""
    rows = [
        {"model": name, **trial._asdict(), **scores}
        for name, trials in models.items()
        for trial, (_, scores, _) in zip(trials, results[name])
    ]
    util.write_csv(folder / "results.csv", rows)
    rows = [
        {**trial._asdict(), "epoch": epoch, **dict(zip(history, values))}
        for trial, history in histories.items()
        for epoch, values in enumerate(zip(*history.values()), start=1)
    ]
    util.write_csv(folder / "history.csv", rows)


def draw(plots, models, results, histories, curves, test):
    """Every picture; those of a single model show the first seed's."""
    images, labels = test[0], test[1].argmax(1)
    for name, [(_, _, probabilities), *_] in results.items():
        util.plot_confusion_matrix(name, labels, probabilities, plots)
    for architecture in ARCHITECTURES:
        names = [f"model_{architecture}_{flag}" for flag in (0, 1)]
        runs = [[histories[trial] for trial in models[name]] for name in names]
        util.plot_accuracy(architecture, runs, plots / f"accuracy_{architecture}.png")
        model, _, probabilities = results[names[0]][0]
        util.plot_architecture(model, plots / f"architecture_{architecture}.png")
    util.plot_predictions(images, labels, probabilities, plots / "predictions.png")
    if curves:
        final = models["model_tyler_0"][0]._asdict()
        util.plot_hyperparameters(curves, final, plots / "hyperparameters_tyler.png")


def report(results, curves, options, seconds):
    """The table of results, the best settings, where the files are, the time."""
    table = Table("model", *SCORES, title="On the 10,000 test images")
    for name, seeds in results.items():
        runs = np.array([list(scores.values()) for _, scores, _ in seeds])
        cells = [f"{mean:.4f}" for mean in runs.mean(axis=0)]
        if len(runs) > 1:
            spread = runs.std(axis=0, ddof=1)
            cells = [f"{cell}\n±{s:.4f}" for cell, s in zip(cells, spread)]
        table.add_row(name, *cells)
    table.add_section()
    table.add_row("published", "", "about 0.88", "", "", "")
    console.print(table)
    if curves:
        means = {
            (mean, name, flag, value)
            for (name, flag), (values, accuracies) in curves.items()
            for value, mean in zip(values, np.nan_to_num(accuracies.mean(axis=1)))
        }
        mean, name, flag, value = max(means)
        network = f"Tyler {'with' if flag else 'without'} L2"
        console.print(
            f"Best of the study on validation data: {network}, {name} {value:g} "
            f"({mean:.4f})"
        )
    for name in ("models", "plots"):
        console.print(f"{name}: {options.output_dir / name}", soft_wrap=True)
    console.print(f"{seconds // 60:.0f} min {seconds % 60:.0f} s")


def run_experiment(options):
    """The stages in their order."""
    started = time.monotonic()
    train, validation, test = load(options)
    final = final_trials(options)
    study = {} if options.no_sweep else study_trials(final, len(train[0]))
    grid = grid_trials(final, options.grid)
    with util.working_folder(options.output_dir, options.fresh) as folder:
        trials = list_trainings(final, study, grid, options)
        files, histories = train_all(trials, train, validation, folder, options)
        curves = study_curves(study, histories, options)
        final |= best_of_grid(grid, histories, options)
        models = {n: repeated(trial, options.repeats) for n, trial in final.items()}
        results = {n: [test_model(files[t], test) for t in models[n]] for n in models}
        with util.publication(folder, options.output_dir) as (model_dir, plot_dir):
            for name, trials in models.items():
                shutil.copyfile(files[trials[0]], model_dir / f"{name}.h5")
            write_tables(model_dir, models, results, histories)
            draw(plot_dir, models, results, histories, curves, test)
        for path in files.values():
            path.unlink()  # a complete run, started again, starts anew
    report(results, curves, options, time.monotonic() - started)


def load(options):
    """The data, or a small part of it for --quick. Raises InputError."""
    train, validation, test = util.load_data(options.data_dir)
    if options.quick:
        parts = zip((train, validation, test), (4800, 1200, 2000))
        train, validation, test = ((x[:n], y[:n]) for (x, y), n in parts)
    if options.batch_size > len(train[0]):
        problem = f"--batch-size {options.batch_size}: there are only {len(train[0])}"
        raise util.InputError(f"{problem} training images")
    return train, validation, test


def list_trainings(final, study, grid, options):
    """Every trial to train, once: what has fewer epochs is read off a longer history."""
    studied = itertools.chain(*study.values())
    trials = [*final.values(), *(t._replace(epochs=options.epochs) for t in studied)]
    trials += itertools.chain(*grid.values())
    return list(dict.fromkeys(s for t in trials for s in repeated(t, options.repeats)))


def evaluate_files(options):
    """--evaluate: layers, scores and confusion matrix of saved models."""
    from sklearn.metrics import classification_report

    *_, test = load(options)
    names = [f"model_{name}_{flag}.h5" for name in ARCHITECTURES for flag in (0, 1)]
    paths = options.evaluate or [options.output_dir / "models" / name for name in names]
    tested = {Path(path): test_model(path, test) for path in paths}
    plots = options.output_dir / "plots"
    plots.mkdir(parents=True, exist_ok=True)
    labels = test[1].argmax(1)
    for path, (model, scores, probabilities) in tested.items():
        print(f"\n{path}: {model.name}, {model.count_params():,} weights")
        for layer in model.layers:
            weights = f"{layer.count_params():,} weights"
            print(f"  {layer.name:20}  {util.describe(layer):30}  {weights:>16}")
        print("  ".join(f"{name} {value:.4f}" for name, value in scores.items()))
        print(
            classification_report(
                labels,
                probabilities.argmax(1),
                labels=range(10),
                target_names=util.CLASS_NAMES,
                digits=4,
                zero_division=0,
            )
        )
        picture = util.plot_confusion_matrix(path.stem, labels, probabilities, plots)
        print(f"confusion matrix: {picture}")


# -------------------------------------------------------------------- the command line


def number(kind, low, high, what):
    """An argparse type: a number of this kind with low <= number < high."""

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value < high:
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
        return value

    return parse


HYPERPARAMETERS = {
    "dropout_rate": number(float, 0, 1, "a number from 0 to below 1"),
    "learning_rate": number(float, 1e-12, 1e12, "a number above 0"),
    "batch_size": number(int, 1, 10**9, "a whole number above 0"),
    "epochs": number(int, 1, 10**6, "a whole number above 0"),
}


def grid_values(text):
    """An argparse type: 'batch_size=128,512' as ("batch_size", [128, 512])."""
    name, _, values = text.partition("=")
    if name not in HYPERPARAMETERS:
        names = ", ".join(HYPERPARAMETERS)
        raise argparse.ArgumentTypeError(
            f"{text!r} is not NAME=VALUE,...; names: {names}"
        )
    return name, [HYPERPARAMETERS[name](value) for value in values.split(",")]


def parse_options(arguments):
    parser = argparse.ArgumentParser(
        description="Fashion-MNIST with two fully connected networks. Without options: "
        "the whole experiment, into models/ and plots/ beside this script.",
        allow_abbrev=False,
    )
    parser.error = lambda message: fail(f"{message} (--help lists the options)")
    add, count = parser.add_argument, HYPERPARAMETERS["epochs"]
    add(
        "--quick",
        action="store_true",
        help="a small part of the data, 5 epochs, into quick/: a try-out",
    )
    add("--no-sweep", action="store_true", help="the four models only, no study")
    add(
        "--evaluate",
        nargs="*",
        metavar="H5",
        help="inspect saved models (default: the four)",
    )
    add("--data-dir", metavar="DIR", help="where the four IDX files are")
    add("--output-dir", metavar="DIR", type=Path, help="where models/ and plots/ go")
    add(
        "--dropout-rate", metavar="X", type=HYPERPARAMETERS["dropout_rate"], default=0.3
    )
    add(
        "--learning-rate",
        metavar="X",
        type=HYPERPARAMETERS["learning_rate"],
        default=0.001,
    )
    add("--batch-size", metavar="N", type=HYPERPARAMETERS["batch_size"], default=128)
    add("--epochs", metavar="N", type=count, help="(default 50, quick 5)")
    add(
        "--seed",
        metavar="N",
        type=number(int, 0, 2**31, "a whole number from 0 on"),
        default=0,
    )
    add(
        "--repeats",
        metavar="N",
        type=count,
        default=1,
        help="seeds per trial: seed, seed+1, ...",
    )
    add(
        "--grid",
        metavar="NAME=X,...",
        type=grid_values,
        action="append",
        default=[],
        help="also train both networks at every combination; keep the best on validation data",
    )
    add("--jobs", metavar="N", type=count, help="trials at a time (default: the cores)")
    add("--fresh", action="store_true", help="forget the trials of an interrupted run")
    add("--cluster", metavar="ADDRESS", help="train on this Dask cluster")
    options = parser.parse_args(arguments)
    options.grid = dict(options.grid)
    options.epochs = options.epochs or (5 if options.quick else 50)
    options.jobs = options.jobs or util.count_cores()
    options.output_dir = options.output_dir or HERE / ("quick" if options.quick else "")
    return options


def fail(message, status=2):
    print(f"main-FMNIST.py: {message}", file=sys.stderr)
    sys.exit(status)


def main(arguments=None):
    options = parse_options(arguments)
    try:
        if options.evaluate is None:
            run_experiment(options)
        else:
            evaluate_files(options)
    except KeyboardInterrupt:
        kept = len(list(options.output_dir.glob(".trials/*.h5")))
        fail(f"interrupted; {kept} trials are kept: the same command continues", 130)
    except (util.InputError, OSError) as error:
        fail(str(error))
    except futures.CancelledError:
        fail("the cluster's scheduler is lost; the same command continues", 2)


if __name__ == "__main__":
    # As an importable module, so that workers find its functions under that name.
    importlib.import_module("main-FMNIST").main()
