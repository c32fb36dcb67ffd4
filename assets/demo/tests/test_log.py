import tempfile
import unittest
from pathlib import Path

from tide.log import LogError, read_log


def read(text: str) -> list[float] | str:
    """The metres that a log with these lines gives, or what is wrong with it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.csv"
        path.write_text(text, encoding="utf-8")
        try:
            return [level.metres for level in read_log(path)]
        except LogError as error:
            return str(error)


class ReadLog(unittest.TestCase):
    def test_reads_in_order(self) -> None:
        assert read("time,metres\n2026-03-14T00:00,1.20\n2026-03-14T00:30,1.35\n") == [1.2, 1.35]

    def test_names_the_line_that_is_wrong(self) -> None:
        assert "line 3" in str(read("time,metres\n2026-03-14T00:00,1.20\n2026-03-14T00:30,high\n"))

    def test_refuses_a_clock_that_went_back(self) -> None:
        assert "not after" in str(read("time,metres\n2026-03-14T01:00,1.20\n2026-03-14T00:30,1.35\n"))


if __name__ == "__main__":
    unittest.main()
