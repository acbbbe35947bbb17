import hashlib
import shutil
import subprocess
from pathlib import Path

import polars as pl
import pytest
from dvc.repo import Repo

from flows.checkout.stage import in_order
from flows.commands import forget
from tasks import params as parameters
from tasks.artifacts import PreparedText
from tasks.errors import ArtifactError, InputError
from tasks.stages import preparation
from tasks.text import identities, signatures

REPOSITORY = Path(__file__).parents[3]
SECRET = "Zebulon quarrels  with &amp; his lamplighter nightly"  # cleaned in two ways: an example of the page
SHARED = "two people wrote exactly these seven words"
TORN = "torn between two labels stood the honest Wilhelmina"
LONG = "a secret sentence of a hundred words " * 600  # beyond maximum_characters: dropped
FAULTY = "Quixotic Marmalade"  # in a row that cannot be read
PIPELINE = """
stages:
  evaluation:
    cmd: mkdir -p data/evaluation && cp secret data/evaluation/page
    deps: [secret]
    outs: [data/evaluation]
  other:
    cmd: echo kept > other
    outs: [other]
"""
TABLES = ("rows", "drops", "quarantine")
CHANGES = [
    "sources.text.path=reviews.csv", "sources.text.columns={}", "sources.text.undecodable=quarantine", "preparation.engine=thread",
    "preparation.subset={train: null, validation: null, test: null}", "preparation.max_quarantine_fraction=1",
]  # fmt: skip


def rows():
    return [
        (f"k{n}", f"number {n} of sentences that differ in {n * n} words {n * 31}", "ab"[n % 2])
        for n in range(60)
    ]


def write(root, *changes, own):
    """A table with a secret in every way a row may go, and its preparation."""
    extra = [("zeb", SECRET, "a"), ("zeb", SECRET, "a"), ("one", SHARED, "a"), ("two", SHARED, "a")]
    extra += [("long", LONG, "b"), ("odd", FAULTY, "")]
    extra += [("torn1", TORN, "a"), ("torn2", TORN, "b")]  # conflicting labels
    lines = [f"{key},{text},{label}\n" for key, text, label in [*rows(), *extra]]
    (root / "reviews.csv").write_text("key,text,label\n" + "".join(lines))
    shipped = parameters.load(REPOSITORY / "params.yaml")
    chosen = parameters.override(shipped, [*CHANGES, *changes, *(["sources.text.id=key"] if own else [])])
    (root / "params.yaml").write_text(parameters.dump(chosen))
    prepare(root)


def prepare(root):
    into = PreparedText.folder(root)
    for file in into.rglob("*"):
        file.unlink()
    into.mkdir(parents=True, exist_ok=True)
    chosen = parameters.load(root / "params.yaml")
    page = preparation.prepare(
        root / "reviews.csv", chosen.sources.text, chosen.preparation, into=into,
        remembered=root / preparation.LEDGER, forgotten=preparation.read_forgotten(root / "forgotten.txt"),
    )  # fmt: skip
    (root / "reports").mkdir(exist_ok=True)
    (root / "reports" / "preparation.html").write_text(page)


@pytest.fixture(scope="module", params=[False, True], ids=["made ids", "own ids"])
def prepared(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("prepared")
    write(root, own=request.param)
    return root


@pytest.fixture
def made(tmp_path):
    write(tmp_path, own=False)
    return tmp_path


@pytest.fixture
def own(tmp_path):
    write(tmp_path, own=True)
    return tmp_path


def frame(root, name):
    return pl.read_parquet(root / "data" / "preparation" / f"{name}.parquet")


def ids_of(root, text):
    """Of the rows that hold `text`, wherever they are."""
    found = frame(root, "rows").filter(pl.col("text").str.contains(text, literal=True))["id"].to_list()
    found += frame(root, "drops").filter(pl.col("text").str.contains(text, literal=True))["id"].to_list()
    aside = frame(root, "quarantine").select("id", text=pl.col("raw").cast(pl.String))
    return found + aside.filter(pl.col("text").str.contains(text, literal=True))["id"].to_list()


def keys_of(*texts):
    return signatures.hashed(signatures.keys(pl.Series(texts))).tolist()


def ledger(root):
    return set(pl.read_parquet(root / preparation.LEDGER)["key"].to_list())


def holders(root, *words):
    """Files below `root` in which one of `words` stands; Parquet is compressed, and so is decoded first."""
    found = {}
    for path in root.rglob("*"):
        if path.is_file() and not path.is_symlink():
            data = path.read_bytes()
            if data[:4] == b"PAR1":
                data += "\n".join(map(str, pl.read_parquet(path).rows())).encode()
            if hits := [word for word in words if word.encode() in data]:
                found[path.relative_to(root).as_posix()] = hits
    return found


@pytest.mark.parametrize("text", ["Zebulon", "a secret sentence", "Wilhelmina", FAULTY])
def test_no_row_leaves_a_trace_in_what_preparation_makes(prepared, text):
    before = holders(prepared, text)
    assert len(before) > 1
    request = forget.resolve(prepared, ids_of(prepared, text))
    forget._record(prepared / "forgotten.txt", request.digests)
    total = sum(len(frame(prepared, name)) for name in TABLES)
    prepare(prepared)
    assert set(holders(prepared, text)) == {"reviews.csv"}
    assert sum(len(frame(prepared, name)) for name in TABLES) == total, "none is lost"


def test_ids_of_ones_own_are_gone_too(own):
    request = forget.resolve(own, ["zeb", "odd"])
    assert request.told == ("zeb: 2 rows", "odd: 1 row")
    forget._record(own / "forgotten.txt", request.digests)
    prepare(own)
    assert holders(own, "zeb", "odd") == {"reviews.csv": ["zeb", "odd"]}
    assert forget.resolve(own, ["zeb"]).told == ("zeb: forgotten before; what is left of it goes now",)


def test_the_page_gives_no_example_of_a_forgotten_row(made):
    assert "reports/preparation.html" in holders(made, "Zebulon"), "else the test proves nothing"
    forget._record(made / "forgotten.txt", forget.resolve(made, ids_of(made, "Zebulon")).digests)
    prepare(made)
    assert "reports/preparation.html" not in holders(made, "Zebulon")


def test_the_ledger_forgets_a_text_that_nobody_else_has(own):
    secret, shared = keys_of("zebulon quarrels with & his lamplighter nightly", SHARED)
    before = ledger(own)
    assert {secret, shared} <= before
    forget._record(own / "forgotten.txt", forget.resolve(own, ["zeb", "one"]).digests)
    prepare(own)
    gone = before - ledger(own)
    assert secret in gone, "as it was cleaned"
    assert len(gone) == 2, "and as it was before"
    assert ledger(own) < before
    forget._record(own / "forgotten.txt", forget.resolve(own, ["two"]).digests)
    prepare(own)
    assert ledger(own) == before - gone - {shared}


def test_others_stay_in_their_split(own):
    before = dict(frame(own, "rows").select("id", "split").rows())
    forget._record(own / "forgotten.txt", forget.resolve(own, ["zeb", "k3", "k4"]).digests)
    prepare(own)
    after = dict(frame(own, "rows").select("id", "split").rows())
    assert {id: before[id] for id in after} == after
    assert set(before) - set(after) == {"zeb", "k3", "k4"}


def test_an_id_made_from_content_takes_its_repetitions_along(made):
    (kept,) = frame(made, "rows").filter(pl.col("text") == SHARED)["id"].to_list()
    request = forget.resolve(made, [kept])
    assert request.told == (f"{kept}: made from its content, so all 2 rows that say the same are forgotten",)
    assert request.digests == {hashlib.blake2b(kept[:16].encode(), digest_size=16).hexdigest()}


def test_a_faulty_row_may_have_a_made_id_where_others_have_their_own(tmp_path):
    write(tmp_path, own=True)
    with (tmp_path / "reviews.csv").open("a") as table:
        table.write(f",{SECRET},a\n")
    prepare(tmp_path)
    (id,) = [id for id in ids_of(tmp_path, "Zebulon") if id.endswith("-1")]
    forget._record(tmp_path / "forgotten.txt", forget.resolve(tmp_path, [id]).digests)
    prepare(tmp_path)
    faulty = frame(tmp_path, "quarantine").filter(pl.col("id") == id).to_dicts()
    assert [(row["reason"], row["detail"], row["raw"]) for row in faulty] == [
        ("no_id", "forgotten on request", b"")
    ]


def test_unknown_ids_are_all_named_and_nothing_is_done(own):
    with pytest.raises(InputError, match=r"'k5x' \(did you mean 'k5\d?'\?\), '\?'; nothing was done"):
        forget.resolve(own, ["k5", "k5x", "?"])
    assert not (own / "forgotten.txt").exists()


def test_after_a_failure_the_same_ids_are_still_known(own):
    forget._record(own / "forgotten.txt", forget.resolve(own, ["zeb"]).digests)
    for file in (own / "data" / "preparation").iterdir():
        file.unlink()
    assert forget.resolve(own, ["zeb"]).digests == {identities.digest("zeb")}
    with pytest.raises(ArtifactError, match="run `dvc repro preparation` first"):
        forget.resolve(own, ["zeb", "one"])


def test_the_list_keeps_its_comment_and_names_nobody_twice(tmp_path):
    target = tmp_path / "forgotten.txt"
    target.write_text("# a comment\n" + "b" * 32)
    forget._record(target, frozenset({"a" * 32, "b" * 32}))
    assert target.read_text().splitlines() == ["# a comment", "b" * 32, "a" * 32]
    assert preparation.read_forgotten(target) == {"a" * 32, "b" * 32}


def test_ids_come_from_the_command_and_from_a_file(tmp_path):
    (tmp_path / "ids").write_text("a\n\nb b\n a\n")
    assert forget.named(["c", "a"], tmp_path / "ids") == ("c", "a", "b b", " a")
    with pytest.raises(InputError, match="name the rows to forget"):
        forget.named([], None)
    with pytest.raises(InputError, match="no such file"):
        forget.named(["a"], tmp_path / "none")


def test_a_workspace_is_refused(tmp_path):
    root = tmp_path / ".regraft" / "runs" / "x"
    with pytest.raises(InputError, match=f"is a workspace: forget in its checkout, --root {tmp_path}"):
        forget.resolve(root, ["a"])


def test_a_table_elsewhere_is_not_rewritten(own, tmp_path_factory):
    source = parameters.load(own / "params.yaml").sources.text
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "reviews.csv"
    with pytest.raises(InputError, match=r"lies outside .* without --rewrite"):
        forget._check_table(elsewhere, source, own)


@pytest.mark.parametrize("rewrite", [False, True])
def test_the_rows_of_the_table_are_named_or_taken_out(own, rewrite):
    source = parameters.load(own / "params.yaml").sources.text
    table = own / source.path
    before = table.read_text()
    said = list(
        forget._leave_table(table, source, own, frozenset({identities.digest("zeb")}), rewrite=rewrite)
    )
    if rewrite:
        assert said == ["reviews.csv: 2 rows taken out; `regraft run` takes note of it"]
        assert table.read_text() == before.replace(f"zeb,{SECRET},a\n", "")
    else:
        assert said[0].startswith("left to you: reviews.csv:62: delete this row yourself")
        assert said[1].startswith("left to you: reviews.csv:63: ")
        assert table.read_text() == before


def test_the_names_of_stages_are_those_of_the_pipeline():
    assert {*forget.MADE_AGAIN, forget.WITHDRAWN} <= set(in_order(REPOSITORY))


@pytest.fixture
def tracked(tmp_path, monkeypatch):
    """A DVC project of two stages that copy the secret, run before and after it changed."""
    root = tmp_path / "a project"
    root.mkdir()
    monkeypatch.chdir(root)
    subprocess.run(["git", "init", "-q"], check=True)
    (root / "dvc.yaml").write_text(PIPELINE)
    Repo.init().close()
    for text in (f"former {SECRET}", SECRET):
        (root / "secret").write_text(text)
        with Repo() as repo:
            repo.reproduce()
    (root / "secret").unlink()
    return root


def test_what_was_shown_and_former_versions_leave_the_cache_and_the_rest_stays(tracked):
    assert len([name for name in holders(tracked, "Zebulon") if ".dvc/cache" in name]) == 2
    said = list(forget._delete_copies(tracked, ()))
    assert said == ["deleted: resume points, evaluation, former versions in DVC's cache"]
    assert holders(tracked, "Zebulon") == {}
    assert "evaluation:" not in (tracked / "dvc.lock").read_text()
    assert (tracked / "other").read_text() == "kept\n"
    assert [name for name in holders(tracked, "kept") if ".dvc/cache" in name], (
        "the present version of others"
    )
    assert not (tracked / ".dvc" / "cache" / "runs").exists()
    assert list(forget._delete_copies(tracked, ())) == said, "asked again after a failure"


def test_a_cache_that_others_may_share_is_left_to_its_owners(tracked, tmp_path):
    shutil.move(tracked / ".dvc" / "cache", tmp_path / "cache")
    (tracked / ".dvc" / "config.local").write_text(f"[cache]\n    dir = {tmp_path / 'cache'}\n")
    assert not [line for line in forget.deletes(tracked) if "cache" in line]
    list(forget._delete_copies(tracked, ()))
    assert len(holders(tmp_path / "cache", "Zebulon")) == 2
    left = "\n".join(forget._beyond(tracked, tracked / "t.csv", ()))
    assert f"DVC's cache {tmp_path / 'cache'}" in left
    assert "`dvc gc --workspace --projects …` with all of them" in left


def test_what_lies_beyond_is_said(tracked, monkeypatch):
    (tracked / "t.csv").write_text("text,label\n")
    (tracked / "t.csv.dvc").touch()
    (tracked / ".dvc" / "config.local").write_text("['remote \"far\"']\n    url = s3://far\n")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:password@server")
    subprocess.run(["git", "add", "t.csv"], check=True)
    subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "x"], check=True)
    left = "\n".join(forget._beyond(tracked, tracked / "t.csv", [tracked / ".regraft" / "tasks" / "topic"]))
    for part in ("`dvc gc --workspace --cloud --remote far`", "t.csv is tracked by DVC", "git's history of t.csv",
                 "the server of MLFLOW_TRACKING_URI", "models trained on the rows", "task topic: "):  # fmt: skip
        assert part in left
    assert "password" not in left


@pytest.mark.e2e
def test_a_person_asks_to_be_forgotten(project, command):
    """One project: rows in every place a row can be, then in none."""
    table, line = project / "reviews.csv", f'"{SECRET},\nand twice",good\n'
    before = table.read_text()
    table.write_text(f"{before}{line}{FAULTY},\n{line}")
    command("dvc", "repro", "encoding")
    (project / ".regraft" / "resume").mkdir(parents=True)
    (project / ".regraft" / "runs" / "unfinished").mkdir(parents=True)
    words = ("Zebulon", FAULTY)
    held = holders(project, *words)
    assert any(name.startswith(".dvc/cache") for name in held)
    assert any(name.startswith(".regraft/mlartifacts") for name in held)
    options = [word for text in words for word in ("--ids", ids_of(project, text)[0])]

    said = command("regraft", "forget", *options, code=2)
    assert "workspace .regraft/runs/unfinished" in said.stdout
    assert "--yes deletes without asking; nothing was done" in said.stderr
    assert holders(project, *words) == held

    said = command("regraft", "forget", *options, "--yes", "--rewrite").stdout
    assert "all 2 rows that say the same are forgotten" in said
    assert "reviews.csv: 3 rows taken out" in said
    assert "left to you: models trained on the rows" in said
    assert holders(project, *words) == {}
    assert table.read_text() == before
    assert not (project / ".regraft" / "resume").exists()
    assert not list((project / ".regraft" / "runs").iterdir())
    assert len(preparation.read_forgotten(project / "forgotten.txt")) == 2
