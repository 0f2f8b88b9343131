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


def test_wide_and_combining_characters_take_their_columns():
    table = format_table(["t", "x"], [("日本", "a"), ("e\u0301", "b")])

    assert table.splitlines()[2:] == ["日本  a", "e\u0301     b"]


def test_nothing_moves_the_cursor():
    assert format_table(["a\tb"], [("x\ny\x1b[31m",)]).splitlines()[2] == r"x\ny\x1b[31m"


def test_no_rows_still_show_the_header():
    assert format_table(["a", "b"], []) == "a  b\n-  -"
