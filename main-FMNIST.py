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
import gc
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
console = Console(highlight=False, markup=False, emoji=False)

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
        return "{:12}  {:7g}  {:13g}  {:5}  {:6}  {:4}".format(network, *self[2:])


HEAD = (
    "network       dropout  learning rate  batch  epochs  seed  val. acc."  # of those
)


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
        fifths = [math.ceil(centre.epochs * i / 5) for i in range(1, 6)]
        for name, grid in {**GRIDS, "epochs": fifths}.items():
            values = sorted({*grid, getattr(centre, name)})
            trials = [centre._replace(**{name: value}) for value in values]
            trials = [trial for trial in trials if trial.batch_size <= num_images]
            study[name, centre.use_regularizer] = trials
    return study


def grid_trials(final, grid):
    """{file name: trials}: both networks, without L2, at every combination of --grid."""
    settings = [dict(zip(grid, values)) for values in itertools.product(*grid.values())]
    return {
        f"model_{name}_best": [final[f"model_{name}_0"]._replace(**s) for s in settings]
        for name in (ARCHITECTURES if grid else ())
    }


def seeds_of(trial, options):
    return [trial._replace(seed=trial.seed + i) for i in range(options.repeats)]


def trials_to_train(final, study, grid, options):
    """Each trial once; what has fewer epochs is read off the history of a longer one."""
    studied = itertools.chain(*study.values())
    trials = [*final.values(), *(t._replace(epochs=options.epochs) for t in studied)]
    trials += itertools.chain(*grid.values())
    return list(dict.fromkeys(s for trial in trials for s in seeds_of(trial, options)))


# -------------------------------------------------------------------------- one trial

ONE_AT_A_TIME = threading.Lock()  # a cluster's worker may run trials in several threads


def train_trial(trial, train, validation):
    """Train one network on one thread and return its .h5 file as bytes.

    `train` and `validation` are (images, labels) as `util.load_data` gives them. The
    file holds the compiled model, the state of its optimizer and its history: a value
    per epoch of each metric. Training ends early when a loss is no longer a finite
    number: the trial has diverged.
    """
    gc.collect()  # graphs refer to themselves: an earlier trial's would stay, 70 MiB each
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
    """The trial's network, compiled, on one thread of the CPU.

    Its first weights and its dropout are drawn from the trial's seed alone. Keras's
    `set_random_seed` would not do: it seeds one generator for the whole process, from
    which the other threads of a cluster's worker draw, too.
    """
    networks = util.import_quietly("model-FMNIST")
    import keras
    import tensorflow as tf

    if tf.config.threading.get_intra_op_parallelism_threads() != 1:
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    build = getattr(networks, f"build_{trial.architecture}")
    model = build(10, trial.use_regularizer, trial.dropout_rate)
    # 100 a seed: more than there are layers, so that no two seeds share a number.
    for number, layer in enumerate(model.layers, start=100 * trial.seed):
        if isinstance(layer, keras.layers.Dense):
            initializer = keras.initializers.GlorotUniform(number)  # as Dense's own
            layer.kernel.assign(initializer(layer.kernel.shape))
        elif isinstance(layer, keras.layers.Dropout) and layer.rate:
            layer.seed_generator.state.assign([number, 0])
    optimizer = keras.optimizers.Adam(trial.learning_rate, name="adam")
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
    beta1, beta2 = optimizer.beta_1, optimizer.beta_2
    t = tf.cast(steps.assign_add(1), tf.float32)
    powers = {"beta1_power": beta1**t, "beta2_power": beta2**t}
    constants = {"beta1": beta1, "beta2": beta2, "epsilon": optimizer.epsilon}
    for weight, m, v, gradient in zip(weights, moments[::2], moments[1::2], gradients):
        handles = {"var": weight.value.handle, "m": m.handle, "v": v.handle}
        tf.raw_ops.ResourceApplyAdam(
            **handles, **powers, **constants, lr=learning_rate, grad=gradient
        )


# --------------------------------------------------------------- many trials at a time


def cost(trial):
    """Roughly how long a trial takes, in some unit: smaller batches mean more steps."""
    per_image = {"tyler": 1, "jackson": 4}[trial.architecture]
    return trial.epochs * (per_image + 64 / trial.batch_size)


def run_trials(trials, workers):
    """Yield (trial, .h5 bytes) as trials end, the longest first.

    `workers` are functions that submit a trial and return its future; each has one
    trial at a time. If a worker process dies, its trial goes to another.
    """
    waiting, running = sorted(trials, key=cost), {}
    while waiting or running:
        while waiting and workers:
            submit, trial = workers.pop(), waiting.pop()
            try:
                running[submit(trial)] = submit, trial
            except futures.BrokenExecutor:
                waiting.append(trial)
        if not running:
            message = "every worker has died: is there memory for --jobs?"
            raise util.InputError(f"{message} The same command continues")
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
    spawn = multiprocessing.get_context("spawn")
    executors = [
        futures.ProcessPoolExecutor(1, spawn, start_worker, data) for _ in range(count)
    ]
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            for executor in executors:  # Ctrl-C is for us alone: a process that starts
                executor.submit(os.getpid)  # while it is blocked does not get to see it
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        yield [functools.partial(e.submit, train_in_worker) for e in executors]
    finally:
        for process in multiprocessing.active_children():
            process.kill()
        for executor in executors:
            executor.shutdown()


def start_worker(*data):
    """In a new worker: keep the data, and end when the main process does."""
    global worker_data
    worker_data = data
    # Keras imports these two for functions that no trial uses, 80 MiB a worker, unless
    # the import fails, as it now does.
    sys.modules["sklearn"] = sys.modules["matplotlib"] = None

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
    logging.disable()  # Dask's log lines; its errors reach us as exceptions
    try:
        with Client(address, timeout=10) as client:
            client.wait_for_workers(1, timeout=10)
            for name in ("util-FMNIST.py", "model-FMNIST.py", "main-FMNIST.py"):
                client.upload_file(str(HERE / name))
            versions = {"here": util.library_versions()}
            versions |= client.run(util.library_versions)
            if len(set(map(str, versions.values()))) > 1:
                raise util.InputError(f"versions differ: {versions}")
            data = client.scatter(data, broadcast=True)
            executor = client.get_executor(retries=2)
            yield [lambda trial: executor.submit(train_trial, trial, *data)] * count
    except futures.CancelledError:
        raise util.InputError(f"--cluster {address}: the scheduler is lost") from None
    except Exception as error:  # noqa: BLE001 - Dask says well what is wrong
        raise util.InputError(f"--cluster {address}: {error}") from None


# ------------------------------------------------------------------------- the stages


def train_all(trials, train, validation, folder, options):
    """Train the trials that are not kept yet; {trial: file} and {trial: history}."""
    digest = util.digest(*train, *validation)
    files = {trial: util.kept_file(folder, trial, digest) for trial in trials}
    histories = {trial: util.read_history(path) for trial, path in files.items()}
    missing = [trial for trial in trials if histories[trial] is None]
    done = len(trials) - len(missing)
    console.print(f"{len(trials)} trials, of which {done} are kept from before")
    console.print(HEAD + "  done")
    if options.cluster:
        pool = cluster_workers(options.cluster, len(missing), train, validation)
    else:
        pool = local_workers(min(options.jobs, len(missing)), train, validation)
    bar = Progress(console=console, disable=not (missing and console.is_terminal))
    task = bar.add_task("Training", total=sum(map(cost, missing)))
    try:
        with pool as workers, bar:
            for trial, content in run_trials(missing, workers):
                util.write_whole(files[trial], content)
                histories[trial] = util.read_history(files[trial])
                done += 1
                accuracy = util.accuracy_after(histories[trial], trial.epochs)
                result = f"{accuracy:.4f}".replace("nan", "diverged")
                console.print(f"{trial}  {result:9}  {done:4}")
                bar.advance(task, cost(trial))
    except (KeyboardInterrupt, OSError) as error:
        what = f"{str(error) or 'interrupted'}; {done} of {len(trials)} trials kept"
        again = "again without --fresh" if options.fresh else "again"
        interrupted = isinstance(error, KeyboardInterrupt)
        fail(f"{what}; run it {again} to go on", 130 if interrupted else 2)
    return files, histories


def collect_accuracies(trials, histories, options):
    """{trial: validation accuracy at its end, for each seed}; NaN where diverged."""
    accuracies = {}
    for trial in trials:
        seeds = seeds_of(trial, options)
        longer = [run._replace(epochs=options.epochs) for run in seeds]
        runs = [histories.get(a) or histories[b] for a, b in zip(seeds, longer)]
        ends = [util.accuracy_after(run, trial.epochs) for run in runs]
        accuracies[trial] = np.array(ends)
    return accuracies


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


def draw(plots, models, results, study, histories, accuracies, test):
    """Every picture; those of a single model show the first seed's."""
    images, labels = test[0], test[1].argmax(1)
    for name, [(_, _, probabilities), *_] in results.items():
        util.plot_confusion_matrix(name, labels, probabilities, plots)
    for architecture in ARCHITECTURES:
        names = [f"model_{architecture}_{flag}" for flag in (0, 1)]
        runs = [[histories[trial] for trial in models[name]] for name in names]
        util.plot_accuracy(architecture, runs, plots / f"accuracy_{architecture}.png")
        model = results[names[0]][0][0]
        util.plot_architecture(model, plots / f"architecture_{architecture}.png")
    _, _, probabilities = results["model_jackson_0"][0]
    util.plot_predictions(images, labels, probabilities, plots / "predictions.png")
    if study:
        curves = {
            (name, flag): {getattr(trial, name): accuracies[trial] for trial in trials}
            for (name, flag), trials in study.items()
        }
        final, path = models["model_tyler_0"][0], plots / "hyperparameters_tyler.png"
        util.plot_hyperparameters(curves, final, path)


def report(models, results, histories, study, accuracies, num_images):
    """The table of results, and the best settings on validation data."""
    table = Table("model", *SCORES, title=f"Results on {num_images:,} test images")
    for name, tests in results.items():
        runs = np.array([list(scores.values()) for _, scores, _ in tests])
        cells = [f"{mean:.4f}" for mean in runs.mean(axis=0)]
        if len(runs) > 1:
            spread = runs.std(axis=0, ddof=1)
            cells = [f"{cell}\n±{s:.4f}" for cell, s in zip(cells, spread)]
        if any(util.diverged(histories[trial]) for trial in models[name]):
            name += "\ndiverged"
        table.add_row(name, *cells)
    table.add_section()
    table.add_row("published", "", "about 0.88")
    console.print(table)
    best = {name: models[name][0] for name in models if name.endswith("_best")}
    if study:
        trials = itertools.chain(*study.values())
        best["the study"] = max(trials, key=lambda trial: mean_of(accuracies[trial]))
    for name, trial in best.items():
        console.print(f"Best on validation data, {name}:\n{HEAD}")
        console.print(f"{trial}  {mean_of(accuracies[trial]):.4f}")


def mean_of(accuracies):
    return np.nan_to_num(accuracies).mean()


def run_experiment(options):
    """The stages in their order."""
    started = time.monotonic()
    train, validation, test = load(options)
    check_batch_sizes(options, len(train[0]))
    final = final_trials(options)
    study = {} if options.no_sweep else study_trials(final, len(train[0]))
    grid = grid_trials(final, options.grid)
    for (name, flag), trials in study.items():
        if grid and name != "epochs" and not flag:
            grid["model_tyler_best"] += trials  # these are settings of Tyler, too
    wanted = trials_to_train(final, study, grid, options)
    with util.working_folder(options.output_dir, options.fresh) as folder:
        files, histories = train_all(wanted, train, validation, folder, options)
        candidates = itertools.chain(*study.values(), *grid.values())
        accuracies = collect_accuracies(candidates, histories, options)
        for name, trials in grid.items():
            final[name] = max(trials, key=lambda trial: mean_of(accuracies[trial]))
        models = {name: seeds_of(trial, options) for name, trial in final.items()}
        results = {n: [test_model(files[t], test) for t in models[n]] for n in models}
        with util.publication(folder, options.output_dir) as (model_dir, plot_dir):
            for name, trials in models.items():
                shutil.copyfile(files[trials[0]], model_dir / f"{name}.h5")
            write_tables(model_dir, models, results, histories)
            draw(plot_dir, models, results, study, histories, accuracies, test)
        for path in files.values():
            path.unlink()  # a complete run, started again, starts anew
    report(models, results, histories, study, accuracies, len(test[0]))
    minutes = (time.monotonic() - started) / 60
    where = f"{options.output_dir / 'models'} and {options.output_dir / 'plots'}"
    console.print(f"In {where} after {minutes:.1f} minutes", soft_wrap=True)


def load(options):
    """The data, or a small part of it for --quick. Raises InputError."""
    train, validation, test = util.load_data(options.data_dir)
    if options.quick:
        parts = zip((train, validation, test), (4800, 1200, 2000))
        train, validation, test = ((x[:n], y[:n]) for (x, y), n in parts)
    return train, validation, test


def check_batch_sizes(options, num_images):
    largest = max(options.batch_size, *options.grid.get("batch_size", [0]))
    if largest > num_images:
        problem = f"there are only {num_images} images to train on"
        raise util.InputError(f"--batch-size {largest}: {problem}")


def evaluate_files(options):
    """--evaluate: layers, scores and confusion matrix of saved models."""
    from sklearn.metrics import classification_report

    *_, test = load(options)
    models, plots = options.output_dir / "models", options.output_dir / "plots"
    names = [f"model_{name}_{flag}.h5" for name in ARCHITECTURES for flag in (0, 1)]
    paths = map(Path, options.evaluate or [models / name for name in names])
    tested = {path: test_model(path, test) for path in paths}
    plots.mkdir(parents=True, exist_ok=True)
    labels = test[1].argmax(1)
    rows = {"labels": range(10), "target_names": util.CLASS_NAMES, "digits": 4}
    for path, (model, scores, probabilities) in tested.items():
        print(f"{path}: {model.name}, {model.count_params():,} weights\n")
        for layer in model.layers:
            count = layer.count_params()
            print(f"  {layer.name:20}  {util.describe(layer):30}  {count:9,} weights")
        predicted = probabilities.argmax(1)
        print()
        print(classification_report(labels, predicted, **rows, zero_division=0))
        print("  ".join(f"{name} {value:.4f}" for name, value in scores.items()))
        folder, name = path.resolve().parent, path.stem
        if folder != models.resolve():  # somebody else's: keep our picture of that name
            name = "_".join(path.with_suffix("").parts).strip("/_")
        print(util.plot_confusion_matrix(name, labels, probabilities, plots), "\n")


# -------------------------------------------------------------------- the command line


def number(kind, low, high, what):
    """An argparse type: a number of this kind with low <= number < high."""

    def parse(text):
        with contextlib.suppress(ValueError):
            if low <= kind(text) < high:
                return kind(text)
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")

    return parse


COUNT = number(int, 1, 10**9, "a whole number from 1 on")
HYPERPARAMETERS = {
    "dropout_rate": number(float, 0, 1, "a number from 0 to below 1"),
    "learning_rate": number(float, 1e-12, 1e12, "a number above 0"),
    "batch_size": COUNT,
    "epochs": COUNT,
}


def grid_values(text):
    """An argparse type: 'batch_size=128,512' as ("batch_size", [128, 512])."""
    name, equals, values = text.partition("=")
    if name not in HYPERPARAMETERS or not equals:
        problem = f"{text!r} is not NAME=X,... with a NAME of"
        raise argparse.ArgumentTypeError(f"{problem} {', '.join(HYPERPARAMETERS)}")
    return name, [HYPERPARAMETERS[name](value) for value in values.split(",")]


def parse_options(arguments):
    parser = argparse.ArgumentParser(
        description="Fashion-MNIST with two fully connected networks. Without options: "
        "the whole experiment, into models/ and plots/ beside this script.",
    )
    parser.error = lambda message: fail(f"{message}; --help lists the options")
    rate, step = HYPERPARAMETERS["dropout_rate"], HYPERPARAMETERS["learning_rate"]
    seed = number(int, 0, 2**31, "a whole number from 0 to 2147483647")
    for name, metavar, kind, default, text in (
        ("--data-dir", "DIR", str, None, "the folder with the four IDX files"),
        ("--output-dir", "DIR", Path, None, "where models/ and plots/ go"),
        ("--dropout-rate", "X", rate, 0.3, "(0.3)"),
        ("--learning-rate", "X", step, 0.001, "(0.001)"),
        ("--batch-size", "N", COUNT, 128, "images (128)"),
        ("--epochs", "N", COUNT, None, "(50, with --quick 5)"),
        ("--seed", "N", seed, 0, "the first seed (0)"),
        ("--repeats", "N", COUNT, 1, "seeds for each trial (1)"),
        ("--jobs", "N", COUNT, None, "trials at a time (the cores)"),
        ("--cluster", "ADDRESS", str, None, "a Dask cluster, tcp://HOST:8786"),
    ):
        parser.add_argument(
            name, metavar=metavar, type=kind, default=default, help=text
        )
    for name, text in (
        ("--quick", "a try-out: few images, 5 epochs, into quick/"),
        ("--no-sweep", "the four models only, no hyperparameter study"),
        ("--fresh", "throw away what an interrupted run has kept"),
    ):
        parser.add_argument(name, action="store_true", help=text)
    text = "inspect saved models (without names, the four)"
    parser.add_argument("--evaluate", metavar="H5", nargs="*", help=text)
    text = "also train both networks at every combination, and keep the best"
    grid = {"metavar": "NAME=X,...", "type": grid_values, "action": "append"}
    parser.add_argument("--grid", default=[], help=text, **grid)
    options = parser.parse_args(arguments)
    if len(options.grid) > len(dict(options.grid)):
        parser.error("--grid: give each name once, as NAME=X,X,...")
    options.grid = dict(options.grid)
    options.epochs = options.epochs or (5 if options.quick else 50)
    options.jobs = options.jobs or util.count_cores()
    options.output_dir = options.output_dir or HERE / ("quick" if options.quick else "")
    return options


def fail(message, status=2):
    """End with one line on stderr."""
    print("main-FMNIST.py:", *message.split(), file=sys.stderr)
    sys.exit(status)


def main(arguments=None):
    try:
        options = parse_options(arguments)
        if options.evaluate is None:
            run_experiment(options)
        else:
            evaluate_files(options)
    except KeyboardInterrupt:
        fail("interrupted; finished trials are kept", 130)
    except (util.InputError, OSError) as error:
        fail(str(error))


if __name__ == "__main__":
    # As an importable module, so that workers find its functions under that name.
    importlib.import_module("main-FMNIST").main()
