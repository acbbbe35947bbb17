"""The `regraft` command: it parses, and imports what a command needs only when that command runs."""

import errno
import logging
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated, Literal

import typer

from tasks import environment
from tasks.errors import InputError, RegraftError
from tasks.presets import PRESETS

EXIT_CODES = """Exit codes: 0 done · 1 failed · 2 something you wrote or brought is not usable ·
3 not promoted · 4 failed, and would fail alike again · 130 interrupted."""

app = typer.Typer(
    name="regraft",
    help="A checkpoint and a table of text in; a verified, tracked, promoted model out.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

Root = Annotated[Path, typer.Option("--root", help="the checkout that holds params.yaml", show_default=False)]
Override = Annotated[
    list[str] | None,
    typer.Option(
        "-S", "--set", metavar="KEY=VALUE", help="override a param, as in DVC: finetuning.seed=2; repeatable"
    ),
]
Leaf = Annotated[Literal["subprocess", "inprocess"], typer.Option(help="where a stage's body runs")]
CHECKPOINT = "a directory, a file (.safetensors .pt .gguf .npz .h5 …), package:…, or a Hub id that is here"
Family = Annotated[
    str,
    typer.Option("--family", help="whose names: nanogpt, transformers (its older), …; a wrong one lists all"),
]
Reverse = Annotated[bool, typer.Option("--reverse", help="from transformers' names to the family's")]
Key = Annotated[
    str | None, typer.Option("--key", help="of the dict of tensors, where a PyTorch file holds several")
]
Layers = Annotated[
    str | None,
    typer.Option(
        "--layers",
        metavar="0,2,4",
        help="these alone, in this order; one that stands again right after itself adds nothing",
    ),
]
Width = Annotated[
    str | None,
    typer.Option(
        "--width",
        metavar="double|N",
        help="double: twice as wide, computes the same; N: some heads and channels, a start for training",
    ),
]
Experts = Annotated[
    int | None,
    typer.Option(
        "--experts", metavar="N", help="a mixture of N experts, each a copy of a layer's feed-forward network"
    ),
]
Merged = Annotated[
    list[str] | None,
    typer.Option(
        "--expert",
        metavar="CHECKPOINT",
        help="a fine-tune of SOURCE, of its feed-forward tensors alone, that becomes an expert; repeatable",
    ),
]
Top = Annotated[
    int | None, typer.Option("--top-k", metavar="K", help="experts that read each token  [default: 2]")
]
Init = Annotated[
    Literal["replicate", "drop"] | None,
    typer.Option(
        "--init",
        help="of experts; replicate: computes the same; drop: half of each drawn anew  [default: replicate]",
    ),
]
Seed = Annotated[
    int | None,
    typer.Option("--seed", min=0, help="of routers and of what drop draws  [default: 0]", show_default=False),
]
ShardSize = Annotated[
    str | None,
    typer.Option("--shard-size", metavar="5GB", help="several files of at most this size; default: one"),
]
Verify = Annotated[
    list[str] | None,
    typer.Option(
        "--verify",
        metavar="LEVEL,…",
        help="prove more: inverse, digests, parity, similarity (encoders), loss, generation; repeatable",
    ),
]
Reference = Annotated[
    Path | None,
    typer.Option(help="a directory that transformers reads, for parity, similarity, loss and generation"),
]
Probe = Annotated[bool, typer.Option("--probe", help="how long fine-tuning takes, from five steps a phase")]
Preset = Annotated[
    str | None,
    typer.Option(
        "--preset", metavar="NAME", help="how to fine-tune: one of those below; goes without a table"
    ),
]
Axes = Annotated[
    list[str] | None,
    typer.Option(
        "-S",
        "--set",
        metavar="KEY=VALUE,…",
        help="what to try, as in DVC: a,b,c choice(a,b) range(1,4); with --trials also log(1e-5,1e-2), "
        "interval(0,0.3); repeatable, every combination is a trial",
    ),
]
Presets = Annotated[
    str | None, typer.Option("--preset", metavar="NAME,…", help="named ways to fine-tune, to try each")
]
Trials = Annotated[
    int | None,
    typer.Option("--trials", metavar="N", min=1, help="let optuna propose N trials (regraft[optuna])"),
]
Jobs = Annotated[
    int,
    typer.Option(
        "--jobs",
        min=1,
        help="trials at a time; each takes the memory of a fine-tuning, all share cores and GPU",
    ),
]
RECIPES = "\n\n".join(["Presets:", *(f"{name}: {preset.summary}" for name, preset in PRESETS.items())])
HERE = Path()
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # told without the name of a file


@app.command()
def run(override: Override = None, leaf: Leaf = "subprocess", root: Root = HERE) -> None:
    """Bring the whole pipeline up to date; unchanged stages are skipped. Exit code 3: the gate said no.

    The `tasks` of params.yaml follow, each in its place .regraft/tasks/NAME. With -S the run works in a
    workspace of its own below .regraft/runs: the checkout stays as it is, and the champion too.
    `regraft promote --root WORKSPACE` asks the gate for it.
    `--leaf inprocess` runs stage bodies in this process: quicker to start, harder to kill.
    """
    from tasks import params as parameters

    params = parameters.load(root / "params.yaml")
    changed = parameters.override(params, override) if override else None
    _orchestration(root)
    from flows.checkout import places, stage

    if leaf == "subprocess":
        stage.get_ready()  # while Prefect does
    from flows.commands import show
    from flows.pipeline import transfer
    from tasks.artifacts import Promotion

    logging.getLogger("dvc").setLevel(logging.WARNING)  # the flow says what DVC does
    try:
        where = Path(str(transfer(changed, (), leaf, root)))
    except KeyboardInterrupt:
        typer.echo("regraft: interrupted; run again to go on where this stopped", err=True)
        raise typer.Exit(130) from None
    finally:
        show.tracking(root)
    made = [where] if changed else [where, *(root / places.TASKS / task for task in params.tasks)]
    for place in made:
        show.results(place, root)
    if changed is None and any(Promotion.load(place).outcome != "promote" for place in made):
        raise typer.Exit(3)


@app.command()
def sweep(
    axes: Axes = None,
    preset: Presets = None,
    trials: Trials = None,
    jobs: Jobs = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="list the trials and the stages that each runs; run nothing")
    ] = False,
    promote: Annotated[
        bool, typer.Option("--promote", help="ask the gate for the winner; by default nothing is promoted")
    ] = False,
    root: Root = HERE,
) -> None:
    """Fine-tune in many ways side by side; the best by its validation figure is tested.

    What no trial changes is done once. Interrupted: the same command goes on, finished trials come from DVC's
    cache, where each trial's model stays (`dvc gc` clears it). Writes reports/sweep.html. Exit code 1 if a
    trial failed.
    """
    from flows.sweeps import sweeping

    if dry_run:
        sweeping.forecast(root, preset, axes or (), trials)
        return
    sweeping.check(root, preset, axes or (), trials)
    _orchestration(root)
    try:
        code = sweeping.carry_out(root, preset, axes or (), trials, jobs=jobs, promote=promote)
    except KeyboardInterrupt:
        typer.echo("regraft: interrupted; run again: finished trials are kept", err=True)
        raise typer.Exit(130) from None
    raise typer.Exit(code)


@app.command(epilog=RECIPES)
def init(
    data: Annotated[
        Path | None, typer.Argument(help="a table: CSV, TSV, JSON lines or Parquet, with a row a text")
    ] = None,
    kind: Annotated[
        str, typer.Option(help="what a row is: label, labels, score, pair, tags, text, completion, chat, …")
    ] = "label",
    column: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=COLUMN",
            help="what the table calls a column of the kind: completion=reply; repeatable",
        ),
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="Hub id, directory, or package:…; default: the checkpoint now in use")
    ] = None,
    text: Annotated[
        str | None, typer.Option(help="text column; default: the one with the longest values")
    ] = None,
    label: Annotated[
        str | None, typer.Option(help="label column; default: the one that repeats most")
    ] = None,
    preset: Preset = None,
    override: Override = None,
    force: Annotated[bool, typer.Option("--force", help="replace an existing params.yaml")] = False,
    root: Root = HERE,
) -> None:
    """Write params.yaml for my table and my checkpoint, for a named way to fine-tune, or with -S.

    Only what has to change is changed: comments stay.
    """
    from flows.commands import begin

    named = dict(_named(entry) for entry in column or [])
    told = begin.write(
        root,
        data,
        checkpoint=checkpoint,
        text=text,
        label=label,
        force=force,
        preset=preset,
        kind=kind,
        columns=named,
        overrides=override or (),
    )
    for line in told:
        typer.echo(line)


def _named(entry: str) -> tuple[str, str]:
    name, equals, column = entry.partition("=")
    if not (name and equals and column):
        raise InputError(f"--column {entry}: write NAME=COLUMN, such as completion=reply")
    return name, column


@app.command()
def doctor(root: Root = HERE) -> None:
    """Check versions, repository, params, sources, tracking, device, disk; name the remedy for each fault."""
    from flows.commands import diagnosis, show

    checks = list(diagnosis.examine(root))
    show.checks(checks)
    raise typer.Exit(0 if all(check.ok for check in checks) else 1)


@app.command()
def migrate(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="tell what would change; write nothing")] = False,
    root: Root = HERE,
) -> None:
    """Write the params.yaml of a former regraft under today's names; comments stay.

    Tells what else is not of this version, stages of dvc.yaml and outputs in data, and what to do.
    """
    from flows.commands import upgrade

    for line in upgrade.migrate(root, dry_run=dry_run):
        typer.echo(line)


@app.command()
def status(root: Root = HERE) -> None:
    """Who is champion and since when, the last verdict and runs, the data, what lies on the disk.

    Exit code 1 where MLflow does not answer or a stage has not run yet; the rest is told all the same.
    """
    from flows.commands import show, status
    from tasks import params as parameters

    parts = list(status.look(parameters.load(root / "params.yaml"), root))
    show.parts(parts)
    raise typer.Exit(1 if any(part.fault for part in parts) else 0)


@app.command()
def plan(override: Override = None, probe: Probe = False, root: Root = HERE) -> None:
    """Show what would run, what is unchanged, what comes from where, and how large it is. Runs nothing.

    --probe makes five steps of each phase, of which nothing stays, and tells how long all would take.
    """
    from flows.commands import finetuning, forecast, show
    from tasks import params as parameters

    params = parameters.load(root / "params.yaml")
    changed = parameters.override(params, override) if override else params
    show.forecast(forecast.stages(root, params, changed), forecast.sources(root, changed))
    finetuning.show(finetuning.outlook(root, params, changed, probe=probe))


@app.command()
def drift(
    table: Annotated[
        Path | None, typer.Argument(help="whose rows are looked at; default: the table of params.yaml")
    ] = None,
    root: Root = HERE,
) -> None:
    """Show how unlike the new rows of a table are to those that train now. Writes reports/drift.html.

    New is what the last preparation has not seen. A table without labels is compared by its texts.
    """
    from flows.commands import show
    from tasks import params as parameters
    from tasks.stages import drift

    params = parameters.load(root / "params.yaml")
    found = drift.compare(params, root, table)
    drift.track(found, params, root)
    show.drift(found, root)


@app.command()
def compare(last: Annotated[int, typer.Option(help="how many runs")] = 4, root: Root = HERE) -> None:
    """Put the last runs side by side: the params in which they differ, and their test figures."""
    from flows.commands import show
    from tasks import params as parameters
    from tasks.tracking import runs

    params = parameters.load(root / "params.yaml")
    show.comparison(runs.table(root, params.promotion.model, last))


@app.command()
def promote(
    force: Annotated[
        bool, typer.Option("--force", help="whatever the gate said; recorded, and loud")
    ] = False,
    reason: Annotated[str, typer.Option(help="why, in words; required with --force")] = "",
    root: Root = HERE,
) -> None:
    """Ask the gate again about the model in data/finetuning; exit code 3 if it does not become champion."""
    from flows.checkout import workspace
    from tasks import params as parameters
    from tasks.stages import promotion

    with workspace.visited(root):
        params = parameters.load(root / "params.yaml")
        record = promotion.promote_by_hand(params, root, force=force, reason=reason)
    if force and record.reasons and record.reasons[0].startswith(promotion.AGAINST):
        typer.secho("THE GATE SAID NO: promoted against its verdict", fg="red", bold=True, err=True)
    typer.echo(f"{record.outcome}: {record.model} version {record.version}")
    for line in record.reasons:
        typer.echo(f"  {line}")
    raise typer.Exit(0 if record.outcome == "promote" else 3)


@app.command()
def rollback(
    to: Annotated[int | None, typer.Option(help="version; default: the champion before this one")] = None,
    reason: Annotated[str, typer.Option(help="why, in words; kept in the history")] = "",
    root: Root = HERE,
) -> None:
    """Make the former champion champion again."""
    from tasks import params as parameters
    from tasks.stages import promotion

    typer.echo(promotion.rollback(parameters.load(root / "params.yaml"), root, to=to, reason=reason))


@app.command()
def reproduce(
    version: Annotated[
        str, typer.Argument(metavar="VERSION", help="models:/NAME@champion, models:/NAME/3, or 3")
    ],
    root: Root = HERE,
) -> None:
    """Build a registered version again, from its commit, params and data; exit code 1 if a digest differs.

    Nothing is taken from a cache; the checkout and the registry stay as they are.
    """
    from flows.commands import reproduction

    logging.getLogger("dvc").setLevel(logging.WARNING)
    compared = reproduction.rebuild(version, root, typer.echo)
    agreed = all(one.agrees for one in compared)
    typer.echo("every digest agrees" if agreed else "not the same model")
    raise typer.Exit(0 if agreed else 1)


@app.command()
def predict(
    text: Annotated[
        str, typer.Argument(help="one text, or a table (.csv .tsv .jsonl .parquet) with the text column")
    ],
    pair: Annotated[str | None, typer.Option(help="the second text, where the champion labels pairs")] = None,
    output: Annotated[
        Path | None, typer.Option("-o", help="the copy of a table; default: NAME.predicted.csv")
    ] = None,
    root: Root = HERE,
) -> None:
    """Ask the champion about a text, a pair of texts, or every row of a table.

    A table is copied with its answers, in order and whatever its size; rows without a text are set aside in
    COPY.quarantine.csv beside the copy, each with its line and why.
    """
    from flows.commands import consume
    from tasks import params as parameters

    for line in consume.predict(parameters.load(root / "params.yaml"), root, text, output, pair=pair):
        typer.echo(line)


@app.command()
def forget(
    ids: Annotated[
        list[str] | None,
        typer.Option("--ids", metavar="ID", help="id of a row in data/preparation; repeatable"),
    ] = None,
    file: Annotated[Path | None, typer.Option("--file", help="a file with one id a line")] = None,
    rewrite: Annotated[
        bool, typer.Option("--rewrite", help="take the rows out of the table too, if it lies in the checkout")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="delete without asking")] = False,
    root: Root = HERE,
) -> None:
    """Delete rows from data, reports, ledger and caches for good, and keep only a digest of their ids.

    What lies beyond (the table itself, models, remotes, git) is listed at the end. If something fails, give
    the same command again.
    """
    from flows.commands import forget as forgetting

    request = forgetting.resolve(root, forgetting.named(ids or (), file))
    for line in request.told:
        typer.echo(line)
    typer.echo("this also deletes")
    for line in forgetting.deletes(root):
        typer.echo(f"  {line}")
    if not yes and not sys.stdin.isatty():
        raise InputError("there is nobody to ask: --yes deletes without asking; nothing was done")
    if not yes and not typer.confirm("delete all this for good?"):
        raise typer.Exit(1)
    logging.getLogger("dvc").setLevel(logging.WARNING)
    for line in forgetting.carry_out(root, request, rewrite=rewrite):
        typer.echo(line)


@app.command()
def clean(
    older_than: Annotated[
        str, typer.Option("--older-than", metavar="AGE", help="days or hours since anything touched it")
    ] = "30d",
    keep_champions: Annotated[
        bool,
        typer.Option(
            "--keep-champions",
            help="of registered versions keep those that are or were champion; by default every one stays",
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="delete; without it nothing is")] = False,
    root: Root = HERE,
) -> None:
    """Show what old work has left behind, kind by kind; with --yes delete it.

    Workspaces, resume points, hidden states, downloaded champions, MLflow runs, what nothing names in DVC's
    cache. What a registered version is made again from stays, and what waits to be sent to MLflow. Refuses
    while a stage runs; interrupted, give the same command again. Exit code 1 where something could not be
    looked at or deleted.
    """
    from flows.commands import housekeeping, show

    logging.getLogger("dvc").setLevel(logging.ERROR)  # it warns of each commit before the first `dvc repro`
    ground = housekeeping.ground(root, older_than, champions_only=keep_champions)
    kinds = housekeeping.carry_out(ground) if yes else housekeeping.look(ground)
    raise typer.Exit(1 if show.leftovers(kinds, deleted=yes) else 0)


@app.command()
def servers(
    host: Annotated[
        str, typer.Option(help="who can reach them: 0.0.0.0 is everybody, who then needs a password")
    ] = "127.0.0.1",
    name: Annotated[str, typer.Option(help="what other machines call this one; default: its host name")] = "",
    database: Annotated[
        str | None,
        typer.Option(
            metavar="postgresql://USER@HOST/",
            help="a PostgreSQL server, for more than one worker; password: PGPASSWORD; default: SQLite files",
        ),
    ] = None,
    artifacts: Annotated[
        str | None,
        typer.Option(metavar="DIR|s3://…", help="where MLflow keeps models and pages, for who asks it alone"),
    ] = None,
    prefect_port: Annotated[int, typer.Option(help="Prefect's")] = 4200,
    mlflow_port: Annotated[int, typer.Option(help="MLflow's")] = 5000,
    root: Root = HERE,
) -> None:
    """Start a Prefect and an MLflow server for a team; Ctrl-C stops both.

    Tells what to export where work is done. On a host that others can reach three secrets must stand in the
    environment: PREFECT_SERVER_API_AUTH_STRING (user:password), MLFLOW_AUTH_ADMIN_PASSWORD and
    MLFLOW_FLASK_SERVER_SECRET_KEY. What travels is not encrypted: use a private network, or a proxy with TLS.
    """
    from flows.team import servers as serving

    folder = (root / ".regraft" / "servers").resolve()
    kept = artifacts if artifacts is None or "://" in artifacts else str(Path(artifacts).resolve())
    plan = serving.Plan(folder, host, name, database, kept, prefect_port, mlflow_port)
    try:
        serving.serve(plan, typer.echo)
    except KeyboardInterrupt:
        typer.echo("stopped")


@app.command()
def serve(
    adapters: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME=SOURCE]…",
            help="models:/MODEL@champion, models:/MODEL/3, or the directory of a project; default: the "
            "champions of the project and its tasks",
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="who can reach it: 0.0.0.0 is everybody, who then needs a token")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="where it listens")] = 8000,
    room: Annotated[
        str | None,
        typer.Option(
            metavar="64MB",
            help="for adapters in memory: who was asked least recently makes room; default: no limit",
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="rows that the model takes at once")] = 32,
    refresh: Annotated[float, typer.Option(min=0.1, help="seconds between two looks at aliases")] = 30.0,
    root: Root = HERE,
) -> None:
    """Answer over HTTP by many adapters on this project's base, each row by the one that it names.

    Opens a page to try texts on, POST /predict, /adapters (list, load, unload), /health, /metrics and /docs.
    An alias that moves is followed without a restart. On a host that others can reach the environment must
    hold REGRAFT_TOKEN. What travels is not encrypted: use a private network, or a proxy with TLS.
    """
    from flows.commands import figures, serving

    size = None if room is None else figures.read_size(room, "--room")
    plan = serving.Plan(host, port, size, batch, refresh)
    try:
        serving.serve(root, serving.named(adapters or (), root), plan, typer.echo)
    except KeyboardInterrupt:
        typer.echo("stopped")


@app.command()
def bundle(
    model: Annotated[str, typer.Option(help="name of the registered model")],
    adapters: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME=SOURCE]…", help="as of `regraft serve`; default: the champions"),
    ] = None,
    root: Root = HERE,
) -> None:
    """Register adapters on this project's base as one MLflow model, whose rows name theirs in a column.

    `mlflow models serve` then answers for all of them, and no server of ours is needed. Champions are taken
    as they are now: an alias that moves asks for another bundle.
    """
    from flows.commands import serving

    serving.bundle(root, serving.named(adapters or (), root), model, typer.echo)


@app.command()
def compose(
    adapters: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE=WEIGHT…",
            help="two or more sources as of `regraft serve`, each with how much of it there is to be",
        ),
    ],
    into: Annotated[Path, typer.Option("--into", metavar="DIR", help="a directory that does not exist yet")],
    by: Annotated[
        Literal["cat", "linear", "ties", "dare_linear", "dare_ties"],
        typer.Option(help="how, in peft's words; cat adds what each adds, exactly, whatever the ranks"),
    ] = "cat",
    density: Annotated[
        float | None,
        typer.Option(help="share of values that ties and dare keep; default: 0.5", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(help="of what dare drops")] = 0,
    root: Root = HERE,
) -> None:
    """Make one LoRA adapter of several that have the same labels, on this project's base.

    DIR is a source for `regraft serve` and `regraft bundle`. Of heads the mean is taken, by the same weights.
    Adapters whose labels differ are served side by side instead.
    """
    from flows.commands import serving
    from tasks.stages.composition import Recipe

    serving.compose(root, Recipe(serving.weighed(adapters), by, density, seed), into, typer.echo)


@app.command()
def export(
    into: Annotated[Path, typer.Option("--into", metavar="DIR", help="a directory that does not exist yet")],
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="[SOURCE]",
            help="models:/MODEL@champion, models:/MODEL/3, or the directory of a project; default: what this "
            "project has fine-tuned last",
        ),
    ] = None,
    root: Root = HERE,
) -> None:
    """Write a model as ONNX, with its tokenizer, labels and decision, for onnxruntime (regraft[onnx]).

    The directory appears only where onnxruntime says what the model says: on validation rows and on English
    of one word up to as many as a row may have, in batches and alone. How far it agrees is in export.json.
    """
    from flows.commands import exporting

    for line in exporting.export(source, into, root):
        typer.echo(line)


@app.command()
def automations(
    notify: Annotated[
        str | None,
        typer.Option(
            metavar="KIND/NAME",
            help="tell verdicts, failures and what waits for a person through this block of the server's, "
            "such as slack-webhook/team",
        ),
    ] = None,
) -> None:
    """Let the Prefect server mark runs whose worker died, start them again, and tell people. Give it once.

    A run without a sign of life for two minutes is Crashed and goes on with another worker, in three attempts
    at most. The same command again brings them up to date.
    """
    from flows.team import automations as installed

    installed.install(notify, typer.echo)


@app.command("plan-weights")
def plan_weights(
    source: Annotated[str, typer.Argument(help=CHECKPOINT)],
    family: Family,
    reverse: Reverse = False,
    key: Key = None,
    layers: Layers = None,
    width: Width = None,
    experts: Experts = None,
    expert: Merged = None,
    top: Top = None,
    init: Init = None,
    seed: Seed = None,
    every: Annotated[bool, typer.Option("--every", help="a line for each tensor, not for each rule")] = False,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="the same as JSON, with files and byte ranges")
    ] = None,
    root: Root = HERE,
) -> None:
    """Show what `convert` would do with every tensor of a checkpoint, from its names and shapes.

    Bytes are not compared yet: `convert` does that, also where a tensor may go only if it equals another.
    """
    from flows.commands import conversion

    wish = conversion.Wish(layers, width, experts, tuple(expert or ()), top, init, seed)
    made = conversion.planned(source, family, wish, reverse=reverse, key=key, root=root)
    conversion.show(made, every=every)
    if output:
        conversion.written(made, output)


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help=CHECKPOINT)],
    target: Annotated[Path, typer.Argument(help="a directory that does not exist yet")],
    family: Family,
    reverse: Reverse = False,
    key: Key = None,
    layers: Layers = None,
    width: Width = None,
    experts: Experts = None,
    expert: Merged = None,
    top: Top = None,
    init: Init = None,
    seed: Seed = None,
    shard_size: ShardSize = None,
    load: Annotated[
        bool, typer.Option(help="let transformers load the result, which takes its memory")
    ] = True,
    verify: Verify = None,
    reference: Reference = None,
    root: Root = HERE,
) -> None:
    """Convert a checkpoint to transformers' names, or back, every tensor accounted for and compared.

    Writes model.safetensors (with --shard-size several and an index), config.json and plan.json. A tensor
    without a rule, a shape that does not fit or a byte that differs leaves nothing behind.
    """
    from flows.commands import conversion, figures

    largest = None if shard_size is None else figures.read_size(shard_size, "--shard-size")
    more = conversion.levels(verify or ())
    wish = conversion.Wish(layers, width, experts, tuple(expert or ()), top, init, seed)
    made = conversion.planned(source, family, wish, reverse=reverse, key=key, root=root)
    found = conversion.convert(made, target, load=load, shard_size=largest, verify=more, reference=reference)
    for level, sentence in found.items():
        typer.echo(f"{level}: {sentence}")
    typer.echo(str(target))


@app.command()
def inspect(
    checkpoint: Annotated[str, typer.Argument(help=CHECKPOINT)],
    weights: Annotated[
        bool, typer.Option("--weights", help="read every value too: mean, spread, range, zeros, not finite")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="as JSON for scripts, with --weights the values too")
    ] = False,
    key: Key = None,
    root: Root = HERE,
) -> None:
    """Show a checkpoint's layers, shapes and dtypes from its names alone; no library of models loads it.

    Equal layers are drawn once. --weights takes little memory, whatever the size of the checkpoint.
    """
    from flows.commands import inspection

    found = inspection.opened(checkpoint, root, key)
    values = inspection.measured(found) if weights else {}
    if as_json:
        typer.echo(inspection.as_json(checkpoint, found, values), nl=False)
    else:
        inspection.show(checkpoint, found, values)


@app.command()
def report(root: Root = HERE) -> None:
    """Show the last results again, and where the pages are."""
    from flows.commands import show

    show.results(root, root)


def _orchestration(root: Path) -> None:
    """Prefect without a server of the user's starts one of its own, with its files inside the project."""
    if "PREFECT_HOME" not in os.environ:
        home = (root / ".regraft" / "prefect").resolve()
        home.mkdir(parents=True, exist_ok=True)  # Prefect makes no parents, and its server then cannot start
        os.environ["PREFECT_HOME"] = str(home)
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")
    os.environ.setdefault("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", "30")  # what flows.team.automations waits for
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")  # its errors reach the user as ours


def _terminated(number: int, frame: FrameType | None) -> None:
    """End as by `sys.exit`, so that Prefect stops the server it started for us."""
    sys.exit(128 + number)


def main() -> None:
    environment.quiet()
    signal.signal(signal.SIGTERM, _terminated)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # the terminal is gone, and `nohup` was not used
        signal.signal(signal.SIGHUP, _terminated)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    for name in ("flows", "tasks"):
        logging.getLogger(name).setLevel(logging.INFO)
    try:
        app()
    except RegraftError as error:
        typer.echo(f"regraft: {error}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.filename is None and error.errno not in FULL:
            raise
        where = error.filename or "the disk that was written to"
        typer.echo(f"regraft: {where}: {error.strerror}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
