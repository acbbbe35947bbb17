from pathlib import Path

import pytest

from flows import begin
from tasks import params
from tasks.errors import ParamsError

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def root(tmp_path):
    settings = params.parse((REPOSITORY / "params.yaml").read_text())
    (tmp_path / "params.yaml").write_text(params.dump(settings))
    return tmp_path


def test_init_writes_the_columns_that_differ(root):
    rows = (f"{n},{'spam' if n % 3 else 'ham'},message number {n} here\n" for n in range(30))
    (root / "mail.csv").write_text("id,kind,message\n" + "".join(rows))
    former = params.load(root / "params.yaml")
    told = list(begin.write(root, Path("mail.csv"), checkpoint=None, text=None, label=None, force=False))
    text = params.load(root / "params.yaml").sources.text
    assert text == params.TextSource(path="mail.csv", columns={"text": "message", "label": "kind"})
    assert params.load(root / "params.yaml").finetuning == former.finetuning
    assert told[0].startswith("text column: message")
    with pytest.raises(ParamsError, match=r"already reads mail\.csv: --force"):
        list(begin.write(root, Path("mail.csv"), checkpoint=None, text=None, label=None, force=False))


def test_init_notes_an_encoding_that_is_not_utf_8(root):
    (root / "a.csv").write_bytes("text,label\nété à la plage,a\nhiver,b\n".encode("utf-16"))
    told = list(begin.write(root, Path("a.csv"), checkpoint=None, text=None, label=None, force=False))
    text = params.load(root / "params.yaml").sources.text
    assert (text.columns, text.encoding) == ({}, "utf-16")
    assert "encoding: utf-16 (by the first bytes)" in told
