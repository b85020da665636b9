"""What is JSON to a reader and what is not, as data: no readers of ours, and no files."""

from __future__ import annotations

__all__ = ["BAD_FILES", "BAD_VALUES", "GOOD_VALUES", "VERSIONS"]

#: Name, value in the place of a text, what is wrong with it. None of them is JSON as the format wants it.
BAD_VALUES: tuple[tuple[str, bytes, str], ...] = (
    ("nan", b"NaN", "NaN is no number of JSON's"),
    ("infinity", b"Infinity", "Infinity is no number of JSON's"),
    ("minus infinity", b"-Infinity", "-Infinity is no number of JSON's"),
    ("float too large", b"1e999", "a float that would be infinite"),
    ("float too large below zero", b"-1.0E+400", "a float that would be infinite"),
    ("integer too large", b"9223372036854775808", "2^63 is no integer of 64 bits with a sign"),
    ("integer too small", b"-9223372036854775809", "-2^63-1 is no integer of 64 bits with a sign"),
    ("integer beyond 64 bits", b"18446744073709551616", "2^64"),
    ("integer of many digits", b"4" * 5000, "an integer of 5000 digits"),
    ("leading zero", b"01", "a number with a leading zero"),
    ("minus leading zero", b"-01", "a number with a leading zero"),
    ("leading plus", b"+1", "a number with a plus"),
    ("bare point", b"1.", "a number without digits after its point"),
    ("leading point", b".5", "a number without digits before its point"),
    ("bare exponent", b"1e", "a number without digits in its exponent"),
    ("bare minus", b"-", "a minus alone"),
    ("hexadecimal", b"0x10", "a hexadecimal number"),
    ("single quotes", b"'text'", "a string in single quotes"),
    ("True", b"True", "a constant in another case"),
    ("trailing comma", b"[1,]", "a comma before a bracket"),
    ("comma alone", b"[,]", "a comma without values"),
    ("missing colon", b'{"a" 1}', "a key without a colon"),
    ("number as key", b'{"1": 1, 2: 2}', "a key that is no string"),
    ("comment", b"/* no */ 1", "a comment"),
    ("line comment", b"1 // no\n", "a comment"),
    ("unclosed array", b"[1", "an array that is not closed"),
    ("crossed brackets", b"[{]}", "brackets that cross"),
    ("raw newline in a string", b'"a\nb"', "a control character in a string"),
    ("raw tab in a string", b'"a\tb"', "a control character in a string"),
    ("raw nul in a string", b'"a\0b"', "a NUL in a string"),
    ("raw nul between", b"1 \0", "a NUL between tokens"),
    ("vertical tab as space", b"\x0b1", "white space that JSON does not have"),
    ("no-break space", b"\xc2\xa01", "white space that JSON does not have"),
    ("unknown escape", b'"\\x41"', "an escape that JSON does not have"),
    ("short unicode escape", b'"\\u12"', "an escape of two digits"),
    ("signed unicode escape", b'"\\u+123"', "an escape with a sign"),
    ("lone high surrogate", b'"\\ud800"', "the first half of a surrogate pair"),
    ("lone low surrogate", b'"\\udc00"', "the second half of a surrogate pair"),
    ("two high surrogates", b'"\\ud83d\\ud83d\\ude00"', "half a surrogate pair before a whole one"),
    ("reversed surrogates", b'"\\udc00\\ud800"', "a surrogate pair the wrong way round"),
    ("lone surrogate in a key", b'{"\\ud800": 1}', "half a surrogate pair in a key"),
    ("surrogate in utf-8", b'"\xed\xa0\x80"', "a surrogate encoded as UTF-8"),
    ("surrogate pair in utf-8", b'"\xed\xa0\xbd\xed\xb8\x80"', "a surrogate pair encoded as UTF-8"),
    ("bad utf-8", b'"\xff"', "a byte that UTF-8 does not have"),
    ("latin-1", b'"\xe9"', "a character in Latin-1"),
    ("cut utf-8", b'"\xc3"', "a character cut short"),
    ("stray continuation", b'"\x80"', "a continuation byte alone"),
    ("overlong slash", b'"\xc0\xaf"', "an overlong form of a slash"),
    ("overlong in three", b'"\xe0\x80\xaf"', "an overlong form in three bytes"),
    ("beyond unicode", b'"\xf4\x90\x80\x80"', "a character above U+10FFFF"),
    ("key twice", b'{"a": 1, "a": 1}', "a key twice in one object"),
    ("key twice deep inside", b'[[[{"b": [{"c": 1, "d": 2, "c": 3}]}]]]', "a key twice, deep inside"),
    ("key twice by an escape", b'{"a": 1, "\\u0061": 1}', "a key twice, once with an escape"),
    ("empty key twice", b'{"": 1, "": 2}', "the empty key twice"),
    ("arrays too deep", b"[" * 32 + b"]" * 32, "33 levels with the outermost object"),
    ("objects too deep", b'{"a":' * 31 + b"{}" + b"}" * 31, "33 levels with the outermost object"),
    ("a million levels", b"[" * 10**6, "a million levels"),
    ("a hundred thousand closed levels", b"[" * 10**5 + b"]" * 10**5, "100,000 levels"),
)  # fmt: skip

#: Name, what stands before the file's text and after it, what is wrong.
BAD_FILES: tuple[tuple[str, bytes, bytes, str], ...] = (
    ("byte order mark", b"\xef\xbb\xbf", b"", "a byte order mark"),
    ("byte order mark of utf-16", b"\xff\xfe", b"", "a byte order mark of UTF-16"),
    ("text after it", b"", b"x", "something after the object"),
    ("another object after it", b"", b"{}", "two objects"),
    ("brace after it", b"", b"}", "a brace too many"),
    ("nul after it", b"", b"\0", "a NUL after the object"),
    ("nul before it", b"\0", b"", "a NUL before the object"),
    ("comment before it", b"// no\n", b"", "a comment before the object"),
    ("in an array", b"[", b"]", "an array at the top level"),
    ("comma before it", b",", b"", "a comma before the object"),
)  # fmt: skip

#: Name, value. All of them are JSON; a newer minor version may have them under a key of its own.
GOOD_VALUES: tuple[tuple[str, str], ...] = (
    ("smallest integer", "-9223372036854775808"),
    ("largest integer", "9223372036854775807"),
    ("zeros", "[0, -0, 0.0, -0.0, 0e0, -0E-5, 0e99999, 1e-99999, -1e-999, 3e-324, 2e-324, -2e-324]"),
    ("escapes", r'"\u0000\u0001\b\t\n\u000b\f\r\u001f\u0020\"\\\/\u007f\u0080\u00e9\u2028\ud83d\ude00\uffff"'),
    ("raw characters", '"\x7f\x80é\u2028\ufeff\U0001f600\U0010ffff"'),
    ("keys to be sorted", '{"b": 1, "a": 2, "B": 3, "": 4, "é": 5, "\\uffff": 6, "\\ud83d\\ude00": 7, "aa": 8, "a b": 9}'),
    ("all levels", "[" * 31 + "]" * 31),
    ("hash keys inside", '{"manifest_sha256": 1, "engines_sha256": 2}'),
    ("empty ones", '[{}, [], "", {"": {}}, [[]], null, true, false]'),
    ("any white space", "[\t1 ,\r\n2\n,\r3 ]"),
    ("integers beside floats", "[1, 1.0, 1e0, 10, 1e1, 100000000000000000000.0, 9007199254740993, 9007199254740993.0]"),
    ("floats", (
        "[1e5, 1E-7, 1e16, 9999999999999998.0, 123456789012345680.0, 5e-324, 2.2250738585072014e-308,"
        " 1.7976931348623157e308, 0.1, 0.30000000000000004, 1e22, 1e23, 1e-5, 0.0001, 0.00012345, 12345.678e3,"
        " 4.35, 2.5e-05, 1.0000000000000002, 9007199254740992.5, 3.0e+0, 1e100, 7e-10, 0.1e1, 2e-323, 1e15, 1E+2]"
    )),
    ("a float of many digits", "0." + "3" * 3000 + "e1"),
)  # fmt: skip

#: What a format_version may not be.
VERSIONS = (
    "2.0", "0.9", "10.0", "1", "1.", ".0", "1.0.0", "1.x", "-1.0", "+1.0", "1. 0", " 1.0", "1.0 ", "", "1,0", "1.123456",
    "1.٣", "1.0\n", "1.0\0", 1.0, 1, True, None, ["1.0"], {"1": 0},
)  # fmt: skip
