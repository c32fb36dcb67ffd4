"""What `watchroom job run --help` says beyond its options."""

from __future__ import annotations

RUN = """\
input: a table with a header and one row for each worker: CSV, or by its ending .tsv, .jsonl or .parquet, in
  UTF-8. Values stay the text that they are: 007 stays 007. Blank rows are left out; whatever else is wrong
  is refused with its place before anything is stored. --glob 'src/**/*.py' makes rows of files instead.
instruction: {column} is filled in from the row, {{ and }} are braces, @FILE is read from a file. The row
  itself, as JSON, and the schema stand below it.
rows: named by --id-column, else row-1, row-2 and so on; a name that repeats gets -2, -3 and so on
result: a worker hands in one JSON object, with its report tool. One that ends without that has failed its
  row, whatever it said: the row's error is then the model server's, if that has refused, or says that no
  report was made. With --schema a report that does not fit goes back to the worker with what is wrong.
  A failed row is tried --max-attempts times in all, each time by a new worker.
output: the input's columns, then
  job_id item_id row_index source_id status attempt_count last_error result_json reported_at completed_at.
  Cells that a spreadsheet would run as a formula get a leading ' unless --raw is given.
later: job list, show and rows tell about a job; pause, cancel, retry, skip and set steer it, while it runs
  and after; export writes its rows at any moment. Whatever has cut a run short, job resume ID goes on with
  it: rows that were reported stay so, the others are worked on.
exit codes: 0 all rows done, 1 error, 2 wrong words or input, 3 ended, with failed rows or early,
  4 stopped by the budget, 5 stopped by the quota at the model server, 130 SIGINT, 143 SIGTERM"""
