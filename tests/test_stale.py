"""What was measured by code that has changed since is told, outside of the reports, whose bytes must not change."""

from test_reports import one_record, write

from reports import stale, table


def test_rows_are_told_by_what_changed_since_their_commit(tmp_path, monkeypatch, capsys):
    old, new = one_record("old"), one_record("new")
    object.__setattr__(old, "provenance", old.provenance | {"commit": "a" * 40})
    old.case["config"] = {"stages": [["full"]], "attention": {}}
    changes = {"a" * 40: ("attention_zoo/full.py", "backbones/mlp.py"), "0123456789abcdef": ()}
    monkeypatch.setattr(stale, "changed_since", changes.get)
    folder = write(tmp_path / "trial", [old, new], table=None)
    assert stale.lines(table.load(folder)) == [
        ["trial", "old", "aaaaaaaaaa", "2", "full"],
        ["trial", "new", "0123456789", "0", "—"],
    ]
    assert stale.main([str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "1 of 2 lines are of code that has changed since; python -m harness.run" in printed
    changes["a" * 40] = None
    assert stale.lines(table.load(folder))[0][3:] == ["unknown commit", "—"]


def test_a_commit_that_git_does_not_know_is_no_error():
    assert stale.changed_since("0" * 40) is None
