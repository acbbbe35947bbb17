import json
import re
from pathlib import Path

import pyarrow.parquet as parquet

from tasks.params import PreparationParams, TextSource
from tasks.stages.preparation import prepare

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def test_the_five_lines_become_what_the_readme_says(tmp_path):
    section = README.partition("## Prepare your own data")[2]
    lines = re.search(r"```\n(text,label\n.*?)```", section, flags=re.S)[1]
    others = [
        f"row {n} of a table with words{n} of its own {n * n},{('praise', 'complaint')[n % 2]}\n"
        for n in range(40)
    ]
    table = tmp_path / "reviews.csv"
    table.write_text(lines + "".join(others), encoding="utf-8")
    (tmp_path / "out").mkdir()
    settings = PreparationParams.model_validate({"engine": "thread"})
    prepare(
        table, TextSource.model_validate({"path": "reviews.csv"}), settings,
        into=tmp_path / "out", remembered=tmp_path / "ledger.parquet",
    )  # fmt: skip
    rows, drops, aside = (
        parquet.read_table(tmp_path / "out" / f"{name}.parquet").to_pylist()
        for name in ("rows", "drops", "quarantine")
    )
    kept = {row["text"]: row["id"] for row in rows}
    assert {"The room was lovely, thank you", "N/A"} < kept.keys()
    assert [(d["reason"], d["duplicate_of"], d["similarity"]) for d in drops] == [
        ("exact_duplicate", kept["The room was lovely, thank you"], 1.0)
    ]
    assert [(q["line"], q["reason"]) for q in aside] == [(4, "conflicting_labels"), (5, "conflicting_labels")]


def test_the_kinds_of_the_readme_are_those_there_are():
    from tasks.text.kinds import KINDS

    section = README.partition("| kind | columns |")[2].partition("All kinds")[0]
    assert set(re.findall(r"`([a-z-]+)` \|", section)) == set(KINDS)


def test_the_families_of_the_readme_are_those_there_are():
    from tasks.weights.families import NAMINGS

    told = README.partition("- **Families**:")[2].partition("\n## ")[0]
    names = set(re.findall(r"`([a-z0-9-]+)`", told))
    suffixed = {f"gpt-textbook{name}" if name.startswith("-") else name for name in names}
    assert suffixed - {"tok_emb"} == set(NAMINGS)


def test_the_figures_and_baselines_of_the_readme_are_those_there_are():
    from tasks.evaluation.baselines import BASELINES
    from tasks.evaluation.judging import JUDGINGS

    lines = README.partition("| rows | figures | baselines |")[2].partition("\n\n")[0].splitlines()[2:]
    told = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert {kind for cells in told for kind in cells[0].split(", ")} == set(JUDGINGS)
    for kinds, figures, baselines, _ in told:
        always, _, named = baselines.rstrip(")").partition(" (")
        usual, _, others = figures.rstrip(")").partition(" (")
        for kind in kinds.split(", "):
            assert tuple(usual.split(", ")) == JUDGINGS[kind].usual
            assert {*usual.split(", "), *filter(None, others.split(", "))} == set(JUDGINGS[kind].metrics)
            known = BASELINES[kind].items()
            assert always.split(", ") == [name for name, one in known if one.usual]
            assert [*filter(None, named.split(", "))] == [name for name, one in known if not one.usual]


def test_the_conditions_of_the_readme_are_those_there_are():
    from tasks.params import GateParams

    table = README.partition("| key | holds where |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `([a-z_]+)` \|", table, flags=re.M) == list(GateParams.model_fields)


def test_the_tables_of_quality_are_those_that_were_measured():
    from benchmarks import quality_tables

    found = json.loads((REPOSITORY / "benchmarks" / "results" / "quality.json").read_text(encoding="utf-8"))
    for table in (quality_tables.sizes, quality_tables.cost):
        assert table(found["contestants"]) in README


def test_the_table_of_sizes_is_what_was_measured_and_what_the_forecast_computes():
    from benchmarks import sizing

    assert sizing.measured() in README
    assert sizing.computed() in README
