"""Page ``docs/reference/commands.md``: every command with its options."""

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from typer.models import ArgumentInfo, ParameterInfo

from benchmarks.markdown import make_table
from benchmarks.reference.value_types import format_value
from uumamba.cli import CommandOfInputs, app

WORDS = {str: "TEXT", int: "INTEGER", float: "NUMBER", Path: "PATH"}
HEAD = """# Commands

Written by `python -m benchmarks.reference` from the command line.

`uumamba COMMAND --help`, or `-h`, shows the same in the terminal. `uumamba --version` prints the version. `--debug`,
before or after the command, shows a traceback with an error. Every command ends with one of a few
[exit codes](exit_codes.md); keys of CONFIG are in [configuration](configuration.md), and the files that commands read
and write in [file formats](file_formats.md). `python -m uumamba` is the same as `uumamba`.

"""
REPEATED = "Give several values after one option, or repeat it."


@dataclass(frozen=True)
class Parameter:
    """One argument or option of a command.

    Attributes:
        names: ``CONFIG`` of an argument, or the option's names.
        values: values of an option, empty for a flag.
        default: as in YAML, or ``required``.
        meaning: its help.
        is_argument: whether the value stands alone, without a name.
    """

    names: str
    values: str
    default: str
    meaning: str
    is_argument: bool

    @property
    def usage(self) -> str:
        """Part of the command's usage."""
        return self.names if self.is_argument else f"{self.names} {self.values}"

    @property
    def cells(self) -> tuple[str, ...]:
        """Cells of the parameter's row."""
        names = ", ".join(f"`{name}`" for name in self.names.split("/"))
        values = " or ".join(f"`{value}`" for value in self.values.split("|")) if self.values else ""
        return names, values, self.default, self.meaning


def make_commands_page() -> str:
    """Make the page."""
    commands = [(str(each.name or _name(each.callback)), each) for each in app.registered_commands]
    rows = [
        (f"`uumamba {name}`", _split_help(each.callback)[0], f"[options](#uumamba-{name})") for name, each in commands
    ]
    return (
        HEAD
        + make_table(("command", "what it does", "details"), rows)
        + "".join(
            _format_command(name, each.callback, str(each.epilog), repeated=_find_repeated(each.cls))
            for name, each in commands
        )
    )


def list_parameters(command: Callable[..., Any], *, repeated: str = "") -> Iterator[Parameter]:
    """Yield arguments and options of a command.

    Args:
        command: function of the command line.
        repeated: option that takes several values.
    """
    hints = get_type_hints(command, include_extras=True)
    for name, each in inspect.signature(command).parameters.items():
        inner, info = get_args(hints[name])[:2]
        yield _describe_parameter(name, each.default, inner, info, repeated)


def _describe_parameter(name: str, default: Any, annotation: Any, info: ParameterInfo, repeated: str) -> Parameter:
    is_argument = isinstance(info, ArgumentInfo)
    long = f"--{name.replace('_', '-')}"
    names = str(info.metavar or name.upper()) if is_argument else "/".join(_list_names(info) or [long])
    is_flag = bool in (annotation, *get_args(annotation))
    values = "" if is_argument or is_flag else info.metavar or _describe_type(annotation)
    shown = "required" if default is inspect.Parameter.empty else _format_default(default, is_flag=is_flag)
    meaning = str(info.help).replace("Repeatable.", REPEATED) if repeated and names == repeated else str(info.help)
    return Parameter(names, str(values), shown, mark_code(meaning), is_argument)


def _list_names(info: ParameterInfo) -> list[str]:
    """List the names that an option declares.

    Typer keeps the first one as a default.
    """
    declared = [info.default, *(info.param_decls or ())]
    return [each for each in declared if isinstance(each, str) and each.startswith("--")]


def _format_default(default: Any, *, is_flag: bool) -> str:
    if default is None or (is_flag and default is False):
        return ""
    return format_value(str(default) if isinstance(default, Path) else default)


def _describe_type(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated or origin is list:
        return _describe_type(inner[0])
    if origin is Literal:
        return "|".join(map(str, inner))
    if origin in (Union, UnionType):
        return _describe_type(next(each for each in inner if each is not NoneType))
    return WORDS[annotation]


def _format_command(name: str, command: Any, epilog: str, *, repeated: str) -> str:
    parameters = list(list_parameters(command, repeated=repeated))
    needed = [each.usage for each in parameters if each.default == "required"]
    options = ["[OPTIONS]"] if len(needed) < len(parameters) else []
    usage = " ".join(["uumamba", name, *needed, *options])
    text = "\n\n".join(_split_help(command))
    rows = [each.cells for each in parameters]
    table = "\n" + make_table(("argument or option", "value", "default", "meaning"), rows) if rows else ""
    return f"\n## uumamba {name}\n\n{text}\n\nUsage: `{usage}`\n{table}{_format_examples(epilog)}"


def _format_examples(epilog: str) -> str:
    r"""Format the examples of a command's help.

    Example:
        >>> print(_format_examples("Example: uumamba models"), end="")
        <BLANKLINE>
        Example:
        <BLANKLINE>
        ```
        uumamba models
        ```
    """
    parts = (each.partition(": ") for each in epilog.split("\n\n"))
    return "".join(f"\n{title}:\n\n```\n{_break_line(line)}\n```\n" for title, _, line in parts)


def _break_line(line: str, longest: int = 116) -> str:
    """Break a command before its options so that each line fits."""
    lines = [""]
    for part in re.split(r" (?=--)", line):
        if lines[-1] and len(lines[-1]) + len(part) + 1 > longest:
            lines.append(f"  {part}")
        else:
            lines[-1] = f"{lines[-1]} {part}" if lines[-1] else part
    return " \\\n".join(lines)


def _split_help(command: Any) -> list[str]:
    return mark_code(str(inspect.getdoc(command))).split("\n\n")


def mark_code(text: str) -> str:
    """Write options and file names with a placeholder as code.

    Example:
        >>> mark_code("--fold of <case_id>.nii.gz, or none")
        '`--fold` of `<case_id>.nii.gz`, or none'
    """
    return re.sub(r"(?<![\w-])(--[a-z][\w-]*|<\w+>[\w./]*\w)", r"`\1`", text)


def _find_repeated(cls: Any) -> str:
    return str(cls.repeated) if isinstance(cls, type) and issubclass(cls, CommandOfInputs) else ""


def _name(command: Any) -> str:
    return str(command.__name__)
