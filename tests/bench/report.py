"""The table: from the result of a run (plain JSON) to Markdown. Pure: what is printed, what stands in docs/performance.md and
what is in the JSON file are the same figures.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

PRICE = 0.40
"""US dollars for a million requests: standard queues, us-east-1, up to 100 billion a month, without the first million of a month,
which is free (AWS, "Amazon SQS pricing"). One request moves up to 64 KiB."""

MONTHLY_MESSAGES = 100_000_000

FIRST = " The machine was in use meanwhile; what was measured went before everything else on it (`--first`)."

Result = Mapping[str, Any]


def markdown(result: Result, picture: str | None = None) -> str:
    machine = result["machine"]
    parts = [
        f"Measured on {result['date']} with `{result['command']}`: {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['system']}, Python {machine['python']}. One process on one core, the SQS stub on the other; medians of "
        f"{result['repeats']} runs in turn, in parentheses the lowest and the highest. A message has about a hundred bytes (the "
        "peers' own envelopes are larger)." + (FIRST if "--first" in result["command"] else ""),
    ]
    consumers = result["consumers"].values()
    if any(one.get("saturation") for one in consumers):
        parts.append(_throughput(result))
    if any("quiet" in one for one in consumers):
        parts.append(_requests(result))
    if any("latency" in one for one in consumers):
        parts.append(_latencies(result))
    parts.append(_notes(result))
    if "reaction" in result:
        parts.append(_reaction(result))
    if result.get("growth"):
        parts.append(_growth(result["growth"]))
        if picture:
            parts.append(f"![Messages per second and memory by messages in flight]({picture})")
    if result.get("overhead"):
        parts.append(_overhead(result["overhead"]))
    if result.get("processors"):
        parts.append(_overhead(result["processors"], "which processor, without work", "one message, on Trio"))
    if goals := goals_of(result):
        parts.append(_goals(goals))
    return "\n\n".join(parts) + "\n"


def _throughput(result: Result) -> str:
    rows = [["a backlog, no work", "messages/s", "CPU per message", "CPU, svc = 1"]]
    ours = result["consumers"].get("svc", {})
    for one in result["consumers"].values():
        if not one.get("saturation"):
            rows.append([one["title"], f"cannot run: {one.get('error', 'not measured')}", "", ""])
            continue
        ratio = median(one, "cpu_per_message") / median(ours, "cpu_per_message") if ours.get("saturation") else None
        rows.append([
            one["title"],
            _spread([f"{value:,.0f}" for value in _three(one, "per_second")]),
            _spread([f"{value * 1e6:.0f} µs" for value in _three(one, "cpu_per_message")]),
            _or_dash(ratio, ".2f"),
        ])  # fmt: skip
    return table(rows)


def _requests(result: Result) -> str:
    rows = [
        ["what SQS charges for", "requests per message, backlog", "at 1 message/s", "receives per hour, idle",
         "a month of 100 million messages: backlog – at 1/s"],
    ]  # fmt: skip
    for one in result["consumers"].values():
        full = median(one, "requests") if one.get("saturation") else None
        trickle = one.get("quiet", {}).get("requests_per_message")
        idle = one.get("quiet", {}).get("receives_per_hour")
        if full is None and trickle is None and idle is None:
            continue
        bills = " – ".join("—" if requests is None else f"${bill(requests):,.0f}" for requests in (full, trickle))
        rows.append([one["title"], _or_dash(full, ".3f"), _or_dash(trickle, ".2f"), _or_dash(idle, ".0f"), bills])
    return table(rows)


def _latencies(result: Result) -> str:
    rows = [["from SQS has it to work starts", "idle: p50", "p99", "at half its own load: p50", "p99"]]
    for one in result["consumers"].values():
        if found := one.get("latency"):
            cells = [_ms(found[load][point]) for load in ("idle", "loaded") for point in ("p50", "p99")]
            cells[2] = f"{cells[2]} ({found['loaded']['per_second']:,.0f}/s)"
            rows.append([one["title"], *cells])
    return table(rows)


def _notes(result: Result) -> str:
    shares = [run["stub_share"] for one in result["consumers"].values() for run in one.get("saturation", [])]
    lines = [
        f"- The stub used at most {max(shares, default=0):.0%} of its core: it is not what was measured."
        if shares
        else "",
        f"- Price: ${PRICE:.2f} per million requests (us-east-1, standard queue, beyond the first million of a month), for the "
        "consumer's requests only; sending costs the same for everybody.",
        *(
            f"- {one['title']}: {one['how']} ({one['versions']})"
            for one in result["consumers"].values()
            if one.get("versions")
        ),
        *_ahead(result),
    ]
    return "\n".join(line for line in lines if line)


def _ahead(result: Result) -> list[str]:
    """Where a peer is ahead of svc, in words."""
    consumers = result["consumers"]
    if not consumers.get("svc", {}).get("saturation"):
        return []
    svc, found = consumers["svc"], []
    for key, one in consumers.items():
        if key.startswith(("svc", "floor")) or not one.get("saturation"):
            continue
        ahead = []
        for name, what, more_is_better in (
            ("per_second", "messages per second", True),
            ("cpu_per_message", "CPU per message", False),
        ):
            ratio = median(one, name) / median(svc, name)
            ratio = ratio if more_is_better else 1 / ratio
            if ratio > 1.02:
                ahead.append(f"{what} (by a factor of {ratio:.1f})")
        ours, theirs = svc.get("quiet", {}), one.get("quiet", {})
        if theirs.get("requests_per_message", 9e9) < ours.get("requests_per_message", 0) * 0.98:
            ahead.append(f"requests at a trickle ({theirs['requests_per_message']:.2f})")
        if theirs.get("receives_per_hour", 9e9) < ours.get("receives_per_hour", 0) * 0.98:
            ahead.append(f"receives when idle ({theirs['receives_per_hour']:.0f} an hour)")
        if median(one, "requests") < median(svc, "requests") * 0.98:
            ahead.append(f"requests at saturation ({median(one, 'requests'):.3f})")
        for load in ("idle", "loaded"):
            ours_p99 = svc.get("latency", {}).get(load, {}).get("p99")
            theirs_p99 = one.get("latency", {}).get(load, {}).get("p99")
            if ours_p99 and theirs_p99 and theirs_p99 < ours_p99 * 0.9:
                ahead.append(
                    f"send to start {'idle' if load == 'idle' else 'at half load'} (p99 {theirs_p99 * 1e3:.1f} ms)"
                )
        if ahead:
            found.append(f"- **Ahead of svc**: {one['title']}, in {', '.join(ahead)}.")
    return found or ["- No peer is ahead of svc in any column."]


def _reaction(result: Result) -> str:
    last, draining = result["reaction"]["last_receive"], result["reaction"]["draining"]
    return table([
        ["from the etcd put, at work", "p50", "p99", "toggles"],
        ["to the last receive begun", _ms(last["p50"]), _ms(last["p99"]), str(last["toggles"])],
        ["to `draining` in `/health`", _ms(draining["p50"]), _ms(draining["p99"]), str(draining["toggles"])],
    ])  # fmt: skip


def _growth(rows: Sequence[Mapping[str, Any]]) -> str:
    return table([
        ["MAX_CONCURRENCY", "messages/s", "CPU per message", "memory with so many in flight", "per message, beyond its body"],
        *(
            [
                f"{row['in_flight']:,}",
                f"{row['per_second']:,.0f}",
                f"{row['cpu_per_message'] * 1e6:.0f} µs",
                f"{row['held'] / 2**20:.0f} MiB"
                + (f" (a second time {row['again'] / 2**20:.0f} MiB)" if "again" in row else ""),
                f"{row['per_message'] / 1024:.1f} KiB" if row["in_flight"] >= 1000 else "—",
            ]
            for row in rows
        ),
    ])  # fmt: skip


def _overhead(rows: Sequence[Mapping[str, Any]], what: str = "who looks", first: str = "nobody") -> str:
    shown = [[what, "CPU per message, each run", f"the lowest, {first} = 1"]]
    for row in rows:
        runs = [f"{value * 1e6:.0f}" for value in sorted(row["cpu_per_message"])]
        shown.append([row["title"], f"{', '.join(runs)} µs", f"{_ratio(row, rows[0]):.3f}"])
    return table(shown)


def _ratio(row: Mapping[str, Any], first: Mapping[str, Any]) -> float:
    """Of the lowest runs: what disturbs a run only adds to it, and here a few parts in a hundred are looked for."""
    return float(min(row["cpu_per_message"]) / min(first["cpu_per_message"]))


def goals_of(result: Result) -> list[dict[str, Any]]:
    """Each goal with what was found; `holds` is None where it was not measured."""
    consumers, goals = result["consumers"], []

    def goal(text: str, found: float | None, limit: float, shown: str, *, at_least: bool = False) -> None:
        holds = None if found is None else (found >= limit if at_least else found <= limit)
        goals.append({"goal": text, "found": "not measured" if found is None else shown.format(found), "holds": holds})

    svc = consumers.get("svc", {})
    has = bool(svc.get("saturation"))
    goal("≤ 0.21 requests per message at saturation", median(svc, "requests") if has else None, 0.21, "{:.3f}")
    quiet = svc.get("quiet", {})
    goal("≤ 2.1 requests per message at 1/s", quiet.get("requests_per_message"), 2.1, "{:.2f}")
    goal("≤ 181 receives per hour idle", quiet.get("receives_per_hour"), 181, "{:.0f}")
    for key, text, limit in (
        ("floor", "CPU per message ≤ 0.42 × the floor on asyncio", 0.42),
        ("floor-direct", "CPU per message ≤ 2.5 × the direct floor", 2.5),
    ):
        floor = consumers.get(key, {})
        ratio = (
            median(svc, "cpu_per_message") / median(floor, "cpu_per_message")
            if has and floor.get("saturation")
            else None
        )
        goal(text, ratio, limit, "{:.2f} ×")
    peers = {
        key: median(one, "per_second")
        for key, one in consumers.items()
        if not key.startswith(("svc", "floor")) and one.get("saturation")
    }
    others = {"sqs-consumer": "Node", "fanferro": "Rust"}
    for text, among, limit in (
        ("messages per second ≥ 3 × the best Python peer", peers.keys() - others, 3.0),
        *((f"messages per second ≥ {key}'s ({others[key]})", peers.keys() & {key}, 1.0) for key in others),
    ):
        best = max(among, key=lambda key: peers[key], default=None)
        ratio = median(svc, "per_second") / peers[best] if has and best is not None else None
        goal(text, ratio, limit, f"{{:.2f}} × {best}", at_least=True)
    if tls := result.get("tls"):
        goal(
            "CPU per message over TLS ≤ 1.6 × plain",
            statistics.median(tls["tls"]) / statistics.median(tls["plain"]),
            1.6,
            "{:.2f} ×",
        )
    rest = result.get("rest", {})
    goal("≤ 1.5 ms of CPU per second at rest", rest.get("cpu_per_second"), 0.0015, _MS)
    goal("≤ 1.0 s of CPU until the first receive", rest.get("start_cpu"), 1.0, "{:.2f} s")
    resident = rest["resident"] / 2**20 if rest else None
    goal("≤ 85 MiB resident after it", resident, 85, "{:.0f} MiB")
    reaction = result.get("reaction", {})
    goal("p99 from put to last receive ≤ 20 ms", reaction.get("last_receive", {}).get("p99"), 0.020, _MS)
    goal("p99 from put to `draining` ≤ 20 ms", reaction.get("draining", {}).get("p99"), 0.020, _MS)
    goal("p99 send to start idle ≤ 50 ms", svc.get("latency", {}).get("idle", {}).get("p99"), 0.050, _MS)
    most = next((row for row in result.get("growth", []) if row["in_flight"] == 10_000), {})
    per_message = most["per_message"] / 1024 if most else None
    goal("≤ 6 KiB per message in flight at 10,000", per_message, 6, "{:.1f} KiB")
    if rows := result.get("overhead"):
        for row in rows[1:3]:
            goal(f"CPU per message ≤ 1.05 × nobody looks: {row['title']}", _ratio(row, rows[0]), 1.05, "{:.3f} ×")
    return goals


def _goals(goals: Sequence[Mapping[str, Any]]) -> str:
    said = {True: "holds", False: "**does not hold**", None: "—"}
    return table([["goal", "found", ""], *([one["goal"], one["found"], said[one["holds"]]] for one in goals)])


class _Milliseconds:
    """`.format()` for seconds shown as milliseconds."""

    def format(self, seconds: float) -> str:
        return f"{seconds * 1e3:.1f} ms"


_MS: Any = _Milliseconds()


def median(one: Mapping[str, Any], name: str) -> float:
    return statistics.median(run[name] for run in one["saturation"])


def bill(requests_per_message: float) -> float:
    """US dollars for a month of 100 million messages."""
    return requests_per_message * MONTHLY_MESSAGES / 1e6 * PRICE


def _three(one: Mapping[str, Any], name: str) -> list[float]:
    values = sorted(run[name] for run in one["saturation"])
    return [statistics.median(values), values[0], values[-1]]


def _spread(three: list[str]) -> str:
    median, low, high = three
    return median if low == high else f"{median} ({low.removesuffix(' µs')}–{high})"


def _or_dash(value: float | None, shown: str) -> str:
    return "—" if value is None else format(value, shown)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"


def table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *body])
