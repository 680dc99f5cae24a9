"""Shows what a run would be configured with, in full: every value, those that no gin file sets included.

    python -m mimo_jax.show_config --gin_file=gin/runs/pretrain_7b_joint.gin --gin_file=gin/hardware/v5p_4x8x8.gin

One line a value, so that two runs or two versions of one can be compared with `diff`. Nothing is read but gin files and
nothing is made: what the data decide is not known here. A value that is still to be given is `<required>`, with the
macro's name where it is one.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

# What a run file configures first. A file of a training stage also configures `compile_step`, with the same parts.
ENTRIES = (
    "train.train",
    "ladder.ladder",
    "prepare.prepare",
    "evaluate_chain.evaluate",
    "evaluate_tokenizer.evaluate_tokenizer",
    "probe_tokenizer.probe_tokenizer",
)
# A container whose text is longer is shown item by item.
_LONG = 100


@dataclasses.dataclass(frozen=True)
class Required:
    """A value that the command line or a further file has to give: its macro, or "" for a parameter itself."""

    macro: str = ""

    def __str__(self) -> str:
        return f"<required {self.macro}>" if self.macro else "<required>"


@dataclasses.dataclass(frozen=True)
class Call:
    """A function or class and its arguments.

    Attributes:
      name: module and name, without the package.
      function: what is called.
      arguments: value by parameter: plain Python, `Call`, `Required`, or containers of these; in the order of the
        signature, and with its defaults where it is called.
      evaluated: whether it is called (`@f()` in gin) or handed over as it is (`@f`).
    """

    name: str
    function: Callable[..., Any]
    arguments: Mapping[str, Any]
    evaluated: bool = True


def resolve_run() -> Call | None:
    """The call that the parsed configuration begins with: of the first of `ENTRIES` that it binds; None if of none."""
    import gin

    bound = [gin.config._REGISTRY[selector] for _, selector in gin.config._CONFIG]
    for entry in ENTRIES:
        for configurable in bound:
            if _name(configurable.wrapped) == entry:
                return _resolve_call(configurable, [], evaluated=True)
    return None


def lines(call: Call, path: str = "") -> Iterator[str]:
    """`call` as text: "parent.parameter = value" a line, calls as "@name()" with their arguments below."""
    path = path or call.name.rpartition(".")[2]
    yield f"{path} = {_call_text(call)}"
    for name, value in call.arguments.items():
        yield from _value_lines(f"{path}.{name}", value)


def open_values(call: Call, path: str = "") -> Iterator[tuple[str, Required]]:
    """(path, what is required) of each value that is still to be given."""
    for name, value in call.arguments.items():
        yield from _open_values(f"{path}.{name}" if path else name, value)


def _resolve_reference(reference: Any) -> Any:
    import gin

    function = reference.configurable.wrapped
    if function is gin.config.macro:
        name = "/".join(reference.scopes)
        value = _resolve(gin.query_parameter(f"%{name}"))
        return Required(name) if value == Required() else value
    if function is gin.config._retrieve_constant:
        return _resolve(reference.scoped_configurable_fn())
    return _resolve_call(reference.configurable, reference.scopes, reference.evaluate)


def _resolve_call(configurable: Any, scopes: Sequence[str], evaluated: bool) -> Call:
    """With what is bound in these scopes; without any, in those of the call that it is an argument of, as gin does."""
    import gin

    with gin.config_scope(list(scopes) or gin.current_scope()):
        bound = gin.get_bindings(configurable.selector, resolve_references=False)
        arguments = {name: _resolve(value) for name, value in bound.items()}
    function = configurable.wrapped
    ordered: dict[str, Any] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if name in arguments:
            ordered[name] = arguments.pop(name)
        elif not evaluated:
            continue  # whoever calls it gives the rest
        elif parameter.default is not parameter.empty:
            ordered[name] = _default(function, name, parameter.default)
        else:
            ordered[name] = Required()
    return Call(_name(function), function, {**ordered, **arguments}, evaluated)


def _resolve(value: Any) -> Any:
    import gin

    if isinstance(value, gin.config.ConfigurableReference):
        return _resolve_reference(value)
    if value is gin.REQUIRED:
        return Required()
    if isinstance(value, Mapping):
        return {key: _resolve(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_resolve(item) for item in value)
    return value


def _default(function: Any, name: str, default: Any) -> Any:
    """The value of a default, where a dataclass has a factory for it too."""
    if dataclasses.is_dataclass(function):
        for field in dataclasses.fields(function):
            if field.name == name and field.default_factory is not dataclasses.MISSING:
                return field.default_factory()
    return default


def _value_lines(path: str, value: Any) -> Iterator[str]:
    if isinstance(value, Call):
        yield from lines(value, path)
    elif dataclasses.is_dataclass(value) and not isinstance(value, (type, Required)):
        yield f"{path} = @{_name(type(value))}()"
        for field in dataclasses.fields(value):
            yield from _value_lines(f"{path}.{field.name}", getattr(value, field.name))
    elif isinstance(value, (list, tuple)) and _wants_lines(value):
        for index, item in enumerate(value):
            yield from _value_lines(f"{path}[{index}]", item)
    elif isinstance(value, Mapping) and _wants_lines(value):
        for key, item in value.items():
            yield from _value_lines(f"{path}[{key!r}]", item)
    else:
        yield f"{path} = {_text(value)}"


def _wants_lines(container: Any) -> bool:
    """Whether a container's items get a line each."""
    return _has_parts(container) or len(repr(container)) > _LONG


def _has_parts(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(_has_parts(item) for item in value)
    if isinstance(value, Mapping):
        return any(_has_parts(item) for item in value.values())
    return isinstance(value, (Call, Required)) or (dataclasses.is_dataclass(value) and not isinstance(value, type))


def _open_values(path: str, value: Any) -> Iterator[tuple[str, Required]]:
    if isinstance(value, Required):
        yield path, value
    elif isinstance(value, Call):
        yield from open_values(value, path)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _open_values(f"{path}[{key!r}]", item)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _open_values(f"{path}[{index}]", item)


def _call_text(call: Call) -> str:
    return f"@{call.name}{'()' if call.evaluated else ''}"


def _text(value: Any) -> str:
    if isinstance(value, Required):
        return str(value)
    if callable(value):
        return f"@{_name(value)}"
    return repr(value)


def _name(function: Any) -> str:
    """Ours with its module, another's with its package: where in it a function is defined is no matter of a run."""
    package, _, module = function.__module__.partition(".")
    return f"{module if package == 'mimo_jax' else package}.{function.__qualname__}"


def show() -> None:
    """Prints the configuration of the gin files of the command line."""
    from mimo_jax.cli import UserError

    run = resolve_run()
    if run is None:
        raise UserError(f"the gin files configure none of {', '.join(ENTRIES)}: give a file of gin/runs by --gin_file")
    print("\n".join(lines(run)))


def main() -> None:
    """Command line."""
    import gin

    from mimo_jax import cli

    gin.external_configurable(show, module="mimo_jax.show_config")
    cli.run(show, complete=False)


if __name__ == "__main__":
    # gin registers the module's function, not that of __main__.
    from mimo_jax import show_config as _module

    _module.main()
