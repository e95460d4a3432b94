"""Lines and blocks of lines of a log."""

import json
from io import BytesIO

from hypothesis import given
from hypothesis import strategies as st

from autoclip.traces import read_traces, text
from autoclip.traces.text import lines, raw_blocks
from tests.properties import pinned

PIECES = st.sampled_from([b"a", b"{", b"}", b"\n", b"\r\n", b"\r", b"\xef\xbb\xbf", b"\xff", b"12", b"\n\n"])
ROWS = st.sampled_from(['{"step": %d, "grad_norm": %d.5}', '{"step": %d}, {"grad_norm": %d.5}', "step %d, %d", ""])


@pinned(300)
@given(st.lists(PIECES, max_size=30), st.integers(4, 12))
def test_blocks_are_whole_lines_and_together_the_file(tmp_path_factory, pieces, size):
    path = tmp_path_factory.mktemp("log") / "log.txt"
    path.write_bytes(b"".join(pieces))
    whole = path.read_bytes()
    kept, text.BLOCK = text.BLOCK, size
    try:
        blocks, found = list(raw_blocks(path)), list(lines(path))
    finally:
        text.BLOCK = kept
    assert all(block.endswith(b"\n") for block in blocks[:-1])
    whole = whole.removeprefix(b"\xef\xbb\xbf")
    assert b"".join(blocks) == whole
    assert found == [line.decode(errors="replace") for line in BytesIO(whole)]


@pinned(300)
@given(st.lists(st.tuples(ROWS, st.sampled_from(["\n", "\r\n"])), min_size=1, max_size=40), st.integers(64, 200))
def test_rows_do_not_depend_on_where_blocks_end(tmp_path_factory, rows, size):
    rows = [('{"step": %d, "grad_norm": %d.5}', "\n"), *rows]
    made = [(row % (n, n) if "%d" in row else row) + end for n, (row, end) in enumerate(rows)]
    path = tmp_path_factory.mktemp("log") / "log.jsonl"
    path.write_bytes("".join(made).encode())
    good = [json.loads(line) for line in made if line.count("{") == 1]
    for block in (size, 2**16):
        kept, text.BLOCK = text.BLOCK, block
        try:
            (trace,) = read_traces(path)
        finally:
            text.BLOCK = kept
        assert trace.steps.tolist() == [row["step"] for row in good]
        assert trace.norms.tolist() == [row["grad_norm"] for row in good]
