"""What the demo model writes: a word counter, its test, and an extension of both."""

PROGRAM_NAME = "wordcount.py"
TEST_NAME = "test_wordcount.py"

PROGRAM = '''"""Count the words of a text: `python3 wordcount.py FILE...`, or from standard input."""

import argparse
import re
import sys
from collections import Counter


def count_words(text):
    """How often each word occurs, in lower case."""
    return Counter(re.findall(r"[\\w']+", text.lower()))


def read_all(paths):
    """The text of all files, or of standard input when there are none."""
    if not paths:
        return sys.stdin.read()
    texts = []
    for path in paths:
        with open(path, encoding="utf-8") as file:
            texts.append(file.read())
    return "\\n".join(texts)


def main(argv=None):
    parser = argparse.ArgumentParser(description="Count the words of a text.")
    parser.add_argument("files", nargs="*", help="files to read; standard input without any")
    options = parser.parse_args(argv)
    counts = count_words(read_all(options.files))
    print(f"{sum(counts.values())} words, {len(counts)} different")
    return 0


if __name__ == "__main__":
    sys.exit(main())
'''

TEST = '''import contextlib
import io
import os
import tempfile
import unittest

from wordcount import count_words, main


def output_of(text, *options):
    """What the program prints for a file with this text."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "text.txt")
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            main([*options, path])
        return printed.getvalue()


class WordCountTest(unittest.TestCase):
    def test_words_are_counted_whatever_their_case(self):
        self.assertEqual(count_words("The cat and the hat"), {"the": 2, "cat": 1, "and": 1, "hat": 1})

    def test_an_empty_text_has_no_words(self):
        self.assertEqual(count_words(""), {})

    def test_the_program_prints_totals(self):
        self.assertEqual(output_of("one two two"), "3 words, 2 different\\n")


if __name__ == "__main__":
    unittest.main()
'''

EXTENSION_MARK = "--top"

# (file, old text, new text): what the extension edits, in this order.
EXTENSION = (
    (
        PROGRAM_NAME,
        "    options = parser.parse_args(argv)\n",
        '    parser.add_argument("--top", type=int, default=0, metavar="N", help="also list the N commonest words")\n'
        "    options = parser.parse_args(argv)\n",
    ),
    (
        PROGRAM_NAME,
        '    print(f"{sum(counts.values())} words, {len(counts)} different")\n',
        '    print(f"{sum(counts.values())} words, {len(counts)} different")\n'
        "    for word, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[: options.top]:\n"
        '        print(f"{count:6} {word}")\n',
    ),
    (
        TEST_NAME,
        '\n\nif __name__ == "__main__":\n',
        "\n    def test_top_lists_the_most_frequent_words_first(self):\n"
        '        printed = output_of("b a b c", "--top", "2")\n'
        '        self.assertEqual(printed.splitlines(), ["4 words, 3 different", "     2 b", "     1 a"])\n'
        '\n\nif __name__ == "__main__":\n',
    ),
)
