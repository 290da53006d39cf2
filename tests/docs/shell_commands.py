"""Commands of this project in the shell text of a page, parsed by their own parsers without being run."""

import argparse
import importlib.util
import re
import runpy
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import typer
from torch.distributed.run import get_args_parser

from uumamba.cli import app
from uumamba.config import read_config
from uumamba.config.case_split import ALL_CASES, EVERY_FOLD, FOLDS
from uumamba.pipelines.prediction.parts import Part
from uumamba.runtime.errors import UumambaError
from uumamba.runtime.option_values import parse_seeds, parse_spacing

WRAPPERS = ("srun", "exec", "nice", "time", "nohup", "then", "do", "docker", "podman", "apptainer", "singularity")
OWN_MODULES = ("uumamba", "data_prep", "benchmarks")
OPERATORS = re.compile(r"[;&|\n]+|\d?[<>]+")
"""Ends of a command, and redirections."""
_, ClickError, *_ = typer.BadParameter.__bases__[0].__mro__
"""Any error of click, of which typer has a copy of its own."""


class ParsedOnly(Exception):
    """End of a command whose arguments were parsed."""


def list_commands(text: str) -> list[list[str]]:
    """List the commands of this project in a shell text, as lists of arguments, without wrappers such as srun."""
    return [own for command in split_commands(text) for own in _find_own(command)]


def split_commands(text: str) -> Iterator[list[str]]:
    """Yield the commands of a shell text; comments, redirections and assignments in front are left out."""
    joined = re.sub(r"(?m)(^|\s)#.*$", "", text.replace("\\\n", " "))
    lexer = shlex.shlex(joined, posix=True, punctuation_chars=";&|<>\n")
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t\r", True, ""
    command, is_file = list[str](), False
    for token in lexer:
        if not OPERATORS.fullmatch(token):
            command += [] if is_file else [token]
            is_file = False
        elif "<" in token or ">" in token:
            is_file = True
        else:
            yield _without_assignments(command)
            command = []
    yield _without_assignments(command)


def _without_assignments(command: list[str]) -> list[str]:
    while command and re.match(r"\w+=", command[0]):
        command = command[1:]
    return command


def _find_own(command: list[str]) -> Iterator[list[str]]:
    """Yield the command of this project, unwrapped; also that in the quotes of ``bash -c '...'``."""
    if "-c" in command and Path(command[command.index("-c") - 1]).name in {"bash", "sh"}:
        yield from list_commands(command[command.index("-c") + 1])
        return
    if not command or (command[0] in {"docker", "podman"} and "run" not in command):
        return
    for index, word in enumerate(command):
        name, following = Path(word).name, command[index + 1 : index + 3]
        if name in {"uumamba", "torchrun"}:
            yield [name, *command[index + 1 :]]
            return
        if name.startswith("python") and following[:1] == ["-m"] and following[1].split(".")[0] in OWN_MODULES:
            yield ["python", *command[index + 1 :]]
            return
        if index == 0 and word not in WRAPPERS:
            return


def check_command(command: Sequence[str]) -> None:
    """Parse a command as its program would.

    Raises:
        AssertionError: an option, a value, a configuration or a module does not exist.
    """
    program, *arguments = (re.sub(r"\$\{?\w+\}?", "1", word) for word in command)
    if program == "torchrun":
        options = get_args_parser().parse_args(arguments)
        if not options.module:
            assert Path(options.training_script).is_file(), f"{options.training_script}: no fence has this title"
            return
        arguments = ["-m", options.training_script, *options.training_script_args]
    if program == "uumamba":
        _check_verb(arguments)
    elif arguments[1] == "uumamba":
        _check_verb(arguments[2:])
    else:
        _check_module(arguments[1], arguments[2:])


def _check_verb(arguments: list[str]) -> None:
    group = typer.main.get_command(app)
    try:
        with group.make_context("uumamba", arguments) as context:
            name, verb, rest = group.resolve_command(context, context._protected_args + context.args)
            with verb.make_context(name, rest, parent=context) as called:
                _check_values(called.params)
    except typer.Exit:  # of --help and --version
        return
    except (ClickError, UumambaError) as error:
        raise AssertionError(f"uumamba {' '.join(arguments)}: {error}") from error


def _check_values(options: dict[str, object]) -> None:
    """Check what click takes for any text: configurations, keys, folds, seeds, parts and spacings."""
    if isinstance(config := options.get("config"), str):
        overrides = options.get("overrides") or ()
        read_config(config, overrides if isinstance(overrides, list | tuple) else ())
    if "config" in options and isinstance(fold := options.get("fold"), str):
        assert fold in {*FOLDS, ALL_CASES, EVERY_FOLD}, fold
    for name, parse in (("seeds", parse_seeds), ("part", Part.parse), ("assume_spacing", parse_spacing)):
        if isinstance(given := options.get(name), str):
            parse(given)


def _check_module(name: str, arguments: list[str]) -> None:
    module = importlib.util.find_spec(name)
    if module is not None and module.submodule_search_locations:
        module = importlib.util.find_spec(f"{name}.__main__")
    assert module is not None, f"python -m {name}: no such module"
    assert module.origin is not None
    if "import argparse" not in Path(module.origin).read_text("utf-8") and not module.name.endswith("__main__"):
        return  # a script that parses nothing
    with pytest.MonkeyPatch.context() as patch:
        parse = argparse.ArgumentParser.parse_args

        def stop(self: argparse.ArgumentParser, args: Sequence[str] | None = None, namespace: object = None) -> None:
            parse(self, args, namespace)
            raise ParsedOnly

        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        patch.setattr(sys, "argv", [name, *arguments])
        try:
            run_as_main(name, patch)
        except ParsedOnly:
            return
        except SystemExit as end:
            if end.code:  # 0 is --help's
                raise AssertionError(f"python -m {name} {' '.join(arguments)}: refused") from end


def run_as_main(name: str, patch: pytest.MonkeyPatch) -> None:
    """Run a module as ``python -m`` does, also one that other tests have imported."""
    spec = importlib.util.find_spec(name)
    is_package = spec is not None and spec.submodule_search_locations is not None
    patch.delitem(sys.modules, f"{name}.__main__" if is_package else name, raising=False)
    runpy.run_module(name, run_name="__main__", alter_sys=True)
