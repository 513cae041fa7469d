"""Files: read in one sentence, written whole or not at all, made once, and one run at a time."""

import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from bundle_tools import ROOT

from common.errors import InputError
from common.files import (
    Alone,
    difference,
    done_once,
    fingerprint_of,
    read_json,
    sha256_of,
    whole_folder,
    without_folders,
    write_atomically,
    write_json,
    write_text,
)


def start(code: str, *arguments: object) -> subprocess.Popen:
    """A Python process that knows this module; what it prints can be read."""
    program = "import sys\nfrom pathlib import Path\nfrom common.files import *\n" + textwrap.dedent(code)
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def killed_holding(code: str, *arguments: object) -> None:
    """Run code that prints a line and then sleeps, and kill it there."""
    process = start(code + "\nprint('there', flush=True)\nimport time\ntime.sleep(60)", *arguments)
    assert process.stdout.readline() == "there\n", process.stderr.read()
    process.kill()
    process.wait()


# read


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
def test_json_is_read_in_the_encodings_of_all_systems(tmp_path, encoding):
    (tmp_path / "a.json").write_bytes('{"subject": "Müller"}'.encode(encoding))
    assert read_json(tmp_path / "a.json") == {"subject": "Müller"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"cannot be read \(No such file or directory\), expected cases"),
        (b"{", r"is no valid JSON \(Expecting property name"),
        (b'{"name": "\xfc"}', "is no text in UTF-8, expected cases"),
        (b"[" * 100_000, "is nested too deep, expected cases"),
        (b'{"test": [], "training": [1], "training": []}', "the key 'training' stands in one object twice"),
        (b"[1" + b"0" * 5000 + b"]", "is no valid JSON"),
        (b"[]", "holds a list, expected cases"),
        (b"", "is no valid JSON"),
    ],
)
def test_what_is_no_json_is_refused_in_one_sentence(tmp_path, content, message):
    if content is not None:
        (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError, match=rf"a\.json .*{message}"):
        read_json(tmp_path / "a.json", "cases", dict)


def test_a_hash_is_that_of_the_content_also_after_it_changes(tmp_path):
    file = tmp_path / "a"
    for content in (b"first", b"other", b"x" * 3_000_000):
        file.write_bytes(content)
        assert sha256_of(file) == hashlib.sha256(content).hexdigest()
    with pytest.raises(InputError, match="no cannot be read"):
        sha256_of(tmp_path / "no")


# write


def test_an_error_while_writing_leaves_nothing(tmp_path):
    def fail(path):
        path.write_text("half")
        raise KeyError("bug")

    with pytest.raises(KeyError):
        write_atomically(tmp_path / "x.json", fail)
    assert not list(tmp_path.iterdir())


def test_a_file_is_on_the_disk_before_it_has_its_name_and_its_name_after(tmp_path, monkeypatch):
    events = []
    flush, rename = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda f: (events.append(stat.S_ISDIR(os.fstat(f).st_mode)), flush(f)))
    monkeypatch.setattr(Path, "replace", lambda part, path: (events.append("renamed"), rename(part, path)))
    write_text(tmp_path / "a.txt", "content")
    assert events == [False, "renamed", True]
    assert (tmp_path / "a.txt").read_text() == "content"


def test_permissions_are_those_that_the_umask_leaves(tmp_path):
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "a.txt", "content")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o640


def test_a_link_at_a_temporary_name_is_never_followed(tmp_path, monkeypatch):
    precious = tmp_path / "precious"
    precious.write_text("do not lose me")
    names = iter(["taken", "free"])
    monkeypatch.setattr("common.files.secrets.token_hex", lambda length: next(names))
    (tmp_path / ".part-taken.txt").symlink_to(precious)
    write_text(tmp_path / "a.txt", "content")
    assert precious.read_text() == "do not lose me"
    assert (tmp_path / "a.txt").read_text() == "content"
    assert not (tmp_path / "a.txt").is_symlink()


def test_a_name_as_long_as_names_may_be_can_be_written(tmp_path):
    path = tmp_path / ("x" * 248 + ".nii.gz")
    write_text(path, "content")
    assert path.read_text() == "content"


def test_what_a_killed_run_was_writing_is_removed_by_the_next_and_what_a_live_one_writes_is_not(tmp_path):
    killed_holding(
        "import time\ndef write(part):\n    part.write_text('half')\n    print('there', flush=True)\n"
        "    time.sleep(60)\nwrite_atomically(Path(sys.argv[1]), write)",
        tmp_path / "a.nii.gz",
    )
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".part-")
    assert left.name.endswith(".nii.gz")

    def write(part):
        other = start("write_text(sys.argv[1], 'other')", tmp_path / "b.txt")
        assert other.wait() == 0, other.stderr.read()
        assert part.exists()
        part.write_text("own")

    write_atomically(tmp_path / "c.txt", write)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.txt", "c.txt"]


def test_numbers_that_json_does_not_have_are_not_written(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"dice": float("nan")})
    assert not list(tmp_path.iterdir())


# one at a time


def test_the_second_process_is_told_who_is_at_work_and_since_when(tmp_path):
    with Alone(tmp_path / "out"):
        second = start("Alone(Path(sys.argv[1]))", tmp_path / "out")
        text = second.communicate()[1].strip().splitlines()[-1]
        assert second.returncode != 0
        year = time.strftime("%Y")
        assert f"out is in use by process {os.getpid()} on " in text
        assert f" since {year}-" in text
    assert not (tmp_path / "out").exists()  # it was made for the lock alone
    assert start("Alone(Path(sys.argv[1]))", tmp_path / "out").wait() == 0


def test_a_folder_that_was_there_or_that_holds_something_stays_when_a_lock_goes(tmp_path):
    (tmp_path / "empty").mkdir()
    with Alone(tmp_path / "empty"), Alone(tmp_path / "a" / "b" / "state.pt", is_file=True):
        (tmp_path / "a" / "kept").write_text("x")
    assert {path.name for path in tmp_path.rglob("*")} == {"empty", "a", "kept"}


def test_what_a_dead_process_held_is_taken_over_and_nothing_is_left(tmp_path):
    killed_holding("alone = Alone(Path(sys.argv[1]))", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    with Alone(tmp_path):
        assert f"process {os.getpid()} " in (tmp_path / ".lock").read_text()
    assert not list(tmp_path.iterdir())


def test_a_child_that_outlives_a_killed_run_holds_nothing(tmp_path):
    code = (
        "import os, time\nalone = Alone(Path(sys.argv[1]))\n"
        "if os.fork() == 0:\n    os.close(1)\n    os.close(2)\n    time.sleep(5)\n    os._exit(0)"
    )
    killed_holding(code, tmp_path)
    with Alone(tmp_path):  # refused while anybody holds it
        assert (tmp_path / ".lock").is_file()


def test_a_process_may_take_what_it_has_once_more(tmp_path):
    with Alone(tmp_path / "model.pt", is_file=True), Alone(tmp_path / "model.pt", is_file=True):
        assert [path.name for path in tmp_path.iterdir()] == [".model.pt.lock"]
    assert not list(tmp_path.iterdir())


def test_who_lost_its_lock_file_takes_it_again(tmp_path):
    with Alone(tmp_path):
        (tmp_path / ".lock").unlink()
        with Alone(tmp_path):
            assert start("Alone(Path(sys.argv[1]))", tmp_path).wait() != 0


def test_a_link_in_the_place_of_a_lock_is_not_followed(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("do not lose me")
    (tmp_path / ".lock").symlink_to(precious)
    with pytest.raises(InputError, match=r"\.lock cannot be written \(Too many levels of symbolic links\)"):
        Alone(tmp_path)
    assert precious.read_text() == "do not lose me"


def test_of_many_processes_at_once_one_at_a_time_is_alone(tmp_path):
    code = """
    import time
    out, log = Path(sys.argv[1]), Path(sys.argv[2])
    for _ in range(40):
        try:
            with Alone(out), log.open("a") as file:
                file.write("in\\n")
                file.flush()
                time.sleep(0.002)
                file.write("out\\n")
        except ValueError:
            time.sleep(0.001)
    """
    processes = [start(code, tmp_path / "out", tmp_path / "log") for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0], processes[0].stderr.read()
    lines = (tmp_path / "log").read_text().split()
    assert lines == ["in", "out"] * (len(lines) // 2)
    assert not list((tmp_path / "out").glob("*"))  # nor the folder, if the last one had made it


# folders


def test_a_folder_appears_whole_and_what_a_killed_run_left_is_removed(tmp_path):
    code = "context = whole_folder(sys.argv[1])\n(context.__enter__() / 'half').write_text('x')"
    killed_holding(code, tmp_path / "cohort")
    assert len(list(tmp_path.iterdir())) == 2  # the folder that is not whole, and the lock
    with whole_folder(tmp_path / "cohort") as partial:
        (partial / "a").write_text("x")
        assert not (tmp_path / "cohort").exists()
        other = start("with whole_folder(sys.argv[1]): pass", tmp_path / "cohort")
        assert "in use by process" in other.communicate()[1]
    assert [path.name for path in tmp_path.iterdir()] == ["cohort"]
    assert [path.name for path in (tmp_path / "cohort").iterdir()] == ["a"]
    with pytest.raises(InputError, match="cohort is not empty"), whole_folder(tmp_path / "cohort"):
        pass


# once


def test_a_difference_names_what_differs_and_both_values():
    before = {"seed": 1, "rate": 0.1, "old": True}
    now = {"seed": 2, "rate": 0.1, "new": None}
    assert (
        difference(now, before, "the state")
        == "seed is 2, the state has 1; old is nothing, the state has True; new is None, the state has nothing"
    )
    assert difference(now, dict(now)) == ""
    assert difference(dict.fromkeys(range(9), 0), {}).endswith("; and 5 more")


def test_a_file_counts_by_its_content_wherever_it_lies(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_text("same")
    first, second = (fingerprint_of({"weights": tmp_path / name, "size": (3, 4)}) for name in ("a", "b"))
    assert first == second == json.loads(json.dumps(first))
    (tmp_path / "b").write_text("else")
    assert difference(fingerprint_of({"weights": tmp_path / "b", "size": [3, 4]}), first).startswith("weights is SHA")


def test_what_is_done_is_not_done_again_unless_it_would_come_out_otherwise(tmp_path):
    calls = []

    def work():
        calls.append(1)
        return {"values": (1, float("inf"))}

    file = tmp_path / "done.json"
    results = [done_once(file, {"seed": 1}, work) for _ in range(3)]
    assert results == [{"values": [1, float("inf")]}] * 3
    assert len(calls) == 1
    done_once(file, {"seed": 2}, work)
    assert len(calls) == 2
    file.write_text("{")
    done_once(file, {"seed": 2}, work)
    assert len(calls) == 3


def test_what_was_begun_with_other_settings_is_removed_and_what_was_begun_with_these_is_not(tmp_path):
    file, removed = tmp_path / "done.json", []

    def stopped():
        raise KeyboardInterrupt

    for seed in (1, 1, 2):
        with pytest.raises(KeyboardInterrupt):
            done_once(file, {"seed": seed}, stopped, lambda seed=seed: removed.append(seed))
    assert removed == [2]
    assert done_once(file, {"seed": 2}, lambda: "whole") == "whole"


def test_a_signal_while_a_file_is_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def write(part):
        part.write_text("half of the new")
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, write)
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert path.read_text() == "old"


@pytest.mark.parametrize(
    ("sentence", "public"),
    [
        ("/home/my name/cases.json has no test", "cases.json has no test"),
        ("weights=/data/me/model.pt", "weights=model.pt"),
        ("C:\\Users\\me\\a.nii.gz and /b/c d/e.nii.gz differ", "a.nii.gz and e.nii.gz differ"),
        ("Dice / HD95 of cases/a.nii.gz", "Dice / HD95 of cases/a.nii.gz"),
        ("1/2 of the cases", "1/2 of the cases"),
    ],
)
def test_a_sentence_for_others_names_files_without_the_folders_of_this_computer(sentence, public):
    assert without_folders(sentence) == public
