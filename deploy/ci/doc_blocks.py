#!/usr/bin/env python3
"""Reads the shell commands in README.md and docs/: each is run, or states why it is not.

A fenced block of commands carries a mark after the language:
    ```sh run                   make docs-test runs it, in a new directory with both programs in PATH
    ```sh run=operator          make deb-test runs it on a new machine, as that person (operator, alice, bob), in this order
    ```sh run=bob-background    the same, without waiting for its end
    ```sh run=postgresql        a test runs it with the address of a PostgreSQL database in FINGERPOST_DATABASE__URL
    ```sh run=prosody           make guide-test runs it on a machine with this server (prosody, ejabberd), in this order; the
                                lines of a ```text block right after it stand in its output
    ```lua before=prosody       the state of that server's configuration before the first of these blocks
    ```sh not-run: REASON       it is never run, because …

doc_blocks.py check FILE...           lists commands without a mark; those in indented blocks count as such; and rows of a table
                                      without a head, which show as text
doc_blocks.py scripts DIRECTORY FILE...  writes each block as a script NUMBER.MARK into DIRECTORY, in order
doc_blocks.py guide SERVER DIRECTORY FILE  writes the blocks for SERVER as NUMBER.sh, and what each shows as NUMBER.shows
doc_blocks.py before SERVER FILE      prints the state before
"""

import pathlib
import re
import sys

SHELL = {"sh", "bash", "shell", "console", "shell-session", "zsh"}
FENCE = re.compile(r"^( *)(```+|~~~+) *(\S*) *(.*)$")
MARK = re.compile(r"^(run|run=(operator|alice|bob)(-background)?|run=postgresql|run=(prosody|ejabberd)|not-run: \S.*)$")
PROGRAM = re.compile(r"^(    |\t)(\$ |sudo |make |cargo |fingerpost |xtls |apt |docker |systemctl |openssl |tar )")


def blocks(path):
    """(line, language, mark, text) of each fenced block; what is indented like commands is ('sh', '')."""
    fence, start, language, mark, text = None, 0, "", "", []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if fence is None:
            if found := FENCE.match(line):
                fence, start, language, mark, text = found[2], number, found[3], found[4].strip(), []
            elif PROGRAM.match(line):
                yield number, "sh", "", line.strip() + "\n"
        elif line.strip() == fence:
            yield start, language, mark, "".join(text)
            fence = None
        else:
            text.append(line + "\n")
    if fence:
        sys.exit(f"{path}:{start}: this block has no end")


def loose_rows(path):
    """The numbers of lines that begin a table, and are not followed by the line of dashes."""
    lines, is_code = path.read_text().splitlines(), False
    for number, line in enumerate(lines):
        if FENCE.match(line):
            is_code = not is_code
        begins = line.startswith("|") and not (number and lines[number - 1].startswith("|"))
        follows = lines[number + 1] if number + 1 < len(lines) else ""
        if begins and not is_code and not re.match(r"^\|[ :|-]*-[ :|-]*$", follows):
            yield number + 1


def guide(server, directory, path):
    directory.mkdir()
    number, is_step = 0, False
    for line, language, mark, text in blocks(path):
        if is_step and language == "text":
            (directory / f"{number}.shows").write_text(text)
        is_step = language in SHELL and mark == f"run={server}"
        if is_step:
            number += 1
            (directory / f"{number}.sh").write_text(f"# {path}:{line}\n{text}")
    return 0


def main(what, *rest):
    if what == "check":
        bad = 0
        for path in map(pathlib.Path, rest):
            for line, language, mark, _ in blocks(path):
                if language in SHELL and not MARK.match(mark):
                    bad += 1
                    print(f"{path}:{line}: this block of commands has no mark: run, run=WHO or not-run: REASON")
            for line in loose_rows(path):
                bad += 1
                print(f"{path}:{line}: this row of a table has no head")
        return bad
    if what == "before":
        server, path = rest
        print("".join(text for _, _, mark, text in blocks(pathlib.Path(path)) if mark == f"before={server}"), end="")
        return 0
    if what == "guide":
        server, directory, path = rest
        return guide(server, pathlib.Path(directory), pathlib.Path(path))
    directory, files = pathlib.Path(rest[0]), rest[1:]
    directory.mkdir(parents=True, exist_ok=True)
    number = 0
    for path in map(pathlib.Path, files):
        for line, language, mark, text in blocks(path):
            if language in SHELL and mark.startswith("run"):
                number += 1
                kind = mark.removeprefix("run").lstrip("=") or "here"
                (directory / f"{number:03}.{kind}").write_text(f"# {path}:{line}\n{text}")
    return 0


if __name__ == "__main__":
    sys.exit(1 if main(*sys.argv[1:]) else 0)
