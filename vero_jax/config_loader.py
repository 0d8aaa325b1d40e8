"""Reads settings: a YAML file with what differs from the defaults, then `a.b.c=value` words, into one checked `Config`.

In: the words of the command line. Out: a `Config`, or a `UserError` that names the key, the value, the place (file and
line, or the command line) and what would be right. `help_text` lists every key with the comment beside it in config.py.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import inspect
import io
import math
import tokenize
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from vero_jax import config as config_module
from vero_jax.config import Config
from vero_jax.config_checks import validate
from vero_jax.errors import UserError

DEFAULT_CONFIG = "mini.yaml"


@dataclasses.dataclass(frozen=True)
class Setting:
    """One value to set. `text` is the raw word when it came from the command line, else None."""

    key: str
    value: Any
    place: str
    text: str | None = None


def load_config(argv: Sequence[str] = ()) -> Config:
    """The settings for `[config.yaml] [a.b.c=value ...]`; without a file, `configs/mini.yaml`. Later words win.

    A relative path is looked up from the working directory, then in the `configs` folder that comes with vero_jax.
    Raises UserError for anything that is not understood.
    """
    files = [word for word in argv if "=" not in word]
    for word in files:
        if word.startswith("-"):
            raise UserError(f"unknown option {word!r}: settings are written a.b.c=value, and --help lists them all.")
    if len(files) > 1:
        raise UserError(f"only one config file can be given, not {', '.join(files)}.")
    settings = read_yaml(find_config(files[0] if files else DEFAULT_CONFIG))
    settings += [_word_setting(word) for word in argv if "=" in word]
    config = apply_settings(Config(), settings)
    validate(config)
    return config


def apply_settings(config: Config, settings: Sequence[Setting]) -> Config:
    """A copy of the config with every setting converted, strictly, to its key's type. UserError names what is wrong."""
    for setting in settings:
        config = _replace(config, setting.key.split("."), setting)
    return config


def to_dict(config: Config) -> dict[str, Any]:
    """The whole tree as plain dicts, lists, numbers and text (JSON and YAML can hold it)."""
    return _plain(config)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def to_yaml(config: Config) -> str:
    """The resolved settings as YAML; `load_config` on that file gives an equal config."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True, width=120)


def help_text(program: str = "python -m vero_jax.train") -> str:
    """Every key with its type, default and comment, grouped by section."""
    lines = [
        f"usage: {program} [config.yaml] [a.b.c=value ...]",
        "",
        f"The file holds what differs from these defaults (without one: {DEFAULT_CONFIG}); later words win.",
    ]
    section = None
    for key, kind, default, comment in _leaves(Config, Config(), ""):
        name = key.rpartition(".")[0]
        if name != section:
            section = name
            about = _section_about(name)
            lines += ["", f"{name or 'top level'}{': ' + about if about else ''}"]
        lines.append(f"  {key} = {_show(default)}    ({describe_type(kind)})")
        if comment:
            lines.append(f"      {comment}")
    return "\n".join(lines) + "\n"


def find_config(name: str | Path) -> Path:
    """The config file: from the working directory, else from the `configs` folder of vero_jax."""
    path = Path(name).expanduser()
    package = Path(config_module.__file__).resolve().parent
    folders = [package / "configs", package.parent / "configs"]
    candidates = [path]
    for folder in folders:
        candidates += [folder / path, folder.parent / path]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    known = sorted({file.name for folder in folders for file in folder.glob("*.yaml")})
    hint = f" vero_jax comes with {', '.join(known)}." if known else ""
    raise UserError(f"config file {str(name)!r} does not exist (looked in {Path.cwd()} and {folders[-1]}).{hint}")


def read_yaml(path: Path) -> list[Setting]:
    """The settings in a YAML file, each with its line. UserError when it is not YAML or not a tree of keys."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"config file {path} cannot be read: {error}.") from error
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        if root is None or _is_null(root):
            return []
        if not isinstance(root, yaml.MappingNode):
            raise UserError(f"config file {path} must hold `key: value` lines, not a single value or a list.")
        return list(_node_settings(loader, root, "", path))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"config file {path}{line} is not valid YAML: {error.problem or error.context}.") from error
    except yaml.YAMLError as error:
        raise UserError(f"config file {path} is not valid YAML: {error}.") from error
    finally:
        loader.dispose()


def describe_type(kind: Any) -> str:
    """A type in words: "a whole number", "one of a, b", "a list of numbers or null"."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    if kind in words:
        return words[kind]
    if origin is Literal:
        return "one of " + ", ".join(map(str, args))
    if origin in (typing.Union, types.UnionType):
        return f"{describe_type(next(arg for arg in args if arg is not type(None)))} or null"
    if origin is tuple:
        plural = {int: "whole numbers", float: "numbers", str: "texts"}[args[0]]
        return f"a list of {plural}" if args[-1] is Ellipsis else f"a list of {len(args)} {plural}"
    if origin is dict:
        return f"name: {describe_type(args[1])}"
    return "a section"


def _node_settings(loader: yaml.SafeLoader, node: yaml.MappingNode, prefix: str, path: Path) -> Iterator[Setting]:
    seen: dict[str, int] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise UserError(f"config file {path}, line {line}: a key must be a word.")
        key = prefix + key_node.value
        if key in seen:
            raise UserError(f"config file {path}, line {line}: {key!r} was already set in line {seen[key]}.")
        seen[key] = line
        if isinstance(value_node, yaml.MappingNode):
            yield from _node_settings(loader, value_node, f"{key}.", path)
        elif _is_null(value_node) and key in _keys()[0]:
            continue  # a section whose lines are all commented out
        else:
            yield Setting(key, loader.construct_object(value_node, deep=True), f"{path}, line {line}")


def _is_null(node: yaml.Node) -> bool:
    return node.tag == "tag:yaml.org,2002:null"


def _word_setting(word: str) -> Setting:
    key, _, text = word.partition("=")
    key, text = key.removeprefix("--").strip(), text.strip()
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    return Setting(key, value, "command line", text)


def _replace(section: Any, path: Sequence[str], setting: Setting) -> Any:
    cls: Any = type(section)
    hints = _hints(cls)
    name, rest = path[0], path[1:]
    if name not in hints:
        raise _unknown(setting)
    kind: Any = hints[name]
    old = getattr(section, name)
    if dataclasses.is_dataclass(kind):
        if not rest:
            example = f"{setting.key}.{next(iter(_hints(hints[name])))}"
            raise UserError(f"{setting.key!r} ({setting.place}) is a section: set one of its keys, such as {example}.")
        new = _replace(old, rest, setting)
    elif typing.get_origin(kind) is dict:
        if len(rest) != 1 and not (not rest and setting.value == {}):
            raise _wrong_type(setting, kind)
        new = dict(old)
        if rest:  # any name: of a domain, and data may have domains of its own
            new[rest[0]] = _convert(setting, typing.get_args(kind)[1])
    elif rest:
        raise _unknown(setting)
    else:
        new = _convert(setting, kind)
    return dataclasses.replace(section, **{name: new})


def _convert(setting: Setting, kind: Any) -> Any:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if setting.value is None:
            return None
        inner = next(arg for arg in args if arg is not type(None))
        return _scalar(setting.value, inner, setting, kind)
    if origin is Literal:
        value = setting.value if setting.text is None else setting.text
        if value in args:
            return value
        near = difflib.get_close_matches(str(value), args, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise UserError(
            f"{setting.key} ({setting.place}) must be {describe_type(kind)}, not {_show(setting.value)}{hint}."
        )
    if origin is tuple:
        values = setting.value
        if setting.text is not None and not isinstance(values, list):
            # `a=1,2` spares the shell's quoting of [1, 2]
            values = [yaml.safe_load(part) for part in setting.text.split(",") if part.strip()]
        if not isinstance(values, list) or (args[-1] is not Ellipsis and len(values) != len(args)):
            raise _wrong_type(setting, kind)
        return tuple(_scalar(value, args[0], setting, kind) for value in values)
    if kind is str and setting.text is not None:
        # The shell's word is the text, whatever YAML would make of it; quotes inside it are taken off.
        quoted = isinstance(setting.value, str) and setting.text[:1] in ("'", '"')
        return setting.value if quoted else setting.text
    return _scalar(setting.value, kind, setting, kind)


def _scalar(value: Any, kind: Any, setting: Setting, whole: Any) -> Any:
    if kind is float:
        if isinstance(value, str):
            # YAML 1.1 reads 1e-6 (no dot) as text
            try:
                value = float(value)
            except ValueError:
                raise _wrong_type(setting, whole) from None
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    elif kind is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    elif isinstance(value, kind):
        return value
    raise _wrong_type(setting, whole)


def _wrong_type(setting: Setting, kind: Any) -> UserError:
    return UserError(f"{setting.key} ({setting.place}) must be {describe_type(kind)}, not {_show(setting.value)}.")


def _unknown(setting: Setting) -> UserError:
    sections, leaves = _keys()
    known = [*leaves, *sections]
    last = setting.key.rpartition(".")[2]
    same_name = [key for key in leaves if key.rpartition(".")[2] == last]
    near = (
        difflib.get_close_matches(setting.key, same_name, 1, 0.0)
        or difflib.get_close_matches(setting.key, known, 1, 0.6)
        or [
            key
            for name in difflib.get_close_matches(last, [key.rpartition(".")[2] for key in leaves], 1, 0.6)
            for key in leaves
            if key.rpartition(".")[2] == name
        ]
        or difflib.get_close_matches(setting.key, known, 1, 0.0)
    )
    return UserError(f"unknown key {setting.key!r} ({setting.place}): the nearest known key is {near[0]!r}.")


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls, vars(config_module))


@functools.cache
def _keys() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(sections, leaves), dotted."""
    leaves = tuple(flatten(to_dict(Config())))
    sections = {key.rsplit(".", depth)[0] for key in leaves for depth in range(1, key.count(".") + 1)}
    return tuple(sorted(sections)), leaves


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value


def _show(value: Any) -> str:
    """A value as it is written in YAML, on one line; text that is not a plain word keeps its quotes."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(map(_show, value)) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {_show(item)}" for name, item in value.items()) + "}"
    return repr(value)


def _leaves(cls: Any, value: Any, prefix: str) -> Iterator[tuple[str, Any, Any, str]]:
    """(key, type, default, comment) of each setting; a section's own keys come before its sub-sections."""
    comments = _comments(cls)
    hints = _hints(cls)
    for name in sorted(hints, key=lambda name: dataclasses.is_dataclass(hints[name])):
        if dataclasses.is_dataclass(hints[name]):
            yield from _leaves(hints[name], getattr(value, name), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", hints[name], getattr(value, name), comments.get(name, "")


def _section_about(section: str) -> str:
    cls: Any = Config
    for name in filter(None, section.split(".")):
        cls = _hints(cls)[name]
    # dataclasses write a signature as the docstring of a class that has none
    about = "" if (cls.__doc__ or "").startswith(f"{cls.__name__}(") else inspect.cleandoc(cls.__doc__ or "")
    return about.split("\n\n")[0].replace("\n", " ")


@functools.cache
def _comments(cls: Any) -> dict[str, str]:
    """The comment at the end of each field's lines in the source of a section."""
    source = inspect.getsource(cls)
    by_line = {
        token.start[0]: token.string.lstrip("# ").strip()
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    body = typing.cast(ast.ClassDef, ast.parse(source).body[0]).body
    return {
        node.target.id: " ".join(by_line[n] for n in range(node.lineno, (node.end_lineno or 0) + 1) if n in by_line)
        for node in body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
