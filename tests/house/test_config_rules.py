"""Config fields are explained where they stand, and nobody below run/ edits a config."""

import ast

from tests.house.tree import parse, python_files

CONFIG_FILES = python_files("trainer/config")
CODE_FILES = [path for path in python_files("trainer") if path not in CONFIG_FILES]
SEE_ALL = ("cli.py", "command", "run")
"""Where a whole run is known; the loop and the step are time and maths all the same."""
BELOW_RUN_FILES = [
    path for path in CODE_FILES if path.parts[1] not in SEE_ALL or path.stem in ("loop", "step", "saver")
]


def is_dataclass(node: ast.ClassDef) -> bool:
    decorators = {ast.unparse(decorator).split("(")[0] for decorator in node.decorator_list}
    return bool(decorators & {"dataclass", "dataclasses.dataclass"})


def is_docstring(node: ast.stmt | None) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def is_section(annotation: ast.expr) -> bool:
    """A field that is itself a config class is explained by the docstring of that class."""
    return isinstance(annotation, ast.Name) and annotation.id.endswith("Config")


def test_there_are_config_dataclasses():
    classes = [n for p in CONFIG_FILES for n in ast.walk(parse(p)) if isinstance(n, ast.ClassDef)]
    assert sum(map(is_dataclass, classes)) >= 10


def test_every_config_field_is_followed_by_what_it_means():
    missing = []
    for path, node in ((file, node) for file in CONFIG_FILES for node in ast.walk(parse(file))):
        if not (isinstance(node, ast.ClassDef) and is_dataclass(node)):
            continue
        for field, after in zip(node.body, [*node.body[1:], None], strict=True):
            if not isinstance(field, ast.AnnAssign) or is_section(field.annotation):
                continue
            if node.name.endswith("Config") and not is_docstring(after):
                missing.append(f"{path}:{field.lineno} {node.name}.{ast.unparse(field.target)}")
    assert not missing, missing


def config_class_names(tree: ast.Module) -> set[str]:
    """Return the config classes a file imports from trainer.config."""
    return {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("trainer.config")
        for alias in node.names
        if alias.name.endswith("Config")
    }


def names_in(annotation: ast.expr | None) -> set[str]:
    if annotation is None:
        return set()
    return {node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)}


def edits_of_configs(tree: ast.Module) -> list[str]:
    """Return the assignments to attributes of names that are annotated with a config class."""
    classes = config_class_names(tree)
    holders = {
        node.arg
        for node in ast.walk(tree)
        if isinstance(node, ast.arg) and names_in(node.annotation) & classes
    }
    found = []
    for node in ast.walk(tree):
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AugAssign | ast.AnnAssign):
            targets = [node.target]
        for target in targets:
            root = target
            while isinstance(root, ast.Attribute | ast.Subscript):
                root = root.value
            if root is not target and isinstance(root, ast.Name) and root.id in holders:
                found.append(f"line {node.lineno}: {ast.unparse(target)}")
    return found


def test_the_search_for_edits_finds_one():
    tree = ast.parse(
        "from trainer.config.optim import OptimConfig\n"
        "def f(optim: OptimConfig, other: int) -> None:\n"
        "    optim.lr = 1\n"
        "    other.lr = 1\n"
    )
    assert edits_of_configs(tree) == ["line 3: optim.lr"]


def test_no_config_is_edited_outside_the_config_package():
    found = {str(path): edits for path in CODE_FILES if (edits := edits_of_configs(parse(path)))}
    assert not found, found


def test_only_the_top_sees_the_whole_config():
    found = [str(path) for path in BELOW_RUN_FILES if "RunConfig" in config_class_names(parse(path))]
    assert not found, f"{found}: take the section or the plain values that they need"
