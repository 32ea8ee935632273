"""Fashion-MNIST with two fully connected networks: the whole experiment.

    python main-FMNIST.py

trains Tyler and Jackson, without and with L2 regularization; moves one hyperparameter
of Tyler at a time; saves the four models and the plots; and ends with a table of test
results. The authors report an accuracy of 88 %.
"""

import argparse
import contextlib
import gc
import importlib
import logging
import math
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from concurrent import futures
from pathlib import Path
from typing import NamedTuple

import joblib
import numpy as np
from rich.console import Console
from rich.progress import Progress

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
util = importlib.import_module("util-FMNIST")  # `import` cannot spell the hyphen
console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)

STUDY = {  # the published values
    "dropout_rate": (0.1, 0.2, 0.3, 0.4, 0.5),
    "learning_rate": (0.0001, 0.0003, 0.001, 0.003, 0.01),
    "batch_size": (32, 64, 128, 256, 512),
}  # the accuracies after 10, 20, 30, 40 and 50 epochs come from a single trial
SCORES = ("loss", "accuracy", "precision", "recall", "f1")


# ------------------------------------------------------------------------ the trials
class Trial(NamedTuple):
    """The setting of one training. Equal trials are trained once, on one thread."""

    architecture: str  # "tyler" or "jackson"
    use_regularizer: bool
    dropout_rate: float
    learning_rate: float
    batch_size: int  # images
    epochs: int
    seed: int

    @property
    def network(self):
        return self.architecture.title() + (" + L2" if self.use_regularizer else "")

    @property
    def model_name(self):
        return f"model_{self.architecture}_{self.use_regularizer:d}"

    def __str__(self):
        rates = f"{self.dropout_rate:7g}  {self.learning_rate:7g}"
        return f"{self.network:12}  {rates}  {self.batch_size:5}  {self.seed:4}"


def final_trials(options):
    """The trials of the four published models, with the first seed."""
    setting = (options.dropout_rate, options.learning_rate, options.batch_size)
    return [
        Trial(architecture, use_regularizer, *setting, options.epochs, options.seed)
        for architecture in ("tyler", "jackson")
        for use_regularizer in (False, True)
    ]


def study_points(final):
    """The study: (hyperparameter, value, trial, the epoch whose accuracy counts)."""
    points = []
    for centre in final[:2]:  # Tyler without and with L2; each point moves one value
        for name, published in STUDY.items():
            for value in sorted({*published, getattr(centre, name)}):
                trial = centre._replace(**{name: value})
                points.append((name, value, trial, trial.epochs))
        fifths = sorted({math.ceil(centre.epochs * i / 5) for i in range(1, 6)})
        points += [("epochs", epoch, centre, epoch) for epoch in fifths]
    return points


def with_seeds(trials, options):
    """Each of the trials, once, with each of the run's seeds."""
    seeds = range(options.seed, options.seed + options.repeats)
    return [t._replace(seed=seed) for t in dict.fromkeys(trials) for seed in seeds]


# -------------------------------------------------------------------------- one trial

building = threading.Lock()  # a Dask worker may run trials in several threads


def train_trial(trial, train, validation, epoch_ended=lambda: None):
    """Train one network and return its .h5 file as bytes.

    `train` and `validation` are (images, labels) as `util.load_data` gives them. The
    file has the model and its history, a value per metric and epoch. If a value is not
    finite, training stops, and the values from this epoch on are NaN.
    """
    gc.collect()  # frees the last trial's graphs, 70 MiB that refer to each other
    with building:
        tf, _ = util.import_tensorflow()
        model = build_model(trial)
    x_train, y_train = map(tf.constant, train)
    x_val, y_val = map(tf.constant, validation)
    run_epoch = epoch_function(model)
    random = np.random.default_rng(trial.seed)
    history = np.full((trial.epochs, len(util.METRICS)), math.nan)
    for epoch in range(trial.epochs):
        order = random.permutation(len(x_train)).astype("int32")
        trained = run_epoch(x_train, y_train, order, trial.batch_size, training=True)
        order = np.arange(len(x_val), dtype="int32")
        validated = run_epoch(x_val, y_val, order, 1000, training=False)
        values = np.array([*trained, *validated])
        if not np.isfinite(values).all():
            break
        history[epoch] = values
        epoch_ended()
    return util.to_hdf5(model, dict(zip(util.METRICS, history.T)))


def build_model(trial):
    """The trial's network, compiled. Weights and dropout depend on its seed alone."""
    _, keras = util.import_tensorflow()
    networks = importlib.import_module("model-FMNIST")
    build = getattr(networks, f"build_{trial.architecture}")
    model = build(10, trial.use_regularizer, trial.dropout_rate)
    for index, layer in enumerate(model.layers):
        layer_seed = 100 * trial.seed + index  # networks have fewer than 100 layers
        if isinstance(layer, keras.layers.Dense):
            initializer = keras.initializers.GlorotUniform(layer_seed)  # Dense's own
            layer.kernel.assign(initializer(layer.kernel.shape))
        elif isinstance(layer, keras.layers.Dropout) and layer.rate:
            layer.seed_generator.state.assign([layer_seed, 0])  # as Dropout(seed=...)
    optimizer = keras.optimizers.Adam(trial.learning_rate, name="adam")
    model.compile(optimizer, loss="categorical_crossentropy", metrics=["accuracy"])
    return model


def epoch_function(model):
    """A function that takes the model through a whole epoch, as one TensorFlow graph.

    run_epoch(images, labels, order, batch_size, training) returns the images' mean loss
    and accuracy, as `model.fit` counts them. `order` has their numbers, int32 (n,).
    """
    tf, keras = util.import_tensorflow()
    cross_entropy = keras.losses.CategoricalCrossentropy()
    weights = [weight.value for weight in model.trainable_variables]
    update_weights = adam(model.optimizer, weights)

    @tf.function
    def run_epoch(images, labels, order, batch_size, training):
        loss_sum = hits = 0.0
        for start in tf.range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            x = tf.cast(tf.gather(images, batch), tf.float32) / 255
            y = tf.gather(labels, batch)
            with tf.GradientTape() as tape:
                probabilities = model(x, training=training)
                loss = cross_entropy(y, probabilities) + sum(model.losses)
            if training:
                update_weights(tape.gradient(loss, weights))
            right = tf.equal(tf.argmax(probabilities, 1), tf.argmax(y, 1))
            loss_sum += loss * tf.cast(len(batch), tf.float32)
            hits += tf.reduce_sum(tf.cast(right, tf.float32))
        return loss_sum / len(order), hits / len(order)

    return run_epoch


def adam(optimizer, weights):
    """A function that takes gradients and changes the weights by one step of Adam.

    At step t, for each weight w with the gradient g:
        m = beta_1 * m + (1 - beta_1) * g            the mean gradient
        v = beta_2 * v + (1 - beta_2) * g * g        the mean squared gradient
        rate = learning_rate * sqrt(1 - beta_2**t) / (1 - beta_1**t)
        w = w - rate * m / (sqrt(v) + epsilon)
    """
    tf, _ = util.import_tensorflow()
    beta_1, beta_2 = optimizer.beta_1, optimizer.beta_2
    constants = {"beta1": beta_1, "beta2": beta_2, "epsilon": optimizer.epsilon}
    constants["lr"] = float(optimizer.learning_rate)
    step = tf.Variable(0.0)
    means = [tf.Variable(tf.zeros_like(w)) for w in weights]
    squares = [tf.Variable(tf.zeros_like(w)) for w in weights]

    def update_weights(gradients):
        t = step.assign_add(1)
        powers = {"beta1_power": beta_1**t, "beta2_power": beta_2**t}
        for w, m, v, g in zip(weights, means, squares, gradients):
            tf.raw_ops.ResourceApplyAdam(  # faster than the Keras optimizer's dozen
                var=w.handle, m=m.handle, v=v.handle, grad=g, **powers, **constants
            )

    return update_weights


# --------------------------------------------------------------- many trials at a time
def cost(trial):
    """About how long the trial takes, in some unit. Smaller batches mean more steps."""
    per_image = {"tyler": 1, "jackson": 4}[trial.architecture]
    return trial.epochs * (per_image + 16 / trial.batch_size)


@contextlib.contextmanager
def local_workers(trials, data, folder, options):
    """Train in processes here. Yield {future: trial}, and the cost done so far."""
    spawn = multiprocessing.get_context("spawn")
    cost_done = spawn.RawValue("d")
    shared = (cost_done, str(folder / "temporary"))
    pool = futures.ProcessPoolExecutor(options.jobs, spawn, start_worker, shared)
    # Workers start while Ctrl-C is ignored, so they ignore it, too. We do not.
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        running = {pool.submit(train_in_worker, t, options): t for t in trials}
        signal.signal(signal.SIGINT, handler)
        yield running, cost_done
    finally:
        signal.signal(signal.SIGINT, handler)
        for process in multiprocessing.active_children():
            process.kill()
        pool.shutdown()


def start_worker(shared_number, folder):
    """Prepare a new worker process. Its temporary files go into the folder."""
    global cost_done
    cost_done, tempfile.tempdir = shared_number, folder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Windows it is not inherited
    # Keras imports these two if it can, which costs a worker 80 MiB and a second.
    sys.modules["sklearn"] = sys.modules["matplotlib"] = None  # makes that fail

    def end_with_parent():
        multiprocessing.parent_process().join()
        os._exit(1)  # sys.exit would end this thread only

    threading.Thread(target=end_with_parent, daemon=True).start()


def train_in_worker(trial, options):
    def epoch_ended():  # without a lock: one of two additions at a time may be lost
        cost_done.value += cost(trial) / trial.epochs

    train, validation, _ = util.load_data(options.data_dir, options.quick)
    path = Path(tempfile.mkdtemp(), "trial.h5")
    path.write_bytes(train_trial(trial, train, validation, epoch_ended))
    return path  # not the bytes: a worker killed as it sends them would hang the pool


@contextlib.contextmanager
def cluster_workers(trials, data, folder, options):
    """The same on a Dask cluster. Each worker gets our code and a copy of the data."""
    try:
        from distributed import Client, KilledWorker

        logging.disable()  # Dask's log lines; its errors reach us as exceptions
        client = Client(options.cluster, timeout=util.TIMEOUT)
        client.wait_for_workers(1, timeout=util.TIMEOUT)
        for name in ("util-FMNIST.py", "model-FMNIST.py", "main-FMNIST.py"):
            client.upload_file(str(HERE / name))
        ours, theirs = util.library_versions(), client.run(util.library_versions)
        if any(versions != ours for versions in theirs.values()):
            raise ValueError(f"versions differ, {ours} here, {theirs} there")
    except (ImportError, OSError, ValueError) as error:
        raise util.InputError(f"--cluster {options.cluster}: {error}") from None
    # Here, our module is called "__main__". Workers know it by its file's name.
    train = importlib.import_module("main-FMNIST").train_trial
    try:
        with client:
            data = client.scatter(data, broadcast=True)
            pool = client.get_executor(retries=2)
            running = {pool.submit(train, trial, *data): trial for trial in trials}
            yield running, multiprocessing.RawValue("d")
    except (futures.CancelledError, KilledWorker) as error:
        raise util.InputError(f"--cluster {options.cluster} is lost: {error}") from None


def train_all(trials, data, folder, options):
    """Train the trials that are not kept yet. Return {trial: its .h5 file}."""
    keys = util.trial_keys(trials, data)
    kept = util.find_kept_trials(folder)
    files = {trial: kept[key] for trial, key in keys.items() if key in kept}
    missing = sorted((t for t in trials if t not in files), key=cost, reverse=True)
    console.print(f"{len(trials)} trials, {len(files)} of them kept from before")
    if others := len(kept) - len(files):
        console.print(f"{others} trials of other commands go when this run is complete")
    place = options.cluster or f"{options.jobs} at a time"
    console.print(f"{len(missing)} to train, {place}; the first take a while")
    console.print("network       dropout  l. rate  batch  seed  val.acc.  done")
    workers = cluster_workers if options.cluster else local_workers
    bar = Progress(console=console, disable=not console.is_terminal)
    task = bar.add_task("Training", total=sum(map(cost, missing)))
    try:
        with workers(missing, data, folder, options) as (running, cost_done), bar:
            while running:
                for future in futures.wait(running, 0.5, futures.FIRST_COMPLETED).done:
                    trial = running.pop(future)
                    content = future.result()
                    if not options.cluster:
                        content = content.read_bytes()
                    files[trial] = util.keep_trial(folder, keys[trial], content)
                    accuracy = util.read_history(files[trial])["val_accuracy"][-1]
                    result = "diverged" if math.isnan(accuracy) else f"{accuracy:.4f}"
                    console.print(f"{trial}  {result:8}  {len(files):4}")
                done = sum(cost(trial) for trial in missing if trial in files)
                cost_done.value = max(cost_done.value, done)
                bar.update(task, completed=cost_done.value)
    except futures.BrokenExecutor:
        if files.keys().isdisjoint(missing):
            raise util.InputError("the workers die: is there memory for --jobs?")
        console.print("A worker process died. New ones train what is missing.")
        return train_all(trials, data, folder, options)
    return files


# ------------------------------------------------------------------------- the stages
def run_experiment(options):
    """The stages in their order."""
    train, validation, test = util.load_data(options.data_dir, options.quick)
    final = final_trials(options)
    study = [] if options.no_sweep else study_points(final)
    trials = with_seeds([*final, *(trial for _, _, trial, _ in study)], options)
    folders = util.output_folders(options.output_dir, options.fresh)
    with folders as (kept, models, plots):
        files = train_all(trials, (train, validation), kept, options)
        histories = {trial: util.read_history(files[trial]) for trial in trials}
        console.print("Testing the models")
        results, predictions = [], {}
        for trial in with_seeds(final, options):
            _, scores, predictions[trial] = score_file(files[trial], test)
            results.append({"model": trial.model_name, **trial._asdict(), **scores})
        for trial in final:
            (models / f"{trial.model_name}.h5").write_bytes(files[trial].read_bytes())
        util.write_csv(models / "results.csv", results)
        rows = []
        for trial, history in histories.items():
            for epoch, values in enumerate(zip(*history.values()), start=1):
                scores = dict(zip(history, values))
                rows.append({**trial._asdict(), "epoch": epoch, **scores})
        util.write_csv(models / "history.csv", rows)
        console.print("Drawing the plots")
        draw(plots, final, study, histories, predictions, test, options)
    report(results, final, options)
    console.print(f"The files are in models/ and plots/ of {options.output_dir}")


def score_file(path, test):
    """Test an .h5 file: (model, scores, class probabilities of shape (n, 10))."""
    from sklearn.metrics import precision_recall_fscore_support

    _, keras = util.import_tensorflow()
    model = util.load_classifier(path)
    images, labels = test
    images = (images / np.float32(255)).reshape(-1, *model.input_shape[1:])
    probabilities = model(images, training=False)  # a tensor that knows its logits
    loss = keras.losses.CategoricalCrossentropy()(labels, probabilities)
    loss = float(loss) + float(sum(model.losses))  # with the penalty, as in `evaluate`
    probabilities = np.array(probabilities)
    true, predicted = labels.argmax(1), probabilities.argmax(1)
    averages = {"average": "macro", "zero_division": 0}
    *means, _ = precision_recall_fscore_support(true, predicted, **averages)
    values = (loss, np.mean(true == predicted), *means)
    return model, dict(zip(SCORES, map(float, values))), probabilities


def draw(folder, final, study, histories, predictions, test, options):
    """All plots. Those of a single model show the first seed's."""
    images, labels = test[0], test[1].argmax(1)
    for trial in final:
        path = folder / f"{trial.model_name.replace('model', 'confusion_matrix')}.png"
        util.plot_confusion_matrix(trial.network, labels, predictions[trial], path)
    util.plot_predictions(images, labels, predictions[final[2]], folder)  # Jackson's
    runs = {t: [histories[s] for s in with_seeds([t], options)] for t in histories}
    util.plot_training({trial[:2]: runs[trial] for trial in final}, folder)
    points = []
    for name, value, trial, epoch in study:
        accuracies = [history["val_accuracy"][epoch - 1] for history in runs[trial]]
        points.append((name, value, trial.use_regularizer, accuracies))
    if study:
        util.plot_hyperparameters(points, final[0], folder)


def report(results, final, options):
    """The table of results: means over the seeds, and standard deviations below."""
    row = "{:12} {:>8} {:>8} {:>9} {:>8} {:>8}".format
    console.print("\n" + row("Test results", *SCORES))
    for trial in final:
        tests = [test for test in results if test["model"] == trial.model_name]
        mean, spread = util.mean_and_spread([[t[s] for s in SCORES] for t in tests])
        console.print(row(trial.network, *[f"{value:.4f}" for value in mean]))
        if options.repeats > 1:
            console.print(row("", *[f"±{value:.4f}" for value in spread]))
    note = "; a quick run does not compare" if options.quick else ""
    console.print(f"The authors report an accuracy of about 0.88{note}.")


def evaluate_files(options):
    """--evaluate: layers, scores and confusion matrix of saved models."""
    from sklearn.metrics import classification_report

    *_, test = util.load_data(options.data_dir, options.quick)
    labels, folder = test[1].argmax(1), options.output_dir.resolve()
    (folder / "plots").mkdir(parents=True, exist_ok=True)
    ours = [folder / f"models/{t.model_name}.h5" for t in final_trials(options)]
    table = {"labels": range(10), "target_names": util.CLASS_NAMES, "zero_division": 0}
    for path in map(Path, options.evaluate or ours):
        model, scores, probabilities = score_file(path, test)
        console.print(f"\n{path}")
        model.summary(print_fn=console.print)
        console.print(classification_report(labels, probabilities.argmax(1), **table))
        console.print(*[f"{name} {value:.4f}" for name, value in scores.items()])
        name = path.stem.removeprefix("model_")
        if path.resolve() not in ours:  # no two files get the same picture
            name = f"{path.stem:.50}_{joblib.hash(str(path.resolve())):.8}"
        picture = folder / f"plots/confusion_matrix_{name}.png"
        util.plot_confusion_matrix(path.stem, labels, probabilities, picture)
        console.print(picture)


# -------------------------------------------------------------------- the command line
def parse_options(arguments):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.error = lambda message: fail(f"{message}; --help lists the options")
    add = parser.add_argument
    add("--quick", action="store_true", help="a try-out: few images, 5 epochs, quick/")
    add("--no-sweep", action="store_true", help="the four models only, no study")
    add("--fresh", action="store_true", help="forget what an interrupted run has kept")
    add("--evaluate", nargs="*", metavar="H5", help="inspect saved models (the four)")
    add("--data-dir", metavar="DIR", help="the folder with the four IDX files")
    add("--output-dir", metavar="DIR", type=Path, help="where models/ and plots/ go")
    add("--dropout-rate", metavar="X", type=float, default=0.3, help="(0.3)")
    add("--learning-rate", metavar="X", type=float, default=0.001, help="(0.001)")
    add("--batch-size", metavar="N", type=int, default=128, help="images (128)")
    add("--epochs", metavar="N", type=int, help="(50, with --quick 5)")
    add("--seed", metavar="N", type=int, default=0, help="the first seed (0)")
    add(
        "--repeats", metavar="N", type=int, default=1, help="seeds for each setting (1)"
    )
    add("--jobs", metavar="N", type=int, default=joblib.cpu_count(), help="(cores)")
    add("--cluster", metavar="ADDRESS", help="a Dask cluster, tcp://HOST:8786")
    options = parser.parse_args(arguments)
    if options.epochs is None:
        options.epochs = 5 if options.quick else 50
    limits = {"dropout_rate": (0, 0.99), "learning_rate": (1e-12, 1e12)}
    limits |= {"seed": (0, 10**7), "batch_size": (1, 10**6), "epochs": (1, 10**6)}
    limits |= {"repeats": (1, 1000), "jobs": (1, 61 if os.name == "nt" else 1000)}
    for name, (low, high) in limits.items():
        if not low <= getattr(options, name) <= high:
            flag = "--" + name.replace("_", "-")
            parser.error(f"{flag} must be a number from {low} to {high}")
    beside_script = HERE / "quick" if options.quick else HERE
    options.output_dir = options.output_dir or beside_script
    return options


def main(arguments=None):
    sys.stdout.reconfigure(errors="replace")  # for terminals without ± and boxes
    options = parse_options(arguments)
    work = run_experiment if options.evaluate is None else evaluate_files
    try:
        work(options)
    except (KeyboardInterrupt, MemoryError, OSError, util.InputError) as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        message = "interrupted" if interrupted else str(error) or "out of memory"
        kept = len(list(options.output_dir.glob(".trials/*.h5")))
        if kept and work is run_experiment:
            message += f"; {kept} finished trials are kept, the same command goes on"
        fail(message, 130 if interrupted else 2)


def fail(message, status=2):
    """End with one line on stderr."""
    print("main-FMNIST.py:", *message.split(), file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
