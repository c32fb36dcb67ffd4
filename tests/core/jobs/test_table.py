from __future__ import annotations

import csv
import io
import os
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.jobs.errors import JobInputError
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
    assert table.rows[0].item == "a"


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
    path = write(tmp_path, "a\n" + "\n" * 400_000 + "1\n")
    tracemalloc.start()
    try:
        assert read_table(path).blank == 400_000
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
    row = read_table(path, id_column="id").rows[0]
    assert row.item == "x Job ID: other"
    assert row.source_id == source


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


@given(st.binary(max_size=60))
def test_any_bytes_are_a_table_or_one_sentence(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    read = read_or_refuse(write(scratch(tmp_path_factory), data))
    if isinstance(read, str):
        assert "\n" not in read
    else:
        assert all(len(row.values) == len(read.headers) for row in read.rows)


@given(st.text(st.sampled_from('a,"\n\r x'), max_size=40))
def test_any_quoting_is_a_table_or_one_sentence(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    read = read_or_refuse(write(scratch(tmp_path_factory), text))
    if isinstance(read, str):
        assert "in.csv" in read
        return
    records = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    kept = [record for record in records[1:] if any(cell.strip() for cell in record)]
    assert [row.values for row in read.rows] == kept
