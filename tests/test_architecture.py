"""The house keeps its rooms: imports point downward, and each foreign library has one door."""

import ast
from pathlib import Path

import svc

FOLDER = Path(svc.__file__).parent

LAYERS = [
    {
        "__init__",
        "processors",
        "retry",
        "breaker",
        "bell",
        "queue",
        "outgoing",
        "logs",
        "console",
        "hangup",
        "progress",
        "event_loop",
        "lived_time",
        "crowd",
        "devstack_leash",
        "devstack_child",
        "devstack_announced",
        "devstack_sqs",
    },
    {
        "settings",
        "probe",
        "sqs_signing",
        "sqs_wire",
        "gate",
        "maintenance",
        "ledger",
        "openapi_examples",
        "openapi_parts",
        "devstack",
        "etcd_channel",
        "etcd_keys",
        "etcd_connection",
    },
    {"observer", "fleet", "fence", "switching"},
    {
        "observed_queue",
        "spans",
        "tracing",
        "etcd",
        "etcd_registrar",
        "etcd_fleet",
        "leases",
        "settlement",
        "brake",
        "drain",
        "intake",
        "sqs",
        "dead_letters",
        "aws_client",
    },
    {"tasks", "deliveries"},
    {"worker"},
    {"core"},
    {
        "api_answers",
        "render",
        "fleet_view",
        "openapi",
        "openapi_fleet",
        "docs",
        "metrics",
        "cloudwatch",
        "server",
        "history",
    },
    {"view"},
    {"feed"},
    {"api_page", "api_fleet", "api_logs"},
    {"api"},
    {"watchdog"},
    {"service"},
    {"cli", "cli_dlq", "cli_maintenance", "commands"},
    {"__main__"},
]
"""From the bottom up. A module imports from its own layer or from below."""

TESTING = {"testing", "pytest_plugin"}
"""What tests are made of may import anything and is imported by nothing of the above (nor is any simulated_*)."""

ONE_DOOR: dict[str, str | set[str]] = {
    "etcd3": "etcd_channel",
    "grpc": "etcd_channel",
    "aiobotocore": "aws_client",
    "asyncio": "aws_client",
    "trio_asyncio": "aws_client",
    "quart_trio": "api",
    "moto": "devstack_sqs",
    "prometheus_client": "metrics",
    "opentelemetry": "spans",
    "click": {"cli", "cli_dlq", "cli_maintenance", "commands"},
    "pydantic": "settings",
}


def imports(path: Path) -> set[str]:
    """Dotted names of everything that the file imports, within functions too; what only the type checker sees is left out."""
    found: set[str] = set()
    tree = ast.parse(path.read_text())
    type_checking = [
        node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
    ]
    hidden = {id(inner) for node in type_checking for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def own(names: set[str]) -> set[str]:
    """The modules of svc among them."""
    parts = {name.split(".")[1] for name in names if name.startswith("svc.")}
    return {part for part in parts if (FOLDER / f"{part}.py").exists()}


def is_testing(module: str) -> bool:
    return module in TESTING or module.startswith("simulated_")


MODULES = {path.stem: imports(path) for path in FOLDER.glob("*.py")}


def test_every_module_has_a_layer() -> None:
    placed = set().union(*LAYERS)
    assert {module for module in MODULES if not is_testing(module)} == placed


def test_imports_point_downward() -> None:
    level = {module: number for number, layer in enumerate(LAYERS) for module in layer}
    for module, names in MODULES.items():
        if is_testing(module) or module == "__init__":
            continue
        for imported in own(names):
            assert not is_testing(imported), f"{module} imports {imported}"
            assert level[imported] <= level[module], f"{module} imports {imported}, which lies above it"


def test_foreign_libraries_have_one_door() -> None:
    for library, door in ONE_DOOR.items():
        users = {module for module, names in MODULES.items() if any(name.split(".")[0] == library for name in names)}
        assert users <= ({door} if isinstance(door, str) else door), f"{library} is imported in {sorted(users)}"


def test_what_decides_touches_no_foreign_library_and_no_wall_clock() -> None:
    for module in (
        "maintenance",
        "ledger",
        "leases",
        "settlement",
        "brake",
        "intake",
        "tasks",
        "drain",
        "worker",
        "bell",
        "gate",
        "observer",
        "observed_queue",
        "fence",
        "fleet",
        "switching",
    ):
        allowed = {"trio", "structlog", "svc"}
        foreign = {name.split(".")[0] for name in MODULES[module]} - allowed
        standard = {"asyncio", "time", "datetime", "socket", "os", "threading"}
        assert not foreign & standard, f"{module} imports {sorted(foreign & standard)}"


def test_every_cancellation_says_why() -> None:
    """In the traceback of whoever was cancelled (`trio.Cancelled` shows the reason)."""
    cancelled = 0
    for path in FOLDER.glob("*.py"):
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "cancel":
                of_a_scope = ast.unparse(call.func.value).rpartition(".")[2] not in {"task", "future", "timer", "_call"}
                said = any(keyword.arg == "reason" for keyword in call.keywords)
                assert said == of_a_scope, f"{path.name}:{call.lineno}"
                cancelled += said
    assert cancelled > 20
