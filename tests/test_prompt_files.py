"""``--prompts FILE``: what each form of file gives, and what is refused, with the line and the way out."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from overopt_bench.errors import UserError
from overopt_bench.prompts.files import read_prompt_file
from overopt_bench.prompts.tidy import overlap, tidy

TWO = ["fox face", "cat face, grinning"]
QUOTED = 'id,prompt\n1,fox face\n2,"cat face, grinning"\n'


def read(folder: Path, name: str, content: str | bytes, column: str | None = None) -> list[str]:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_prompt_file(path, column)[0]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "fox face\ncat face, grinning\n"),
        ("a.txt", "\ufefffox face\r\n\r\ncat face, grinning"),
        ("noending", "fox face\rcat face, grinning\r"),
        ("a.csv", QUOTED),
        ("a.CSV", "\ufeff" + QUOTED.replace("\n", "\r\n")),
        ("a.csv", 'prompt\nfox face\n\n"cat face, grinning"\n'),
        ("a.csv", 'text,Caption,PROMPT \nx,y,fox face\nx,y,"cat face, grinning"\n'),
        ("a.tsv", "Prompt\tCategory\nfox face\tanimal\ncat face, grinning\tanimal\n"),
        ("a.jsonl", '"fox face"\n\n"cat face, grinning"\n'),
        ("a.ndjson", '{"id": 1, "text": "fox face"}\r\n{"text": "cat face, grinning", "id": 2}'),
        ("a.json", '["fox face", "cat face, grinning"]'),
        ("a.json", '[{"caption": "fox face", "n": 1},\n {"caption": "cat face, grinning", "n": 2}]'),
    ],
)
def test_every_form_gives_its_prompts(name: str, content: str, tmp_path: Path) -> None:
    assert read(tmp_path, name, content) == TWO


def test_the_column_is_the_one_asked_for(tmp_path: Path) -> None:
    assert read(tmp_path, "a.csv", "prompt,Other\na,b\nc,d\n", "other") == ["b", "d"]
    assert read(tmp_path, "a.jsonl", '{"prompt": "a", "other": "b"}', "other") == ["b"]


def test_a_single_column_of_another_name_is_taken_and_said(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("animal\nfox face\n")
    prompts, (note,) = read_prompt_file(tmp_path / "a.csv")
    assert prompts == ["fox face"] and "'animal' is taken as the column's name, not as a prompt" in note


@pytest.mark.parametrize("mark", ["\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"])
def test_only_line_ends_end_a_prompt(mark: str, tmp_path: Path) -> None:
    """``str.splitlines`` would make two prompts of one."""
    assert tidy(read(tmp_path, "a.txt", f"fox{mark}face\n"), "x")[0] == ("fox face",)
    assert tidy(read(tmp_path, "a.csv", f"prompt\nfox{mark}face\n"), "x")[0] == ("fox face",)
    assert tidy(read(tmp_path, "a.jsonl", json.dumps(f"fox{mark}face", ensure_ascii=False)), "x")[0] == ("fox face",)


def test_a_quoted_cell_may_hold_line_ends_and_quotes(tmp_path: Path) -> None:
    assert read(tmp_path, "a.csv", 'prompt,id\n"a ""big""\nfox",1\nowl,2\n') == ['a "big"\nfox', "owl"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "fox\n".encode("utf-16"), r"UTF-16; convert it: iconv -f UTF-16 -t UTF-8 -- \S*a\.txt > utf8\.txt"),
        ("a.txt", "fox\n".encode("utf-16-le"), "seems to be UTF-16LE"),
        ("a.txt", "fox\n".encode("utf-16-be"), "seems to be UTF-16BE"),
        ("a.csv", "prompt\nfox\n".encode("utf-32"), "seems to be UTF-32;"),
        ("a.txt", "fox\n".encode("utf-32-be"), "seems to be UTF-32BE"),
        ("a.txt", "fox\nché\n".encode("latin-1"), "byte 0xe9 in line 2 is not UTF-8 but seems to be ISO-8859-1"),
        ("a.jsonl", '"fox\u2019s"\n'.encode("cp1252"), "seems to be WINDOWS-1252"),
        ("a.txt", "狐\n".encode("big5"), "is not UTF-8"),
        ("a.txt", b"\xb0\x81\n", "its encoding is not known"),
        ("a.txt", "狐".encode()[:-1], "ends within a character"),
        ("a.txt", gzip.compress(b"fox", mtime=0), "the file is gzip, not text"),
        ("a.txt", b"fox\0face\n", "NUL"),
        ("a.csv.gz", b"", r"no kind of prompt file '\.gz'; allowed: \.csv, \.json, \.jsonl, \.ndjson, \.tsv, \.txt"),
        ("a.parquet", b"PAR1", r"no kind of prompt file '\.parquet'"),
        ("a.jsonn", b"", r"did you mean '\.json'"),
        ("a.txt", "", "holds no prompt"),
        ("a.txt", " \n\t\r\n", "holds no prompt"),
        ("a.txt", '{"prompt": "fox"}\n', r"is JSON; give a file of JSON lines the ending \.jsonl"),
        ("a.txt", "[\n 1]", "is JSON"),
        ("a.csv", "", "holds no prompt"),
        ("a.csv", "prompt,id\n", "holds no prompt"),
        ("a.csv", "fox,1\nowl,2\n", "which column holds the prompts, with --prompt-column NAME; there are 'fox', '1'"),
        ("a.csv", "prompt;id\nfox;1\n", "seem to be separated by ';'"),
        ("a.csv", "prompt\tid\nfox\t1\n", r"seem to be separated by '\\t'"),
        ("a.csv", "prompt,id\nfox,1\ncat, grinning,2\n", "line 3 has 3 cells and the first line 2"),
        ("a.csv", 'prompt,id\n"a\nb",1\nowl\n', "line 4 has 1 cells"),
        ("a.csv", "prompt,id\nfox,1\n ,2\n", "line 3 has no prompt in the column 'prompt'"),
        ("a.csv", 'prompt\n"fox\n', "line 2: unexpected end of data"),
        ("a.csv", "prompt,prompt\na,b\n", "several columns are called 'prompt'"),
        ("a.jsonl", '"fox"\nfox\n', "line 2 is not JSON"),
        ("a.jsonl", '{"prompt": "fox"}\n{"promt": "owl"}\n', "line 2 has no 'prompt' but 'promt'"),
        ("a.jsonl", '{"prompt": "fox"}\n{"prompt": null}\n', "line 2 holds None where a prompt should be"),
        ("a.jsonl", '"fox"\n" "\n', "line 2 holds ' '"),
        ("a.jsonl", "3\n", "line 1 holds 3"),
        ("a.jsonl", "{}\n", "which column"),
        ("a.jsonl", '{"a": "x", "b": "y"}', "there are 'a', 'b'"),
        ("a.jsonl", "[" * 100_000, "line 1 is not JSON"),
        ("a.json", '{"prompts": []}', "must hold an array"),
        ("a.json", '["fox", 3]', "item 2 holds 3"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(name: str, content: str | bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path, name, content)
    assert str(caught.value).startswith(f"--prompts {tmp_path / name}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "prompt,other\na,b\n", "no column 'othr'; did you mean 'other'"),
        ("a.txt", "fox\n", "a text file has no columns"),
        ("a.jsonl", '"fox"\n', "its items have no keys"),
    ],
)
def test_a_column_that_is_not_there(name: str, content: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        read(tmp_path, name, content, "othr")


def test_absent_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        read_prompt_file(tmp_path / "absent.txt")
    with pytest.raises(UserError, match="Is a directory"):
        read_prompt_file(tmp_path)


def test_one_form() -> None:
    given = ["  fox \t face\u00a0", "fox face", "e\u0301cole", "\u200bowl\ufeff", "owl", "cat", "👩\u200d💻"]
    prompts, note = tidy(given, "--prompts a.txt")
    assert prompts == ("fox face", "école", "owl", "cat", "👩\u200d💻")  # the joiner of an emoji stays
    assert note == (
        "--prompts a.txt: of 7 prompts, white space or Unicode forms of 3 made uniform, 2 repeated dropped; 5 remain"
    )
    assert tidy(prompts, "x") == (prompts, None)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ("fox", "must be a list of prompts, not 'fox'"),
        (5, "must be a list of prompts, not 5"),
        (["fox", 5], "prompt 2 is 5, which is no text; put it in quotes"),
        (["fox", True], "prompt 2 is True"),
        (["fox", " \u200b"], "prompt 2 is empty"),
        (["fox\x00"], r"holds U\+0000"),
        (["fox\x7f"], r"holds U\+007F"),
        (["\ud83e fox"], r"holds U\+D83E"),
        (["f\ufffdx"], r"holds U\+FFFD"),
    ],
)
def test_what_is_no_prompt(prompts: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tidy(prompts, "train_prompts")


def test_overlap_looks_past_case_and_form() -> None:
    assert overlap(["Fox  face", "cafe\u0301"], ["fox face", "owl", "CAFÉ"]) == ["fox face", "CAFÉ"]
