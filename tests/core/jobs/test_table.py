from __future__ import annotations

import csv
import io
import json
import os
import re
import tracemalloc
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.jobs.errors import JobInputError
from core.jobs.sources import _not_utf8
from core.jobs.table import EXPORT_COLUMNS, Table, read_table


def write(folder: Path, data: bytes | str, name: str = "in.csv") -> Path:
    path = folder / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def scratch(factory: pytest.TempPathFactory) -> Path:
    """One folder for all the examples of the property tests: each overwrites the file of the one before."""
    path = factory.getbasetemp() / "examples"
    path.mkdir(exist_ok=True)
    return path


def values(path: Path) -> list[list[str]]:
    return [row.values for row in read_table(path).rows]


# --- what is taken ---------------------------------------------------------------------------------------


def test_values_stay_the_text_they_were(tmp_path: Path) -> None:
    path = write(tmp_path, 'id,note\n007," a ""b"" "\n1e5,"two\nlines, one cell"\n, x\n')
    assert values(path) == [["007", ' a "b" '], ["1e5", "two\nlines, one cell"], ["", " x"]]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_line_ending_with_or_without_one_at_the_end(tmp_path: Path, end: str) -> None:
    for text in ("a,b\n1,2\n3,4\n", "a,b\n1,2\n3,4"):
        assert values(write(tmp_path, text.replace("\n", end))) == [["1", "2"], ["3", "4"]]


def test_a_byte_order_mark_is_not_part_of_the_first_name(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, b"\xef\xbb\xbfpath,x\na,b\n"), id_column="path")
    assert table.headers == ["path", "x"]
    assert table.first.item == "a"


def test_blank_rows_are_left_out_and_counted(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, "a,b\n\n1,2\n,\n  ,\t\n   \n3,4\n\n"))
    assert [row.values for row in table.rows] == [["1", "2"], ["3", "4"]]
    assert [row.row_index for row in table.rows] == [0, 1]
    assert [row.item for row in table.rows] == ["row-1", "row-2"]
    assert table.blank == 5


def test_a_cell_larger_than_the_parsers_default_limit(tmp_path: Path) -> None:
    big = "x" * 300_000
    assert values(write(tmp_path, f"a,b\n{big},1\n")) == [[big, "1"]]


def test_reading_does_not_hold_the_whole_text_beside_the_rows(tmp_path: Path) -> None:
    path = write(tmp_path, "a\n" + "\n" * 200_000 + "1\n")
    tracemalloc.start()
    try:
        assert read_table(path).blank == 200_000
        assert tracemalloc.get_traced_memory()[1] < 200_000
    finally:
        tracemalloc.stop()


CELL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[str], list[list[str]]]:
    names = CELL.filter(lambda name: name.strip() and name not in EXPORT_COLUMNS and name[0] != "\ufeff")
    headers = draw(st.lists(names, min_size=1, max_size=5, unique=True))
    row = st.lists(CELL, min_size=len(headers), max_size=len(headers))
    filled = row.filter(lambda cells: any(cell.strip() for cell in cells))
    return headers, draw(st.lists(filled, min_size=1, max_size=6))


@settings(deadline=None)  # a disk may be busy
@given(table=tables(), end=st.sampled_from(["\n", "\r\n"]), bom=st.booleans())
def test_what_was_written_is_what_is_read(
    tmp_path_factory: pytest.TempPathFactory, table: tuple[list[str], list[list[str]]], end: str, bom: bool
) -> None:
    headers, rows = table
    out = io.StringIO(newline="")
    # "\r\n" as the terminator makes the writer quote both breaks inside cells.
    csv.writer(
        out, lineterminator="\r\n", quoting=csv.QUOTE_ALL if end == "\n" else csv.QUOTE_MINIMAL
    ).writerows([headers, *rows])
    path = write(scratch(tmp_path_factory), (b"\xef\xbb\xbf" if bom else b"") + out.getvalue().encode())
    read = read_table(path)
    assert (read.headers, [row.values for row in read.rows]) == (headers, rows)


# --- ids -------------------------------------------------------------------------------------------------


def items(folder: Path, ids: list[str]) -> list[str]:
    out = io.StringIO(newline="")
    csv.writer(out).writerows([["id", "x"], *([value, "1"] for value in ids)])
    return [row.item for row in read_table(write(folder, out.getvalue()), id_column="id").rows]


def test_a_repeated_id_counts_on_until_it_is_free(tmp_path: Path) -> None:
    assert items(tmp_path, ["a", "a", "a-2", "a", "", "row-5", "row-5"]) == [
        "a",
        "a-2",
        "a-2-2",
        "a-3",
        "row-5",
        "row-5-2",
        "row-5-3",
    ]


def test_an_id_is_one_clean_line_and_the_source_keeps_its_text(tmp_path: Path) -> None:
    source = "x\nJob ID: other\x1b[31m"
    path = write(tmp_path, f'id,b\n"{source}",1\n')
    row = read_table(path, id_column="id").first
    assert row.item == "x Job ID: other"
    assert row.source_id == source


@settings(deadline=None)  # a disk may be busy
@given(
    st.lists(
        st.sampled_from(["a", "a-2", "a-3", "a-2-2", "", "row-1", "row-2", "b"]), min_size=1, max_size=30
    )
)
def test_ids_are_unique_and_begin_with_their_source(
    tmp_path_factory: pytest.TempPathFactory, ids: list[str]
) -> None:
    found = items(scratch(tmp_path_factory), ids)
    assert len(set(found)) == len(ids)
    assert all(item.startswith(source) for item, source in zip(found, ids, strict=True))


def test_a_hundred_thousand_equal_ids_stay_linear(tmp_path: Path) -> None:
    # Counting from 2 for each of them would take 5 thousand million steps: the time-out of the suite tells.
    found = items(tmp_path, ["same"] * 100_000)
    assert found[-1] == "same-100000"
    assert len(set(found)) == 100_000


# --- what is refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "in.csv is empty"),
        (b"\xef\xbb\xbf", "in.csv is empty"),
        (b"a,b\n", "no rows"),
        (b"a,b\n,\n\n", "no rows"),
        (b"\na,b\n1,2\n", "line 1: the header is empty"),
        (b",\n1,2\n", "line 1: the header is empty"),
        (b"a, ,c\n1,2,3\n", "line 1, column 2: the column has no name"),
        (b"a,b,a\n1,2,3\n", "line 1, column 3: 'a' is the name of column 1 already"),
        (b"a,status\n1,2\n", "line 1, column 2: 'status' is a column that the output adds"),
        (b"a,b\n1,2\n3\n", "line 3, column 2: 'b' is missing (1 field, the header has 2)"),
        (b'a,b\n"x\ny",2\n1,2,3\n', "line 4, column 3: a field too many (3 fields, the header has 2)"),
        (b"a,b\n1,\xff2\n", "line 2, character 3: the byte 0xff is not UTF-8"),
        (b"a,b\r1,2\r\xc3(,2\r", "line 3, character 1: the byte 0xc3 is not UTF-8"),
        ("a,b\n1,2\n".encode("utf-16"), "line 1, character 1: the byte 0xff is not UTF-8"),
        (b"a,b\n1,2\n3,\x004\n", "line 3, character 3: a NUL byte"),
        (b'a,b\n1,2\n3,"4\n5,6\n', "line 3, column 2: a quote is opened and never closed"),
        (b'a,b\n1,2\n"3', "line 3, column 1: a quote is opened and never closed"),
        (b'a,b\n1,2\n3,"4"x\n', "line 3, character 6: text after a closing quote"),
        (b'a,b\n"p\nq"z,2\n', "line 3, character 3: text after a closing quote"),
    ],
)
def test_one_sentence_with_the_place(tmp_path: Path, data: bytes, sentence: str) -> None:
    with pytest.raises(JobInputError) as caught:
        read_table(write(tmp_path, data))
    assert sentence in str(caught.value)
    assert "in.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("column", EXPORT_COLUMNS)
def test_no_header_may_collide_with_the_output(tmp_path: Path, column: str) -> None:
    with pytest.raises(JobInputError, match=f"'{column}'"):
        read_table(write(tmp_path, f"x,{column}\n1,2\n"))


def test_an_unknown_id_column_lists_the_columns(tmp_path: Path) -> None:
    with pytest.raises(JobInputError, match="no column 'nr' for ids; its columns are: path, area"):
        read_table(write(tmp_path, "path,area\n1,2\n"), id_column="nr")


def test_what_is_not_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, sentence in [("none.csv", "there is no file"), ("", "folder"), ("pipe", "not a regular file")]:
        with pytest.raises(JobInputError, match=sentence):
            read_table(tmp_path / name)
    with pytest.raises(JobInputError, match="not a regular file"):
        read_table(Path("/dev/zero"))


def test_hostile_names_are_cleaned_in_messages(tmp_path: Path) -> None:
    with pytest.raises(JobInputError) as caught:
        read_table(write(tmp_path, "a\x1b]52;c;evil\x07b,a\x1b]52;c;evil\x07b\n1,2\n"))
    assert "\x1b" not in str(caught.value)
    assert "evil" not in str(caught.value)


def read_or_refuse(path: Path) -> Table | str:
    try:
        return read_table(path)
    except JobInputError as error:
        return str(error)


@settings(deadline=None)  # a disk may be busy
@given(st.binary(max_size=60))
def test_any_bytes_are_a_table_or_one_sentence(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    read = read_or_refuse(write(scratch(tmp_path_factory), data))
    if isinstance(read, str):
        assert "\n" not in read
    else:
        assert all(len(row.values) == len(read.headers) for row in read.rows)


@settings(deadline=None)  # a disk may be busy
@given(st.text(st.sampled_from('a,"\n\r x'), max_size=40))
def test_any_quoting_is_a_table_or_one_sentence(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    read = read_or_refuse(write(scratch(tmp_path_factory), text))
    if isinstance(read, str):
        assert "in.csv" in read
        return
    records = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    kept = [record for record in records[1:] if any(cell.strip() for cell in record)]
    assert [row.values for row in read.rows] == kept


# --- other formats ---------------------------------------------------------------------------------------


def test_tab_separated_values(tmp_path: Path) -> None:
    path = write(tmp_path, 'id\tnote\n007\t"two\nlines, one cell"\n1\t a,b \n', "in.TSV")
    assert values(path) == [["007", "two\nlines, one cell"], ["1", " a,b "]]
    with pytest.raises(JobInputError, match="line 3, column 2: 'b' is missing"):
        read_table(write(tmp_path, "a\tb\n1\t2\n3\n", "in.tsv"))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_json_lines_keep_what_was_written(tmp_path: Path, end: str) -> None:
    lines = [
        '{"id": "007", "n": 1.50, "deep": {"x": [1,  2]}}',
        "",
        '{"n": 123456789012345678901234567890, "flag": true, "id": null}',
        '{"id": "", "flag": null}',
        '{"id": "\\u00e9 \\ud83c\\udf0a"}',
    ]
    for text in ("\ufeff" + end.join(lines) + end, end.join(lines)):
        table = read_table(write(tmp_path, text, "in.jsonl"), id_column="id")
        assert table.headers == ["id", "n", "deep", "flag"]
        assert table.blank == 2
        assert [row.values for row in table.rows] == [
            ["007", "1.50", '{"x": [1,  2]}', ""],
            ["", "123456789012345678901234567890", "", "true"],
            ["é 🌊", "", "", ""],
        ]
        assert [row.item for row in table.rows] == ["007", "row-2", "é 🌊"]


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "in.jsonl is empty"),
        (b"\n\n", "in.jsonl is empty"),
        (b"{}\n", "in.jsonl is empty"),
        (b'{"a": ""}\n', "no rows"),
        (b'{"a": 1}\n[1]\n', "line 2: not a JSON object: Expected `object`, got `array`"),
        (b'{"a": 1}\n{"a": 1\n', "line 2: not a JSON object"),
        (b'{"a": 1}\n{"a": 1} x\n', "line 2: not a JSON object"),
        (b'{"a": NaN}\n', "line 1: not a JSON object"),
        (b'{"a": 1}\n{"a": "\xff"}\n', "line 2, character 8: the byte 0xff is not UTF-8"),
        (b'{"a": 1}\n{"a": "x\\u0000"}\n', "line 2: a NUL character in a value"),
        (b'{"a": 1}\n{"a": "\\ud800"}\n', "line 2: "),
        (b'{"a": 1, " ": 2}\n', "in.jsonl, column 2: the column has no name"),
        (b'{"a": 1, "status": 2}\n', "in.jsonl, column 2: 'status' is a column that the output adds"),
        (b"[" * 100_000, "line 1: not a JSON object"),
        (b'{"a": ' + b"[" * 100_000, "line 1: not a JSON object"),
    ],
)
def test_json_lines_that_are_refused(tmp_path: Path, data: bytes, sentence: str) -> None:
    with pytest.raises(JobInputError) as caught:
        read_table(write(tmp_path, data, "in.jsonl"))
    assert sentence in str(caught.value)
    assert "in.jsonl" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_json_lines_with_a_key_per_line_end_somewhere(tmp_path: Path) -> None:
    text = "".join(f'{{"k{i}": 1}}\n' for i in range(1001))
    with pytest.raises(JobInputError, match="line 1001: more than 1,000 different keys"):
        read_table(write(tmp_path, text, "in.jsonl"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | CELL,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(CELL, inner, max_size=3),
    max_leaves=5,
)


@settings(deadline=None)  # a disk may be busy
@given(st.lists(st.dictionaries(st.sampled_from("abcd"), JSON, max_size=4), max_size=6))
def test_json_values_are_the_text_that_json_has_for_them(
    tmp_path_factory: pytest.TempPathFactory, objects: list[dict[str, Any]]
) -> None:
    text = "".join(json.dumps(each) + "\n" for each in objects)
    read = read_or_refuse(write(scratch(tmp_path_factory), text, "in.jsonl"))

    def shown(value: Any) -> str:
        return value if isinstance(value, str) else "" if value is None else json.dumps(value)

    columns = list(dict.fromkeys(key for each in objects for key in each))
    rows = [[shown(each.get(key)) for key in columns] for each in objects]
    rows = [row for row in rows if any(cell.strip() for cell in row)]
    if isinstance(read, str):
        assert not rows
    else:
        assert (read.headers, [row.values for row in read.rows]) == (columns, rows)


@settings(deadline=None)  # a disk may be busy
@given(st.binary(max_size=60))
def test_any_bytes_of_any_ending_are_a_table_or_one_sentence(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    for name in ("any.jsonl", "any.tsv"):
        read = read_or_refuse(write(scratch(tmp_path_factory), data, name))
        assert not isinstance(read, str) or "\n" not in read


def test_parquet(tmp_path: Path) -> None:
    polars = pytest.importorskip("polars")
    path = tmp_path / "in.parquet"
    frame = polars.DataFrame(
        {
            "id": ["007", None, "x\ny"],
            "n": [1, None, -3],
            "f": [1.5, None, 1e300],
            "flag": [True, None, False],
            "day": [date(2026, 1, 2), None, date(1, 1, 1)],
            "at": [datetime(2026, 1, 2, 3, 4, 5, 600), None, datetime(1970, 1, 1)],
            "deep": [{"x": [1, 2]}, None, {"x": []}],
            "list": [["a", "é"], None, []],
        },
        schema_overrides={"deep": polars.Struct({"x": polars.List(polars.Int64)})},
    )
    frame.write_parquet(path)
    table = read_table(path, id_column="id")
    assert table.headers == frame.columns
    assert table.blank == 1
    assert [row.values for row in table.rows] == [
        [
            "007",
            "1",
            "1.5",
            "true",
            "2026-01-02",
            "2026-01-02 03:04:05.000600",
            '{"x": [1, 2]}',
            '["a", "é"]',
        ],
        ["x\ny", "-3", "1e+300", "false", "0001-01-01", "1970-01-01 00:00:00", '{"x": []}', "[]"],
    ]


def test_parquet_that_is_refused(tmp_path: Path) -> None:
    polars = pytest.importorskip("polars")
    path = write(tmp_path, b"PAR1 is not enough", "in.parquet")
    with pytest.raises(JobInputError, match="parquet is not a Parquet file that can be read"):
        read_table(path)
    polars.DataFrame({"a": [b"bytes"]}).write_parquet(path)
    with pytest.raises(JobInputError, match="the column 'a' holds bytes"):
        read_table(path)
    polars.DataFrame({"a": ["x", "nul\0"]}).write_parquet(path)
    with pytest.raises(JobInputError, match="row 2: a NUL character in a value"):
        read_table(path)
    polars.DataFrame({"a": [], "b": []}).write_parquet(path)
    with pytest.raises(JobInputError, match="no rows"):
        read_table(path)
    for name in ("[x].parquet", "*.parquet"):  # no pattern, a file's name
        polars.DataFrame({"a": [name]}).write_parquet(tmp_path / name)
        assert values(tmp_path / name) == [[name]]


@given(st.lists(st.tuples(st.none() | CELL, st.none() | st.integers(-(2**63), 2**63 - 1)), max_size=5))
@settings(deadline=None, max_examples=50)  # polars is imported by the first one
def test_parquet_text_and_numbers_stay(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str | None, int | None]]
) -> None:
    import polars

    path = scratch(tmp_path_factory) / "in.parquet"
    schema = {"a": polars.String(), "n": polars.Int64()}
    polars.DataFrame(rows, schema=schema, orient="row").write_parquet(path)
    read = read_or_refuse(path)
    kept = [["" if cell is None else str(cell) for cell in row] for row in rows]
    kept = [row for row in kept if any(cell.strip() for cell in row)]
    assert isinstance(read, str) == (not kept)
    if not isinstance(read, str):
        assert [row.values for row in read.rows] == kept


# --- large and changing ----------------------------------------------------------------------------------


def test_an_input_that_changes_between_check_and_walk(tmp_path: Path) -> None:
    path = write(tmp_path, "a\n1\n2\n")
    table = read_table(path)
    assert len(table.rows) == len(list(table.rows)) == len(list(table.rows)) == 2
    walk = iter(table.rows)
    next(walk)
    path.write_text("a\n1\n2\n3\n")
    with pytest.raises(JobInputError, match=r"in\.csv was changed while it was read; nothing was stored"):
        list(walk)
    with pytest.raises(JobInputError, match="was changed"):
        list(table.rows)
    path.unlink()
    with pytest.raises(JobInputError, match="was changed"):
        list(table.rows)


@pytest.mark.parametrize(("name", "what"), [("in.csv", "quote"), ("in.jsonl", "line break")])
def test_a_record_without_an_end_is_not_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, what: str
) -> None:
    monkeypatch.setattr("core.jobs.sources.MAX_RECORD", 10_000)
    path = write(tmp_path, 'a,b\n1,2\n"' + "x\n" * 400_000 if what == "quote" else "[" * 800_000, name)
    tracemalloc.start()
    try:
        with pytest.raises(
            JobInputError, match=f"a record of more than 10,000 characters; is there a {what}"
        ):
            read_table(path)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_a_cell_of_a_megabyte_in_every_format(tmp_path: Path) -> None:
    polars = pytest.importorskip("polars")
    big = "ä" * 1_000_000
    polars.DataFrame({"a": [big]}).write_parquet(tmp_path / "in.parquet")
    assert values(write(tmp_path, f"a\n{big}\n")) == [[big]]
    assert values(write(tmp_path, f"a\n{big}\n", "in.tsv")) == [[big]]
    assert values(write(tmp_path, json.dumps({"a": big}), "in.jsonl")) == [[big]]
    assert values(tmp_path / "in.parquet") == [[big]]


@settings(deadline=None)  # a disk may be busy
@given(st.binary(max_size=12), st.integers(1, 5))
def test_the_place_of_the_first_byte_that_is_not_utf8(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, chunk: int
) -> None:
    """However the file is cut into chunks."""
    data = b"\xc3\xa4\r\n" + data + b"\xff"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("core.jobs.sources._CHUNK", chunk)
        found = _not_utf8(write(scratch(tmp_path_factory), data))
    with pytest.raises(UnicodeDecodeError) as caught:
        data.decode()
    at = caught.value.start
    lines = re.split("\r\n|\r|\n", data[:at].decode())
    assert f"line {len(lines)}, character {len(lines[-1]) + 1}: the byte 0x{data[at]:02x} " in found


def test_rows_with_ids_of_their_own_cost_hardly_any_memory(tmp_path: Path) -> None:
    path = write(tmp_path, "id,x\n" + "".join(f"id-{i},{'x' * 40}\n" for i in range(100_000)))
    tracemalloc.start()
    try:
        table = read_table(path, id_column="id")
        assert sum(1 for _ in table.rows) == len(table.rows) == 100_000
        # 8 bytes and their slack per id; the texts alone would be 14 MB.
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()
