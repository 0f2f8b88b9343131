"""Tables for a terminal."""

from __future__ import annotations

from tritonclip_client.table import format_table


def test_columns_are_aligned():
    table = format_table(["image", "n", "p"], [("a.png", 3, 0.5), ("long name.png", 12, 0.12345)])

    assert table.splitlines() == [
        "image           n       p",
        "-------------  --  ------",
        "a.png           3  0.5000",
        "long name.png  12  0.1235",
    ]


def test_numbers_that_are_written_out_stand_to_the_right_and_gaps_do_not_disturb():
    rows = [("embed_image", "9.5", "-", "100%", "3 of 80"), ("total", "1000.0", "1e-07", "5.0%", "12 of 80")]

    assert format_table(["", "items/s", "p50", "share", "differ"], rows).splitlines() == [
        "             items/s    p50  share  differ",
        "-----------  -------  -----  -----  --------",
        "embed_image      9.5      -   100%  3 of 80",
        "total         1000.0  1e-07   5.0%  12 of 80",
    ]


def test_a_column_without_any_number_stands_to_the_left():
    assert format_table(["x", "wide name"], [("a", "-"), ("b", "")]).splitlines()[2:] == ["a  -", "b"]


def test_wide_and_combining_characters_take_their_columns():
    table = format_table(["t", "x"], [("日本", "a"), ("e\u0301", "b")])

    assert table.splitlines()[2:] == ["日本  a", "e\u0301     b"]


def test_nothing_moves_the_cursor():
    assert format_table(["a\tb"], [("x\ny\x1b[31m",)]).splitlines()[2] == r"x\ny\x1b[31m"


def test_no_rows_still_show_the_header():
    assert format_table(["a", "b"], []) == "a  b\n-  -"
