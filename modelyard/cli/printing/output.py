"""What the command line prints: tables and live phases for people, JSON for machines."""

import json
import sys
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime

from pydantic import BaseModel
from rich.console import Console
from rich.markup import escape

from modelyard.cli.printing.abridging import abridged, abridged_text
from modelyard.cli.printing.contents import described_content, description_of
from modelyard.cli.printing.failures import failure_lines
from modelyard.cli.printing.plain import in_json, plain
from modelyard.cli.printing.tables import GAP, laid_out
from modelyard.client import Content, NotJsonError
from modelyard.client.credentials import VARIABLE
from modelyard.contract.access.api_keys import ApiKeyView, CreatedApiKey
from modelyard.contract.answers import Accepted, BatchItem, DeadLetterSummary, Fault
from modelyard.contract.capacity.sizes import part_text, size_text
from modelyard.contract.catalog.entries import DatasetSpec, ModelSpec
from modelyard.contract.content.media_types import is_json, is_text
from modelyard.contract.errors import ErrorInfo
from modelyard.contract.strict_json import JsonValue
from modelyard.contract.views import (
    Amount,
    DeviceView,
    DrainView,
    DryRun,
    Explanation,
    FootprintView,
    HolderView,
    HostVerdict,
    HostView,
    JobView,
    OperationView,
    Outlook,
)

_STYLES = {
    "SUCCEEDED": "green",
    "LOADED": "green",
    "CREATED": "cyan",
    "ONLINE": "green",
    "RUNNING": "cyan",
    "DISPATCHED": "cyan",
    "FAILED": "red",
    "REJECTED": "red",
    "TIMED_OUT": "red",
    "EXPIRED": "red",
    "LOST": "red",
    "SUSPECT": "yellow",
}

_ABRIDGED = "Abridged for the terminal; into a pipe or a file it goes whole."
_SHOWN_IF_TRUE = {"cancel_requested"}


class Output:
    """Results go to stdout, everything else to stderr."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self._out = Console(highlight=False)
        self._err = Console(stderr=True, highlight=False)

    def value(self, value: JsonValue) -> None:
        """Print JSON: a result, or anything for machines. On a terminal long results are abridged.

        With `--json`, and into a pipe or a file, everything is printed whole.
        """
        terminal = sys.stdout.isatty()
        if terminal and not self.as_json:
            text, left_out = abridged(value)
            sys.stdout.write(in_json(text) + "\n")
            if left_out:
                self.note(_ABRIDGED)
            return
        text = json.dumps(value, ensure_ascii=False, indent=2 if terminal else None)
        sys.stdout.write(in_json(text) + "\n")

    def content(self, content: Content) -> None:
        """Print a result of any type.

        On a terminal, what is no text is only named, and so is what is said to be JSON and can't
        be read as such. With `--json` it is described, if it is not JSON itself: its bytes would
        not be.
        """
        if is_json(content.media_type):
            try:
                self.value(content.json())
            except (NotJsonError, RecursionError):
                pass  # to be treated as bytes
            else:
                return
        if self.as_json:
            self.value(description_of(content))
        elif not sys.stdout.isatty():
            sys.stdout.buffer.write(content.content)
            sys.stdout.buffer.flush()
        elif is_text(content.media_type) and not is_json(content.media_type):
            text, left_out = abridged_text(content.content.decode(errors="replace"))
            sys.stdout.write(plain(text) + "\n")
            if left_out:
                self.note(_ABRIDGED)
        else:
            self.note(f"The result is {described_content(content)}. --output FILE writes it.")

    def line(self, text: str, *, style: str | None = None) -> None:
        """Print a line for people on stdout; it is never folded."""
        self._out.print(escape(plain(text)), soft_wrap=True, style=style)

    def note(self, text: str) -> None:
        """Print a line for people on stderr."""
        self._err.print(escape(plain(text)), soft_wrap=True)

    def error(self, text: str, faults: Sequence[Fault] = ()) -> None:
        """Print what went wrong, and where in the request if the text does not say it all."""
        self._err.print(f"[red]error:[/red] {escape(plain(text))}", soft_wrap=True)
        if len(faults) == 1 and faults[0].message in text:
            return
        for fault in faults:
            where = fault.pointer or fault.parameter or fault.header or "(the whole request)"
            self.note(f"  {where}: {fault.message}")

    def failure(self, sentence: str, error: ErrorInfo | None) -> None:
        """Print that an operation did not succeed, with everything that is known about why."""
        if error is None:
            self.error(sentence)
            return
        first, *facts = failure_lines(error)
        self.error(f"{sentence}: {first}")
        for line in facts:
            self._err.print(escape(line), soft_wrap=True)

    def problem(self, fields: Mapping[str, JsonValue]) -> None:
        """Print an error as one line of JSON on stderr, for machines."""
        text = json.dumps({"error": dict(fields)}, ensure_ascii=False)
        sys.stderr.write(in_json(text) + "\n")

    def accepted(self, accepted: Accepted) -> None:
        """Print the operation of a request."""
        if self.as_json:
            self.value(accepted.model_dump(mode="json"))
        else:
            self._out.print(accepted.operation_id)

    def batch(self, items: Sequence[BatchItem]) -> None:
        """Print the outcome of each request of a batch."""
        if self.as_json:
            self.value([item.model_dump(mode="json", exclude_none=True) for item in items])
            return
        rows = [
            (
                str(item.status),
                item.job_id or "",
                item.operation_id or "",
                f"{item.problem.code}: {item.problem.detail}" if item.problem else item.state or "",
            )
            for item in items
        ]
        self.table(("status", "job", "operation", "answer"), rows)

    def operations(self, found: Sequence[OperationView]) -> None:
        """Print operations."""
        rows = [
            (
                one.operation_id,
                one.job_id or "",
                one.operation_type or "",
                one.state,
                one.host_id or "",
                _when(one.accepted_at),
                one.error.code if one.error else "",
                one.reason or "",
            )
            for one in found
        ]
        names = ("operation", "job", "verb", "state", "host", "accepted", "error", "reason")
        self._many(found, names, rows, least=("reason", "accepted", "host", "verb"))

    def jobs(self, found: Sequence[JobView]) -> None:
        """Print jobs."""
        rows = [
            (
                one.job_id,
                one.state,
                one.model or "",
                one.dataset or "",
                one.host_id or "",
                (one.container_id or "")[:12],
                one.error.code if one.error else "",
            )
            for one in found
        ]
        names = ("job", "state", "model", "dataset", "host", "container", "error")
        self._many(found, names, rows, least=("container", "dataset", "host"))

    def more(self, cursor: str | None) -> None:
        """Say below a list that it goes on, if it does."""
        if cursor is not None:
            self.note("There are older ones: a higher --limit shows more.")

    def explanation(self, found: Explanation) -> None:
        """Print why an operation has not started."""
        self._outlook(found, "why not")

    def dry_run(self, found: DryRun) -> None:
        """Print what would become of a request that is not made."""
        self._outlook(found, "answer")

    def _outlook(self, found: Outlook, of_hosts: str) -> None:
        if self.as_json:
            self.value(found.model_dump(mode="json"))
            return
        for sentence in found.reasons:
            self._out.print(escape(plain(sentence)), soft_wrap=True)
        if found.ahead_in_waiting_room:
            count = found.ahead_in_waiting_room
            self._out.print(f"More urgent operations that wait for room: {count}.")
        if found.estimated_start_s:
            self._out.print(f"It starts in about {found.estimated_start_s:.3g} s.")
        if not found.hosts:
            return
        self._out.print()
        rows = [(one.host_id, _verdict(one)) for one in found.hosts]
        self.table(("host", of_hosts), rows)
        held = [
            (
                one.host_id,
                it.job_id,
                it.model or "",
                _freed(it),
                it.stays or "makes room",
            )
            for one in found.hosts
            for it in one.holders
        ]
        if held:
            self._out.print()
            self.table(("host", "held by", "model", "would free", "stays because"), held)

    def hosts(self, found: Sequence[HostView]) -> None:
        """Print hosts, and their devices if they have some."""
        rows = [
            (
                one.host_id,
                one.liveness,
                one.admission,
                str(one.slots_used) if one.slots is None else f"{one.slots_used}/{one.slots}",
                f"{one.cpus.allocated:g}/{one.cpus.allocatable:g}" if one.cpus else "",
                _part(one.memory),
                _resident(one.memory),
                _in_use(one.memory),
                str(one.running),
                _when(one.last_seen),
                _drained(one.drain),
            )
            for one in found
        ]
        names = (
            "host",
            "liveness",
            "admission",
            "jobs",
            "cpus",
            "memory",
            "resident",
            "used",
            "running",
            "seen",
            "drain",
        )
        least = ("used", "resident", "running", "seen", "cpus", "memory")
        self._many(found, names, rows, least=least)
        if not self.as_json and any(one.devices for one in found):
            self._out.print()
            self._devices(found)

    def _devices(self, found: Sequence[HostView]) -> None:
        rows = [
            (
                one.host_id,
                str(device.index),
                device.model,
                device.uuid,
                part_text(device.allocated, device.memory),
                *_measured(device),
                _loaded(device),
            )
            for one in found
            for device in one.devices
        ]
        names = (
            "host",
            "device",
            "model",
            "uuid",
            "allocated",
            "used",
            "busy",
            "temperature",
            "processes",
            "loaded",
        )
        self.table(names, rows, least=("uuid", "processes", "temperature", "busy", "used", "model"))

    def dead_letters(self, found: Sequence[DeadLetterSummary]) -> None:
        """Print dead letters."""
        rows = [
            (
                one.dead_letter_id,
                one.reason,
                one.queue,
                str(one.payload_bytes),
                str(one.replays),
                _when(one.recorded_at),
                one.detail,
            )
            for one in found
        ]
        names = ("dead letter", "reason", "queue", "bytes", "replays", "recorded", "detail")
        self._many(found, names, rows, least=("replays", "bytes", "recorded", "queue"))

    def created_key(self, created: CreatedApiKey) -> None:
        """Print a new API key, and nothing else on stdout, so that a script can take it."""
        if self.as_json:
            self.value(created.model_dump(mode="json"))
            return
        key = created.key
        self.note(
            f"Key {key.key_id} ({key.name}) may: {', '.join(key.scopes)}. It is shown this once; "
            f"clients take it from {VARIABLE}."
        )
        sys.stdout.write(created.api_key + "\n")

    def keys(self, found: Sequence[ApiKeyView]) -> None:
        """Print API keys."""
        rows = [
            (
                one.key_id,
                one.name,
                one.created_by or "",
                _when(one.created_at),
                _when(one.expires_at),
                _when(one.last_used_at),
                _when(one.revoked_at),
                ", ".join(one.scopes),
            )
            for one in found
        ]
        names = ("key", "name", "created by", "created", "expires", "used", "revoked", "scopes")
        self._many(found, names, rows, least=("created by", "created", "used", "expires"))

    def models(self, found: Sequence[ModelSpec]) -> None:
        """Print models."""
        rows = [(one.name, one.profile, one.image) for one in found]
        self._many(found, ("model", "profile", "image"), rows)

    def footprints(self, found: Sequence[FootprintView]) -> None:
        """Print what models take."""
        rows = [
            (
                one.image,
                one.device,
                "" if one.memory is None else size_text(one.memory),
                "" if one.device_memory is None else size_text(one.device_memory),
                str(one.loads),
                _when(one.last_seen),
            )
            for one in found
        ]
        names = ("image", "device", "memory", "device memory", "loads", "measured")
        self._many(found, names, rows, least=("measured", "loads"))

    def datasets(self, found: Sequence[DatasetSpec]) -> None:
        """Print datasets."""
        rows = [(one.name, one.path or f"volume {one.volume}") for one in found]
        self._many(found, ("dataset", "source"), rows)

    def one(self, view: BaseModel) -> None:
        """Print all fields of one thing."""
        if self.as_json:
            self.value(view.model_dump(mode="json"))
        else:
            self.fields(view)

    def fields(self, view: BaseModel, *, without: Collection[str] = ()) -> None:
        """Print the fields of one thing for people, each on a line of its own."""
        fields = view.model_dump(mode="json", exclude={"links", "error", *without})
        shown = {
            name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            for name, value in fields.items()
            if value not in (None, "", [], {}) and (value or name not in _SHOWN_IF_TRUE)
        }
        error = getattr(view, "error", None)
        width = max(map(len, [*shown, "error" if error else ""]), default=0)
        for name, text in shown.items():
            self._out.print(f"[bold]{name:{width}}[/bold]  {_styled(text)}", soft_wrap=True)
        if isinstance(error, ErrorInfo):
            for at, line in enumerate(failure_lines(error)):
                name = "" if at else "error"
                self._out.print(f"[bold]{name:{width}}[/bold]  {escape(line)}", soft_wrap=True)

    def whole(self, view: BaseModel, **parts: Sequence[BaseModel]) -> None:
        """Print one thing with its parts for machines."""
        listed = {name: [one.model_dump(mode="json") for one in of] for name, of in parts.items()}
        self.value({**view.model_dump(mode="json"), **listed})

    def heading(self, text: str) -> None:
        """Print the name of a part, after an empty line."""
        self._out.print(f"\n[bold]{escape(plain(text))}[/bold]", soft_wrap=True)

    def _many(
        self,
        found: Sequence[BaseModel],
        names: Sequence[str],
        rows: Sequence[Sequence[str]],
        least: Sequence[str] = (),
    ) -> None:
        if self.as_json:
            self.value([one.model_dump(mode="json") for one in found])
        else:
            self.table(names, rows, least)

    def table(
        self, names: Sequence[str], rows: Sequence[Sequence[str]], least: Sequence[str] = ()
    ) -> None:
        """Print a table for people; `least` names the columns that may go if there is no room."""
        width = self._out.width if self._out.is_terminal else None
        table = laid_out(names, rows, least=least, width=width)
        self._out.print(f"[bold]{GAP.join(table.header)}[/bold]", soft_wrap=True)
        for cells in table.lines:
            line = GAP.join(_styled(cell) for cell in cells).rstrip()
            self._out.print(line, soft_wrap=True)
        if table.left_out:
            left_out = ", ".join(table.left_out)
            self.note(f"No room for: {left_out}. A wider terminal, or a pipe, shows all columns.")


def described(view: OperationView) -> str:
    """Return the state and progress of an operation in a few words."""
    words = [str(view.operation_type or "?"), str(view.job_id or "?"), view.state.value]
    if view.phase is not None:
        words.append(view.phase.value)
    if view.progress is not None and view.progress.total:
        words.append(f"{100 * view.progress.current // view.progress.total}%")
    if view.host_id is not None:
        words.append(f"on {view.host_id}")
    if view.cancel_requested and not view.state.terminal:
        words.append("cancel requested")
    if view.not_before is not None:
        words.append(f"next attempt at {_when(view.not_before)}")
        if view.error is not None:
            words.append(f"after {view.error.code}")
    if view.waiting_for:
        words.append("waiting: " + "; ".join(view.waiting_for))
    return " ".join(words)


def _styled(cell: str) -> str:
    style = _STYLES.get(cell.rstrip())
    return f"[{style}]{cell}[/{style}]" if style else escape(plain(cell))


def _part(amount: Amount | None) -> str:
    return part_text(int(amount.allocated), int(amount.allocatable)) if amount else ""


def _resident(memory: Amount | None) -> str:
    return size_text(int(memory.resident)) if memory and memory.resident else ""


def _in_use(memory: Amount | None) -> str:
    """Return what anyone uses of a host's memory, as measured."""
    if memory is None or memory.measured is None:
        return ""
    return size_text(int(memory.measured))


def _loaded(device: DeviceView) -> str:
    """Return the jobs whose models are on a device, or why nothing new goes there."""
    jobs = ", ".join(device.resident)
    taint = device.measured.tainted if device.measured else None
    if taint is None:
        return jobs
    whose = f" by {taint.job_id}" if taint.job_id else ""
    tainted = f"tainted: {size_text(taint.memory)} not given back{whose}"
    return f"{jobs}; {tainted}" if jobs else tainted


def _verdict(one: HostVerdict) -> str:
    """Return why a host refuses, or what it would have to get first."""
    if one.refusal is not None:
        return one.refusal
    return f"has room; would have to get: {', '.join(one.to_fetch)}" if one.to_fetch else "has room"


def _freed(one: HolderView) -> str:
    """Return what a job gives back when it makes room, or would."""
    amounts = [f"{name} {size_text(size)}" for name, size in one.frees.items()]
    if one.cpus:
        amounts.append(f"{one.cpus:g} CPUs")
    if one.slots:
        amounts.append("1 slot" if one.slots == 1 else f"{one.slots} slots")
    return ", ".join(amounts)


def _measured(device: DeviceView) -> tuple[str, str, str, str]:
    """Return what was measured of a device: memory in use, time at work, temperature, processes."""
    reading = device.measured
    if reading is None:
        return "", "", "", ""
    return (
        size_text(reading.memory_used),
        "" if reading.utilisation is None else f"{reading.utilisation}%",
        "" if reading.temperature_c is None else f"{reading.temperature_c} °C",
        "" if reading.processes is None else str(reading.processes),
    )


def _drained(drain: DrainView | None) -> str:
    """Return the progress of a drain in a few words."""
    if drain is None:
        return ""
    if drain.done:
        return "done"
    until = f" until {_when(drain.deadline)}" if drain.deadline else ""
    return ("moving" if drain.move else "finishing") + until


def _when(moment: datetime | None) -> str:
    """Return a moment of today as its time, any other with its date."""
    if moment is None:
        return ""
    local = moment.astimezone()
    today = local.date() == datetime.now(UTC).astimezone().date()
    return local.strftime("%H:%M:%S" if today else "%Y-%m-%d %H:%M")
